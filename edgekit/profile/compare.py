"""Which of two files is faster: both run once in each round, in random order, until the ratio of their times is known.

The verdict follows from the confidence sequence of the rounds' median ratio (see `edgekit.statistics`), which holds at
every look at once; looking after every few rounds and stopping at will costs nothing in certainty.

    slower     the whole interval lies above 1 + floor
    faster     the whole interval lies below 1 / (1 + floor)
    same       the whole interval lies between the two: no difference that counts
    undecided  none of these when the time was over

Two sessions of one file differ a little, as their memory lies elsewhere; the floor stands above that. Which of two
identical files is the slower one in a round is a coin's throw, since the order is; so a wrong "faster" or "slower" has
probability 0.001 at most, however noisy the machine is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.context import Track, no_progress
from edgekit.devices import runner
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.profile.local import Subject, open_timed
from edgekit.profile.plan import Plan
from edgekit.profile.stability import disturbed, unstable
from edgekit.statistics import interval, sequence

LOOK = 10
"""Rounds before the first look, and tenths of them all that are added before the next."""


def compare(
    first: Subject,
    second: Subject,
    plan: Plan,
    floor: float = 0.02,
    max_ratio: float | None = None,
    track: Track = no_progress,
) -> dict[str, Any]:
    """Measure until there is a verdict on SECOND, or `plan.seconds` are over (`edgekit/comparison/1`).

    Args:
        floor: the least difference that counts, as a share.
        max_ratio: measure until the interval is on one side of this ratio instead.

    Raises:
        BadInput: a file cannot be opened or run, or the floor or ratio is none.
    """
    if not 0 < floor < 1 or (max_ratio is not None and max_ratio <= 0):
        raise BadInput(f"--floor {floor:g}: give a share between 0 and 1, and a --max-ratio above 0")
    versions = runner.versions() | {item.engine: engine(item.engine).version() for item in (first, second)}
    rows, pairs = zip(*open_timed((first, second), plan))
    warm = [runner.warm_up(*pair) for pair in pairs]
    before = runner.machine()
    series, ratio = _series(pairs, plan, floor, max_ratio, track)
    after = runner.machine()
    found = [
        {
            "file": item.name,
            "engine": item.engine,
            **row,
            "latency_ms": interval(times),
            "unstable": unstable(times, ok),
        }
        for item, row, times, ok in zip((first, second), rows, series, warm)
    ]
    return {
        "schema": "edgekit/comparison/1",
        "rows": found,
        "verdict": verdict(ratio, floor),
        "ratio": ratio,
        "floor": floor,
        "max_ratio": max_ratio,
        "seconds": after["at_s"] - before["at_s"],
        "settings": {"versions": versions, "threads": plan.threads, "batch": plan.batch, "seed": plan.seed},
        "machine": before,
        "machine_after": after,
        "unstable": disturbed(before, after),
    }


def _series(
    pairs: Sequence[runner.Pair], plan: Plan, floor: float, max_ratio: float | None, track: Track
) -> tuple[list[list[float]], dict[str, float] | None]:
    """The milliseconds of both in every round, and the median ratio."""
    series: list[list[float]] = [[], []]
    ratio: dict[str, float] | None = None
    for look in track(runner.rounds(None, plan.seconds), "comparing", None):
        more = max(LOOK, len(series[0]) // LOOK)
        for times, new in zip(series, runner.interleave(pairs, range(more), seed=plan.seed + look)):
            times += new
        ratio = sequence(np.divide(series[1], series[0]).tolist())
        if settled(ratio, floor, max_ratio):
            break
    return series, ratio


def verdict(ratio: Mapping[str, float] | None, floor: float) -> str:
    """What an interval of the second's time over the first's says of the second."""
    if ratio is None:
        return "undecided"
    if ratio["low"] > 1 + floor:
        return "slower"
    if ratio["high"] < 1 / (1 + floor):
        return "faster"
    return "same" if ratio["low"] > 1 / (1 + floor) and ratio["high"] < 1 + floor else "undecided"


def settled(ratio: Mapping[str, float] | None, floor: float, max_ratio: float | None = None) -> bool:
    """Whether the interval is on one side of `max_ratio`, or without one, whether there is a verdict."""
    if max_ratio is None:
        return verdict(ratio, floor) != "undecided"
    return ratio is not None and not ratio["low"] <= max_ratio < ratio["high"]


def exit_code(found: Mapping[str, Any]) -> int:
    """1 where the ratio is above `max_ratio` beyond doubt, 3 where that, or without one the verdict, is undecided."""
    ratio, limit = found["ratio"], found["max_ratio"]
    if limit is None:
        return 3 if found["verdict"] == "undecided" else 0
    if ratio is not None and ratio["low"] > limit:
        return 1
    return 0 if ratio is not None and ratio["high"] <= limit else 3
