"""Coded weights in an ONNX graph: codes and codebook as small initialisers, decoded by standard operators.

    weight = Reshape(Gather(codebook, Cast(codes)), shape) · factor        (see coded.py)

A runtime that folds constants decodes once, when it loads the file. A codebook of whole numbers is stored as int8, one
that float16 holds exactly as that.
Small codebooks share bytes: with k entries, p codes are one byte c₁ k^(p−1) + … + c_p where k^p ≤ 256, and the stored
table holds all k^p rows of p entries, so that a byte is decoded by the same Gather.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

    from edgekit.coded import Codes

DECODE = ".decode."
"""Stands between a weight's name and the operator in the names of the nodes that decode it."""
PARTS = ("codes", "codebook", "shape", "factor")
INT8 = 127


@dataclasses.dataclass(frozen=True)
class Stored:
    """A coded weight of a graph.

    Attributes:
        codes: (N,) of uint8, uint16 or uint32, rows of the table.
        table: (rows, m) of float32, or of int8 or float16 where that holds the codebook's numbers.
        factor: (C_out,) of float32, or None.
    """

    codes: np.ndarray
    table: np.ndarray
    factor: np.ndarray | None
    shape: tuple[int, ...]

    def decode(self) -> np.ndarray:
        weight = self.table[self.codes].astype(np.float32).reshape(self.shape)
        return weight if self.factor is None else weight * self.factor.reshape(-1, *[1] * (len(self.shape) - 1))

    def in_int8(self, high: int) -> Stored | None:
        """The weight as integers in ±high and positive factors (C_out,), or None where it cannot be that.

        Whole numbers stay as they are. Other tables are rounded, with one scale for all of the layer.
        """
        factor = np.ones(self.shape[0], np.float32) if self.factor is None else self.factor
        table = self.table if self.table.dtype == np.int8 else self.table.astype(np.float32)
        top = int(np.ceil(np.abs(table.astype(np.float32)).max(initial=0)))
        if table.dtype != np.int8 and top:
            scale = np.abs(table).max() / np.float32(high)
            table, factor = np.rint(table / scale).astype(np.int8), (factor * scale).astype(np.float32)
            top = high
        return Stored(self.codes, table, factor, self.shape) if top <= high and (factor > 0).all() else None

    def scaled(self, scale: np.ndarray) -> Stored:
        """The weight with every output channel multiplied by its number of `scale`."""
        factor = scale if self.factor is None else self.factor.astype(np.float64) * scale
        return dataclasses.replace(self, factor=factor.astype(np.float32))


def stored(codes: Codes) -> Stored:
    """Codes in the form that takes the fewest bytes."""
    table = codes.codebook.detach().cpu().numpy()
    whole = np.rint(table)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is no longer equal
        half = table.astype(np.float16)
    if np.array_equal(whole, table) and np.abs(table).max(initial=0) <= INT8:
        table = whole.astype(np.int8)
    elif np.array_equal(half, table):
        table = half
    indices = codes.codes.cpu().numpy()
    factor = None if codes.factor is None else codes.factor.detach().cpu().numpy()
    packed = [_packed(indices, table, p) for p in range(1, 9) if len(table) ** p <= 256 and len(indices) % p == 0]
    best = min(
        packed or [(indices.astype(np.min_scalar_type(len(table) - 1)), table)],
        key=lambda form: form[0].nbytes + form[1].nbytes,
    )
    return Stored(*best, factor, codes.shape)


def _packed(indices: np.ndarray, table: np.ndarray, p: int) -> tuple[np.ndarray, np.ndarray]:
    """`p` codes a byte and the table of all their combinations; (k^p, p · m)."""
    k = len(table)
    places = k ** np.arange(p - 1, -1, -1)
    rows = np.array(list(itertools.product(range(k), repeat=p)))
    return (indices.reshape(-1, p) @ places).astype(np.uint8), table[rows].reshape(len(rows), -1)


def write(model: onnx.ModelProto, weight: str, form: Stored) -> None:
    """Give a model a coded weight: codes, table and the nodes that decode them to a tensor of that name."""
    from onnx import TensorProto, helper

    graph = model.graph
    nodes = decoding(graph, weight, form)
    result = nodes[-1].output[0]
    if form.table.dtype != np.float32:
        name = f"{weight}{DECODE}3.Cast"
        nodes.append(helper.make_node("Cast", [result], [name], name, to=TensorProto.FLOAT))
        result = name
    if form.factor is not None:
        by_channel = form.factor.reshape(-1, *[1] * (len(form.shape) - 1))
        factor, name = constant(graph, f"{weight}.factor", by_channel), f"{weight}{DECODE}4.Mul"
        nodes.append(helper.make_node("Mul", [result, factor], [name], name))
    nodes[-1].output[0] = weight
    _replace(graph.node, [*nodes, *graph.node])


def decoding(graph: onnx.GraphProto, weight: str, form: Stored) -> list[onnx.NodeProto]:
    """The nodes that look codes up, to be put into the graph; it gets codes and table."""
    from onnx import TensorProto, helper

    parts = (("codes", form.codes), ("codebook", form.table), ("shape", np.array(form.shape, np.int64)))
    codes, table, shape = (constant(graph, f"{weight}.{part}", value) for part, value in parts)
    names = [f"{weight}{DECODE}{index}.{kind}" for index, kind in enumerate(("Cast", "Gather", "Reshape"))]
    return [
        helper.make_node("Cast", [codes], names[:1], names[0], to=TensorProto.INT32),
        helper.make_node("Gather", [table, names[0]], names[1:2], names[1], axis=0),
        helper.make_node("Reshape", [names[1], shape], names[2:], names[2]),
    ]


def constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name


def taken_out(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Stored]]:
    """A copy whose coded weights are inputs of the graph, and what they were, by name.

    So nothing that works on the graph, such as a simplifier that folds constants, can decode them.
    """
    import onnx

    forms = coded_weights(model)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for name, form in forms.items():
        bare.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, form.shape))
    prefixes, parts = tuple(name + DECODE for name in forms), {f"{name}.{part}" for name in forms for part in PARTS}
    _replace(bare.graph.node, [node for node in bare.graph.node if not node.name.startswith(prefixes)])
    _replace(bare.graph.initializer, [init for init in bare.graph.initializer if init.name not in parts])
    return bare, forms


def put_back(model: onnx.ModelProto, forms: Mapping[str, Stored], decode: bool = False) -> onnx.ModelProto:
    """The model with its coded weights again, after `taken_out`; or with plain ones."""
    _replace(model.graph.input, [value for value in model.graph.input if value.name not in forms])
    for name, form in forms.items():
        constant(model.graph, name, form.decode()) if decode else write(model, name, form)
    return model


def coded_weights(model: onnx.ModelProto) -> dict[str, Stored]:
    """The coded weights of a graph, by name."""
    from onnx import numpy_helper

    values = {init.name: init for init in model.graph.initializer}
    names = [node.output[0] for node in model.graph.node if node.name.startswith(node.output[0] + DECODE)]
    found = {}
    for name in names:
        parts = {part: numpy_helper.to_array(values[f"{name}.{part}"]) for part in PARTS if f"{name}.{part}" in values}
        factor = parts["factor"].ravel() if "factor" in parts else None
        found[name] = Stored(parts["codes"], parts["codebook"], factor, tuple(parts["shape"].tolist()))
    return found


def _replace(field: Any, items: Sequence[Any]) -> None:
    copies = list(items)
    del field[:]
    field.extend(copies)
