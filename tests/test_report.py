"""The report's figures, by closed forms, and its texts under hostile names and missing measurements."""

import json
import re
import sys
from xml.etree import ElementTree

import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from edgekit import report
from edgekit.cli import main
from edgekit.errors import BadInput
from edgekit.gate import Verdict
from edgekit.graph_onnx import layer_costs, onnx_cost
from edgekit.report.changes import changes
from edgekit.report.layers import file_layers
from edgekit.report.page import comparability, page
from edgekit.report.plots import tidy
from edgekit.report.strips import strip
from edgekit.report.tradeoff import front
from edgekit.vocabulary import METRICS, point
from tests.report_bundles import BASE, FP32, HOSTILE, INT8, chain, interval, make_bundle, profile, step

LAYERS = ["stem.conv", "blocks.0.conv", "head"]


def page_data(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_numbers_have_units():
    assert METRICS["size_bytes"].text(360670) == "361 kB"
    assert METRICS["macs"].text(15611136) == "15.6M"
    assert METRICS["top1"].text(98.9276) == "98.93 %"
    assert METRICS["latency_ms"].text(interval(20.0)) == "20.0 ms [18.0, 22.0]"
    assert METRICS["latency_ms"].text(interval(0.36258)) == "0.363 ms [0.326, 0.399]"
    assert METRICS["energy_j"].text(None) == METRICS["energy_j"].text(float("nan")) == "not measured"


def test_layers_add_up_to_the_file():
    model = chain(LAYERS)
    found = layer_costs(model)
    assert [row["layer"] for row in found] == LAYERS
    assert sum(row["macs"] for row in found) == onnx_cost(model)["macs"] == 3 * 4 * 4 * 4
    assert found[0] | {"bits": 32.0, "weights": 16, "channels_in": 4, "kind": "pointwise"} == found[0]


def test_bits_are_what_a_weight_takes_with_its_scale():
    assert layer_costs(chain(LAYERS, int8=True))[0]["bits"] == (16 * 8 + 32) / 16


def test_a_product_of_two_activations_has_no_weight():
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 3, 3]) for name in "ab"]
    node = onnx.helper.make_node("MatMul", ["a", "a"], ["b"], name="p")
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    (row,) = layer_costs(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]))
    assert (row["weights"], row["bits"], row["macs"]) == (0, None, 27)


def test_measurements_join_layers_by_name(tmp_path):
    bundle = make_bundle(tmp_path / "b", LAYERS)
    rows = {row["file"]: row for row in report.rows(bundle)}
    found = file_layers(bundle, rows[INT8] | {"layers": [*rows[INT8]["layers"], {"layer": "copy", "ms": 0.5}]})
    assert [row["layer"] for row in found] == [*LAYERS, "copy"]
    assert found[-1] == {"place": 3, "layer": "copy", "kind": "other", "ms": 0.5}
    assert found[1]["gain_db"] == 2.0
    assert found[1]["intensity"] == 16 / 110
    assert found[1]["gmacs_per_s"] == pytest.approx(16 / (1 / 3) / 1e6)
    assert "gain_db" not in file_layers(bundle, rows[FP32])[0]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12))
def test_no_point_of_the_front_is_beaten(pairs):
    points = [{"cost": cost, "accuracy": value} for cost, value in pairs]
    found = front(points, "cost")

    def beats(one, other):
        better = one["cost"] < other["cost"] or one["accuracy"] > other["accuracy"]
        return one["cost"] <= other["cost"] and one["accuracy"] >= other["accuracy"] and better

    assert not any(beats(one, other) for one in points for other in found)
    assert all(any(beats(one, item) or one == item for one in found) for item in points)


