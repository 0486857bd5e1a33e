"""Sizes in a bundle's rows, gates on them, and the tables that show them."""

import dataclasses
import json

import pytest

from edgekit import report, tables
from edgekit.gate import Gate
from edgekit.judge import judge
from edgekit.terminal import show
from edgekit.transport.pack import transport_bytes

EXACT = ("transport_bytes", "weight_bytes", "peak_bytes")


def test_every_file_of_a_bundle_has_its_sizes(bundle):
    steps = {row["file"]: row for row in bundle.manifest["steps"]}
    for path in (bundle.base, *bundle.models):
        row = steps[path.name]
        assert row["transport_bytes"] == transport_bytes(path.read_bytes())
        assert row["weight_bytes"] < row["size_bytes"] == path.stat().st_size
    fp32, int8 = (steps[f"model.onnxruntime.{precision}.onnx"] for precision in ("fp32", "int8"))
    assert all(int8[key] < fp32[key] for key in EXACT)


def test_the_profile_of_a_bundle_has_what_the_runtime_takes(bundle):
    rows = {row["file"]: row for row in bundle.latest("profile")["rows"]}
    for path in (bundle.base, *bundle.models):
        row = rows[path.name]
        assert row["resident_load_bytes"] >= 0 and row["resident_run_bytes"] > 0 and row["arena_bytes"] > 0
        assert row["peak_bytes"] == next(s["peak_bytes"] for s in bundle.manifest["steps"] if s["file"] == path.name)


@pytest.mark.parametrize("metric", [*EXACT, "arena_bytes"])
def test_sizes_are_gated(bundle, metric):
    verdicts = judge(bundle, {metric: [Gate(max_ratio=1.0, precision="int8"), Gate(max=1, precision="int8")]})
    assert [verdict.outcome for verdict in verdicts] == ["pass", "fail"]


def test_bits_a_weight_are_of_the_uncompressed_network(bundle):
    int8 = next(row for row in report.shipped(bundle) if row["precision"] == "int8")
    bits = 8 * int8["transport_bytes"] / report.base_row(bundle)["params"]
    (cells,) = [cells for cells in report.size_rows(bundle) if cells[0] == int8["stage"]]
    assert cells[3] == f"{bits:.2f}" and cells[1] == f"{int8['size_bytes'] / 1e6:.3f}"
    assert f"| {' | '.join(cells)} |" in report.markdown(bundle)


def test_the_table_of_sizes_fits_80_columns(bundle, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    show(report.size_table(bundle))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert all(title in out for title in report.SIZES if " " not in title)


def test_a_bundle_from_before_has_no_table_of_sizes(bundle):
    steps = [{k: v for k, v in row.items() if k not in EXACT} for row in bundle.manifest["steps"]]
    old = dataclasses.replace(bundle, manifest=bundle.manifest | {"steps": steps})
    assert report.size_table(old) is None and "packed" not in report.markdown(old)


def test_energy_is_printed_with_its_meter(capsys):
    of = {"median": 0.0123, "low": 0.012, "high": 0.013, "level": 0.95, "n": 8}
    row = {"file": "a.onnx", "engine": "onnxruntime", "energy_j": of}
    energy = {"onnxruntime": {"meter": "RAPL, package-0", "idle_w": of | {"median": 7.26}}}
    tables.show_energy({"rows": [row], "energy": energy})
    out = capsys.readouterr().out
    assert "0.0123 [0.012, 0.013]" in out and "RAPL, package-0; idle 7.3 W" in out
    tables.show_energy({"rows": [row], "energy": {"onnxruntime": {"missing": "no such file"}}})
    assert "energy in onnxruntime: no meter here: no such file" in capsys.readouterr().out


def test_the_document_is_json(bundle):
    assert json.loads(json.dumps(report.document(bundle)))["rows"][0]["transport_bytes"] > 0
