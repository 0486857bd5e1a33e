"""Files as a device uses them: they take the pixels that a camera gives and answer with classes.

With p a pixel of channel c, a = scale / std_c and m = mean_c / scale, the network's input is

    x = (p · scale − mean_c) / std_c = a (p − m)

A convolution W pads x with zeros, and p − m is zero where x is. So a convolution of p − m by W'[o, c] = W[o, c] · a_c
answers as before, at its borders too; a Pad with zeros in front of it changes nothing. W' is computed in float64. Where
something else reads x (a quantiser, float16, no convolution) the product with a stands in the graph.

An int8 file quantises the same x as before. Its quantised input cannot be the pixels themselves: the zero that borders
are padded with is pixel m, which is no whole number and differs between channels.

The cast stands first, as TensorRT reads uint8 nowhere else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.data import Input, Output
from edgekit.errors import BadInput
from edgekit.export import finish
from edgekit.graph_onnx import shapes_at_batch_1
from edgekit.quant.graph import Graph, attributes
from edgekit.targets import Target

if TYPE_CHECKING:
    import onnx


def camera_ready(model: onnx.ModelProto, wanted: Target, input: Input, output: Output) -> onnx.ModelProto:
    """A copy of a model of float input and scores that takes what `input.form` and gives what `output.form` says.

    Raises:
        BadInput: the model has several outputs, or fewer classes than `output.k`.
    """
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(model)
    if input.form == "uint8_nhwc":
        _take_pixels(made, input)
    if output.form != "scores":
        output = _give_classes(made, output)
    return finish(made, wanted, input, output)


def _take_pixels(model: onnx.ModelProto, input: Input) -> None:
    from onnx import TensorProto, helper

    graph, value = Graph(model), model.graph.input[0]
    layers = _first_layers(graph, value.name)
    factor, mean = np.array([input.scale / std for std in input.std]), np.array(input.mean) / input.scale
    chain = _Chain(model, value.name)
    chain.add("Cast", to=TensorProto.FLOAT)
    chain.add("Transpose", perm=[0, 3, 1, 2])  # (B, H, W, C) -> (B, C, H, W)
    if mean.any():
        chain.add("Sub", mean.astype(np.float32).reshape(1, -1, 1, 1))
    if layers is None:
        chain.add("Mul", factor.astype(np.float32).reshape(1, -1, 1, 1))
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == value.name:
                node.input[index] = chain.last
    for layer in layers or []:
        _scale_weight(model, layer, factor)
    for node in reversed(chain.nodes):
        model.graph.node.insert(0, node)
    channels, height, width = input.shape
    pixels = [_batch(value), height, width, channels]
    value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.UINT8, pixels))


def _batch(value: onnx.ValueInfoProto) -> int | str | None:
    """The batch size of a graph's input, its name, or None where it has neither."""
    size = value.type.tensor_type.shape.dim[0]
    return size.dim_value or size.dim_param or None


def _first_layers(graph: Graph, name: str) -> list[onnx.NodeProto] | None:
    """The float32 convolutions that alone read a tensor, through padding with zeros or not; None where others do."""
    found: list[onnx.NodeProto] = []
    for node in graph.readers.get(name, []):
        behind = _first_layers(graph, node.output[0]) if _pads_zeros(graph, node) else None
        if node.op_type == "Conv" and _own_weight(graph, node):
            found.append(node)
        elif behind is not None:
            found += behind
        elif node.op_type != "Shape":
            return None
    return None if name in graph.outputs else found


def _pads_zeros(graph: Graph, node: onnx.NodeProto) -> bool:
    """Borders that repeat the picture, and those of zeros, follow any factor."""
    if node.op_type != "Pad" or len(node.input) < 2:
        return False
    value = node.input[2] if len(node.input) > 2 else ""
    return not value or (value in graph.constants and not graph.constants[value].any())


def _own_weight(graph: Graph, node: onnx.NodeProto) -> bool:
    return node.input[1] in graph.constants and len(graph.readers[node.input[1]]) == 1


def _scale_weight(model: onnx.ModelProto, node: onnx.NodeProto, factor: np.ndarray) -> None:
    """W[o, j] · a_c, where output o of group g reads channel c = g · C / groups + j."""
    from onnx import numpy_helper

    init = next(init for init in model.graph.initializer if init.name == node.input[1])
    weight, groups = numpy_helper.to_array(init), attributes(node).get("group", 1)
    per_output = np.repeat(factor.reshape(groups, -1), weight.shape[0] // groups, axis=0)  # (O, C / groups)
    scaled = weight * per_output.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))
    init.CopyFrom(numpy_helper.from_array(scaled.astype(np.float32), init.name))


def _give_classes(model: onnx.ModelProto, output: Output) -> Output:
    """Add what finds the classes; returns what the outputs mean then: class numbers without `class_offset`."""
    from onnx import TensorProto, helper

    if len(model.graph.output) != 1:
        raise BadInput(
            f"[export] output = {output.form!r} is for a file of one output; it has {len(model.graph.output)}"
        )
    scores = model.graph.output[0]
    classes = _classes(model, output)
    chain = _Chain(model, scores.name)
    if output.class_offset:
        ends = (np.array([value], np.int64) for value in (output.class_offset, np.iinfo(np.int64).max, 1))
        chain.add("Slice", *ends)
    size = _batch(model.graph.input[0])
    del model.graph.output[:]
    if output.form == "argmax":
        chain.add("ArgMax", axis=1, keepdims=0, results=(f"{scores.name}.classes",))
        masks = [None, None] if output.task == "segment" else []
        results = [helper.make_tensor_value_info(chain.last, TensorProto.INT64, [size, *masks])]
    else:
        values, indices = f"{scores.name}.scores", f"{scores.name}.classes"
        chain.add("TopK", np.array([output.k], np.int64), axis=1, results=(values, indices))
        results = [
            helper.make_tensor_value_info(indices, TensorProto.INT64, [size, output.k]),
            helper.make_tensor_value_info(values, TensorProto.FLOAT, [size, output.k]),
        ]
    model.graph.node.extend(chain.nodes)
    model.graph.output.extend(results)
    return dataclasses.replace(output, classes=classes, class_offset=0)


def _classes(model: onnx.ModelProto, output: Output) -> int:
    """How many classes the network has. Raises BadInput where the graph does not say, or they are fewer than k."""
    shape = shapes_at_batch_1(model).get(model.graph.output[0].name, ())
    classes = output.classes or (shape[1] if len(shape) > 1 else -1) - output.class_offset
    if classes < 1:
        raise BadInput(
            f"the graph does not tell how many classes {model.graph.output[0].name!r} has; write [output] classes"
        )
    if output.k is not None and output.k > classes:
        raise BadInput(f"[export] k = {output.k}: the network has {classes} classes")
    return classes


class _Chain:
    """Nodes that follow one another from a tensor, each named after it, with constants of their own."""

    def __init__(self, model: onnx.ModelProto, start: str) -> None:
        self.model, self.start, self.last = model, start, start
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, *constants: np.ndarray, results: Sequence[str] = (), **settings: object) -> None:
        from onnx import helper, numpy_helper

        stem = f"{self.start}.{kind}"
        names = [f"{stem}.{index}" for index in range(len(constants))]
        self.model.graph.initializer.extend(map(numpy_helper.from_array, constants, names))
        outputs = list(results) or [stem]
        self.nodes.append(helper.make_node(kind, [self.last, *names], outputs, name=stem, **settings))
        self.last = outputs[0]