def test_changes_say_what_became_of_a_layer():
    def layer(name, channels_in, channels_out):
        return {"layer": name, "channels_in": channels_in, "channels_out": channels_out, "weights": 1000}

    edits = [
        {"edit": "keep_channels", "layer": "a", "dim": "out", "keep": [0]},
        {"edit": "factorise", "layer": "b", "form": "channel", "ranks": [8]},
        {"edit": "code_weight", "layer": "b.1", "k": 16, "m": 4},
        {"edit": "drop_block", "layer": "c"},
        {"edit": "of_another_day", "layer": "d"},
        {"edit": "keep_channels", "layer": "a.norm.of.another", "dim": "out", "keep": [0]},
    ]
    before = [layer("a", 3, 8), layer("b", 8, 8), layer("c.conv", 8, 8), layer("d", 8, 8)]
    after = [layer("a", 3, 4), layer("b.0", 4, 8), layer("b.1", 8, 8), layer("d", 8, 8)]
    found = {change.layer: change for change in changes(edits, before, after)}
    assert set(found) == {"a", "b", "c.conv", "d"}
    assert found["d"].what == ("of_another_day",) and found["d"].weights == "1k"
    assert found["a"].channels_out == "8 → 4"
    assert found["b"].what == ("low rank, channel form, rank 8", "codebook of 16 × 4 (part 1)")
    assert found["b"].weights == "1k → 2k"
    assert found["c.conv"].what == ("dropped with its block",)
    assert found["c.conv"].weights == "1k → 0"


def test_the_strip_holds_interval_and_limit():
    found = strip(Verdict("top1", "f", "max_drop", 2.0, "pass", 1.0, 0.0, 1.5))
    assert found and found.low < found.value < found.high < found.limit
    assert strip(Verdict("top1", "f", "max_drop", 2.0, "fail", reason="not measured")) is None
    assert strip(Verdict("miou", "f", "max_drop", 2.0, "inconclusive", 1.0, -100, 100, "not paired")) is None


def test_the_page_holds_figures_and_says_what_is_lacking(tmp_path):
    bundle = make_bundle(tmp_path / "b", LAYERS)
    html = page(report.bundle_entries([bundle]))
    for text in ("6.67× smaller", "4.00× faster", "−2.50 points", "inconclusive", "2.5 [0.5, 4.5]", "A CPU"):
        assert text in html
    assert "Not measured in this bundle: packed for transport, bits a weight" in html
    assert "edgekit compress" in html and "epochs = 2" in html
    assert "4 → 2" in html
    assert page_data(html)["entries"][0]["layers"][INT8]["macs"] == [16, 16, 16]


def test_the_page_is_the_same_for_the_same_bundle(tmp_path):
    bundle = make_bundle(tmp_path / "b", LAYERS)
    assert page(report.bundle_entries([bundle])) == page(report.bundle_entries([bundle]))


def test_an_unstable_measurement_says_so(tmp_path):
    bundle = make_bundle(tmp_path / "b", LAYERS, profiled=False)
    found = profile(LAYERS)
    found["rows"][1]["unstable"] = ["times drift by 12 %"]
    bundle.add("profile", {**found, "unstable": ["the load rose"]})
    html = page(report.bundle_entries([bundle]))
    assert html.count(">unstable</strong>") == 1
    assert f"{FP32}: unstable: times drift by 12 %" in html and "Unstable: the load rose" in html


def test_a_bundle_without_profile_gates_or_passes(tmp_path):
    bundle = make_bundle(tmp_path / "b", LAYERS, profiled=False, recipe={}, edits=[], runs={})
    html = page(report.bundle_entries([bundle]))
    assert "Not profiled yet: run edgekit profile b" in html
    assert "No gates were judged." in html
    assert page_data(html)["costs"]["classify"].keys() == {"size_bytes", "macs", "params"}
    assert "Latency was not measured." in report.card_markdown(bundle)


