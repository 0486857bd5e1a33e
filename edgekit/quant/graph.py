"""A read-only view of an ONNX graph, and what of it a target wants quantised."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import BadInput

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.targets import Scheme

LAYERS = frozenset(("Conv", "Gemm", "MatMul"))
ACTIVATIONS = ("Relu", "Clip")
SAME_SCALE = frozenset("MaxPool Concat Flatten Reshape Squeeze Unsqueeze Transpose".split())
"""Operators that only move values: what comes out keeps the scale of what went in."""
FIRST_OPSET = 13
"""The first with DequantizeLinear per channel."""


class Graph:
    """Nodes, constants, producers and readers by tensor name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        graph = model.graph
        self.nodes = [node for node in graph.node if node.op_type != "Constant"]
        self.constants = {init.name: numpy_helper.to_array(init) for init in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        self.outputs = {value.name for value in graph.output}
        self.floats = _float_tensors(model)
        self.order = {name: index for index, node in enumerate(self.nodes) for name in node.output}

    def activations(self, node: onnx.NodeProto) -> list[str]:
        """Names of the inputs that are computed and float; shapes that are computed are none."""
        return [name for name in node.input if name in self.floats and name not in self.constants]

    def only_reader(self, name: str) -> onnx.NodeProto | None:
        """The one node that reads a tensor, where there is one and the tensor is no output of the graph."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def reads_alone(self, node: onnx.NodeProto, name: str) -> bool:
        reader = self.only_reader(name)
        return reader is not None and reader.name == node.name


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """All tensors that shape inference does not know to be of another type."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    others = {
        value.name
        for value in (*inferred.input, *inferred.value_info, *inferred.output)
        if value.type.tensor_type.elem_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.UNDEFINED)
    }
    names = {name for node in model.graph.node for name in (*node.input, *node.output) if name}
    return names - others


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def is_layer(graph: Graph, node: onnx.NodeProto) -> bool:
    """A convolution, or product with a matrix, whose weight and bias are constants."""
    if node.op_type not in LAYERS or len(node.input) < 2 or node.input[1] not in graph.constants:
        return False
    if len(node.input) > 2 and node.input[2] and node.input[2] not in graph.constants:
        return False
    settings = attributes(node)
    plain = not settings.get("transA") and settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0
    return plain and (node.op_type == "Conv" or graph.constants[node.input[1]].ndim == 2)


def residual_input(graph: Graph, node: onnx.NodeProto) -> int | None:
    """Which input of an Add is the identity branch: the one that the convolution computed last is added to.

    None where neither input is a convolution that nothing else reads, or one input is a constant.
    """
    if node.op_type != "Add" or len(graph.activations(node)) != 2:
        return None
    fused = [
        index
        for index, name in enumerate(node.input)
        if name in graph.producer and graph.producer[name].op_type == "Conv" and graph.only_reader(name) is not None
    ]
    if not fused:
        return None
    return 1 - max(fused, key=lambda index: graph.order[node.input[index]])


def prepared(model: onnx.ModelProto, rewrite: str = "int8") -> onnx.ModelProto:
    """A copy of opset 13 or newer in which all constants are initialisers and every node has a name of its own.

    Args:
        rewrite: in whose name errors speak.

    Raises:
        BadInput: the opset is older and cannot be converted, or a node holds a graph of its own.
    """
    import onnx

    for node in model.graph.node:
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            raise BadInput(
                f"{rewrite}: {node.name or node.op_type} ({node.op_type}) holds a graph of its own, which cannot be "
                f"converted; export the network without branches and loops"
            )

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    opset = next((item.version for item in copy.opset_import if item.domain in ("", "ai.onnx")), 0)
    if opset < FIRST_OPSET:
        try:
            copy = onnx.version_converter.convert_version(copy, FIRST_OPSET)
        except Exception as error:  # the converter raises RuntimeError and its own classes
            raise BadInput(
                f"{rewrite}: the file has opset {opset}, {FIRST_OPSET} is needed, and it cannot be converted "
                f"({error}); export it again with a newer opset"
            ) from None
    _constants_to_initialisers(copy.graph)
    _unique_names(copy.graph)
    return copy


def _constants_to_initialisers(graph: onnx.GraphProto) -> None:
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        if node.attribute[0].name == "value":
            graph.initializer.add().CopyFrom(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)


