"""An ONNX graph without its weights, as data: what a bundle keeps of a user's file, and all that building needs.

Weights appear by name and shape alone. What shapes the graph (axes, pads, bounds of a clip) stands by value, written
where an operator reads it: `CONSTANTS`, and numbers that are added, multiplied and so on. Shapes are those at batch 1.
Documents may come from strangers: everything is bounded before anything is allocated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from edgekit.errors import BadInput
from edgekit.graph_onnx import shapes_at_batch_1
from edgekit.schema import parse

if TYPE_CHECKING:
    import onnx

SCHEMA = "edgekit/graph/1"
Shape = tuple[int, ...]
Scalar = int | float | str
"""A number; one that is not finite is written as text ("inf"), which JSON can hold."""

MOST_NODES = 50_000
MOST_ELEMENTS = 2**31
MOST_VALUES = 4096
LONGEST_NAME = 1024
Dtype = Literal["float32", "int32", "int64", "bool"]

# The inputs of an operator that are settings and not data.
CONSTANTS: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "Dropout": (1, 2),
    "Pad": (1, 2, 3),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A constant of the file; `values` only where it is a setting."""

    name: str
    shape: Shape
    dtype: Dtype
    values: tuple[Scalar, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Node:
    """One operator: `inputs` may hold "" where an optional one is left out."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Scalar | tuple[Scalar, ...]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name} ({self.op})"

    @property
    def results(self) -> tuple[str, ...]:
        """The outputs that are taken over; of most operators the others are by-products, such as a pool's indices."""
        return self.outputs if self.op == "Split" else self.outputs[:1]


@dataclasses.dataclass(frozen=True)
class Document:
    """A graph with one input. `shapes` holds every activation whose shape is known, at batch 1."""

    schema: str
    opset: int
    input: str
    outputs: tuple[str, ...]
    shapes: dict[str, Shape]
    initialisers: tuple[Tensor, ...]
    nodes: tuple[Node, ...]

    def tensors(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.initialisers}


# Reading a document


def read_document(table: Mapping[str, Any], where: str = "the graph") -> Document:
    """A validated document.

    Raises:
        BadInput: fields of the wrong type, names used twice or never made, or sizes beyond the limits above.
    """
    if table.get("schema") != SCHEMA:
        raise BadInput(f"{where}: its schema is {table.get('schema')!r}; this edgekit reads {SCHEMA}")
    document = parse(Document, table, where)
    for problem in _problems(document):
        raise BadInput(f"{where}: {problem}")
    return document


def _problems(document: Document) -> Iterable[str]:
    """What is wrong, the cheapest checks first, so that a huge document is refused before it is walked."""
    if len(document.nodes) > MOST_NODES or len(document.initialisers) > 4 * MOST_NODES:
        yield f"has {len(document.nodes)} nodes; the limit is {MOST_NODES}"
    yield from _bad_names(document)
    for tensor in document.initialisers:
        yield from _bad_tensor(tensor)
    for name, shape in document.shapes.items():
        if _elements(shape) is None:
            yield f"{name!r} has the shape {shape}; sizes must be positive, {MOST_ELEMENTS} elements at most"
    yield from _too_many_elements(document)
    yield from _unknown_names(document)


def _elements(shape: Shape) -> int | None:
    """How many elements; None for a shape no tensor here may have."""
    count = math.prod(shape) if len(shape) <= 8 and all(0 < size <= MOST_ELEMENTS for size in shape) else -1
    return count if 0 < count <= MOST_ELEMENTS else None


def _bad_tensor(tensor: Tensor) -> Iterable[str]:
    empty = 0 in tensor.shape and tensor.values == ()  # an optional setting that was left empty, e.g. Resize's roi
    if not empty and _elements(tensor.shape) is None:
        yield f"{tensor.name!r} has the shape {tensor.shape}; sizes must be positive, {MOST_ELEMENTS} elements at most"
    if tensor.values is not None and len(tensor.values) != math.prod(tensor.shape):
        yield f"{tensor.name!r} holds {len(tensor.values)} values for the shape {tensor.shape}"
    if tensor.values is not None and len(tensor.values) > MOST_VALUES:
        yield f"{tensor.name!r} has {len(tensor.values)} values; settings have {MOST_VALUES} at most"


def _too_many_elements(document: Document) -> Iterable[str]:
    """Counted once for each node that reads a weight, since each may get a copy."""
    sizes = {tensor.name: math.prod(tensor.shape) for tensor in document.initialisers}
    total = sum(sizes.get(name, 0) for node in document.nodes for name in node.inputs)
    if total > MOST_ELEMENTS:
        yield f"its weights have {total} elements; the limit is {MOST_ELEMENTS}"


def _bad_names(document: Document) -> Iterable[str]:
    names = [document.input, *(tensor.name for tensor in document.initialisers)]
    names += [name for node in document.nodes for name in node.outputs if name]
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        yield f"{twice!r} is made twice"
    for name in (*names, *(node.name for node in document.nodes)):
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            yield f"the name {name[:40]!r} must have 1 to {LONGEST_NAME} printable characters"


def _unknown_names(document: Document) -> Iterable[str]:
    known = {document.input, *(tensor.name for tensor in document.initialisers)}
    for node in document.nodes:
        unknown = [name for name in node.inputs if name and name not in known]
        if unknown:
            yield f"{node} reads {unknown[0]!r}, which nothing before it makes{_by_product(document, unknown[0])}"
        known.update(node.results)
    if not document.outputs or not known.issuperset(document.outputs):
        yield f"its outputs {list(document.outputs)} are not all made"


def _by_product(document: Document, name: str) -> str:
    maker = next((node for node in document.nodes if name in node.outputs[1:]), None)
    return f" (of {maker} the first output alone can be taken over into PyTorch)" if maker else ""


# Writing one


def describe(model: onnx.ModelProto) -> Document:
    """The document of a cleaned ONNX model (see `rewrites.fold`).

    Raises:
        BadInput: several inputs, control flow, or tensors of a type other than float32 and integers.
    """
    constants = constant_tensors(model)
    graph = model.graph
    nodes = tuple(_node(node, index) for index, node in enumerate(graph.node) if node.op_type != "Constant")
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise BadInput(f"the graph has {len(inputs)} inputs ({', '.join(inputs[:5])}); passes take networks with one")
    read = {name for node in nodes for name in node.inputs}
    settings = _settings(nodes, constants)
    return Document(
        SCHEMA,
        next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        inputs[0],
        tuple(value.name for value in graph.output),
        _shapes(model, {inputs[0], *(name for node in nodes for name in node.outputs)}),
        tuple(_tensor(name, proto, name in settings) for name, proto in constants.items() if name in read),
        nodes,
    )


def constant_tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Every constant by name, whether an initialiser or the output of a Constant node."""
    found = {init.name: init for init in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = _constant_value(node)
    return found


def _constant_value(node: onnx.NodeProto) -> onnx.TensorProto:
    from onnx import helper, numpy_helper

    value = helper.get_attribute_value(node.attribute[0])
    name = node.attribute[0].name
    if name == "value":
        return value
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if name not in kinds:
        raise BadInput(f"{node.name or node.output[0]} (Constant): a constant given as {name} cannot be taken")
    return numpy_helper.from_array(np.array(value, kinds[name]))


def _node(node: onnx.NodeProto, index: int) -> Node:
    name = node.name or f"{node.op_type}_{index}"
    attributes = {item.name: _attribute(item, f"{name} ({node.op_type})") for item in node.attribute}
    return Node(name, node.op_type, tuple(node.input), tuple(node.output), attributes)


def _attribute(attribute: onnx.AttributeProto, where: str) -> Scalar | tuple[Scalar, ...]:
    from onnx import AttributeProto, helper

    value = helper.get_attribute_value(attribute)
    if attribute.type in (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.STRING):
        return _scalar(value)
    if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.STRINGS):
        return tuple(_scalar(item) for item in value)
    raise BadInput(f"{where}: the attribute {attribute.name} holds no number or text and cannot be taken")


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _settings(nodes: Iterable[Node], constants: Mapping[str, onnx.TensorProto]) -> set[str]:
    """The constants that are settings: by the place they are read from, or because they are a single number."""
    found = set()
    for node in nodes:
        found |= {node.inputs[place] for place in CONSTANTS.get(node.op, ()) if place < len(node.inputs)}
        if node.op in ARITHMETIC:
            found |= {name for name in node.inputs if name in constants and math.prod(constants[name].dims) == 1}
    return found & constants.keys()


def _tensor(name: str, proto: onnx.TensorProto, setting: bool) -> Tensor:
    import onnx
    from onnx import numpy_helper

    kind = onnx.TensorProto.DataType.Name(proto.data_type).lower()
    dtype = "float32" if kind == "float" else kind
    if dtype not in get_args(Dtype) or (dtype != "float32" and not setting):
        raise BadInput(f"{name}: is {dtype}; passes take networks with float32 weights, so convert the file first")
    too_long = math.prod(proto.dims) > MOST_VALUES
    if setting and too_long:
        raise BadInput(f"{name}: has {math.prod(proto.dims)} values; settings have {MOST_VALUES} at most")
    values = tuple(_scalar(item) for item in numpy_helper.to_array(proto).ravel().tolist()) if setting else None
    return Tensor(name, tuple(proto.dims), cast(Dtype, dtype), values)


def _shapes(model: onnx.ModelProto, wanted: set[str]) -> dict[str, Shape]:
    """The shapes at batch 1 that ONNX's own inference finds."""
    shapes = shapes_at_batch_1(model).items()
    return {name: shape for name, shape in shapes if name in wanted and shape and all(size > 0 for size in shape)}
