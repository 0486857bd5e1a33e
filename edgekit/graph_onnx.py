"""What an ONNX file costs, by the conventions of `graph.py`, for files that never were a torch module."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

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


def layer_costs(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """A record per convolution, linear layer and product of a file of any precision, at batch 1, in the file's order.

    `layer` is the node's name; `channels_in` and `channels_out` are the whole layer's, groups together; `weights` is
    how many numbers the weight has, and `bits` what each takes in this file, scales and codebooks shared out. A product
    of two activations has no weight. MACs are None where shape inference cannot tell.
    """
    shapes = shapes_at_batch_1(model)
    shapes |= {init.name: tuple(init.dims) for init in model.graph.initializer}
    shapes |= {name: form.shape for name, form in coded_weights(model).items()}
    stored = {init.name: 8 * type_bytes(init.data_type, math.prod(init.dims)) for init in model.graph.initializer}
    sources = _sources(model.graph)
    return [_layer(node, shapes, stored, sources) for node in model.graph.node if node.op_type in LAYERS]


def _layer(
    node: onnx.NodeProto, shapes: dict[str, Shape], stored: dict[str, int], sources: dict[str, set[str]]
) -> dict[str, Any]:
    x, weight, y = (shapes.get(name, (-1,)) for name in (*node.input[:2], node.output[0]))
    read = sources.get(node.input[1], set())
    known = not any(-1 in shape for shape in (x, weight, y))
    count = math.prod(weight) if read and known else 0
    inputs, outputs, kind = _roles(node, weight)
    return {
        "layer": node_name(node),
        "kind": kind,
        "channels_in": inputs,
        "channels_out": outputs,
        "macs": _macs(node, x, y, shapes, {}) if known else None,
        "weights": count,
        "bits": sum(stored[name] for name in read) / count if count else None,
    }


def _roles(node: onnx.NodeProto, weight: Shape) -> tuple[int | None, int | None, str]:
    """Channels in and out of a layer, and what kind it is."""
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if len(weight) < 2:
        return None, None, "product"
    if node.op_type in ("Gemm", "MatMul"):
        flipped = "transB" in attributes and attributes["transB"].i
        inputs, outputs = (weight[-1], weight[-2]) if flipped else (weight[-2], weight[-1])
        return inputs, outputs, "linear"
    groups = attributes["group"].i if "group" in attributes else 1
    inputs, outputs = weight[1] * groups, weight[0]
    if node.op_type == "ConvTranspose":
        inputs, outputs = weight[0], weight[1] * groups
    if groups > 1:
        return inputs, outputs, "depthwise" if groups == inputs else "grouped"
    return inputs, outputs, "pointwise" if math.prod(weight[2:]) == 1 else "convolution"


def _sources(graph: onnx.GraphProto) -> dict[str, set[str]]:
    """For each value that does not depend on the input, the initialisers that it is made of."""
    sources = {init.name: {init.name} for init in graph.initializer}
    for node in graph.node:
        read = [name for name in node.input if name]
        if all(name in sources for name in read):
            sources |= {name: set().union(*(sources[each] for each in read)) for name in node.output}
    return sources


def layer_macs(model: onnx.ModelProto) -> dict[str, int]:
    """The MACs at batch 1 of every convolution and product by its name, of float and quantised files.

    Raises:
        BadInput: shape inference leaves the shape of one unknown.
    """
    found = {row["layer"]: row["macs"] for row in layer_costs(model)}
    if unknown := [name for name, macs in found.items() if macs is None]:
        raise BadInput(f"{unknown[0]}: its shapes cannot be inferred; put `fold` first")
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
