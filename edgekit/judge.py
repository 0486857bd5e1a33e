"""Gates judged on a bundle. Ratios of latencies are those of files measured beside each other, until they are known."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from edgekit import gate, report
from edgekit.baseline import Baseline, own_baseline
from edgekit.bundle import Bundle
from edgekit.context import Track, no_progress
from edgekit.engines import engine
from edgekit.gate import Gate, Row, Verdict
from edgekit.profile import Plan, Subject
from edgekit.profile.compare import compare
from edgekit.targets import target

SECONDS = 60.0
UNKNOWN = {"median": 1.0, "low": 0.0, "high": sys.float_info.max}
"""Too few rounds for any interval."""


def judge(
    bundle: Bundle,
    gates: Mapping[str, Sequence[Gate]],
    baseline: Baseline | None = None,
    seconds: float = SECONDS,
    track: Track = no_progress,
) -> list[Verdict]:
    """Judge gates on what a bundle measured, against a baseline or its own uncompressed network.

    Args:
        seconds: for each ratio of latencies here that is not known yet: the bundle's profile does not hold it, or it
            lies on both sides of the limit. On devices nothing is measured anew.
    """
    against = baseline or own_baseline(bundle)
    measured = bundle.latest("profile") or {"settings": {"threads": 1}}
    plan = Plan(seconds=seconds, threads=measured["settings"]["threads"])

    def beside(row: Row, other: Row, limit: float) -> Row:
        runs = target(row["target"]).engine
        if against.bundle is None or "device" in row or _known(row, other, limit) or engine(runs).missing():
            return row
        first = Subject("baseline", against.bundle.path / other["file"], runs)
        found = compare(first, Subject("this", bundle.path / row["file"], runs), plan, max_ratio=limit, track=track)
        pair = {"ratio_to": other["file"], "ratio_sha256": other["sha256"]}
        return {**row, **pair, "latency_ratio": found["ratio"] or UNKNOWN}

    return gate.judge(gates, report.judged(bundle), against.row, beside)


def _known(row: Row, other: Row, limit: float) -> bool:
    """Whether the two ran in the same rounds, and their ratio is on one side of the limit."""
    if not gate.same_run(row, other):
        return False
    return not row["latency_ratio"]["low"] <= limit < row["latency_ratio"]["high"]
