"""Cut a file in two without training: what crosses is the activation at the cut, quantised and range-coded.

The plain way of split computing, and the baseline of those that train. At a tensor that alone separates input from
output each channel is rounded to 2^bits levels, with ends for the calibration images (`edgekit.onnx_split` has the
arithmetic). The tables for coding are counted on the same images later, by the head that ships.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict

from edgekit.context import RewriteContext
from edgekit.cuts import onnx_cuts
from edgekit.errors import BadInput
from edgekit.onnx_split import Crossing, grid, with_latent
from edgekit.quant.calibrate import batch_size, whole
from edgekit.quant.session import open_session, with_outputs
from edgekit.rewrites.fold import QUANTISED

if TYPE_CHECKING:
    import onnx

PIXELS = 256
"""Of each channel and picture that ranges are chosen by, evenly spread."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Cut at a layer's output and quantise what crosses.

    Attributes:
        cut: a node, or a module of which the last node counts (`edgekit inspect MODEL --cuts` lists them).
        bits: of a symbol.
        images: how many calibration images.
    """

    cut: str
    bits: Annotated[int, Ge(1), Le(8)] = 8
    images: Annotated[int, Gt(0)] = 64
    precision: ClassVar[str | None] = "split"
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __call__(self, model: onnx.ModelProto, ctx: RewriteContext) -> onnx.ModelProto:
        """Raises BadInput where the graph is quantised, the cut is none, or there are no calibration images."""
        if any(node.op_type in QUANTISED for node in model.graph.node):
            raise BadInput("split: the graph is quantised already; put `split` before `int8`")
        cut = onnx_cuts(model).at(self.cut)
        low, step = grid(self._values(model, cut.tensor, ctx), 2**self.bits)
        ctx.log(f"split: {cut.layer} as {'×'.join(map(str, cut.shape))} symbols of {self.bits} bits")
        return with_latent(model, cut.tensor, low, step, 2**self.bits)

    @property
    def crossing(self) -> Crossing:
        return Crossing(self.cut, "activation", 2**self.bits)

    def _values(self, model: onnx.ModelProto, tensor: str, ctx: RewriteContext) -> np.ndarray:
        """What each channel holds on the calibration images: (C, images · pixels)."""
        size, session = batch_size(model), open_session(with_outputs(model, [tensor]))
        found = []
        batches = ctx.track(whole(ctx.calibration(self.images, size), size), "ranges", -(-self.images // size))
        for batch in batches:
            values = session.run(None, {model.graph.input[0].name: batch})[0]
            values = values.reshape(*values.shape[:2], -1)  # (B, C, H · W)
            values = values[:, :, :: max(1, values.shape[2] // PIXELS)]
            found.append(values.transpose(1, 0, 2).reshape(values.shape[1], -1))
        held = np.concatenate(found, axis=1)
        if not np.isfinite(held).all():
            raise BadInput(f"split: {tensor!r} holds values that are not finite on a calibration image")
        return held
