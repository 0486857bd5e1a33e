"""Gates: limits on what a bundle measured, decided as pass, fail or inconclusive.

    metric = { max, min, max_drop, max_ratio, target, precision, device, cpu, test }

`max_drop` and `max_ratio` compare with the baseline: another bundle, a baseline file, or the uncompressed network of
the same bundle. A drop in accuracy is paired over the samples. A metric that was not measured fails. test = "point"
compares the measured value itself; "significant" asks that the whole interval lies on one side of the limit, and what
lies on both is inconclusive. So a ratio's limit is the effect that counts: max_ratio = 1.05 passes a network that is
surely less than 5 % slower.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from edgekit.errors import unknown
from edgekit.metrics.resample import unpacked
from edgekit.vocabulary import METRICS

Row = dict[str, Any]
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
            and _matches(self.device, _device(row))
            and (cpus is None or any(_matches(cpu, row.get("cpu", "")) for cpu in cpus))
        )


def _device(row: Row) -> str:
    return str(row.get("device", "local"))


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
                devices = ", ".join(dict.fromkeys(map(_device, rows))) or "no device"
                reason = f"no file of that target, precision, device and processor was measured; devices: {devices}"
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
    file = f"{row['file']} on {row['device']}" if "device" in row else row["file"]

    def failed(reason: str) -> Verdict:
        return Verdict(metric, file, rule, limit, "fail", reason=reason)

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
    outcome = _decide(rule, limit, *found, gate.test or _test(metric))
    return Verdict(metric, file, rule, limit, outcome, *found, NOT_PAIRED if found[1:] == ANY_DROP else "")


def _compared(metric: str, rule: str, row: Row, baseline: Row) -> tuple[float, float, float] | None:
    """The drop or ratio against the baseline, with its interval; an exact metric's interval is the point itself."""
    if baseline.get(metric) is None:
        return None
    if rule == "max_ratio" and metric == "latency_ms":
        return latency_ratio(row, baseline)
    if metric.startswith("latency_") and not same_run(row, baseline):
        return None
    reference, point = _spread(baseline[metric])[0], _spread(row[metric])[0]
    if rule == "max_ratio":
        result = point / reference if reference else math.inf
    else:
        result = round(reference - point, 9)  # 98.4 - 98.1 is a little more than 0.3 in binary
        if METRICS[metric].accuracy:
            return result, *_likely_drop(metric, baseline, row)
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
    if metric.startswith("latency_") and baseline and "device" in baseline:
        return (
            "the baseline was measured there beside another network; profile both bundles on one device, or give none"
        )
    if metric.startswith("latency_") and baseline and baseline.get(metric):
        return "the baseline's latency is of another run; give its bundle, whose file is measured beside this one"
    return "the baseline has no such metric"


def _spread(value: Any) -> tuple[float, float, float]:
    return (value["median"], value["low"], value["high"]) if isinstance(value, dict) else (value, value, value)


ANY_DROP = (-100.0, 100.0)
NOT_PAIRED = "not paired: of one of the two it is not known what it got right sample by sample"


def _likely_drop(metric: str, baseline: Row, row: Row) -> tuple[float, float]:
    """The 95 % bootstrap interval of the drop in points, paired where both were scored on the same samples; ANY_DROP
    where too little was kept of one of them."""
    drops = _top1_drops(baseline, row) if metric == "top1" else _resampled_drops(metric, baseline, row)
    if drops is None:
        return ANY_DROP
    low, high = np.quantile(drops, [0.025, 0.975])
    return float(low), float(high)


def _top1_drops(baseline: Row, row: Row) -> np.ndarray | None:
    texts = (item.get("correct", "").encode() for item in (baseline, row))
    before, after = (np.frombuffer(text, np.int8) - ord("0") for text in texts)
    if not len(before) or not len(after):
        return None
    rng = np.random.default_rng(0)
    if baseline.get("other_samples") or len(before) != len(after):
        return _means(rng, before) - _means(rng, after)
    return _means(rng, before - after)


def _means(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Means, in percent, of resamples of whole numbers: how often each number is drawn is multinomial."""
    numbers, counts = np.unique(values, return_counts=True)
    return 100 * (rng.multinomial(len(values), counts / len(values), RESAMPLES) @ numbers) / len(values)


def _resampled_drops(metric: str, baseline: Row, row: Row) -> np.ndarray | None:
    kept = [item.get("resampled") or {} for item in (baseline, row)]
    if not all(metric in texts for texts in kept):
        return None
    before, after = (unpacked(texts[metric]) for texts in kept)
    # Beside each other's next resample the two are independent, as they are of other samples.
    return before - (np.roll(after, 1) if baseline.get("other_samples") else after)


def _test(metric: str) -> str:
    return "significant" if METRICS[metric].noisy else "point"


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
