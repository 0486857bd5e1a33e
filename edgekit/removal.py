"""Which channels can really be removed, proven by removing some, and the edits that remove them.

Labels (channels.py) say which slots belong together. They cannot say whether the code around the tensors follows: a
view by fixed numbers or a split at a fixed place may break, or worse, cut elsewhere. So one channel of every group is
removed on trial, the result is traced and labelled again, and only where its classes of slots are the old ones without
the removed slots is a group accepted. Groups that fail are found by halving and are left alone, with the reason.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import nn

from edgekit.channels import Classes, Group, Ties, slots, ties
from edgekit.edits import KeepChannels, channels
from edgekit.errors import BadInput
from edgekit.graph import Shape, meta_copy, trace
from edgekit.labels import Axis

Side = Literal["out", "in"]
FEWEST = 2
"""Rows that a group keeps at least. A single channel looks like one that is spread over all: a depthwise convolution
of one group is an ordinary one, a PReLU of one parameter serves any number of channels, and so on."""
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
    return dataclasses.replace(found, groups=tuple(proven), frozen=frozen)


def edits(module: nn.Module, groups: Sequence[Group], removed: Sequence[Sequence[int]]) -> list[KeepChannels]:
    """The edits that take the rows `removed` out of each group."""
    gone: dict[tuple[str, Side], set[int]] = {}
    for group, rows in zip(groups, removed):
        for axis, indices in slots(group, rows).items():
            gone.setdefault(layer_side(module, axis), set()).update(indices)
    return [
        KeepChannels(layer, side, tuple(i for i in range(channels(module.get_submodule(layer), side)) if i not in lost))
        for (layer, side), lost in gone.items()
        if lost
    ]


def layers_of(group: Group) -> list[str]:
    return sorted({name.rpartition(".")[0] for name, _ in group.slots})


def makers_of(module: nn.Module, group: Group) -> list[str]:
    """The layers whose outputs the group's channels are, norms and depthwise convolutions among them."""
    sides = (layer_side(module, axis) for axis in group.slots)
    return sorted({layer for layer, side in sides if side == "out"})


def _editable(module: nn.Module, group: Group) -> bool:
    try:
        for axis in group.slots:
            layer, side = layer_side(module, axis)
            channels(module.get_submodule(layer), side)
    except BadInput:
        return False
    return True


def layer_side(module: nn.Module, axis: Axis) -> tuple[str, Side]:
    """The layer that a parameter axis belongs to, and which side of the layer it is."""
    name, dim = axis
    layer = name.rpartition(".")[0]
    transposed = isinstance(module.get_submodule(layer), nn.ConvTranspose2d) and name.endswith(".weight")
    return layer, "in" if dim == (0 if transposed else 1) else "out"


def _proven(module: nn.Module, shape: Shape, groups: list[Group], classes: Classes) -> list[Group]:
    if not groups or _trial(module, shape, groups, classes):
        return groups
    if len(groups) == 1:
        return []
    half = len(groups) // 2
    proven = _proven(module, shape, groups[:half], classes) + _proven(module, shape, groups[half:], classes)
    # Each half held alone; should they not hold together, neither is trusted.
    return proven if len(proven) < 2 or _trial(module, shape, proven, classes) else []


def _trial(module: nn.Module, shape: Shape, groups: Sequence[Group], classes: Classes) -> bool:
    return holds(module, shape, groups, [[0]] * len(groups), classes)


def holds(
    module: nn.Module,
    shape: Shape,
    groups: Sequence[Group],
    removed: Sequence[Sequence[int]],
    classes: Classes,
) -> bool:
    """Whether the network without the rows `removed` of each group has the old classes without those slots."""
    smaller = meta_copy(module)
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
    left = {axis: np.delete(found, list(lost.get(axis, ()))) for axis, found in classes.items()}
    return _same_partition(left, found)


def _same_partition(left: Classes, right: Classes) -> bool:
    """Whether both put the same slots together; the numbers of the classes do not matter."""
    if {axis: len(found) for axis, found in left.items()} != {axis: len(found) for axis, found in right.items()}:
        return False
    pairs = np.stack([np.concatenate([classes[axis] for axis in left]) for classes in (left, right)])
    both = np.unique(pairs, axis=1).shape[1]
    return both == len(np.unique(pairs[0])) == len(np.unique(pairs[1]))


def block_rows(group: Group, round_to: int) -> int:
    """The fewest rows that hold a multiple of `round_to` channels of the layer that makes them."""
    return round_to // math.gcd(round_to, group.width)


def keep_count(size: int, share: float, round_to: int) -> int:
    """How many of `size` channels stay: the share, rounded up to a multiple of `round_to`, at least one multiple."""
    return min(size, round_to * max(1, math.ceil(share * size / round_to)))
