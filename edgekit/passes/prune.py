"""Structured pruning: remove whole channels, and everything tied to them, until a budget is met.

Importance of channel i of a group is its L2 magnitude over all tied weights (Fang et al., DepGraph, 2023, arXiv
2301.12900):

    I_i = sqrt( sum over tied weight slices w of ||w_i||² )

Every group loses the same share of its channels ("uniform"), counts are rounded up to a multiple, and the largest
share kept that meets the budget is found by bisection.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Lt
from torch import nn

from edgekit.channels import Axis, Group, slots, ties
from edgekit.context import PassContext
from edgekit.edits import KeepChannels, channels
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.net import Net

Side = Literal["out", "in"]
Share = Annotated[float, Gt(0), Lt(1)]


@dataclasses.dataclass(frozen=True)
class Prune:
    """Remove channels until every cost in `budget` is met.

    Attributes:
        budget: share of the incoming network's cost that may stay, for any of params, macs, cio.
        round_to: channel counts stay multiples of this, since odd widths are slow.
        exclude: globs over layer names; groups that hold such a layer are left alone.
    """

    budget: dict[Literal["params", "macs", "cio"], Share]
    round_to: Annotated[int, Gt(0)] = 8
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.budget:
            raise ValueError("the budget names no cost; write for example budget = { macs = 0.6 }")

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where nothing can be removed, a glob matches nothing, or the budget is out of reach."""
        groups = self._groups(net.module, ctx)
        order = [ranking(net.module, group) for group in groups]
        limits = {metric: share * ctx.cost(net)[metric] for metric, share in self.budget.items()}

        def pruned(share: float) -> Net:
            return net.edited(*edits(net.module, groups, order, share, self.round_to))

        def met(candidate: Net) -> bool:
            cost = ctx.cost(candidate)
            return all(cost[metric] <= limit for metric, limit in limits.items())

        smallest = pruned(0.0)
        if not met(smallest):
            raise BadInput(self._out_of_reach(net, smallest, ctx))
        low, best = 0.0, smallest
        high = 1.0
        for _ in ctx.track(range(8), "prune: searching the share to keep", 8):
            middle = (low + high) / 2
            candidate = pruned(middle)
            if met(candidate):
                low, best = middle, candidate
            else:
                high = middle
        ctx.log(f"prune: {low:.3f} of the channels stay in {len(groups)} groups")
        return best

    def _groups(self, module: nn.Module, ctx: PassContext) -> list[Group]:
        found = ties(trace(module, ctx.input.shape))
        layers = {name for group in found.groups for name in layers_of(group)}
        for pattern in self.exclude:
            if not fnmatch.filter([*layers, *dict(module.named_modules())], pattern):
                raise BadInput(f"prune: exclude = {pattern!r} matches no layer")
        groups = [group for group in found.groups if self._wanted(group, module)]
        for name, reason in sorted(found.frozen.items()):
            ctx.log(f"prune: {name} stays, {reason}")
        if not groups:
            raise BadInput("prune: no channels of this network can be removed")
        return groups

    def _wanted(self, group: Group, module: nn.Module) -> bool:
        excluded = any(fnmatch.filter(layers_of(group), pattern) for pattern in self.exclude)
        return not excluded and group.size > self.round_to and _editable(module, group)

    def _out_of_reach(self, net: Net, smallest: Net, ctx: PassContext) -> str:
        before, after = ctx.cost(net), ctx.cost(smallest)
        reach = ", ".join(
            f"{metric} {after[metric] / before[metric]:.3f} (asked {share})" for metric, share in self.budget.items()
        )
        return f"prune: the budget is out of reach; with {self.round_to} channels in every group it comes to {reach}"


def layers_of(group: Group) -> list[str]:
    return sorted({name.rpartition(".")[0] for name, _ in group.slots})


def _editable(module: nn.Module, group: Group) -> bool:
    try:
        return all(channels(*_layer_side(module, axis)[1:]) > 0 for axis in group.slots)
    except BadInput:
        return False


def _layer_side(module: nn.Module, axis: Axis) -> tuple[str, nn.Module, Side]:
    """The layer a parameter axis belongs to, and which side of the layer it is."""
    name, dim = axis
    layer = name.rpartition(".")[0]
    owner = module.get_submodule(layer)
    transposed = isinstance(owner, nn.ConvTranspose2d) and name.endswith(".weight")
    return layer, owner, "in" if dim == (0 if transposed else 1) else "out"


def ranking(module: nn.Module, group: Group) -> list[int]:
    """The group's channels from the most to the least important (L2 group magnitude)."""
    total = np.zeros(group.size)
    state = dict(module.named_parameters())
    for (name, dim), rows in group.slots.items():
        weight = state.get(name)
        if weight is None or weight.ndim < 2:
            continue
        squares = weight.detach().double().square().transpose(0, dim).flatten(1).sum(1).cpu().numpy()
        total += np.array([squares[list(row)].sum() for row in rows])
    return np.argsort(-total, kind="stable").tolist()


def edits(
    module: nn.Module, groups: list[Group], order: list[list[int]], share: float, round_to: int
) -> list[KeepChannels]:
    """The edits that keep the most important `share` of each group, rounded up to a multiple of `round_to`."""
    removed: dict[tuple[str, Side], set[int]] = {}
    for group, ranked in zip(groups, order):
        count = min(group.size, round_to * max(1, math.ceil(share * group.size / round_to)))
        for axis, gone in slots(group, ranked[count:]).items():
            layer, _, side = _layer_side(module, axis)
            removed.setdefault((layer, side), set()).update(gone)
    return [
        KeepChannels(layer, side, tuple(i for i in range(channels(module.get_submodule(layer), side)) if i not in gone))
        for (layer, side), gone in removed.items()
        if gone
    ]
