"""The activations that an ONNX graph has in memory at once: a lower bound by liveness.

The operators run in the file's order. A pointwise operator works within the operator that produces its input where
nothing else reads that value, and its result takes the place of an operand of at least its size that nothing reads
later; so a residual sum needs no third tensor. Reshaped values share memory, and so do dequantised ones with their int8
values: what counts is what stands between fused kernels, in its own type. Constants are no activations; the graph's
inputs and outputs are. Not counted: the scratch memory of kernels and what an allocator wastes. Branches and loop
bodies count as one operator each.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgekit.errors import BadInput
from edgekit.graph_onnx import ACTIVATIONS, activation_bytes

if TYPE_CHECKING:
    import onnx

VIEWS = frozenset("Reshape Flatten Squeeze Unsqueeze Identity Dropout DequantizeLinear".split())
POINTWISE = ACTIVATIONS | frozenset(
    "Add Sub Div Sum Min Max Neg Abs Sqrt Exp Log Pow Elu Selu Softplus Softsign Erf Mish Swish Floor Ceil Round "
    "BatchNormalization Cast QuantizeLinear".split()
)


@dataclasses.dataclass
class Kernel:
    """Operators that run as one: the values it reads and writes, and those it reads element by element."""

    reads: list[str]
    writes: list[str]
    pointwise: list[str]


def peak_bytes(model: onnx.ModelProto, batch: int = 1) -> int:
    """The least that the activations of a graph need at once (see above).

    Raises:
        BadInput: shape inference leaves the size of an activation unknown.
    """
    graph = model.graph
    roots, constants = _roots(graph)
    inputs = [value.name for value in graph.input if value.name not in constants]
    outputs = [roots[value.name] for value in graph.output if value.name in roots]
    kernels = _kernels(graph.node, roots, outputs)
    sizes = activation_bytes(model, batch)
    read = {name for kernel in kernels for name in kernel.reads} | set(outputs)
    if unknown := sorted(read - set(sizes)):
        raise BadInput(
            f"the size of {unknown[0]!r} cannot be inferred; fold its shape arithmetic first, as edgekit export does"
        )
    return _peak(kernels, sizes, inputs, outputs)


def _roots(graph: onnx.GraphProto) -> tuple[dict[str, str], set[str]]:
    """The value whose memory each activation is, and the names of everything that is constant."""
    constants = {init.name for init in graph.initializer} | {""}
    roots = {value.name: value.name for value in graph.input if value.name not in constants}
    for node in graph.node:
        if all(name in constants for name in node.input):
            constants |= set(node.output)
            continue
        for name in node.output:
            roots[name] = roots.get(node.input[0], name) if node.op_type in VIEWS else name
    return roots, constants


def _kernels(nodes: Sequence[onnx.NodeProto], roots: Mapping[str, str], outputs: Sequence[str]) -> list[Kernel]:
    """The kernels in order: what is pointwise joins the one that produces its latest operand, if it alone reads it."""
    made: list[Kernel] = []
    producer: dict[str, int] = {}
    working = [node for node in nodes if node.op_type not in VIEWS and any(name in roots for name in node.output)]
    readers = Counter([*(name for node in working for name in _read(node, roots)), *outputs])
    for node in working:
        reads = _read(node, roots)
        pointwise = reads if node.op_type in POINTWISE else []
        latest = max(pointwise, key=lambda name: producer.get(name, -1), default="")
        if latest in producer and readers[latest] == 1:
            place = producer[latest]
            _join(made[place], latest, node.output[0], [name for name in reads if name != latest])
        else:
            place = len(made)
            made.append(Kernel(reads, list(node.output), pointwise))
        producer |= dict.fromkeys(node.output, place)
    return made


def _read(node: onnx.NodeProto, roots: Mapping[str, str]) -> list[str]:
    return list(dict.fromkeys(roots[name] for name in node.input if name in roots))


def _join(kernel: Kernel, old: str, new: str, operands: Sequence[str]) -> None:
    kernel.writes[kernel.writes.index(old)] = new
    kernel.reads += [name for name in operands if name not in kernel.reads]
    kernel.pointwise += operands


def _peak(kernels: Sequence[Kernel], sizes: Mapping[str, int], inputs: Sequence[str], outputs: Sequence[str]) -> int:
    last = {name: place for place, kernel in enumerate(kernels) for name in kernel.reads}
    last |= dict.fromkeys(outputs, len(kernels))
    alive = set(inputs)
    most = sum(sizes[name] for name in alive)
    for place, kernel in enumerate(kernels):
        written = [name for name in kernel.writes if name in last]
        room = [sizes[name] for name in kernel.pointwise if last[name] == place and name not in inputs]
        reused = sum(sizes[name] for name in written[:1] if sizes[name] <= max(room, default=0))
        most = max(most, sum(sizes[name] for name in alive | set(written)) - reused)
        alive = {name for name in alive | set(written) if last.get(name, -1) > place}
    return most
