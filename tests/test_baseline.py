"""What gates compare with: a bundle, the small JSON of one, and what is refused."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekit import report
from edgekit.baseline import open_baseline, own_baseline, write_baseline
from edgekit.bundle import Bundle, open_bundle
from edgekit.errors import BadInput
from edgekit.files import read_json, write_json
from edgekit.gate import Gate
from edgekit.judge import judge
from edgekit.metrics.resample import RESAMPLES, packed
from edgekit.recipe import parse_gates

ROOT = Path(__file__).parents[1]


WHOLE = {"file": "a", "target": "t", "precision": "int8", "correct": "ff", "n": 8}


@pytest.fixture
def written(bundle, tmp_path):
    write_baseline(tmp_path / "baseline.json", bundle)
    return tmp_path / "baseline.json"


def edited(path, **changes):
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | changes))
    return path


def scored_elsewhere(bundle: Bundle) -> Bundle:
    data = {**bundle.manifest["data"], "test": {"n": 1, "sha256": "0" * 64}}
    return dataclasses.replace(bundle, manifest={**bundle.manifest, "data": data})


def test_a_bundle_and_its_json_give_the_same_verdicts(bundle, written):
    gates = {
        "size_bytes": [Gate(max_ratio=1.0)],
        "top1": [Gate(max_drop=0.0), Gate(max_drop=0.1, test="significant")],
        "params": [Gate(max_drop=0.0, target="onnx*")],
    }
    found = judge(bundle, gates, open_baseline(written, bundle))
    assert found == judge(bundle, gates, open_baseline(bundle.path, bundle))
    assert {verdict.outcome for verdict in found} == {"pass"}


def test_the_json_keeps_every_answer_and_is_small(bundle, written):
    rows = {row["file"]: row for row in open_baseline(written, bundle).rows}
    assert {name: row["correct"] for name, row in rows.items()} == {
        row["file"]: row["correct"] for row in report.shipped(bundle)
    }
    assert written.stat().st_size < 10_000


def test_answers_that_fill_no_whole_byte_come_back(bundle, written):
    rows = [{**WHOLE, "correct": "ffe0", "n": 11}]
    (row,) = open_baseline(edited(written, rows=rows), bundle).rows
    assert row["correct"] == "1" * 11


def test_the_json_keeps_resampled_metrics(bundle, tmp_path):
    values = packed(np.linspace(0, 100, RESAMPLES))
    steps = [{**step, "miou": 50.0, "resampled": {"miou": values}} for step in bundle.manifest["steps"]]
    dense = dataclasses.replace(bundle, manifest={**bundle.manifest, "steps": steps})
    write_baseline(tmp_path / "dense.json", dense)
    gates = {"miou": [Gate(max_drop=0.0, test="significant")]}
    assert {verdict.outcome for verdict in judge(dense, gates, open_baseline(tmp_path / "dense.json", dense))} == {
        "pass"
    }
    assert (tmp_path / "dense.json").stat().st_size < 20_000


def test_a_profile_is_read_once(bundle, monkeypatch):
    read, again = [], dataclasses.replace(bundle)
    monkeypatch.setattr("edgekit.bundle.read_json", lambda path, schema: read.append(path) or read_json(path, schema))
    report.markdown(again)
    assert len(read) == 1


def test_without_one_the_uncompressed_network_is_the_baseline(bundle):
    (row,) = {row["file"] for row in own_baseline(bundle).rows}
    assert row == bundle.base.name


def test_latency_compares_by_the_ratio_to_the_same_base(bundle, written):
    (verdict,) = judge(bundle, {"latency_ms": [Gate(max_ratio=1.0, precision="int8")]}, open_baseline(written, bundle))
    assert verdict.value == 1.0 and verdict.low < 1.0 < verdict.high


def on_device(bundle: Bundle, folder: Path, latency_ms: float, ratio: float, cpu: str = "Cortex-A76") -> Bundle:
    """A copy of a bundle that was measured on `pi`, too: its base in 10 ms, its int8 file in `latency_ms`."""
    shutil.copytree(bundle.path, folder)
    made, files = open_bundle(folder), (bundle.base.name, bundle.model("onnxruntime", "int8").name)
    rows = [
        {"file": name, "latency_ms": spread(ms), "latency_ratio": spread(share), "ratio_to": files[0], "unstable": []}
        for name, ms, share in zip(files, (10.0, latency_ms), (1.0, ratio))
    ]
    fixed = {"settings": {"engines": {"onnxruntime": "1"}}, "machine": {"cpu": cpu}}
    made.add("profile", {"device": "pi", "rows": rows, **fixed})
    return made


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": 0.99 * median, "high": 1.01 * median}


PI = {"latency_ms": [Gate(max_ratio=0.75, device="pi")], "size_bytes": [Gate(max_ratio=1.0, device="pi")]}


def test_a_device_compares_with_what_was_measured_on_it(bundle, tmp_path):
    new, old = (on_device(bundle, tmp_path / name, ms, ms / 10) for name, ms in (("new", 7.0), ("old", 10.0)))
    write_baseline(tmp_path / "old.json", old)
    for against in (None, open_baseline(old.path, new), open_baseline(tmp_path / "old.json", new)):
        latency, _ = judge(new, PI, against)
        assert latency.value == pytest.approx(0.7) and latency.outcome == "pass"
        assert latency.file == f"{new.model('onnxruntime', 'int8').name} on pi"


def test_a_device_that_the_baseline_does_not_know(bundle, tmp_path):
    new = on_device(bundle, tmp_path / "new", 7.0, 0.7)
    with pytest.raises(BadInput, match="nothing of it was measured on pi"):
        judge(new, PI, open_baseline(bundle.path, new))
    other = on_device(bundle, tmp_path / "other", 7.0, 0.7, cpu="Cortex-A72")
    (verdict, _) = judge(new, PI, open_baseline(other.path, new))
    assert verdict.outcome == "fail" and "profile both bundles on one device" in verdict.reason


def test_the_newest_profile_of_a_device_and_engine_counts(bundle, tmp_path):
    made = on_device(bundle, tmp_path / "made", 7.0, 0.7)
    (before,) = made.device_profiles
    newer = {**before, "rows": [{**row, "latency_ms": spread(1.0)} for row in before["rows"]]}
    write_json(made.path / "profile" / "99990101T000000Z-00000000.json", newer)
    made.add("profile", {**before, "settings": {"engines": {"tensorrt": "10"}}, "rows": []})
    assert [len(found["rows"]) for found in made.device_profiles] == [2, 0]
    assert [row["latency_ms"]["median"] for row in report.device_rows(made)] == [1.0, 1.0]


def test_latency_of_another_run_or_processor_is_not_compared(bundle, written):
    rows = [{**row, "cpu": "another"} for row in json.loads(written.read_text())["rows"]]
    found = open_baseline(edited(written, rows=rows), bundle)
    (verdict,) = judge(bundle, {"latency_ms": [Gate(max_ratio=2.0, precision="int8")]}, found)
    assert verdict.outcome == "fail" and "another run" in verdict.reason


@pytest.mark.parametrize(
    ("ratio", "outcomes"),
    [
        ({"median": 1.0, "low": 0.98, "high": 1.02}, ["pass", "fail"]),
        ({"median": 1.0, "low": 0.6, "high": 1.2}, ["inconclusive", "fail"]),
    ],
)
def test_latency_against_a_bundle_is_measured_side_by_side(bundle, monkeypatch, ratio, outcomes):
    asked = []

    def compare(first, second, plan, max_ratio, **_track):
        asked.append((first.path, second.path, plan.seconds, max_ratio))
        return {"ratio": ratio}

    monkeypatch.setattr("edgekit.judge.compare", compare)
    gates = {"latency_ms": [Gate(max_ratio=limit, precision="int8") for limit in (1.05, 0.5)]}
    found = judge(bundle, gates, open_baseline(bundle.path, bundle), seconds=9)
    assert [verdict.outcome for verdict in found] == outcomes
    file = bundle.model("onnxruntime", "int8")
    assert asked == [(file, file, 9, limit) for limit in (1.05, 0.5)]


def test_a_ratio_that_no_time_was_enough_for_is_inconclusive(bundle, monkeypatch):
    monkeypatch.setattr("edgekit.judge.compare", lambda *_given, **_more: {"ratio": None})
    gates = {"latency_ms": [Gate(max_ratio=1.05, precision="int8")]}
    (verdict,) = judge(bundle, gates, open_baseline(bundle.path, bundle))
    assert verdict.outcome == "inconclusive"


def test_other_samples_are_refused_unless_allowed(bundle, written):
    other = scored_elsewhere(bundle)
    with pytest.raises(BadInput, match=r"other test samples.*--allow data"):
        open_baseline(written, other)
    (verdict,) = judge(other, {"top1": [Gate(max_drop=1.0, precision="int8")]}, open_baseline(written, other, ["data"]))
    assert verdict.value == 0.0 and verdict.low < verdict.high, "not paired: the same answers still leave doubt"


def test_another_target_is_refused_unless_allowed(bundle, written):
    rows = [{**row, "target": "tensorrt"} for row in json.loads(written.read_text())["rows"]]
    edited(written, rows=rows)
    gates = {"size_bytes": [Gate(max_ratio=1.0)]}
    with pytest.raises(BadInput, match=r"no file for onnxruntime.*it has tensorrt.*--allow target"):
        judge(bundle, gates, open_baseline(written, bundle))
    allowed = judge(bundle, gates, open_baseline(written, bundle, ["target"]))
    assert {verdict.outcome for verdict in allowed} == {"pass"}
    absolute = {"size_bytes": [Gate(max=10**9)]}
    assert {verdict.outcome for verdict in judge(bundle, absolute, open_baseline(written, bundle))} == {"pass"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "edgekit/baseline/2"}, "newer edgekit"),
        ({"schema": "edgekit/bundle/1"}, "schema is not edgekit/baseline"),
        ({"rows": [{"file": "a"}]}, "no whole baseline"),
        ({"rows": [{"file": "a", "target": "t", "precision": "int8", "correct": "ff", "n": 800}]}, "no whole baseline"),
        ({"rows": [{"file": "a", "target": "t", "precision": "int8", "correct": "zz", "n": 8}]}, "no whole baseline"),
        ({"rows": [{"file": 1, "target": "t", "precision": "int8", "correct": "ff", "n": 8}]}, "no whole baseline"),
        ({"rows": [WHOLE | {"top1": float("nan")}]}, "top1 = nan"),
        ({"rows": [WHOLE | {"size_bytes": "4000"}]}, "size_bytes = 4000"),
        ({"rows": [WHOLE | {"latency_ms": {"median": 1.0, "low": 0.5}}]}, "'high'"),
        ({"rows": [WHOLE | {"resampled": {"miou": "00"}}]}, "no whole baseline"),
        ({"rows": [WHOLE | {"resampled": 5}]}, "no whole baseline"),
    ],
)
def test_a_damaged_baseline_is_refused(bundle, written, changes, message):
    with pytest.raises(BadInput, match=message):
        open_baseline(edited(written, **changes), bundle)


def test_a_baseline_that_is_not_there_is_named(bundle, tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        open_baseline(tmp_path / "none.json", bundle)


@pytest.mark.parametrize("limit", ["nan", "inf"])
def test_limits_are_numbers(limit):
    with pytest.raises(BadInput, match="no limit"):
        parse_gates({"top1": {"min": float(limit)}}, "gates.toml")


def test_the_action_uses_what_it_declares():
    text = (ROOT / "action.yml").read_text()
    declared = re.findall(r"^  (\w+): \{ description", text, re.MULTILINE)
    assert set(re.findall(r"\$\{\{ inputs\.(\w+) \}\}", text)) == set(declared)
    script = text.partition("run: |\n")[2].partition("      env:")[0]
    assert "${{" not in script, "what a user gives reaches the shell as a variable, never as its text"
