"""Gates: every rule, exact and statistical, and what is missing."""

import dataclasses

import numpy as np
import pytest

from edgekit import report
from edgekit.errors import BadInput
from edgekit.gate import Gate, exit_code, judge
from edgekit.metrics.resample import RESAMPLES, packed
from edgekit.recipe import parse_gates
from edgekit.vocabulary import METRICS


def row(**values):
    return {"file": "model.onnxruntime.int8.onnx", "target": "onnxruntime", "precision": "int8", **values}


def outcome(metric: str, gate: Gate, found: dict, baseline: dict | None = None) -> str:
    (verdict,) = judge({metric: [gate]}, [found], lambda _row: baseline)
    return verdict.outcome


@pytest.mark.parametrize(
    ("gate", "value", "expected"),
    [
        (Gate(max=10), 10, "pass"),
        (Gate(max=10), 10.01, "fail"),
        (Gate(min=10), 10, "pass"),
        (Gate(min=10), 9.99, "fail"),
        (Gate(max_ratio=0.25), 25, "pass"),
        (Gate(max_ratio=0.25), 26, "fail"),
        (Gate(max_drop=5), 95, "pass"),
        (Gate(max_drop=5), 94.9, "fail"),
    ],
)
def test_exact_metrics_compare_exactly(gate, value, expected):
    assert outcome("size_bytes", gate, row(size_bytes=value), {"file": "base", "size_bytes": 100}) == expected


def test_a_missing_metric_fails():
    assert outcome("latency_ms", Gate(max=1), row()) == "fail"
    assert outcome("top1", Gate(max_drop=1), row(top1=90.0), None) == "fail"
    assert outcome("top1", Gate(min=1, device="ssh://pi"), row(top1=90.0)) == "fail"


def test_a_gate_that_no_file_answers_fails():
    assert outcome("top1", Gate(min=1, target="tensorrt"), row(top1=90.0)) == "fail"