def test_hostile_names_stay_text(tmp_path):
    steps = [step("base", BASE, 4000, 90.0), step(HOSTILE, FP32, 2000, 88.0)]
    bundle = make_bundle(tmp_path / "b", [HOSTILE, "ok"], steps=steps, versions={HOSTILE: HOSTILE})
    bundle.add(
        "gates", {"verdicts": [{"metric": HOSTILE, "file": HOSTILE, "rule": HOSTILE, "limit": 1, "outcome": "fail"}]}
    )
    html = page(report.bundle_entries([bundle]))
    assert html.count("<script") == 3 and html.count("</script>") == 3
    assert "<script>window.stolen" not in html
    assert page_data(html)["entries"][0]["layers"][BASE]["layer"][0] == HOSTILE.replace("\x00", "�")
    lines = report.markdown(bundle, report.newest_verdicts(bundle)).splitlines()
    assert not any("<script" in line.replace("\\<", "") for line in lines)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")} == {9, 7}


def test_what_could_not_be_had_is_said_with_its_reason(tmp_path):
    steps = [
        step("base", BASE, 4000, 90.0),
        step("x", FP32, 2, 1.0, traffic_unknown="a: its shapes cannot be inferred"),
    ]
    bundle = make_bundle(tmp_path / "b", LAYERS, steps=steps, profiled=False)
    line = f"{FP32}: modelled traffic not known: a: its shapes cannot be inferred"
    assert line in report.notes(bundle) and line in page(report.bundle_entries([bundle]))
    kept = {**profile(LAYERS), "rows": [{"file": BASE, "layers_unknown": "they vary", "unstable": []}]}
    bundle.add("profile", kept)
    assert f"{BASE}: times of layers not known: they vary" in report.notes(bundle)


def test_junit_is_xml_whatever_the_names_hold():
    verdicts = [Verdict(HOSTILE, "\ud800" + HOSTILE, "max", 1.0, "fail", reason=HOSTILE)]
    (case,) = ElementTree.fromstring(report.junit(verdicts))
    assert case.get("classname", "").startswith("�</script>")
    assert "�" in case[0].get("message", "")


def test_plots_are_written_with_hostile_names(tmp_path):
    bundle = make_bundle(tmp_path / "b", [HOSTILE, "../../up"])
    entry = report.bundle_entries([bundle])[0]
    small = {**entry.__dict__, "layers": {INT8: entry.layers[INT8]}, "training": ()}
    files = report.write_plots([type(entry)(**small)], tmp_path / "plots")
    assert {path.parent for path in files} == {tmp_path / "plots"}
    for path in files:
        if path.suffix == ".svg":
            assert ElementTree.fromstring(path.read_bytes()).tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG")
    assert {f"b.{INT8}.layers.ms.svg", f"b.{INT8}.roofline.png", "tradeoff.classify.size_bytes.svg"} <= {
        path.name for path in files
    }


def test_what_forbids_a_comparison_is_said(tmp_path):
    one = make_bundle(tmp_path / "one", LAYERS)
    other = make_bundle(tmp_path / "other", LAYERS, profiled=False, data={"test": {"n": 9, "sha256": "cd" * 32}})
    other.add("profile", profile(LAYERS, cpu="B CPU"))
    lines = comparability(report.bundle_entries([one, other]))
    assert len(lines) == 2 and "different test samples" in lines[0]
    assert "different processors" in lines[1]


def test_tasks_do_not_mix(tmp_path):
    seg = step("base", BASE, 4000, 0.0, metrics={"miou": 60.0})
    other = make_bundle(tmp_path / "s", LAYERS, output={"task": "segment"}, steps=[seg])
    entries = report.bundle_entries([make_bundle(tmp_path / "c", LAYERS), other])
    assert "different tasks" in comparability(entries)[0]
    data = page_data(page(entries))
    assert data["tasks"] == {"classify": "top-1", "segment": "mIoU"}
    assert [bool(item["front"]) for item in data["points"] if item["task"] == "segment"] == [True]


