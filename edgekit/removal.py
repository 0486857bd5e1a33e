"""Which channels can really be removed, proven by removing some, and the edits that remove them.

Labels (channels.py) say which slots belong together. They cannot say whether the code around the tensors follows: a
view by fixed numbers or a split at a fixed place may break, or worse, cut elsewhere. So one channel of every group is
removed on trial, the result is traced and labelled again, and only where its classes of slots are the old ones without
the removed slots is a group accepted. Groups that fail are found by halving and are left alone, with the reason.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

from edgekit.channels import Group, Slots, Ties, slots, ties
from edgekit.edits import KeepChannels, channels
from edgekit.errors import BadInput
from edgekit.graph import Shape, trace
from edgekit.labels import Axis

Side = Literal["out", "in"]
BROKEN = "removing its channels breaks code that works with fixed numbers"


def prunable(module: nn.Module, input_shape: Shape) -> Ties:
    """The channel groups of a network that can be removed, and why others cannot.

    Raises:
        BadInput: the network cannot be traced on that input.
    """
    found = ties(trace(module, input_shape))
    editable = [group for group in found.groups if _editable(module, group)]
    proven = _proven(module, input_shape, editable, found.classes)
    frozen = dict(found.frozen)
    for group in found.groups:
        if group not in editable:
            frozen[group.name] = "a parameter outside the layers that can be cut goes with its channels"
        elif group not in proven:
            frozen[group.name] = BROKEN
    return Ties(tuple(proven), frozen, found.classes)


def edits(module: nn.Module, groups: Sequence[Group], removed: Sequence[Sequence[int]]) -> list[KeepChannels]:
    """The edits that take the rows `removed` out of each group."""
    gone: dict[tuple[str, Side], set[int]] = {}
    for group, rows in zip(groups, removed):
        for axis, indices in slots(group, rows).items():
            gone.setdefault(_layer_side(module, axis), set()).update(indices)
    return [
        KeepChannels(layer, side, tuple(i for i in range(channels(module.get_submodule(layer), side)) if i not in lost))
        for (layer, side), lost in gone.items()
        if lost
    ]


def layers_of(group: Group) -> list[str]:
    return sorted({name.rpartition(".")[0] for name, _ in group.slots})


def _editable(module: nn.Module, group: Group) -> bool:
    try:
        for axis in group.slots:
            layer, side = _layer_side(module, axis)
            channels(module.get_submodule(layer), side)
    except BadInput:
        return False
    return True


def _layer_side(module: nn.Module, axis: Axis) -> tuple[str, Side]:
    """The layer that a parameter axis belongs to, and which side of the layer it is."""
    name, dim = axis
    layer = name.rpartition(".")[0]
    transposed = isinstance(module.get_submodule(layer), nn.ConvTranspose2d) and name.endswith(".weight")
    return layer, "in" if dim == (0 if transposed else 1) else "out"


def _proven(module: nn.Module, shape: Shape, groups: list[Group], classes: Sequence[Slots]) -> list[Group]:
    if not groups or _trial(module, shape, groups, classes):
        return groups
    if len(groups) == 1:
        return []
    half = len(groups) // 2
    proven = _proven(module, shape, groups[:half], classes) + _proven(module, shape, groups[half:], classes)
    # Each half held alone; should they not hold together, neither is trusted.
    return proven if len(proven) < 2 or _trial(module, shape, proven, classes) else []


def _trial(module: nn.Module, shape: Shape, groups: Sequence[Group], classes: Sequence[Slots]) -> bool:
    return holds(module, shape, groups, [[0]] * len(groups), classes)


def holds(
    module: nn.Module,
    shape: Shape,
    groups: Sequence[Group],
    removed: Sequence[Sequence[int]],
    classes: Sequence[Slots],
) -> bool:
    """Whether the network without the rows `removed` of each group has the old classes without those slots."""
    smaller = copy.deepcopy(module).to("meta")
    try:
        for edit in edits(smaller, groups, removed):
            edit.apply(smaller)
        found = ties(trace(smaller, shape)).classes
    except BadInput:
        return False
    lost: dict[Axis, set[int]] = {}
    for group, rows in zip(groups, removed):
        for axis, indices in slots(group, rows).items():
            lost.setdefault(axis, set()).update(indices)
    return _partition(_without(classes, lost)) == _partition(found)


def _without(classes: Sequence[Slots], lost: dict[Axis, set[int]]) -> list[Slots]:
    """The classes without the lost slots, the others renumbered as they stand afterwards."""
    places: dict[Axis, dict[int, int]] = {}
    for axis, gone in lost.items():
        size = 1 + max(max(found[axis]) for found in classes if axis in found)
        places[axis] = {index: place for place, index in enumerate(i for i in range(size) if i not in gone)}

    def kept(axis: Axis, indices: list[int]) -> list[int]:
        return [places[axis][i] for i in indices if i in places[axis]] if axis in places else indices

    smaller = ({axis: kept(axis, indices) for axis, indices in found.items()} for found in classes)
    return [left for found in smaller if (left := {axis: indices for axis, indices in found.items() if indices})]


def _partition(classes: Sequence[Slots]) -> set[frozenset[tuple[Axis, int]]]:
    return {frozenset((axis, index) for axis, indices in found.items() for index in indices) for found in classes}


def keep_count(size: int, share: float, round_to: int) -> int:
    """How many of `size` channels stay: the share, rounded up to a multiple of `round_to`, at least one multiple."""
    return min(size, round_to * max(1, math.ceil(share * size / round_to)))
