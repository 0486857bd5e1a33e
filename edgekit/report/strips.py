"""Where a gate's interval lies beside its limit, as places on a strip."""

from __future__ import annotations

from typing import NamedTuple

from edgekit.gate import Verdict


class Strip(NamedTuple):
    """Places in percent of the strip's width."""

    low: float
    high: float
    value: float
    limit: float


def strip(verdict: Verdict) -> Strip | None:
    """The strip of a verdict, or None where nothing was measured or its interval is not known."""
    if verdict.value is None or verdict.reason:
        return None
    low = verdict.value if verdict.low is None else verdict.low
    high = verdict.value if verdict.high is None else verdict.high
    ends = (low, high, verdict.value, verdict.limit)
    margin = 0.1 * (max(ends) - min(ends)) or 1.0
    start, width = min(ends) - margin, max(ends) - min(ends) + 2 * margin
    return Strip(*(round(100 * (each - start) / width, 1) for each in ends))
