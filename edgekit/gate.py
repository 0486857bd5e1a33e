"""Gates: limits on what a bundle measured, decided as pass, fail or inconclusive.

    metric = { max, min, max_drop, max_ratio, target, precision, device, cpu, test }

`max_drop` and `max_ratio` compare with the baseline: another bundle, a baseline file, or the uncompressed network of
the same bundle. A metric that was not measured fails. test = "point" compares the measured value itself; "significant"
asks that the whole interval lies on one side of the limit, and what lies on both is inconclusive. So a ratio's limit is
the effect that counts: max_ratio = 1.05 passes a network that is surely less than 5 % slower.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from edgekit.errors import unknown

Row = dict[str, Any]
METRICS = (
    "params macs cio cio_paper size_bytes transport_bytes latent_bytes traffic_model_bytes weight_bytes peak_bytes "
    "arena_bytes "
    "resident_load_bytes resident_run_bytes load_ms latency_ms energy_j top1 top5 miou pixel_accuracy map map50 "
    "parity_db int8_convs"
).split()
NOISY = ("latency_ms", "energy_j")
LIMITS = ("max", "min", "max_drop", "max_ratio")
Outcome = Literal["pass", "fail", "inconclusive"]
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Gate:
    """One limit on one metric of the files that `target`, `precision`, `device` and `cpu` name, all of them globs.

    None means every file that was measured; `cpu` may name several. `test` is "significant" for times and energy, which
    vary from run to run, and "point" for other metrics.
    """

    max: float | None = None
    min: float | None = None
    max_drop: float | None = None
    max_ratio: float | None = None
    target: str | None = None
    precision: str | None = None
    device: str = "local"
    cpu: str | tuple[str, ...] | None = None
    test: Literal["point", "significant"] | None = None

    def __post_init__(self) -> None:
        given = {name: value for name in LIMITS if (value := getattr(self, name)) is not None}
        if not given:
            raise ValueError(f"a gate needs at least one of {', '.join(LIMITS)}")
        for name, value in given.items():
            if not math.isfinite(value):
                raise ValueError(f"{name} = {value} is no limit; write a finite number")

    @property
    def limits(self) -> dict[str, float]:
        return {name: value for name in LIMITS if (value := getattr(self, name)) is not None}

    @property
    def compares(self) -> bool:
        """Whether it asks the baseline."""
        return self.max_drop is not None or self.max_ratio is not None

    def names(self, row: Row) -> bool:
        """Whether the gate is about the file of this row."""
        cpus = (self.cpu,) if isinstance(self.cpu, str) else self.cpu
        return (
            _matches(self.target, row["target"])
            and _matches(self.precision, row["precision"])
            and _matches(self.device, row.get("device", "local"))
            and (cpus is None or any(_matches(cpu, row.get("cpu", "")) for cpu in cpus))
        )


def _matches(glob: str | None, name: str) -> bool:
    return glob is None or fnmatchcase(name, glob)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How one limit came out. `value` and `limit` are in the metric's unit, or a ratio for max_ratio."""

    metric: str
    file: str
    rule: str
    limit: float
    outcome: Outcome
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
    gates: Mapping[str, Sequence[Gate]],
    rows: Sequence[Row],
    baseline: Callable[[Row], Row | None],
    beside: Callable[[Row, Row, float], Row] = lambda row, _other, _limit: row,
) -> list[Verdict]:
    """Judge every gate on every shipped file it names.

    Args:
        rows: a record per shipped file (see report.rows): file, target, precision and the metrics by name.
        baseline: gives the record that max_drop and max_ratio compare a row with.
        beside: gives a row with its `latency_ratio` to the baseline's file, known as well as a limit asks for.
    """
    verdicts: list[Verdict] = []
    for metric, wanted in gates.items():
        for gate in wanted:
            chosen = [row for row in rows if gate.names(row)]
            if not chosen:
                reason = "no file of that target and precision was measured on that device and processor"
                verdicts += [
                    Verdict(metric, "-", rule, limit, "fail", reason=reason) for rule, limit in gate.limits.items()
                ]
            for row in chosen:
                against = baseline(row) if gate.compares else None
                for rule, limit in gate.limits.items():
                    timed = against if (metric, rule) == ("latency_ms", "max_ratio") else None
                    known = beside(row, timed, limit) if timed else row
                    verdicts.append(_judge(metric, gate, rule, known, against))
    return verdicts


