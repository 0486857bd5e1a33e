"""Traffic and roofs of layers in a profile, as far as the report's plots; no timing is asserted."""

import dataclasses
import shutil

import pytest

from edgekit import report, tables
from edgekit.bundle import open_bundle
from edgekit.deploy import profile_paths
from edgekit.devices.boards import board
from edgekit.onnx_file import read
from edgekit.profile import Plan
from edgekit.profile.layers import ADDED
from edgekit.profile.traffic import with_traffic
from edgekit.report.plots import figures
from edgekit.traffic.fused import fused
from edgekit.traffic.model import traffic_bytes
from tests.report_bundles import INT8, make_bundle

PI = board("raspberry_pi_5")


@pytest.fixture(scope="module")
def profiled(bundle, tmp_path_factory):
    """A copy of the bundle, profiled layer by layer with a board's caches."""
    path = tmp_path_factory.mktemp("profiled") / "b"
    shutil.copytree(bundle.path, path)
    return open_bundle(path), profile_paths([path], Plan(runs=8, layers=True, board=PI.name))


def test_the_layers_of_a_file_have_all_its_traffic_and_its_nodes_names(profiled):
    made, found = profiled
    assert found["settings"]["board"] == PI.name and found["settings"]["llc_bytes"] == PI.caches.llc.size_bytes
    for row in found["rows"]:
        path = made.path / row["file"]
        moved = sum(item["traffic_model_bytes"] for item in row["traffic_layers"])
        assert moved == traffic_bytes(fused(path), PI.caches.llc.size_bytes)
        assert {item["layer"] for item in row["traffic_layers"]} <= {
            ADDED,
            *(node.name for node in read(path).graph.node),
        }
        assert all(item["least_ms"] > 0 and item["bound"] in ("compute", "memory") for item in row["traffic_layers"])


def test_the_roofs_are_those_of_the_cores_and_the_precision(profiled):
    made, found = profiled
    peaks = {row["file"]: row["roofline"] for row in found["rows"]}
    assert peaks[made.base.name] == {
        "board": PI.name,
        "macs_per_s": pytest.approx(19.2e9),
        "bytes_per_s": pytest.approx(17.1e9),
    }
    assert peaks[made.model("onnxruntime", "int8").name]["macs_per_s"] == pytest.approx(76.8e9)
    for threads, cores in ((3, 3), (16, 4), (0, 4)):
        plan = Plan(threads=threads, layers=True, board=PI.name)
        row = with_traffic({**found, "rows": found["rows"][:1]}, {made.base.name: made.base}, plan)["rows"][0]
        assert row["roofline"]["macs_per_s"] == pytest.approx(cores * 19.2e9)


def test_the_report_draws_both_of_every_file(profiled):
    made, found = profiled
    paths = {path.name: path for path in (made.base, *made.models)}
    made.add("profile", with_traffic(found, paths, Plan(layers=True, llc="8KiB")))  # of a cache that holds no tensor
    (entry,) = report.bundle_entries([made])
    drawn = {name for name, _, _ in figures([entry])}
    for path in (made.base, *made.models):
        assert {f"b.{path.name}.roofline", f"b.{path.name}.layers.traffic_model_bytes"} <= drawn
        convolutions = [row for row in entry.layers[path.name] if row.get("macs") and row.get("ms")]
        assert convolutions and all(row["intensity"] > 0 and row["gmacs_per_s"] > 0 for row in convolutions)
        assert [corner.get("label") for corner in entry.roofs[path.name]] == [None, PI.name, None]
    known = {"a": [{"layer": "x", "ms": 1.0}], "b": [{"layer": "x", "ms": 1.0}], "c": [{"layer": "x"}]}
    assert dataclasses.replace(entry, layers=known).first_shown == "b", "the last of those of which most is known"


def test_a_device_has_plots_of_its_own(tmp_path):
    bundle = make_bundle(tmp_path / "b", ["a", "c"])
    kept = bundle.latest("profile")
    rows = [{**row, "latency_ratio": row["latency_ms"], "ratio_to": INT8} for row in kept["rows"]]
    bundle.add("profile", {**kept, "rows": rows, "device": "pi"})
    (entry,) = report.bundle_entries([bundle])
    assert f"{INT8} on pi" in entry.layers and len(entry.roofs[f"{INT8} on pi"]) == 3
    assert entry.layers[f"{INT8} on pi"][0]["gain_db"] == 1.0


def test_without_a_board_there_is_traffic_and_no_roof(profiled, capsys):
    made, found = profiled
    row = {**found["rows"][0], "roofline": None}
    plain = with_traffic({**found, "rows": [row]}, {made.base.name: made.base}, Plan(layers=True, llc="48KiB"))
    assert plain["settings"]["llc_bytes"] == 48 * 1024 and plain["rows"][0]["roofline"] is None
    assert all(set(item) == {"layer", "traffic_model_bytes"} for item in plain["rows"][0]["traffic_layers"])
    tables.show_profile(plain)
    assert "least ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"engine": "openvino"}, "this one runs in openvino"),
        ({"batch": 4}, "ran at batch 4"),
        ({"file": "gone.onnx"}, "gone.onnx: no such file"),
    ],
)
def test_why_there_is_no_traffic(profiled, changes, reason, capsys):
    made, found = profiled
    row = {**{key: value for key, value in found["rows"][0].items() if key != "traffic_layers"}, **changes}
    paths = {made.base.name: made.base, "gone.onnx": made.path / "gone.onnx"}
    told = with_traffic({**found, "rows": [row]}, paths, Plan(layers=True))
    assert reason in told["rows"][0]["traffic_layers_unknown"]
    tables.show_profile(told)
    assert f"traffic of layers not modelled: {told['rows'][0]['traffic_layers_unknown']}" in capsys.readouterr().out
