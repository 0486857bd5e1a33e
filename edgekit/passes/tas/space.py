"""What of a network is searched, and what each choice costs.

A width is chosen for every channel group (channels.py): the layers that an addition ties share one choice. A depth is
chosen for every stage: blocks of one class and shape in a row, of which the first d stay, d ≥ 1.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from edgekit.blocks import droppable
from edgekit.channels import Group, Ties
from edgekit.costs import CostModel
from edgekit.edits import DropBlock, KeepChannels
from edgekit.errors import BadInput
from edgekit.graph import BATCH_NORMS, Call, Graph, Shape
from edgekit.passes.tas.choices import depth_choices, width_choices
from edgekit.removal import block_rows, edits, holds, layer_side, makers_of, prunable

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """What is searched.

    Attributes:
        found: the channels of the whole network.
        groups: those with a choice of width, and `widths`, the rows that each may keep, ascending.
        stages: the blocks of each stage with a choice of depth, and `depths`, how many each may keep, ascending.
        norms: the batch norm that directly follows a layer, by the layer's name.
        left: what stays at full width or depth, with the reason.
    """

    found: Ties
    groups: tuple[Group, ...]
    widths: tuple[tuple[int, ...], ...]
    stages: tuple[tuple[str, ...], ...]
    norms: dict[str, str]
    left: dict[str, str]

    @property
    def depths(self) -> tuple[tuple[int, ...], ...]:
        return tuple(depth_choices(len(stage)) for stage in self.stages)

    def ranked(self, scores: Sequence[np.ndarray]) -> Space:
        """With the rows of each group in another order, those of the largest scores first."""
        orders = [np.argsort(-each, kind="stable") for each in scores]
        groups = (
            Group({axis: rows[order] for axis, rows in group.slots.items()})
            for group, order in zip(self.groups, orders)
        )
        return dataclasses.replace(self, groups=tuple(groups))

    def edits(self, module: nn.Module, kept: Sequence[int], depths: Sequence[int]) -> list[KeepChannels | DropBlock]:
        """Those that leave the first `kept` rows of each group and the first blocks of each stage.

        Raises:
            BadInput: the code of the network does not follow.
        """
        removed = [range(rows, group.size) for group, rows in zip(self.groups, kept)]
        if not holds(module, self.found.graph.inputs[0].shape[1:], self.groups, removed, self.found.classes):
            raise BadInput("tas: the code of this network does not follow the removal; exclude the layers it slices")
        gone = [block for stage, blocks in zip(self.stages, depths) for block in stage[blocks:]]
        narrower = edits(module, self.groups, removed)
        left = [edit for edit in narrower if not any(_within(edit.layer, block) for block in gone)]
        return [*left, *(DropBlock(block) for block in gone)]


def search_space(module: nn.Module, shape: Shape, round_to: int, exclude: Sequence[str]) -> Space:
    """Everything of a network that the supernet can vary.

    Raises:
        BadInput: a glob of `exclude` matches nothing, or nothing is left to search.
    """
    found = prunable(module, shape)
    blocks = droppable(module, shape)
    names = dict(module.named_modules())
    for pattern in exclude:
        if not fnmatch.filter(names, pattern):
            raise BadInput(f"tas: exclude = {pattern!r} matches no layer or block")
    norms = _norms(found.graph)
    left: dict[str, str] = {}
    groups, widths = [], []
    for group in found.groups:
        reason = _excluded(makers_of(module, group), exclude) or _unfit(group, names, found.graph, norms)
        choices = width_choices(group.size, block_rows(group, round_to))
        if reason or len(choices) < 2:
            left[group.name] = reason or f"too few channels for blocks of {round_to}"
            continue
        groups.append(group)
        widths.append(choices)
    left.update({**blocks.left, **found.frozen})
    free = [name for name in blocks.layers if not _excluded([name], exclude)]
    stages = tuple(_stages(names, found.graph, free))
    if not groups and not stages:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left.items())[:3])
        raise BadInput(f"tas: there is nothing to search in this network ({why or 'it has no channels to remove'})")
    return Space(found, tuple(groups), tuple(widths), stages, norms, left)


def _excluded(names: Sequence[str], exclude: Sequence[str]) -> str:
    return next((f"excluded by {glob!r}" for glob in exclude if fnmatch.filter(names, glob)), "")


def _norms(graph: Graph) -> dict[str, str]:
    """For each convolution whose output only a batch norm reads, the name of that norm."""
    readers: dict[int, list[int]] = {}
    for place, op in enumerate(graph.ops):
        for value in op.inputs:
            readers.setdefault(value.index, []).append(place)
    found = {}
    for op in graph.ops:
        after = [graph.ops[place] for place in readers.get(op.outputs[0].index, [])] if op.is_conv else []
        if [reader.kind in BATCH_NORMS for reader in after] == [True]:
            found[op.layer] = after[0].layer
    return found


def _unfit(group: Group, names: dict[str, nn.Module], graph: Graph, norms: dict[str, str]) -> str:
    """Why the supernet cannot vary a group, or nothing."""
    calls = [call.layer for call in graph.calls]
    for axis in group.slots:
        layer, side = layer_side(names[""], axis)
        module = names[layer]
        if (times := calls.count(layer)) != 1:
            return f"{layer} is called {times} times"
        if side == "in" or hasattr(module, "keep_channels"):
            continue
        if isinstance(module, nn.BatchNorm2d):
            if layer not in norms.values():
                return f"{layer} does not follow a convolution of its own"
            if not (module.affine and module.track_running_stats):
                return f"{layer} has no scale or no statistics of its own"
        elif not isinstance(module, LAYERS):
            return f"{layer} is a {type(module).__name__}, of which the supernet knows no narrower form"
    return ""


def _stages(names: dict[str, nn.Module], graph: Graph, blocks: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Blocks in a row, each reading what the one before it made, with the one of their class that feeds them."""
    calls = {call.layer: call for call in graph.calls}
    chains: list[list[Call]] = []
    for call in (calls[name] for name in blocks):
        if chains and chains[-1][-1].outputs == call.inputs:
            chains[-1].append(call)
        else:
            feeding = (c for c in graph.calls if c.outputs == call.inputs and c.layer)
            first = [c for c in feeding if type(names[c.layer]) is type(names[call.layer])]
            chains.append([*first[:1], call])
    return (tuple(call.layer for call in chain) for chain in chains if len(chain) > 1)


