"""Programs that run a file: `load(path)` gives a session whose `run(batch)` gives the first output for a batch of
`dtype` and (B, *`shape`): float32 (C, H, W), or uint8 (H, W, C) where the file takes a camera's pixels.

Each has `missing()`, why it cannot run here, and `version()`; those of targets also `executed_ops(path)` and
`int8_convs(path)`. A session's `fork()` gives one for another thread to run at the same time.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgekit.engines import onnxruntime, openvino, torch
from edgekit.engines.tensorrt import TENSORRT
from edgekit.errors import BadInput, unknown
from edgekit.machine import int8_saturates
from edgekit.targets import Target

ENGINES: dict[str, Any] = {"onnxruntime": onnxruntime, "openvino": openvino, "torch": torch, **TENSORRT}


NO_VNNI = "this processor has no VNNI, and its int8 kernels would saturate"


def engine(name: str) -> Any:
    """Raises BadInput for an engine that is not in ENGINES."""
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    return ENGINES[name]


@dataclasses.dataclass(frozen=True)
class Runner:
    """What runs the files of a target here.

    Attributes:
        name: of the engine.
        reason: why this is not the target's own engine, or not on the target's processor; None where it is.
    """

    name: str
    reason: str | None = None

    def load(self, model: Path | bytes) -> Any:
        """A session. A stand-in computes what the file says, Q/DQ by Q/DQ: its own int8 kernels are another target's,
        and saturate on processors without VNNI."""
        return engine(self.name).load(model, optimise=self.reason is None)

    def int8_convs(self, path: Path) -> int:
        """How many convolutions run as int8; where another engine stands in, how many the file asks for."""
        if self.reason is None:
            return engine(self.name).int8_convs(path)
        import onnx

        from edgekit.quant.targets import quantised_convs

        return len(quantised_convs(onnx.load(path)))

    def __str__(self) -> str:
        return self.name if self.reason is None else f"{self.name}, standing in: {self.reason}"


def runner(wanted: Target) -> Runner:
    """The target's own engine where it can run here, else its stand-in.

    Raises:
        BadInput: its engine cannot run here and nothing stands in for it.
    """
    reason = engine(wanted.engine).missing()
    if reason is None:
        return Runner(wanted.engine, NO_VNNI if wanted.full_range and int8_saturates() else None)
    if wanted.stand_in is None:
        raise BadInput(f"{wanted.engine} cannot run a file here: {reason}")
    return Runner(wanted.stand_in, reason)
