"""What an ONNX file costs, by the conventions of `graph.py`, for files that never were a torch module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import BadInput
from edgekit.onnx_codes import coded_weights
from edgekit.onnx_data import type_bytes

if TYPE_CHECKING:
    import onnx

Shape = tuple[int, ...]
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ACTIVATIONS = frozenset("Relu Clip LeakyRelu PRelu Sigmoid HardSigmoid HardSwish Tanh Gelu Mul".split())


def onnx_cost(model: onnx.ModelProto) -> dict[str, int]:
    """params, macs, cio and cio_paper of a float model at batch 1. Parameters are the elements of all initialisers that
    convolutions, products and norms read, and those of a coded weight as if it were plain.

    Raises:
        BadInput: shape inference leaves the shape of a convolution unknown.
    """
    shapes = shapes_at_batch_1(model)
    weights = {init.name: tuple(init.dims) for init in model.graph.initializer}
    weights |= {name: form.shape for name, form in coded_weights(model).items()}
    cost = {"params": 0, "macs": 0, "cio": 0, "cio_paper": 0}
    counted: set[str] = set()
    readers = _Readers(model)
    for node in model.graph.node:
        if node.op_type not in (*LAYERS, "BatchNormalization"):
            continue
        own = {name for name in node.input if name in weights} - counted
        counted |= own
        cost["params"] += sum(math.prod(weights[name]) for name in own)
        if node.op_type == "BatchNormalization":
            continue
        x, y = (_known(shapes, name, node) for name in (node.input[0], node.output[0]))
        cost["macs"] += _macs(node, x, y, shapes, weights)
        elements = math.prod(x) + math.prod(y)
        cost["cio"] += elements
        is_conv = node.op_type.startswith("Conv")
        cost["cio_paper"] += elements if is_conv and not _only_samples(node, x, readers) else 0
    return cost


def layer_macs(model: onnx.ModelProto) -> dict[str, int]:
    """The MACs at batch 1 of every convolution and product by its name, of float and quantised files.

    Raises:
        BadInput: shape inference leaves the shape of one unknown.
    """
    shapes = shapes_at_batch_1(model)
    weights = {init.name: tuple(init.dims) for init in model.graph.initializer}
    found = {}
    for node in (node for node in model.graph.node if node.op_type in LAYERS):
        x, y = (_known(shapes, name, node) for name in (node.input[0], node.output[0]))
        found[node_name(node)] = _macs(node, x, y, shapes, weights)
    return found


def node_name(node: onnx.NodeProto) -> str:
    """Strangers' nodes may have no name; their first result has one."""
    return node.name or node.output[0]


def shapes_at_batch_1(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of all values at batch 1, by ONNX's own inference; an unknown size elsewhere is -1."""
    return {value.name: _shape(value) for value in _inferred(model, 1)}


def activation_bytes(model: onnx.ModelProto, batch: int = 1) -> dict[str, int]:
    """The bytes of every value whose type and shape ONNX's own inference finds, at a batch size."""
    sizes = {}
    for value in _inferred(model, batch):
        shape, kind = _shape(value), value.type.tensor_type.elem_type
        if value.type.tensor_type.HasField("shape") and -1 not in shape and kind:
            sizes[value.name] = type_bytes(kind, math.prod(shape))
    return sizes


def _inferred(model: onnx.ModelProto, batch: int) -> list[onnx.ValueInfoProto]:
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = batch
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True).graph
    return [*inferred.input, *inferred.value_info, *inferred.output]


def _shape(value: onnx.ValueInfoProto) -> Shape:
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim)


def _known(shapes: dict[str, Shape], name: str, node: onnx.NodeProto) -> Shape:
    shape = shapes.get(name, (-1,))
    if -1 in shape:
        raise BadInput(f"{node.name or node.op_type}: the shape of {name!r} cannot be inferred; put `fold` first")
    return shape


def _macs(node: onnx.NodeProto, x: Shape, y: Shape, shapes: dict[str, Shape], weights: dict[str, Shape]) -> int:
    weight = weights.get(node.input[1]) or _known(shapes, node.input[1], node)
    if node.op_type == "Conv":
        return math.prod(y) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(x) * math.prod(weight[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(y) * (x[0] if transposed else x[-1])


class _Readers:
    """What reads a value, seen through quantisation: a file may keep a ReLU as a range that begins at zero."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._constants = {init.name: init for init in model.graph.initializer}
        self._reading: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._reading.setdefault(name, []).append(node)

    def kinds(self, name: str) -> set[str]:
        found: set[str] = set()
        for node in self._reading.get(name, []):
            if node.op_type == "QuantizeLinear" and self._cuts_below_zero(node):
                found.add("Relu")
            elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                found |= self.kinds(node.output[0])
            else:
                found.add(node.op_type)
        return found

    def _cuts_below_zero(self, node: onnx.NodeProto) -> bool:
        from onnx import numpy_helper

        if len(node.input) < 3 or node.input[2] not in self._constants:
            return False
        value = numpy_helper.to_array(self._constants[node.input[2]])
        return bool((value == np.iinfo(value.dtype).min).all())


def _only_samples(node: onnx.NodeProto, x: Shape, readers: _Readers) -> bool:
    """A strided depthwise convolution without an activation after it: HarDNet's table counts it as pooling."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    groups = attributes["group"].i if "group" in attributes else 1
    strides = list(attributes["strides"].ints) if "strides" in attributes else [1]
    strided_depthwise = node.op_type == "Conv" and groups > 1 and groups == x[1] and max(strides) > 1
    return strided_depthwise and not ACTIVATIONS & readers.kinds(node.output[0])