def _judge(metric: str, gate: Gate, rule: str, row: Row, baseline: Row | None) -> Verdict:
    limit = gate.limits[rule]

    def failed(reason: str) -> Verdict:
        return Verdict(metric, row["file"], rule, limit, "fail", reason=reason)

    if row.get(metric) is None:
        return failed("not measured")
    found: tuple[float, float, float] | None
    if rule in ("max", "min"):
        found = _spread(row[metric])
    else:
        found = _compared(metric, rule, row, baseline) if baseline else None
    if found is None:
        return failed(_without(metric, baseline))
    if not all(map(math.isfinite, found)):
        return failed(f"measured as {found[0]}, which is no number to judge")
    return Verdict(metric, row["file"], rule, limit, _decide(rule, limit, *found, gate.test or _test(metric)), *found)


def _compared(metric: str, rule: str, row: Row, baseline: Row) -> tuple[float, float, float] | None:
    """The drop or ratio against the baseline, with its interval; an exact metric's interval is the point itself."""
    if baseline.get(metric) is None:
        return None
    if rule == "max_ratio" and metric == "latency_ms":
        return latency_ratio(row, baseline)
    if rule == "max_drop" and metric == "top1" and row.get("correct") and baseline.get("correct"):
        return _drop(baseline, row)
    reference, point = _spread(baseline[metric])[0], _spread(row[metric])[0]
    result = reference - point if rule == "max_drop" else point / reference if reference else math.inf
    return result, result, result


def latency_ratio(row: Row, baseline: Row) -> tuple[float, float, float] | None:
    """Of files measured interleaved; else of their ratios to the same third file, each measured in its own run.

    Latencies of two runs, or of two processors, are never compared themselves.
    """
    if same_run(row, baseline):
        return _spread(row["latency_ratio"])
    if not row.get("ratio_sha256") or any(row.get(key) != baseline.get(key) for key in ("ratio_sha256", "cpu")):
        return None
    own, other = row["latency_ratio"], baseline["latency_ratio"]
    return own["median"] / other["median"], own["low"] / other["high"], own["high"] / other["low"]


def same_run(row: Row, baseline: Row) -> bool:
    """Whether both files were measured interleaved."""
    return row.get("ratio_to") == baseline["file"] and row.get("ratio_sha256") == baseline.get("sha256")


def _without(metric: str, baseline: Row | None) -> str:
    """Why there is nothing to compare with."""
    if metric == "latency_ms" and baseline and baseline.get(metric):
        return "the baseline's latency is of another run; give its bundle, whose file is measured beside this one"
    return "the baseline has no such metric"


def _spread(value: Any) -> tuple[float, float, float]:
    return (value["median"], value["low"], value["high"]) if isinstance(value, dict) else (value, value, value)


def _drop(baseline: Row, row: Row) -> tuple[float, float, float]:
    """Drop in top-1 points with a bootstrap interval, paired where both were scored on the same samples."""
    before, after = (100 * np.array([c == "1" for c in item["correct"]], float) for item in (baseline, row))
    rng = np.random.default_rng(0)
    if baseline.get("other_samples"):
        drops = _means(rng, before) - _means(rng, after)
    else:
        drops = _means(rng, before - after)
    low, high = np.quantile(drops, [0.025, 0.975])
    return float(before.mean() - after.mean()), float(low), float(high)


def _means(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    return rng.choice(values, (RESAMPLES, len(values))).mean(axis=1)


def _test(metric: str) -> str:
    return "significant" if metric in NOISY else "point"


def _decide(rule: str, limit: float, point: float, low: float, high: float, test: str) -> Outcome:
    if test == "point":
        low = high = point
    if rule == "min":
        return "pass" if low >= limit else "fail" if high < limit else "inconclusive"
    return "pass" if high <= limit else "fail" if low > limit else "inconclusive"


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """0 all passed, 1 one failed, 3 none failed but one is inconclusive."""
    outcomes = {verdict.outcome for verdict in verdicts}
    return 1 if "fail" in outcomes else 3 if "inconclusive" in outcomes else 0
