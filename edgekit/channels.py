"""Which channels of a network are tied together, found by following labels through the traced graph.

Every index of every parameter axis is a *slot*, e.g. (`stem.conv.weight`, axis 0, index 5). Each activation element
carries the label of the slot that produced it. Element-wise operations unite the labels they bring together,
convolutions and linear layers unite an input label with the matching input slot of the weight, and operations that
only move data are run on the labels themselves, so concat, split, shuffle, flatten and padding need no rule of
their own. What remains after union is a set of classes; all the slots of one class can only be removed together.

An operation without a rule freezes every label it touches and is named in `Ties.frozen`: nothing is guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from edgekit.graph import CREATION, MOVEMENT, POINTWISE, Graph, Op, Value, values_in

Axis = tuple[str, int]
"""A parameter axis: (parameter name, dimension)."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels tied in parallel: `slots[axis]` has one row per channel; row i of every axis goes or stays together.

    A row may hold several indices of one axis (a channel that a flatten spread over several linear inputs).
    """

    slots: dict[Axis, tuple[tuple[int, ...], ...]]

    @property
    def size(self) -> int:
        return len(next(iter(self.slots.values())))

    @property
    def name(self) -> str:
        """The first layer, in order of execution, that produces these channels."""
        return next(iter(self.slots))[0].rpartition(".")[0]


@dataclasses.dataclass(frozen=True)
class Ties:
    """The groups whose channels can be removed, and for each frozen layer the reason it cannot."""

    groups: tuple[Group, ...]
    frozen: dict[str, str]


def ties(graph: Graph) -> Ties:
    """The channel groups of a traced network."""
    return _Labeller(graph).run()


class _Labeller:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parent: list[int] = [0]  # label 0 is "nothing to remove": constants, the network's input
        self.reason: dict[int, str] = {}
        self.slot_base: dict[Axis, int] = {}
        self.slot_size: dict[Axis, int] = {}
        self.labels: dict[int, np.ndarray] = {}
        self.transposed = {o.outputs[0].index: o.args[0] for o in graph.ops if o.kind == "t" and o.args[0].param}

    def run(self) -> Ties:
        for value in self.graph.inputs:
            self.labels[value.index] = np.zeros((1,) * len(value.shape), np.int64)
        for op in self.graph.ops:
            self._follow(op)
        for value in self.graph.outputs:
            self._freeze(self._of(value), "it is an output of the network")
        return self._collect()

    # Union-find over labels. The root of a frozen class has a reason.

    def _find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def _unite(self, left: np.ndarray, right: np.ndarray) -> None:
        left, right = np.broadcast_arrays(left, right)
        pairs = np.unique(np.stack([left.ravel(), right.ravel()], 1), axis=0)
        for a, b in pairs:
            if a and b:
                self._union(int(a), int(b))

    def _union(self, a: int, b: int) -> None:
        a, b = sorted((self._find(a), self._find(b)))
        if a != b:
            self.parent[b] = a
            if b in self.reason:
                self.reason.setdefault(a, self.reason.pop(b))

    def _freeze(self, labels: np.ndarray, reason: str) -> None:
        for label in np.unique(labels):
            if label:
                self.reason.setdefault(self._find(int(label)), reason)

    def _slots(self, param: Value, axis: int) -> np.ndarray:
        key = (str(param.param), axis)
        if key not in self.slot_base:
            size = param.shape[axis]
            self.slot_base[key], self.slot_size[key] = len(self.parent), size
            self.parent.extend(range(len(self.parent), len(self.parent) + size))
        return np.arange(self.slot_base[key], self.slot_base[key] + self.slot_size[key])

    def _of(self, value: Value) -> np.ndarray:
        """Labels of a value, in a shape that broadcasts to the value's."""
        if value.index not in self.labels:
            blank = np.zeros((1,) * len(value.shape), np.int64)
            self.labels[value.index] = self._param_labels(value) if value.param else blank
        return self.labels[value.index]

    def _param_labels(self, value: Value) -> np.ndarray:
        """A parameter met outside a layer's rule, e.g. a learned scale: its one axis longer than 1 carries slots."""
        long = [axis for axis, size in enumerate(value.shape) if size > 1]
        if len(long) != 1:
            return np.zeros((1,) * len(value.shape), np.int64)
        return self._slots(value, long[0]).reshape([-1 if axis == long[0] else 1 for axis in range(len(value.shape))])

    def _follow(self, op: Op) -> None:
        rule = RULES.get(op.kind)
        if rule is not None:
            rule(self, op)
        elif op.kind in POINTWISE:
            self._pointwise(op)
        elif op.kind in MOVEMENT:
            self._move(op)
        else:
            self._stop(op, f"{op.kind} ({op.layer or 'top'}) has no rule")

    def _stop(self, op: Op, reason: str) -> None:
        for value in values_in((op.args, op.kwargs)):
            self._freeze(self._of(value), reason)
            if value.param:
                for axis in range(len(value.shape)):
                    self._freeze(self._slots(value, axis), reason)

    def _pointwise(self, op: Op) -> None:
        values = list(values_in((op.args, op.kwargs)))
        rank = max((len(value.shape) for value in values), default=0)
        merged = np.zeros((1,) * rank, np.int64)
        for value in values:
            labels = self._of(value)
            self._unite(merged, labels)
            merged = np.where(merged == 0, labels, merged)
        for output in op.outputs:
            self.labels[output.index] = merged

    def _move(self, op: Op) -> None:
        """Run the operation itself on the labels, each spread to its value's full shape."""
        inputs = list(values_in((op.args, op.kwargs)))
        if any(value.param and len(value.shape) > 1 for value in inputs):
            return None  # a weight that is transposed or reshaped on its way to a product: its rule looks through
        if op.kind == "constant_pad_nd":
            return self._pad(op)
        if op.kind in CUTTING and any(_varying(self._of(value)) == [_dim(op, value)] for value in inputs):
            return self._stop(op, f"{op.kind} ({op.layer or 'top'}) cuts channels at fixed places")
        full = {value.index: self._full(value) for value in inputs}
        results = op.func(*_put(op.args, full), **_put(op.kwargs, full))
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        for output, result in zip(op.outputs, results):
            self.labels[output.index] = _squeeze(result.numpy())
            if len(_varying(self.labels[output.index])) > 1:
                self._freeze(self.labels[output.index], f"{op.kind} ({op.layer or 'top'}) spreads channels over axes")
        return None

    def _full(self, value: Value) -> torch.Tensor:
        return torch.from_numpy(np.broadcast_to(self._of(value), value.shape).copy())

    def _pad(self, op: Op) -> None:
        """Padding of height and width changes no channel; padding of channels puts a fixed number beside them."""
        x, amounts = op.args[:2]
        if not any(amounts[4:]):
            vector = _channel_vector(self._of(x), 1, x.shape[1])
            if vector is None:
                return self._stop(op, f"{op.layer or 'top'} pads a tensor that is no plain channel tensor")
            self.labels[op.outputs[0].index] = _on_axis(vector, 1, len(x.shape))
            return None
        reason = f"channels are padded by a fixed number ({op.layer or 'top'})"
        self._freeze(self._of(x), reason)
        self.parent.append(fixed := len(self.parent))
        self.reason[fixed] = reason
        self.labels[op.outputs[0].index] = _squeeze(op.func(self._full(x), amounts, fixed).numpy())
        return None

    def _collect(self) -> Ties:
        classes: dict[int, dict[Axis, list[int]]] = {}
        for axis, base in self.slot_base.items():
            for index in range(self.slot_size[axis]):
                classes.setdefault(self._find(base + index), {}).setdefault(axis, []).append(index)
        frozen: dict[str, str] = {}
        parallel: dict[tuple, list[dict[Axis, list[int]]]] = {}
        for root, slots in classes.items():
            if root in self.reason:
                frozen.update({axis[0]: self.reason[root] for axis in slots})
            else:
                parallel.setdefault(tuple((axis, len(indices)) for axis, indices in slots.items()), []).append(slots)
        groups = [
            Group({axis: tuple(tuple(row[axis]) for row in rows) for axis in rows[0]})
            for rows in parallel.values()
            if len(rows) > 1 and _removable(rows[0])
        ]
        return Ties(tuple(groups), frozen)