def test_a_gate_for_one_precision_leaves_the_others_alone():
    rows = [row(top1=90.0), {**row(top1=10.0), "precision": "fp32"}]
    verdicts = judge({"top1": [Gate(min=50, precision="int8")]}, rows, lambda _row: None)
    assert [verdict.outcome for verdict in verdicts] == ["pass"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_fails(value):
    assert outcome("top1", Gate(min=1), row(top1=value)) == "fail"
    assert outcome("top1", Gate(max_drop=1), row(top1=90.0), {"file": "base", "top1": value}) == "fail"


@pytest.mark.parametrize(
    ("gate", "applies"),
    [
        (Gate(min=1, target="onnx*"), True),
        (Gate(min=1, target="tensorrt*"), False),
        (Gate(min=1, precision="int?"), True),
        (Gate(min=1, cpu="AMD*"), True),
        (Gate(min=1, cpu=("Intel*", "ARM*")), False),
        (Gate(min=1, device="ssh://*"), False),
    ],
)
def test_gates_choose_files_by_globs(gate, applies):
    (verdict,) = judge({"top1": [gate]}, [row(top1=2.0, cpu="AMD EPYC")], lambda _row: None)
    assert (verdict.outcome, verdict.file == "-") == (("pass", False) if applies else ("fail", True))


@pytest.mark.parametrize(
    ("low", "high", "point", "significant"),
    [(8, 9, "pass", "pass"), (9, 12, "pass", "inconclusive"), (11, 13, "fail", "fail")],
)
def test_intervals_decide_only_when_asked(low, high, point, significant):
    value = {"median": (low + high) / 2 - 0.6, "low": low, "high": high}
    assert outcome("latency_ms", Gate(max=10, test="point"), row(latency_ms=value)) == point
    assert outcome("latency_ms", Gate(max=10), row(latency_ms=value)) == significant
    assert outcome("load_ms", Gate(max=10, test="significant"), row(load_ms=value)) == significant


def test_latency_ratio_is_the_interleaved_one():
    found = row(latency_ms={"median": 5, "low": 5, "high": 5}, ratio_to="base",
                latency_ratio={"median": 0.5, "low": 0.45, "high": 0.55})  # fmt: skip
    baseline = {"file": "base", "latency_ms": {"median": 1, "low": 1, "high": 1}}
    assert outcome("latency_ms", Gate(max_ratio=0.6), found, baseline) == "pass"
    assert outcome("latency_ms", Gate(max_ratio=0.6), found, {**baseline, "file": "other"}) == "fail"


def test_accuracy_drop_is_paired_over_the_same_samples():
    rng = np.random.default_rng(0)
    before = rng.random(2000) < 0.9
    after = before & (rng.random(2000) < 0.98)
    text = ["".join("1" if hit else "0" for hit in hits) for hits in (before, after)]
    base = {"file": "base", "top1": 100 * before.mean(), "correct": text[0]}
    found = row(top1=100 * after.mean(), correct=text[1])
    assert outcome("top1", Gate(max_drop=5.0, test="significant"), found, base) == "pass"
    assert outcome("top1", Gate(max_drop=0.5, test="significant"), found, base) == "fail"
    assert outcome("top1", Gate(max_drop=1.8, test="significant"), found, base) == "inconclusive"


def test_a_drop_that_is_the_limit_passes():
    assert 98.4 - 98.1 > 0.3, "in binary"
    assert outcome("top1", Gate(max_drop=0.3), row(top1=98.1), {"file": "base", "top1": 98.4}) == "pass"


def test_the_interval_is_that_of_resampled_answers():
    rng = np.random.default_rng(1)
    before, after = (rng.random((2, 2000)) < [[0.9], [0.88]]).astype(int)
    texts = ["".join(map(str, hits)) for hits in (before, after)]
    base = {"file": "base", "top1": 100 * before.mean(), "correct": texts[0]}
    (verdict,) = judge({"top1": [Gate(max_drop=1)]}, [row(top1=100 * after.mean(), correct=texts[1])], lambda _r: base)
    drops = [100 * (before - after)[rng.integers(0, 2000, 2000)].mean() for _ in range(2000)]
    assert (verdict.low, verdict.high) == pytest.approx(np.quantile(drops, [0.025, 0.975]), abs=0.4)


def resampled(spread: float, mean: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, spread, RESAMPLES)


@pytest.mark.parametrize("metric", ["miou", "map", "top5"])
def test_drops_of_other_metrics_are_paired_resample_by_resample(metric):
    before = resampled(2.0, 60.0)
    after = before - resampled(0.1, 1.0, seed=1)
    base, found = (row(**{metric: values.mean(), "resampled": {metric: packed(values)}}) for values in (before, after))
    for limit, expected in ((1.5, "pass"), (0.5, "fail"), (1.0, "inconclusive")):
        assert outcome(metric, Gate(max_drop=limit, test="significant"), found, base) == expected
    elsewhere = base | {"other_samples": True}
    assert outcome(metric, Gate(max_drop=1.5, test="significant"), found, elsewhere) == "inconclusive"


@pytest.mark.parametrize("metric", ["miou", "map", "top1"])
def test_without_what_was_right_a_drop_is_undecided_and_says_so(metric):
    found, base = row(**{metric: 59.0}), row(**{metric: 60.0})
    (verdict,) = judge({metric: [Gate(max_drop=5, test="significant")]}, [found], lambda _row: base)
    assert verdict.outcome == "inconclusive" and "not paired" in report.verdict_line(verdict)
    assert "not paired" in report.verdicts_markdown([verdict])
    assert outcome(metric, Gate(max_drop=5), found, base) == "pass"


def test_answers_of_unequal_number_are_not_paired():
    found, base = row(top1=50.0, correct="01" * 20), row(top1=50.0, correct="01" * 21)
    (verdict,) = judge({"top1": [Gate(max_drop=1)]}, [found], lambda _row: base)
    assert verdict.low < verdict.value == 0 < verdict.high


@pytest.mark.parametrize("rule", ["max_drop", "max_ratio"])
@pytest.mark.parametrize("metric", ["latency_ms", "latency_p99_ms"])
def test_times_of_two_runs_are_never_compared(metric, rule):
    found, base = row(**{metric: 1.0}), row(**{metric: 2.0})
    (verdict,) = judge({metric: [Gate(**{rule: 5.0})]}, [found], lambda _row: base)
    assert verdict.outcome == "fail" and "another run" in verdict.reason


def test_an_unknown_metric_is_told_all_known_ones():
    with pytest.raises(BadInput, match="unknown metric 'speed'") as error:
        parse_gates({"speed": {"min": 1}}, "gates.toml")
    assert str(error.value).endswith(", ".join(sorted(METRICS)))


@pytest.mark.parametrize(
    "tables",
    [5, {"top1": 5}, {"top1": []}, {"top1": [5]}, {"top1": {}}, {"top1": {"minimum": 5}}, {"top1": {"min": "a"}}],
)
def test_what_is_no_gate_is_refused(tables):
    with pytest.raises(BadInput, match=r"gates\.toml"):
        parse_gates(tables, "gates.toml")


def test_exit_codes():
    (ok,) = judge({"top1": [Gate(min=1)]}, [row(top1=2.0)], lambda _row: None)
    failed, undecided = (dataclasses.replace(ok, outcome=outcome) for outcome in ("fail", "inconclusive"))
    assert exit_code([ok]) == 0 and exit_code([ok, undecided]) == 3 and exit_code([undecided, failed]) == 1


def test_junit_survives_hostile_names():
    from xml.etree import ElementTree

    (verdict,) = judge({"top1": [Gate(min=5)]}, [{**row(top1=2.0), "file": '<&">.onnx'}], lambda _row: None)
    suite = ElementTree.fromstring(report.junit([verdict]))
    assert suite.get("failures") == "1" and suite[0].get("classname") == '<&">.onnx'
