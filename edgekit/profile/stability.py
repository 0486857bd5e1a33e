"""Whether a measurement can be trusted: what its times show, and what the machine did meanwhile.

A file's times are unstable where
- its warm-up did not settle within its second,
- the medians of the first and the second half differ by more than 5 %, or
- half of the times lie more than 20 % of the median apart.
The machine was disturbed where, from the first round to the last,
- other processes took more than 10 % of its cores, or other virtual machines more than 2 %,
- its fastest clock changed by more than 5 %, or
- it throttled: for heat, for want of power, or because a container had used up its share.
Files that are compared in one run were disturbed alike: their ratio may be good where their times are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DRIFT, SPREAD, OTHERS, STOLEN, CLOCK = 0.05, 0.20, 0.10, 0.02, 0.05


def unstable(times_ms: Sequence[float], settled: bool = True) -> list[str]:
    """What is wrong with the times of a file, in the order they were taken; nothing where they are stable."""
    times = np.asarray(times_ms, np.float64)
    first, second = (float(np.median(half)) for half in np.array_split(times, 2))
    quarter, middle, three = (float(value) for value in np.quantile(times, (0.25, 0.5, 0.75)))
    found = []
    if not settled:
        found.append("still warming up after a second")
    if abs(second / first - 1) > DRIFT:
        found.append(f"drifts: {second / first - 1:+.0%} from the first half to the second")
    if (three - quarter) / middle > SPREAD:
        found.append(f"scatters: half of the times are {(three - quarter) / middle:.0%} of the median apart")
    return found


def disturbed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What disturbed the machine between two of the runner's records of it."""
    passed_s = max(after["at_s"] - before["at_s"], 1e-9) * before["cores"]
    found = []
    if before["busy_s"] is not None:
        own, busy, stolen = (after[name] - before[name] for name in ("own_cpu_s", "busy_s", "stolen_s"))
        if (others := (busy - own) / passed_s) > OTHERS:
            found.append(f"other processes took {others:.0%} of the processor")
        if stolen / passed_s > STOLEN:
            found.append(f"other virtual machines took {stolen / passed_s:.0%} of the processor")
    if before["clocks_mhz"] and after["clocks_mhz"]:
        slow, fast = sorted((max(before["clocks_mhz"]), max(after["clocks_mhz"])))
        if fast / slow - 1 > CLOCK:
            found.append(f"the clock went between {slow:.0f} and {fast:.0f} MHz")
    return [*found, *_throttled(before["throttled"], after["throttled"])]


RASPBERRY_PI = {0: "too little voltage", 1: "its clock capped", 2: "throttled", 3: "at its limit of temperature"}
"""What the low bits say is so now."""


def _throttled(before: Mapping[str, int], after: Mapping[str, int]) -> list[str]:
    bits = after.get("raspberry_pi_bits", 0) | before.get("raspberry_pi_bits", 0)
    found = [f"the board is {text}" for bit, text in RASPBERRY_PI.items() if bits >> bit & 1]
    for name, text in (("core_throttle_count", "for heat"), ("cgroup_nr_throttled", "at its container's limit")):
        if (times := after.get(name, 0) - before.get(name, 0)) > 0:
            found.append(f"the processor was throttled {text} ({times} times)")
    return found