def _varying(labels: np.ndarray) -> list[int]:
    """The axes along which labels differ."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]


def _dim(op: Op, value: Value) -> int:
    """The axis that a cutting operation works on: its first argument after the tensor, split's second."""
    place = 2 if op.kind.startswith("split") else 1
    dim = op.kwargs.get("dim", op.args[place] if len(op.args) > place else 0)
    return dim % len(value.shape)


def _removable(slots: dict[Axis, Any]) -> bool:
    """Only channels that some layer produces and none needs whole; lone axes (a kernel's, say) are no channels."""
    return any(axis == 0 for _, axis in slots) and any(axis == 1 for _, axis in slots)


def _put(item: Any, tensors: dict[int, torch.Tensor]) -> Any:
    if isinstance(item, Value):
        return tensors[item.index]
    if isinstance(item, tuple):
        return [_put(part, tensors) for part in item]
    if isinstance(item, dict):
        return {key: _put(part, tensors) for key, part in item.items()}
    return item


def _squeeze(labels: np.ndarray) -> np.ndarray:
    """Axes along which nothing changes shrink to 1, so that later work is on channels and not on pixels."""
    for axis in range(labels.ndim):
        first = labels.take([0], axis) if labels.shape[axis] else labels
        if labels.shape[axis] > 1 and (labels == first).all():
            labels = first
    return labels


