"""What ONNX Runtime's arena holds while a file runs, from the statistics that its profile gives for every operator.

The arena serves activations and the scratch memory of kernels, and holds the weights that no kernel has packed in a
form of its own. It is asked over whole runs: the first one allocates value by value, later ones in one planned block.

Source: ONNX Runtime's pull request 29058 (`mem_bytes_in_use` and `mem_in_use_peak` of each event), read in the profiles
of version 1.31.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.devices.runner import Session

IN_USE, GAINED, PEAK = "mem_bytes_in_use", "mem_in_use_delta", "mem_in_use_peak"


def arena_bytes(session: Session) -> int | None:
    """The most that the arena had in use during the runs of a session that was loaded with `profile`, above what
    loading left there: activations, scratch memory and what rounding to whole chunks wastes. None where this ONNX
    Runtime notes no memory. The session notes nothing more afterwards."""
    events = json.loads(Path(session.raw.end_profiling()).read_bytes())
    return most_in_use([event["args"] for event in events if IN_USE in event.get("args", {})])


def most_in_use(noted: Sequence[dict[str, Any]]) -> int | None:
    """`arena_bytes` from what was noted of each operator, in order.

    The peak is the arena's since it was made, so it counts from where it rises: until then loading may have made it.
    """
    if not noted:
        return None
    before = int(noted[0][IN_USE]) - int(noted[0][GAINED])
    peaks = [int(after[PEAK]) for now, after in itertools.pairwise(noted) if int(after[PEAK]) > int(now[PEAK])]
    return max(*peaks, *(int(item[IN_USE]) for item in noted), before) - before
