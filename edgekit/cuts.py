"""Where a network can be cut in two: the tensors that alone separate its input from its output.

Run in order, a network holds after each operation the tensors that something later still reads. Where it holds one and
no other, everything that is still to come depends on the input through that tensor, and every tensor that separates
the two is met so: what is neither before nor behind it would be another way to the output.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput, unknown
from edgekit.graph import Graph, Shape
from edgekit.graph_onnx import layer_macs, node_name, shapes_at_batch_1

if TYPE_CHECKING:
    import onnx

Step = tuple[Sequence[Hashable], Sequence[Hashable]]
"""What an operation reads and what it makes."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """A place to cut.

    Attributes:
        names: of the layers whose output crosses, the outermost first.
        tensor: that output, as its graph names it.
        shape: (C, H, W) of it.
        macs_left, macs_right: multiply-accumulates before and behind it.
    """

    names: tuple[str, ...]
    tensor: Any
    shape: Shape
    macs_left: int
    macs_right: int

    @property
    def layer(self) -> str:
        return self.names[0]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Cuts:
    """The cuts of a network in order, and where in that order each of its layers ends."""

    every: tuple[Cut, ...]
    ends: dict[str, int]
    places: tuple[int, ...]
    """Of the cuts, by the same count as `ends`."""

    @property
    def listed(self) -> list[Cut]:
        """One of those that have the same MACs before them and the same shape: the last, behind the activation."""
        last = {(cut.macs_left, cut.shape): cut for cut in self.every}
        return list(last.values())

    def at(self, layer: str) -> Cut:
        """The cut behind a layer.

        Raises:
            BadInput: no such layer, or other tensors go around it; the nearest legal cuts are named.
        """
        found = next((cut for cut in self.every if layer in cut.names), None)
        if found is not None:
            return found
        if layer not in self.ends:
            raise unknown("cut", layer, [cut.layer for cut in self.listed])
        before = [cut for cut, place in zip(self.every, self.places) if place < self.ends[layer]]
        behind = [cut for cut, place in zip(self.every, self.places) if place > self.ends[layer]]
        near = [repr(cut.layer) for cut in (*before[-1:], *behind[:1])]
        raise BadInput(
            f"cut = {layer!r}: other tensors go around it (it lies in a residual or dense block, or its output is no "
            f"(B, C, H, W)); cut at {' or '.join(near) or 'another network: nothing separates its ends'}"
        )


def separators(steps: Iterable[Step], source: Hashable, results: Iterable[Hashable]) -> list[tuple[int, Hashable]]:
    """The tensors that separate `source` from `results`, each with the place of the step that makes it."""
    steps = list(steps)
    last = {name: place for place, (inputs, _) in enumerate(steps) for name in inputs}
    last.update(dict.fromkeys(results, len(steps)))
    reached, alive, found = {source}, {source}, []
    for place, (inputs, outputs) in enumerate(steps):
        if reached.isdisjoint(inputs):
            continue
        reached.update(outputs)
        alive = {name for name in (*alive, *outputs) if last.get(name, -1) > place}
        if len(alive) == 1 and not alive.isdisjoint(outputs):
            found.append((place, next(iter(alive))))
    return found


def net_cuts(graph: Graph) -> Cuts:
    """The cuts of a traced module, each at the end of a module that it calls once."""
    places = {value.index: place for place, op in enumerate(graph.ops) for value in op.outputs}
    names: dict[int, list[str]] = {}
    ends: dict[str, int] = {}
    for call in graph.calls:
        passes_on = call.outputs[:1] == call.inputs[:1]  # an identity makes nothing
        if call.layer and len(call.outputs) == 1 and call.outputs[0].index in places and not passes_on:
            names.setdefault(call.outputs[0].index, []).insert(0, call.layer)  # the module around stands after
            ends[call.layer] = places[call.outputs[0].index]
    steps = [([value.index for value in op.inputs], [value.index for value in op.outputs]) for op in graph.ops]
    results = [value.index for value in graph.outputs]
    shapes = {value.index: value.shape for op in graph.ops for value in op.outputs}
    macs = [op.macs for op in graph.ops]
    return _cuts(separators(steps, graph.inputs[0].index, results), names, shapes, macs, results, ends)


def onnx_cuts(model: onnx.ModelProto) -> Cuts:
    """The cuts of an ONNX graph, each behind a node; a module path names the last of the nodes below it, too.

    Raises:
        BadInput: shape inference leaves the shape of a convolution unknown.
    """
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    constants = {init.name for init in model.graph.initializer}
    source = next(value.name for value in model.graph.input if value.name not in constants)
    ends = {name: place for place, node in enumerate(nodes) for name in _paths(node_name(node))}
    names: dict[Hashable, list[str]] = {}
    for name, place in ends.items():
        names.setdefault(nodes[place].output[0], []).append(name)
    cost = layer_macs(model)
    macs = [cost.get(node_name(node), 0) for node in nodes]
    results = [value.name for value in model.graph.output]
    shapes = shapes_at_batch_1(model)
    found = separators([(node.input, node.output) for node in nodes], source, results)
    return _cuts(found, {key: sorted(value, key=len) for key, value in names.items()}, shapes, macs, results, ends)


def _paths(name: str) -> list[str]:
    """A node's name and the modules that it lies in: "a.b/Add" lies in "a.b" and in "a"."""
    return [*(name[: mark.start()] for mark in re.finditer(r"(?<=.)[./]", name)), name]


def _cuts(
    found: list[tuple[int, Any]], names: Any, shapes: Any, macs: list[int], results: list[Any], ends: dict[str, int]
) -> Cuts:
    usable = [
        (place, tensor)
        for place, tensor in found
        if tensor in names and tensor not in results and _is_map(shapes.get(tensor, ()))
    ]
    cuts = []
    for place, tensor in usable:
        left = sum(macs[: place + 1])
        cuts.append(Cut(tuple(dict.fromkeys(names[tensor])), tensor, shapes[tensor][1:], left, sum(macs) - left))
    return Cuts(tuple(cuts), ends, tuple(place for place, _ in usable))


def _is_map(shape: Shape) -> bool:
    """Whether it is one picture's (1, C, H, W)."""
    return len(shape) == 4 and shape[0] == 1 and min(shape) > 0
