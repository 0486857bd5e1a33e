"""Static int8 by ONNX Runtime's quantiser: uint8 activations, int8 weights per channel, Q/DQ form.

Where the target says so, weights keep to ±64 (`reduce_range`): the AVX2 kernels add pairs of uint8 × int8 products in
saturating int16, and 255 · (|w₁| + |w₂|) must stay below 2¹⁵ for the answer to be the same on every processor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Gt

from edgekit.context import RewriteContext
from edgekit.errors import BadInput
from edgekit.rewrites.fold import QUANTISED

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Int8:
    """Quantise convolutions, linear layers and what lies between them.

    Attributes:
        images: how many calibration images.
        calibrate: how the range of an activation is found.
    """

    images: Annotated[int, Gt(0)] = 200
    calibrate: Literal["minmax", "entropy", "percentile"] = "minmax"
    precision: ClassVar[str | None] = "int8"

    def __call__(self, model: onnx.ModelProto, ctx: RewriteContext) -> onnx.ModelProto:
        """Raises BadInput where the graph is quantised already, or nothing in it can be."""
        if any(node.op_type in QUANTISED for node in model.graph.node):
            raise BadInput("int8: the graph is quantised already")
        if not any(node.op_type in ("Conv", "Gemm", "MatMul") for node in model.graph.node):
            raise BadInput("int8: there is no convolution or linear layer to quantise")
        quantised = _quantise(model, self, ctx)
        ctx.log(f"int8: {self.images} calibration images, {count_quantised(quantised)} layers carry int8 weights")
        return quantised


def count_quantised(model: onnx.ModelProto) -> int:
    """How many convolutions and linear layers read their weight through DequantizeLinear."""
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return sum(node.input[1] in dequantised for node in layers)


class _Reader:
    """ONNX Runtime's quantiser asks for one feed after another until None."""

    def __init__(self, name: str, batches: Iterator[np.ndarray]) -> None:
        self.name, self.batches = name, batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def _quantise(model: onnx.ModelProto, settings: Int8, ctx: RewriteContext) -> onnx.ModelProto:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    batches = ctx.track(ctx.calibration(settings.images), "calibrating", settings.images)
    options: dict[str, Any] = {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "reduce_range": ctx.target.reduce_range,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "calibrate_method": CalibrationMethod[methods[settings.calibrate]],
    }
    with tempfile.TemporaryDirectory() as folder, _without_preprocess_hint():
        # By path: given a model, the quantiser moves that model's weights out into a file of its own.
        source, path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        quantize_static(source, path, _Reader(model.graph.input[0].name, iter(batches)), **options)
        return onnx.load(path)


@contextlib.contextmanager
def _without_preprocess_hint() -> Iterator[None]:
    """The quantiser recommends a clean-up that `fold` has done."""

    def other(record: logging.LogRecord) -> bool:
        return "pre-processing" not in record.getMessage()

    logging.getLogger().addFilter(other)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(other)