class Macs:
    """MACs as a share of the uncompressed network's, by rows kept and by how likely each block is to stay:

        F = Σ factor · s_in(k) · s_out(k) · P(depth ≥ the block's position),

    the forms s of costs.py. At the mean numbers of rows this is the paper's k² · H · W · E[C_in] · E[C_out].

    Args:
        whole: the share that the network that comes in has.
    """

    def __init__(self, space: Space, whole: float = 1.0) -> None:
        terms = CostModel(space.found, space.groups).products("macs")
        self.factor, self.left, self.right = (
            torch.from_numpy(each) for each in (terms.factor, terms.left, terms.right)
        )
        blocks = [block for stage in space.stages for block in stage]
        inside = [
            next((1 + place for place, name in enumerate(blocks) if _within(layer, name)), 0) for layer in terms.layers
        ]
        self.block = torch.tensor(inside, dtype=torch.int64)  # 0: in none
        self.lengths = [len(stage) for stage in space.stages]
        self.full = 1.0
        self.full = self.of([group.size for group in space.groups], self.lengths) / whole

    def __call__(self, kept: torch.Tensor, staying: Sequence[torch.Tensor]) -> torch.Tensor:
        """A scalar.

        Args:
            kept: rows of each group, float64 (groups,).
            staying: for each stage the probability of each of its blocks to stay, (blocks,).
        """
        whole = torch.cat([kept.new_ones(1), kept])
        there = torch.cat([kept.new_ones(1), *(each.to(kept) for each in staying)])
        return (self.factor * (self.left @ whole) * (self.right @ whole) * there[self.block]).sum() / self.full

    def of(self, kept: Sequence[int], depths: Sequence[int]) -> float:
        """Of one network."""
        staying = [(torch.arange(length) < depth).double() for length, depth in zip(self.lengths, depths)]
        return float(self(torch.tensor(kept, dtype=torch.float64), staying))


def staying(options: Sequence[int], probabilities: torch.Tensor) -> torch.Tensor:
    """P(depth ≥ position) of each block of a stage, (blocks,), given the probability of each depth."""
    positions = torch.arange(1, options[-1] + 1, device=probabilities.device)
    reaches = torch.tensor(options, device=probabilities.device)[None] >= positions[:, None]  # (blocks, options)
    return (reaches * probabilities[None, : len(options)]).sum(1)


def _within(layer: str, block: str) -> bool:
    return layer == block or layer.startswith(f"{block}.")


Cost = Callable[[Sequence[int]], float]
"""Of a choice, given as the place of one option a row."""


def affordable(
    scores: Sequence[Sequence[float]], likeliest: Sequence[int], cost: Cost, low: float, high: float
) -> list[int]:
    """A probable choice that costs at most `high`, which option 0 of every row must allow, and `low` where one can.

    From the most probable choice steps are taken down, or up, that lose the least log-probability for the cost they
    save, or add; then back while one that gains probability still fits.

    Args:
        scores: the log-probability of each option, by row; the options of a row ascend in cost.
        likeliest: the place of each row's most probable option.
    """
    now = _Step(list(likeliest), cost(likeliest), 0.0)
    while now.cost > high:
        now = min((s for s in _steps(scores, now, cost) if s.cost < now.cost), key=lambda s: s.price(now))
    while now.cost < low:
        fitting = [s for s in _steps(scores, now, cost) if now.cost < s.cost <= high]
        if not fitting:
            break
        now = min(fitting, key=lambda s: s.price(now))
    low = min(low, now.cost)
    while gains := [s for s in _steps(scores, now, cost) if low <= s.cost <= high and s.lost < 0]:
        now = min(gains, key=lambda s: s.lost)
    return now.places


@dataclasses.dataclass(frozen=True)
class _Step:
    """A choice, what it costs, and how much log-probability the step to it lost."""

    places: list[int]
    cost: float
    lost: float

    def price(self, before: _Step) -> float:
        return self.lost / abs(self.cost - before.cost)


def _steps(scores: Sequence[Sequence[float]], now: _Step, cost: Cost) -> Iterator[_Step]:
    """The choices that differ in one row."""
    for row, place in enumerate(now.places):
        for other in range(len(scores[row])):
            if other != place:
                places = [*now.places[:row], other, *now.places[row + 1 :]]
                yield _Step(places, cost(places), scores[row][place] - scores[row][other])
