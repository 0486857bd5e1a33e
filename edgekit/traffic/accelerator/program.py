"""What a program that counts for accelerators is, and the form of a file that it gets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.context import Track
from edgekit.errors import BadInput
from edgekit.graph_onnx import LAYERS, layer_macs, node_name, shapes_at_batch_1

if TYPE_CHECKING:
    import onnx

Counted = dict[str, dict[str, int]]
"""By the names of layers, how many bytes move: `weights_bytes`, `input_bytes` and `output_bytes`."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A program that counts for an accelerator.

    Attributes:
        title: as its authors write it.
        module: what of it is imported.
        package: its name in the package index.
        accelerator: whose traffic it counts.
        count: takes a `plain` model, what shows progress and what takes a line about what was decided; raises BadInput
            without the file's name, or whatever the program does.
        unfit: why it would fail with the packages that are here; None where it would not.
    """

    title: str
    module: str
    package: str
    accelerator: str
    count: Callable[[onnx.ModelProto, Track, Callable[[str], None]], Counted]
    unfit: Callable[[], str | None] = lambda: None


def plain(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The file at batch 1 with all its shapes written out, and a name for each node.

    Raises:
        BadInput: it is quantised, or shape inference leaves the shape of a layer unknown.
    """
    import onnx

    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise BadInput(
            f"{path}: a cross-check takes float files, and counts them as int8; give the file it was made from"
        )
    written = onnx.ModelProto()
    written.CopyFrom(model)
    for value in written.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for node in written.graph.node:
        node.name = node_name(node)
    layer_macs(written)  # which needs all shapes of layers
    return onnx.shape_inference.infer_shapes(written, data_prop=True)


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Of all values and weights of a `plain` model."""
    return shapes_at_batch_1(model) | {init.name: tuple(init.dims) for init in model.graph.initializer}


def once_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Elements of each layer's input, weight and output."""
    known = shapes(model)
    return {
        node.name: sum(math.prod(known[name]) for name in (*node.input[:2], node.output[0]))
        for node in model.graph.node
        if node.op_type in LAYERS
    }
