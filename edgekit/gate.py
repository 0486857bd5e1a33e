"""Gates: limits on what a bundle measured, decided as pass, fail or inconclusive.

    metric = { max, min, max_drop, max_ratio, target, precision, device, cpu, test }

`max_drop` and `max_ratio` compare with the baseline: another bundle, or the uncompressed network of the same one. A
metric that was not measured fails. test = "point" compares the measured value itself; "significant" asks that the whole
95 % interval lies on one side, and what lies on both is inconclusive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from edgekit.errors import BadInput, unknown

Row = dict[str, Any]
METRICS = (
    "params macs cio cio_paper size_bytes transport_bytes weight_bytes peak_bytes arena_bytes resident_load_bytes "
    "resident_run_bytes load_ms latency_ms energy_j top1 top5 miou pixel_accuracy map map50 parity_db int8_convs"
).split()
LIMITS = ("max", "min", "max_drop", "max_ratio")


@dataclasses.dataclass(frozen=True)
class Gate:
    """One limit on one metric of the files of a target and precision; None means every one that was measured."""

    max: float | None = None
    min: float | None = None
    max_drop: float | None = None
    max_ratio: float | None = None
    target: str | None = None
    precision: str | None = None
    device: str = "local"
    cpu: str | None = None
    test: Literal["point", "significant"] = "point"

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in LIMITS):
            raise ValueError(f"a gate needs at least one of {', '.join(LIMITS)}")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How one limit came out. `value` and `limit` are in the metric's unit, or a ratio for max_ratio."""

    metric: str
    file: str
    rule: str
    limit: float
    outcome: Literal["pass", "fail", "inconclusive"]
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def check_names(gates: dict[str, Any], where: str) -> None:
    """Raises BadInput for a metric that no bundle holds."""
    for name in gates:
        if name not in METRICS:
            raise unknown("metric", name, METRICS, where)


def judge(
    gates: Mapping[str, Sequence[Gate]], rows: Sequence[Row], baseline: Callable[[Row], Row | None]
) -> list[Verdict]:
    """Judge every gate on every shipped file it names.

    Args:
        rows: a record per shipped file (see report.rows): file, target, precision and the metrics by name.
        baseline: gives the record that max_drop and max_ratio compare a row with.
    """
    verdicts: list[Verdict] = []
    for metric, wanted in gates.items():
        for gate in wanted:
            chosen = [row for row in rows if _applies(gate, row)]
            if not chosen:
                verdicts.append(_missing(metric, gate, "-", "no file of that target and precision"))
            for row in chosen:
                verdicts += _judge(metric, gate, row, baseline(row))
    return verdicts


def _applies(gate: Gate, row: Row) -> bool:
    return gate.target in (None, row["target"]) and gate.precision in (None, row["precision"])


def _missing(metric: str, gate: Gate, file: str, reason: str) -> Verdict:
    rule = next(name for name in LIMITS if getattr(gate, name) is not None)
    return Verdict(metric, file, rule, getattr(gate, rule), "fail", reason=reason)


def _judge(metric: str, gate: Gate, row: Row, baseline: Row | None) -> list[Verdict]:
    if row.get(metric) is None or gate.device != "local" or gate.cpu is not None:
        return [_missing(metric, gate, row["file"], "not measured")]
    verdicts = []
    for rule in LIMITS:
        limit = getattr(gate, rule)
        if limit is None:
            continue
        if rule in ("max_drop", "max_ratio") and (baseline is None or baseline.get(metric) is None):
            verdicts.append(Verdict(metric, row["file"], rule, limit, "fail", reason="the baseline has no such metric"))
            continue
        point, low, high = _measure(metric, rule, row, baseline)
        outcome = _decide(rule, limit, point, low, high, gate.test)
        verdicts.append(Verdict(metric, row["file"], rule, limit, outcome, point, low, high))
    return verdicts


def _measure(metric: str, rule: str, row: Row, baseline: Row | None) -> tuple[float, float, float]:
    """The value that a rule limits, with its interval; an exact metric's interval is the point itself."""
    value = row[metric]
    if rule in ("max", "min") or baseline is None:
        return _spread(value)
    if rule == "max_ratio" and metric == "latency_ms" and row.get("ratio_to") == baseline["file"]:
        return _spread(row["latency_ratio"])
    if rule == "max_drop" and "correct" in row and metric == "top1":
        return _paired_drop(baseline, row)
    reference, point = _spread(baseline[metric])[0], _spread(value)[0]
    result = reference - point if rule == "max_drop" else point / reference if reference else float("inf")
    return result, result, result


def _spread(value: Any) -> tuple[float, float, float]:
    return (value["median"], value["low"], value["high"]) if isinstance(value, dict) else (value, value, value)


def _paired_drop(baseline: dict[str, Any], row: dict[str, Any]) -> tuple[float, float, float]:
    """Drop in top-1 points over the same samples, with a paired bootstrap interval (1,000 resamples)."""
    before, after = (np.array([c == "1" for c in item["correct"]], float) for item in (baseline, row))
    if len(before) != len(after):
        raise BadInput("the baseline was scored on other samples; give one made with the same data")
    difference = 100 * (before - after)
    resampled = np.random.default_rng(0).choice(difference, (1000, len(difference))).mean(axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def _decide(
    rule: str, limit: float, point: float, low: float, high: float, test: str
) -> Literal["pass", "fail", "inconclusive"]:
    if test == "point":
        low = high = point
    if rule == "min":
        return "pass" if low >= limit else "fail" if high < limit else "inconclusive"
    return "pass" if high <= limit else "fail" if low > limit else "inconclusive"


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """0 all passed, 1 one failed, 3 none failed but one is inconclusive."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return 1 if "fail" in outcomes else 3 if "inconclusive" in outcomes else 0
