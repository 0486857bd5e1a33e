"""Cross-checks of the traffic of layers by other programs, for accelerators whose memories a program fills, where this
package models caches.

They count each layer by itself, at 8 bits an element and batch 1: its input comes from the accelerator's last memory
and its output goes back there, so nothing stays between two layers. Only convolutions and products are counted.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit.context import Track, no_progress
from edgekit.errors import BadInput, unknown
from edgekit.onnx_file import read
from edgekit.traffic.accelerator.program import Program, once_bytes, plain
from edgekit.traffic.accelerator.scalesim import SCALE_SIM
from edgekit.traffic.accelerator.zigzag import ZIGZAG

PROGRAMS = {"scalesim": SCALE_SIM, "zigzag": ZIGZAG}


def cross_check(
    name: str, path: Path, track: Track = no_progress, log: Callable[[str], None] = lambda _line: None
) -> dict[str, Any]:
    """What another program counts for each layer of a float file that it takes; beside it `once_bytes`, those of the
    layer's tensors, each once. `uncounted` are the convolutions and products that it does not take.

    Raises:
        BadInput: there is none of that name, it is not installed or cannot run here, or it cannot take the file.
    """
    if name not in PROGRAMS:
        raise unknown("cross-check", name, PROGRAMS)
    program = PROGRAMS[name]
    _installed(name, program)
    model = plain(read(path), path)
    try:
        counted = program.count(model, track, log)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except Exception as error:  # they raise whatever comes
        raise BadInput(f"{path}: {program.title} cannot take it ({type(error).__name__}: {error})") from None
    once = once_bytes(model)
    return {
        "by": name,
        "version": metadata.version(program.package),
        "accelerator": program.accelerator,
        "layers": [
            {"layer": layer, **counted[layer], "traffic_bytes": sum(counted[layer].values()), "once_bytes": size}
            for layer, size in once.items()
            if layer in counted
        ],
        "uncounted": [layer for layer in once if layer not in counted],
    }


def _installed(name: str, program: Program) -> None:
    """Raises BadInput where it is not, or with other packages than it runs with."""
    get = f"get it by `pip install 'edgekit[{name}]'`"
    try:
        importlib.import_module(program.module)
    except ImportError as error:
        raise BadInput(f"--cross-check {name}: cannot be imported ({error}); {get}") from None
    if (reason := program.unfit()) is not None:
        raise BadInput(f"--cross-check {name}: {reason}; {get}, best into an environment of its own")