def _channel_vector(labels: np.ndarray, axis: int, size: int) -> np.ndarray | None:
    """Labels along one axis; None where they also differ along another."""
    others = [length for index, length in enumerate(labels.shape) if index != axis % labels.ndim]
    if any(length > 1 for length in others):
        return None
    return np.broadcast_to(labels.ravel(), (size,))


def _on_axis(vector: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return vector.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def _convolution(labeller: _Labeller, op: Op) -> None:
    x, weight, bias = op.args[:3]
    transposed, groups = op.args[6], op.args[8]
    incoming = _channel_vector(labeller._of(x), 1, x.shape[1])
    if incoming is None or weight.param is None:
        return labeller._stop(op, f"{op.layer}: its input or weight is no plain channel tensor")
    out, inner = (1, 0) if transposed else (0, 1)
    outgoing = labeller._slots(weight, out)
    if groups == 1:
        labeller._unite(incoming, labeller._slots(weight, inner))
    elif groups == x.shape[1] == op.outputs[0].shape[1]:  # depthwise: one set of channels
        outgoing = labeller._slots(weight, 0)
        labeller._unite(incoming, outgoing)
    else:
        return _grouped(labeller, op, incoming)
    if bias is not None:
        labeller._unite(outgoing, labeller._slots(bias, 0))
    labeller.labels[op.outputs[0].index] = _on_axis(outgoing, 1, len(x.shape))
    return None


def _grouped(labeller: _Labeller, op: Op, incoming: np.ndarray) -> None:
    labeller._freeze(incoming, f"{op.layer} is a grouped convolution")
    labeller._stop(op, f"{op.layer} is a grouped convolution")
    labeller.labels[op.outputs[0].index] = _on_axis(labeller._slots(op.args[1], 0), 1, len(op.args[0].shape))


def _linear(labeller: _Labeller, op: Op) -> None:
    """`addmm(bias, x, weight.t())`: the weight arrives transposed, so its parameter is looked up behind it."""
    bias, x, weight = (None, *op.args) if op.kind == "mm" else op.args[:3]
    param = labeller.transposed.get(weight.index)
    incoming = _channel_vector(labeller._of(x), -1, x.shape[-1])
    if param is None or incoming is None:
        return labeller._stop(op, f"{op.kind} ({op.layer or 'top'}) multiplies tensors that are no layer's weight")
    labeller._unite(incoming, labeller._slots(param, 1))
    outgoing = labeller._slots(param, 0)
    if bias is not None:
        labeller._unite(outgoing, labeller._slots(bias, 0))
    labeller.labels[op.outputs[0].index] = _on_axis(outgoing, -1, len(x.shape))
    return None


def _batch_norm(labeller: _Labeller, op: Op) -> None:
    x = op.args[0]
    labels = labeller._of(x)
    for param in op.args[1:5]:
        if isinstance(param, Value) and param.param:
            labeller._unite(labels, _on_axis(labeller._slots(param, 0), 1, len(x.shape)))
    labeller.labels[op.outputs[0].index] = labels


def _keep_channels(labeller: _Labeller, op: Op) -> None:
    """Pooling and resizing: channels pass through, the rest of the shape does not matter."""
    x = next(values_in(op.args))
    labels = labeller._of(x)
    vector = _channel_vector(labels, 1, x.shape[1]) if len(x.shape) > 1 else None
    if op.kind in ("mean", "sum", "amax") and (len(op.args) < 2 or 1 in [axis % len(x.shape) for axis in op.args[1]]):
        vector = None
    for output in op.outputs:
        if vector is None or len(output.shape) < 2 or output.shape[1] != x.shape[1]:
            labeller._stop(op, f"{op.kind} ({op.layer or 'top'}) mixes channels")
        else:
            labeller.labels[output.index] = _on_axis(vector, 1, len(output.shape))


def _ignore(_labeller: _Labeller, _op: Op) -> None:
    """Creates or compares: what comes out carries no label."""


Rule = Callable[[_Labeller, Op], None]
CUTTING = frozenset("slice select split split_with_sizes unbind narrow index_select roll flip".split())
BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
POOLS = (
    "max_pool2d_with_indices avg_pool2d mean sum amax _adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_bilinear2d upsample_nearest2d upsample_bicubic2d"
).split()
RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "addmm": _linear,
    "mm": _linear,
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
    **dict.fromkeys(POOLS, _keep_channels),
    **dict.fromkeys(CREATION, _ignore),
}


def slots(group: Group, rows: Sequence[int]) -> dict[Axis, tuple[int, ...]]:
    """The indices of every axis that belong to the channels `rows` of the group."""
    return {axis: tuple(sorted(i for row in rows for i in indices[row])) for axis, indices in group.slots.items()}
