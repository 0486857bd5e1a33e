"""Residual blocks that can be dropped whole: where the branch is gone, what comes in goes out.

A block is a module that is called once, takes one tensor and gives one of the same shape, and ends in

    y = a(x + f(x))

with x as it came in and `a` either absent or an activation that x has already been through (a(x) = x, so that the
block without f is the identity: ResNet's ReLU after the sum). This is read from the graph, whatever the module's class.
Whether the code around it follows is proven by dropping it on trial: the traced network must be the old one without the
block's operations, its readers now reading x.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from edgekit.edits import DropBlock
from edgekit.errors import BadInput
from edgekit.graph import Call, Graph, Op, Shape, Value, meta_copy, trace

BROKEN = "dropping it breaks code around it"
ELSEWHERE = "no module of its own holds shortcut and branch"


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The blocks that can be dropped, in order of execution, and for each layer with another sum over a shortcut the
    reason why that one cannot."""

    layers: tuple[str, ...]
    left: dict[str, str]


def droppable(module: nn.Module, input_shape: Shape) -> Blocks:
    """The residual blocks of a network.

    Raises:
        BadInput: the network cannot be traced on that input.
    """
    graph = trace(module, input_shape)
    reader = _Reader(graph)
    found, left = reader.blocks()
    if found and not _follows(module, input_shape, graph, found):
        kept = [call for call in found if _follows(module, input_shape, graph, [call])]
        left.update({call.layer: BROKEN for call in found if call not in kept})
        # Each alone held; should they not hold together, none is trusted.
        if len(kept) > 1 and not _follows(module, input_shape, graph, kept):
            left.update({call.layer: BROKEN for call in kept})
            kept = []
        found = kept
    return Blocks(tuple(call.layer for call in found), left)


class _Reader:
    """Finds the sums over a shortcut, and the modules that are nothing but one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.maker = {value.index: op for op in graph.ops for value in op.outputs}
        self.times: dict[str, int] = {}
        for call in graph.calls:
            self.times[call.layer] = self.times.get(call.layer, 0) + 1

    def blocks(self) -> tuple[list[Call], dict[str, str]]:
        found: dict[int, Call] = {}
        left: dict[str, str] = {}
        for place, shortcut in self._sums():
            around = [call for call in self.graph.calls if call.layer and call.first <= place < call.last]
            reasons = [self._reason(call, place, shortcut) for call in around]
            if None in reasons:
                found[place] = around[reasons.index(None)]  # the innermost: a container of one block is the same
            else:
                layer = self.graph.ops[place].layer
                left[layer or "top"] = next((why for why in reasons if why != ELSEWHERE), None) or ELSEWHERE
        return [found[place] for place in sorted(found)], left

    def _sums(self) -> list[tuple[int, Value]]:
        """Where something is added to what it was computed from: the operation's place, and the shortcut."""
        before: dict[int, int] = {}  # for each value a bit set of those that it depends on
        found = []
        for place, op in enumerate(self.graph.ops):
            if op.kind in ("add", "add_") and op.kwargs.get("alpha", 1) == 1 and len(op.inputs) == 2:
                left, right = op.inputs
                for shortcut, branch in ((left, right), (right, left)):
                    if shortcut.shape == branch.shape and before.get(branch.index, 0) >> shortcut.index & 1:
                        found.append((place, shortcut))
            seen = 0
            for value in op.inputs:
                seen |= before.get(value.index, 0) | 1 << value.index
            before.update({value.index: seen for value in op.outputs})
        return found

    def _reason(self, call: Call, place: int, shortcut: Value) -> str | None:
        """Why a module is not the block that ends in that sum, or None if it is."""
        if len(call.inputs) != 1 or len(call.outputs) != 1 or call.inputs[0] != shortcut:
            return ELSEWHERE
        if self.times[call.layer] > 1:
            return "it is called more than once"
        value, activations = call.outputs[0], []
        while (op := self.maker.get(value.index)) is not None and op is not self.graph.ops[place]:
            activations.append(op)
            if op.kind.rstrip("_") not in IDEMPOTENT:
                return f"{op.kind} stands between its sum and its end"
            value = op.inputs[0]
        if op is None:
            return ELSEWHERE
        if not all(self._through(shortcut, activation) for activation in activations):
            return f"its input has not been through the {activations[0].kind} behind its sum"
        return None

    def _through(self, value: Value, activation: Op) -> bool:
        """Whether the activation leaves the value as it is: it made it, with nothing since that makes other numbers."""
        while (op := self.maker.get(value.index)) is not None:
            if op.kind.rstrip("_") == activation.kind.rstrip("_") and op.args[1:] == activation.args[1:]:
                return True
            if op.kind not in SELECTS:
                return False
            value = op.inputs[0]
        return False


IDEMPOTENT = frozenset(["relu", "hardtanh", "clamp_min"])
"""Activations a with a(a(x)) = a(x)."""
SELECTS = frozenset(["max_pool2d_with_indices", "alias", "detach", "clone", "view", "permute"])
"""What comes out are numbers that went in."""


def _follows(module: nn.Module, shape: Shape, graph: Graph, blocks: Sequence[Call]) -> bool:
    """Whether the network without the blocks is, operation by operation, the old one that goes around them."""
    smaller = meta_copy(module)
    try:
        for call in blocks:
            DropBlock(call.layer).apply(smaller)
        found = trace(smaller, shape)
    except (BadInput, AttributeError):
        return False
    around = {call.outputs[0].index: call.inputs[0].index for call in blocks}
    inside = {place for call in blocks for place in range(call.first, call.last)}
    left = [op for place, op in enumerate(graph.ops) if place not in inside]
    return _read(left, around, graph.outputs) == _read(list(found.ops), {}, found.outputs)


def _read(ops: Sequence[Op], around: dict[int, int], outputs: Sequence[Value]) -> list[Any]:
    """What is computed, with tensors numbered by their first use."""
    numbers: dict[int, int] = {}

    def plain(item: Any) -> Any:
        if isinstance(item, Value):
            index = item.index
            while index in around:
                index = around[index]
            return item.param or numbers.setdefault(index, len(numbers)), item.shape
        if isinstance(item, (tuple, list)):
            return [plain(part) for part in item]
        return {key: plain(part) for key, part in item.items()} if isinstance(item, dict) else item

    found = [(op.layer, op.kind, plain(op.args), plain(op.kwargs), plain(op.outputs)) for op in ops]
    return [*found, plain(outputs)]