def _unique_names(graph: onnx.GraphProto) -> None:
    seen: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_{index}"
        seen.add(node.name)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is quantised.

    Attributes:
        layers: names of the convolutions and products that get int8 weights.
        groups: tensors that carry Q/DQ, in groups that share one scale.
        absorbed: names of activations that the saturation of the quantised range replaces.
        edges: (node name, input index) that read the dequantised tensor rather than the raw one.
    """

    layers: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    absorbed: frozenset[str]
    edges: frozenset[tuple[str, int]]

    @property
    def tensors(self) -> list[str]:
        return [name for group in self.groups for name in group]


def plan(graph: Graph, wanted: Scheme, in_float: Collection[str] = ()) -> Plan:
    """Apply a target's rules to a graph; the layers named `in_float` stay as they are.

    Raises:
        BadInput: no convolution or linear layer has a constant weight.
    """
    layers = [node.name for node in graph.nodes if is_layer(graph, node) and node.name not in in_float]
    if not layers:
        raise BadInput("int8: there is no convolution or linear layer with a constant weight to quantise")
    if wanted.residual_only:
        edges = _edges_of_layers(graph, set(layers))
        tensors = dict.fromkeys(node.input[i] for node in graph.nodes for i in range(2) if (node.name, i) in edges)
        return Plan(tuple(layers), _groups(graph, tensors), frozenset(), frozenset(edges))
    int8 = [node for node in graph.nodes if _runs_as_int8(graph, node, wanted, set(layers))]
    absorbed = {node.name: node for node in graph.nodes if _is_absorbed(graph, node, int8)}
    kept = _quantised_tensors(graph, int8, absorbed)
    edges = {
        (node.name, index)
        for node in graph.nodes
        for index, name in enumerate(node.input)
        if name in kept and node.name not in absorbed and node.op_type != "Shape"
    }
    return Plan(tuple(layers), _groups(graph, kept), frozenset(absorbed), frozenset(edges))


def _edges_of_layers(graph: Graph, layers: set[str]) -> set[tuple[str, int]]:
    edges = {(node.name, 0) for node in graph.nodes if node.name in layers}
    for node in graph.nodes:
        index = residual_input(graph, node)
        if index is not None:
            edges.add((node.name, index))
    return edges


def _runs_as_int8(graph: Graph, node: onnx.NodeProto, wanted: Scheme, layers: set[str]) -> bool:
    if node.op_type in LAYERS:
        return node.name in layers
    if node.op_type not in wanted.int8_ops or len(node.output) != 1 or node.output[0] not in graph.floats:
        return False
    two = node.op_type not in ("Add", "Mul") or len(graph.activations(node)) == len(node.input)
    concat = node.op_type != "Concat" or len(graph.activations(node)) == len(node.input)
    return two and concat


def _is_absorbed(graph: Graph, node: onnx.NodeProto, int8: list[onnx.NodeProto]) -> bool:
    """Relu, or Clip around 0, that alone reads the output of an operator with an int8 kernel of its own."""
    if node.op_type not in ACTIVATIONS or not graph.reads_alone(node, node.input[0]):
        return False
    before = graph.producer.get(node.input[0])
    if before is None or before.op_type not in (*LAYERS, "Add") or not any(before is item for item in int8):
        return False
    if node.op_type == "Relu":
        return True
    bounds = clip_bounds(graph, node)
    return bounds is not None and bounds[0] <= 0 <= bounds[1]


def clip_bounds(graph: Graph, node: onnx.NodeProto) -> tuple[float, float] | None:
    """Constant bounds of a Relu or Clip; None where they are computed."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = [float("-inf"), float("inf")]
    for index, name in enumerate(node.input[1:3]):
        if name and name not in graph.constants:
            return None
        if name:
            bounds[index] = float(graph.constants[name])
    return bounds[0], bounds[1]


def _quantised_tensors(
    graph: Graph, int8: list[onnx.NodeProto], absorbed: dict[str, onnx.NodeProto]
) -> dict[str, None]:
    """Inputs and outputs of int8 operators; an absorbed activation's output stands for its input."""
    kept: dict[str, None] = {}
    for node in int8:
        for name in graph.activations(node):
            kept[name] = None
        reader = graph.only_reader(node.output[0])
        if reader is not None and reader.name in absorbed:
            kept[reader.output[0]] = None
        elif not (node.op_type in ("Gemm", "MatMul") and node.output[0] in graph.outputs):
            kept[node.output[0]] = None  # a product may hand its sums out in float, and the logits gain by it
    return kept


def _groups(graph: Graph, tensors: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    """Tensors joined by operators that only move values share a scale."""
    leader = {name: name for name in tensors}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for node in graph.nodes:
        if node.op_type in SAME_SCALE and node.output[0] in leader:
            for name in graph.activations(node):
                if name in leader:
                    leader[find(name)] = find(node.output[0])
    groups: dict[str, list[str]] = {}
    for name in leader:
        groups.setdefault(find(name), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def layer_matrix(node: onnx.NodeProto, weight: np.ndarray) -> np.ndarray:
    """A layer's weight as (groups, C_out / groups, K), K the inputs of one output value; a view where possible."""
    if node.op_type == "Conv":
        groups = attributes(node).get("group", 1)
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    return (weight if attributes(node).get("transB") else weight.T)[None]


def layer_weight(node: onnx.NodeProto, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`layer_matrix` backwards."""
    if node.op_type == "Conv":
        return matrix.reshape(shape)
    return matrix[0] if attributes(node).get("transB") else np.ascontiguousarray(matrix[0].T)


def channel_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that counts output channels."""
    return 0 if node.op_type == "Conv" or attributes(node).get("transB") else 1
