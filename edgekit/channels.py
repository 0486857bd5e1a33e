"""Which channels of a network are tied together, found by following labels through the traced graph.

Every index of every parameter axis is a *slot*, e.g. (`stem.conv.weight`, axis 0, index 5). Each activation element
carries the label of the slot that produced it. Element-wise operations unite the labels they bring together,
convolutions and linear layers unite an input label with the matching input slot of the weight, and operations that
only move data are run on the labels themselves, so concat, split, shuffle, flatten and padding need no rule of
their own. What remains after union is a set of classes; all the slots of one class can only be removed together.

An operation without a rule freezes every label it touches and is named in `Ties.frozen`: nothing is guessed. Whether
the code around the tensors allows a removal (a view by fixed numbers, say) is proven by `removal.py`, by trying.

A module that holds channel counts of its own offers `channels(dim)` and `keep_channels(dim, keep)` (`SplitChannels`,
`PadShortcut`); its slots then stand under the name `<module>.channels`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from edgekit.graph import BATCH_NORMS, CREATION, MOVEMENT, POINTWISE, Graph, Op, Value, values_in
from edgekit.labels import Axis, Labels


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Channels tied in parallel: `slots[axis]` has one row per channel; row i of every axis goes or stays together.

    Its arrays are int64 (size, n): a row may hold several indices of one axis (a channel that a flatten spread over
    several linear inputs). Every row has the same n on every axis and in every activation, so what the network costs
    depends on how many rows stay and not on which.
    """

    slots: dict[Axis, np.ndarray]

    @property
    def size(self) -> int:
        return len(next(iter(self.slots.values())))

    @property
    def width(self) -> int:
        """How many channels of the layer that makes them one row holds."""
        return next(iter(self.slots.values())).shape[1]

    @property
    def name(self) -> str:
        """The first layer, in order of execution, that produces these channels."""
        return next(iter(self.slots))[0].rpartition(".")[0]


