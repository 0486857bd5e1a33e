"""The last step before a file is written: the form that [export] asks for, held against the plain file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bottlenecks import bottleneck_of
from edgekit.data import Input, Output
from edgekit.engines import runner
from edgekit.errors import ParityError
from edgekit.export import serialise
from edgekit.parity import agreement, sqnr_db
from edgekit.rewrites.camera import camera_ready
from edgekit.targets import Target

if TYPE_CHECKING:
    import onnx
    from torch import nn

IO = tuple[Input, Output]
NOISE = 4
GOLDEN_DB = {"fp32": 60.0, "fp16": 40.0, "int8": 25.0, "split": 25.0}
"""How close `verify` asks the golden outputs to be; int8 kernels round differently from one processor to another, and
so do the symbols of a cut network."""


def golden_db(module: nn.Module) -> dict[str, float]:
    """`GOLDEN_DB`; less where a network has a latent, of which a symbol may lie on the edge to the next."""
    return dict.fromkeys(GOLDEN_DB, GOLDEN_DB["split"]) if bottleneck_of(module) else GOLDEN_DB


def ship(
    model: onnx.ModelProto, wanted: Target, plain: IO, asked: IO, needed_db: float, pixels: np.ndarray | None = None
) -> tuple[onnx.ModelProto, float | None]:
    """The model as `asked`, and how close its scores are to those of the plain one in dB; None where it stays plain.

    Args:
        plain, asked: what the model takes and gives, and what its file shall.
        needed_db: how close that has to be.
        pixels: pictures uint8 (B, C, H, W) to compare on; noise if None.

    Raises:
        BadInput: as `camera_ready`.
        ParityError: the scores are further apart, or the classes are not those of the largest scores.
    """
    if asked == plain:
        return model, None
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, (NOISE, *plain[0].shape), np.uint8)
    runtime = runner(wanted)
    expected = _answers(runtime, model, plain[0], pixels)
    scores = _answers(runtime, camera_ready(model, wanted, asked[0], plain[1]), asked[0], pixels)
    if (found := sqnr_db(expected, scores)) < needed_db:
        raise ParityError(
            f"the file of {asked[0].form} differs from the plain one: {found:.1f} dB, needed {needed_db:.0f}"
        )
    made = camera_ready(model, wanted, *asked)
    if asked[1].form != "scores":
        classes = _answers(runtime, made, asked[0], pixels)
        best = plain[1].scores(scores).argmax(axis=1)
        if (same := agreement(best, classes[:, 0] if asked[1].form == "topk" else classes)) < 100:
            raise ParityError(f"{asked[1].form} gives the class of the largest score for {same:.1f} % of the answers")
    return made, found


def _answers(runtime: Any, model: onnx.ModelProto, input: Input, pixels: np.ndarray) -> np.ndarray:
    return runtime.load(serialise(model)).run(input.normalised(pixels))