def test_files_that_were_compared_make_a_page(tmp_path):
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path, channels in zip(files, (4, 2)):
        onnx.save(chain(LAYERS, channels), path)
    rows = [{"file": path.name, "latency_ms": interval(ms)} for path, ms in zip(files, (2.0, 1.0))]
    entry = report.comparison_entry(files, {"rows": rows, "machine": {"cpu": "C"}}, ["b.onnx is faster"])
    html = page([entry])
    assert "b.onnx is faster" in html and "1 ms [0.9, 1.1]" in html
    assert {item["series"]: item["share"] for item in entry.shares if item["stage"] == "1 b.onnx"}["latency"] == 0.5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"output": {"task": "paint"}}, "task 'paint' is none of classify"),
        ({"steps": [{"stage": "base"}]}, "step 0 lacks file, target"),
        ({"steps": [step("x", FP32, 1, 1.0)]}, "no step made base"),
    ],
)
def test_a_broken_manifest_is_named(tmp_path, change, message):
    bundle = make_bundle(tmp_path / "b", LAYERS, profiled=False, **change)
    with pytest.raises(BadInput, match=message):
        report.bundle_entries([bundle])


def run(*words: object):
    return CliRunner().invoke(main, ["report", *map(str, words)])


def test_commands_refuse_what_they_cannot_do(tmp_path):
    bundle = make_bundle(tmp_path / "b", LAYERS).path
    there = tmp_path / "there"
    there.mkdir()
    (there / "x").touch()
    for words, message in (
        ([there], "is no bundle"),
        ([bundle, bundle, "--out", tmp_path / "r.html"], "was given twice"),
        ([bundle, "--out", there / "x"], "exists; give another --out"),
        ([bundle, "--plots", there], "is not empty; give another --plots"),
        ([bundle, "--card", there / "x"], "exists; give another --card"),
        ([bundle, tmp_path / "b", "--card", tmp_path / "c.md"], "--card takes one bundle, not 2"),
    ):
        ended = run(*words)
        assert ended.exit_code == 2 and message in ended.output, ended.output
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("module", ["vl_convert", "tomli_w", "jinja2"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module):
    bundle = make_bundle(tmp_path / "b", LAYERS).path
    monkeypatch.setitem(sys.modules, module, None)
    ended = run(bundle, "--out", tmp_path / "r.html")
    assert ended.exit_code == 2 and f"need {module}" in ended.output and "edgekit[report]" in ended.output
    assert run(bundle, "--markdown").exit_code == 0


def test_several_bundles_in_one_comment(tmp_path):
    paths = [make_bundle(tmp_path / name / "b", LAYERS).path for name in ("x", "y")]
    printed = run(*paths, "--markdown").output
    assert "### x/b" in printed and "### y/b" in printed and printed.count("| base |") == 2
    documents = json.loads(run(*paths, "--json").output)["reports"]
    assert [item["rows"][0]["file"] for item in documents] == [BASE, BASE]


def test_the_card_names_licence_source_and_processor(tmp_path):
    weights = {"card": "mobilenet_v2_digits", "sha256": "e" * 64}
    source = {"kind": "zoo", "name": "mobilenet_v2", "args": {}, "weights": weights}
    bundle = make_bundle(tmp_path / "b", LAYERS, source=source)
    assert run(bundle.path, "--card", tmp_path / "card.md").exit_code == 0
    text = (tmp_path / "card.md").read_text()
    for part in ("Apache-2.0", "CC BY 4.0", "on A CPU", "top-1 87.50 %", "Pictures of 2 × 2 pixels"):
        assert part in text
    own = make_bundle(
        tmp_path / "o", LAYERS, source={"kind": "onnx", "name": "net.onnx", "args": {}, "sha256": "f" * 64}
    )
    assert "training data of net.onnx are not recorded" in report.card_markdown(own)


def test_tidy_leaves_nothing_json_lacks():
    assert tidy({"a": (float("nan"), 1.234567, "x\x00")}) == {"a": [None, 1.2346, "x�"]}
    assert point({"median": float("inf")}) is None