Classes = dict[Axis, np.ndarray]
"""For each axis the class of each of its slots, int64 (size,); slots of one class go or stay together."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ties:
    """What is tied in a traced network.

    Attributes:
        groups: the channels that can be removed.
        frozen: for each other parameter the reason.
        classes: of every slot.
        values: for each activation, by its index, the class of each element in a shape that broadcasts to the
            activation's; 0 where an element is of no class.
    """

    graph: Graph
    groups: tuple[Group, ...]
    frozen: dict[str, str]
    classes: Classes
    values: dict[int, np.ndarray]


def ties(graph: Graph) -> Ties:
    """The channel groups of a traced network."""
    return _Labeller(graph).run()


class _Labeller(Labels):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.given = self.fixed("it meets the network's input")
        self.labels: dict[int, np.ndarray] = {}
        self.transposed = {o.outputs[0].index: o.args[0] for o in graph.ops if o.kind == "t" and o.args[0].param}

    def run(self) -> Ties:
        for value in self.graph.inputs:
            self.labels[value.index] = np.full((1,) * len(value.shape), self.given)
        for op in self.graph.ops:
            self._follow(op)
        for value in self.graph.outputs:
            self.freeze(self._of(value), "it is an output of the network")
        return self._collect()

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
        return self.slots(value, long[0]).reshape([-1 if axis == long[0] else 1 for axis in range(len(value.shape))])

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
            self.freeze(self._of(value), reason)
            if value.param:
                for axis in range(len(value.shape)):
                    self.freeze(self.slots(value, axis), reason)

    def _pointwise(self, op: Op) -> None:
        values = list(values_in((op.args, op.kwargs)))
        rank = max((len(value.shape) for value in values), default=0)
        merged = np.zeros((1,) * rank, np.int64)
        for value in values:
            labels = self._of(value)
            self.unite(merged, labels)
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
        if op.kind.startswith("split"):
            self._tie_parts(op)
        spread = self._thin if op.kind == "cat" else self._full
        values = {value.index: spread(value, op) for value in inputs}
        results = op.func(*_put(op.args, values), **_put(op.kwargs, values))
        results = [results] if isinstance(results, torch.Tensor) else list(results)
        for output, result in zip(op.outputs, results):
            self.labels[output.index] = _squeeze(result.numpy())
        if op.kind in ("view", "_unsafe_view", "reshape"):
            self._tie_rows(op.outputs[0])
        return None

    def _tie_parts(self, op: Op) -> None:
        """Split: a module that holds the sizes follows any change; else equal parts must stay equal."""
        x, labels = op.args[0], self._of(op.args[0])
        sizes = op.args[1]
        if _varying(labels) != [1]:
            return
        vector = np.broadcast_to(labels.ravel(), (x.shape[1],))
        if op.layer in self.graph.holders:
            self.unite(vector, self.axis_slots((f"{op.layer}.channels", 1), x.shape[1]))
        elif isinstance(sizes, int) and x.shape[1] % sizes == 0:
            parts = vector.reshape(-1, sizes)
            self.unite(parts[:1], parts)

    def _tie_rows(self, output: Value) -> None:
        """A view that spreads channels over two axes (shuffle, heads) stays regular where whole columns go."""
        labels = self._of(output)
        axes = _varying(labels)
        if len(axes) == 2 and len(output.shape) == 5:
            self.unite(labels.take([0], axes[0]), labels)

    def _thin(self, value: Value, op: Op) -> torch.Tensor:
        """For concatenation: labels need their full length along that axis only, unless others vary as well."""
        axis = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(value.shape)
        if any(set(_varying(self._of(v))) - {axis} for v in values_in(op.args)):
            return self._full(value, op)
        shape = [size if index == axis else 1 for index, size in enumerate(value.shape)]
        return torch.from_numpy(np.broadcast_to(self._of(value), shape).copy())

    def _full(self, value: Value, _op: Op) -> torch.Tensor:
        return torch.from_numpy(np.broadcast_to(self._of(value), value.shape).copy())

    def _pad(self, op: Op) -> None:
        """Padding of height and width changes no channel; padding of channels puts a fixed number beside them."""
        x, amounts = op.args[:2]
        vector = self.channel_vector(x, 1)
        before, after = (*amounts[4:6], 0, 0)[:2]
        if min(before, after) < 0:
            return self._stop(op, f"{op.layer or 'top'} crops channels")
        if op.layer in self.graph.holders:
            fresh = self.axis_slots((f"{op.layer}.channels", 0), before + after)
        else:
            reason = f"channels are padded by a fixed number ({op.layer or 'top'})"
            fresh = np.full(before + after, self.fixed(reason))
            if before + after:
                self.freeze(vector, reason)
        padded = np.concatenate([fresh[:before], vector, fresh[before:]])
        self.labels[op.outputs[0].index] = _on_axis(padded, 1, len(x.shape))
        return None

    def channel_vector(self, value: Value, axis: int) -> np.ndarray:
        """One label for each index along `axis`; labels that share an index are united."""
        labels = self._of(value)
        axis %= labels.ndim
        lead = np.moveaxis(labels, axis, 0).reshape(labels.shape[axis], -1)
        if lead.shape[1] > 1:
            self.unite(lead[:, :1], lead)
        return np.broadcast_to(lead[:, 0], (value.shape[axis],))

    def _collect(self) -> Ties:
        roots, reasons = self.roots()
        classes = {axis: roots[base : base + self.slot_size[axis]] for axis, base in self.slot_base.items()}
        values = {index: roots[labels] for index, labels in self.labels.items()}
        groups = _groups(classes, [labels.ravel() for labels in values.values()], reasons)
        return Ties(self.graph, groups, _frozen(classes, reasons), classes, values)


def _frozen(classes: Classes, reasons: dict[int, str]) -> dict[str, str]:
    """For each parameter with a frozen slot the reason: what a layer makes tells more than what it reads."""
    frozen: dict[str, str] = {}
    for name, side in sorted(classes, key=lambda axis: axis[1]):
        for root in np.unique(classes[name, side]).tolist():
            if root in reasons:
                frozen.setdefault(name, reasons[root])
    return frozen


def _groups(classes: Classes, values: list[np.ndarray], reasons: dict[int, str]) -> tuple[Group, ...]:
    """The free classes, those of one form together: as many slots on the same axes and elements of the same values."""
    axes = list(classes)
    parts = [*classes.values(), *values]
    root = np.concatenate(parts)
    owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    place = np.concatenate([np.arange(len(part)) for part in parts])
    free = ~np.isin(root, [0, *reasons])
    order = np.flatnonzero(free)[np.argsort(root[free], kind="stable")]
    starts = np.flatnonzero(np.diff(root[order], prepend=0))
    forms: dict[bytes, list[np.ndarray]] = {}
    for members in np.split(order, starts[1:]) if len(starts) else []:
        forms.setdefault(owner[members].tobytes(), []).append(members)
    groups = []
    for rows in forms.values():
        members = np.stack(rows)
        owners = owner[members[0]]
        slots = {axes[axis]: place[members[:, owners == axis]] for axis in np.unique(owners[owners < len(axes)])}
        if len(rows) > 1 and _removable(slots):
            groups.append(Group(slots))
    return tuple(groups)


def _varying(labels: np.ndarray) -> list[int]:
    """The axes along which labels differ."""
    return [axis for axis, size in enumerate(labels.shape) if size > 1]


def _removable(slots: Classes) -> bool:
    """Only channels that some layer makes and another reads; lone axes (a kernel's, say) are no channels."""
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


def _on_axis(vector: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return vector.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def _convolution(labeller: _Labeller, op: Op) -> None:
    x, weight, bias = op.args[:3]
    transposed, groups = op.args[6], op.args[8]
    if weight.param is None:
        return labeller._stop(op, f"{op.layer} computes its weight")
    incoming = labeller.channel_vector(x, 1)
    # The output's channels: axis 0, or axis 1 of each group where transposed.
    outgoing = labeller.slots(weight, 1 if transposed else 0)
    inner = labeller.slots(weight, 0 if transposed else 1)
    if groups == 1:
        labeller.unite(incoming, inner)
    elif transposed:
        return labeller._stop(op, f"{op.layer} is a grouped transposed convolution")
    elif groups == x.shape[1]:  # depthwise: each input channel makes the same number of outputs
        labeller.unite(incoming[:, None], outgoing.reshape(groups, -1))
    else:  # the same place in every group goes together, so that groups stay equal
        labeller.unite(inner[None], incoming.reshape(groups, -1))
        rows = outgoing.reshape(groups, -1)
        labeller.unite(rows[:1], rows)
    if bias is not None:
        labeller.unite(outgoing, labeller.slots(bias, 0))
    labeller.labels[op.outputs[0].index] = _on_axis(outgoing, 1, len(x.shape))
    return None


def _linear(labeller: _Labeller, op: Op) -> None:
    """`addmm(bias, x, weight.t())`: the weight arrives transposed, so its parameter is looked up behind it."""
    bias, x, weight = (None, *op.args) if op.kind == "mm" else op.args[:3]
    param = labeller.transposed.get(weight.index)
    if param is None or x.param:
        return labeller._stop(op, f"{op.kind} ({op.layer or 'top'}) multiplies tensors that are no layer's weight")
    labeller.unite(labeller.channel_vector(x, -1), labeller.slots(param, 1))
    outgoing = labeller.slots(param, 0)
    if bias is not None:
        labeller.unite(outgoing, labeller.slots(bias, 0))
    labeller.labels[op.outputs[0].index] = _on_axis(outgoing, -1, len(x.shape))
    return None


def _channel_norm(labeller: _Labeller, op: Op) -> None:
    """Batch norm: affine parameters and statistics go with their channel."""
    x = op.args[0]
    vector = labeller.channel_vector(x, 1)
    for param in op.args[1:5]:
        if isinstance(param, Value) and param.param:
            labeller.unite(vector, labeller.slots(param, 0))
    labeller.labels[op.outputs[0].index] = _on_axis(vector, 1, len(x.shape))


def _layer_norm(labeller: _Labeller, op: Op) -> None:
    """Layer norm over the last axis alone: its parameters go with their channel (and its statistics change)."""
    x, shape, *affine = op.args[:4]
    if len(shape) != 1:
        return labeller._stop(op, f"{op.layer} normalises over several axes")
    vector = labeller.channel_vector(x, -1)
    for param in affine:
        if param is not None and param.param:
            labeller.unite(vector, labeller.slots(param, 0))
    labeller.labels[op.outputs[0].index] = _on_axis(vector, -1, len(x.shape))
    return None


def _group_norm(labeller: _Labeller, op: Op) -> None:
    """Group norm keeps whole groups: all channels of one go together."""
    x, weight, bias, groups = op.args[0], op.args[1], op.args[2], op.args[6]
    vector = labeller.channel_vector(x, 1)
    rows = vector.reshape(groups, -1)
    labeller.unite(rows[:, :1], rows)
    for param in (weight, bias):
        if param is not None and param.param:
            labeller.unite(vector, labeller.slots(param, 0))
    labeller.labels[op.outputs[0].index] = _on_axis(vector, 1, len(x.shape))


def _keep_channels(labeller: _Labeller, op: Op) -> None:
    """Pooling and resizing: channels pass through, the rest of the shape does not matter."""
    x = next(values_in(op.args))
    rank = len(x.shape)
    reduced = (
        [axis % rank for axis in op.args[1]] if op.kind in REDUCTIONS and len(op.args) > 1 and op.args[1] else None
    )
    if op.kind in REDUCTIONS and (reduced is None or any(axis in reduced for axis in _varying(labeller._of(x)))):
        return labeller._stop(op, f"{op.kind} ({op.layer or 'top'}) mixes channels")
    labels = labeller._of(x)
    for output in op.outputs:
        if reduced is not None and len(output.shape) < rank:
            labeller.labels[output.index] = labels.squeeze(tuple(reduced))
        else:
            labeller.labels[output.index] = labels
    return None


def _ignore(_labeller: _Labeller, _op: Op) -> None:
    """Creates or compares: what comes out carries no label."""


Rule = Callable[[_Labeller, Op], None]
REDUCTIONS = ("mean", "sum", "amax")
POOLS = (
    "max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d "
    "upsample_bilinear2d upsample_nearest2d upsample_bicubic2d"
).split()
RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "addmm": _linear,
    "mm": _linear,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(BATCH_NORMS, _channel_norm),
    **dict.fromkeys((*REDUCTIONS, *POOLS), _keep_channels),
    **dict.fromkeys(CREATION, _ignore),
}


def slots(group: Group, rows: Sequence[int]) -> dict[Axis, tuple[int, ...]]:
    """The indices of every axis that belong to the channels `rows` of the group."""
    wanted = np.asarray(rows, np.int64)
    return {axis: tuple(np.sort(indices[wanted], axis=None).tolist()) for axis, indices in group.slots.items()}
