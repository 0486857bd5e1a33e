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
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Lt
from torch import nn

from edgekit.channels import Group, Ties
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.removal import edits, holds, keep_count, layers_of, prunable

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
        found = prunable(net.module, ctx.input.shape)
        groups = self._groups(found, net.module, ctx)
        order = [ranking(net.module, group) for group in groups]
        limits = {metric: share * ctx.cost(net)[metric] for metric, share in self.budget.items()}

        def removed(share: float) -> list[list[int]]:
            counts = [keep_count(group.size, share, self.rows(group)) for group in groups]
            return [ranked[count:] for ranked, count in zip(order, counts)]

        def met(share: float) -> bool:
            cost = ctx.cost(net.edited(*edits(net.module, groups, removed(share))))
            return all(cost[metric] <= limit for metric, limit in limits.items())

        if not met(0.0):
            raise BadInput(self._out_of_reach(net, net.edited(*edits(net.module, groups, removed(0.0))), ctx))
        low, high = 0.0, 1.0
        for _ in ctx.track(range(8), "prune: searching the share to keep", 8):
            middle = (low + high) / 2
            low, high = (middle, high) if met(middle) else (low, middle)
        if not holds(net.module, ctx.input.shape, groups, removed(low), found.classes):
            raise BadInput("prune: the code of this network does not follow the removal; exclude the layers it slices")
        ctx.log(f"prune: {low:.3f} of the channels stay in {len(groups)} groups")
        return net.edited(*edits(net.module, groups, removed(low)))

    def _groups(self, found: Ties, module: nn.Module, ctx: PassContext) -> list[Group]:
        layers = {name for group in found.groups for name in layers_of(group)}
        for pattern in self.exclude:
            if not fnmatch.filter([*layers, *dict(module.named_modules())], pattern):
                raise BadInput(f"prune: exclude = {pattern!r} matches no layer")
        groups = [group for group in found.groups if self._wanted(group)]
        for name, reason in sorted(found.frozen.items()):
            ctx.log(f"prune: {name} stays, {reason}")
        if not groups:
            raise BadInput("prune: no channels of this network can be removed")
        return groups

    def _wanted(self, group: Group) -> bool:
        excluded = any(fnmatch.filter(layers_of(group), pattern) for pattern in self.exclude)
        return not excluded and group.size > self.rows(group)

    def rows(self, group: Group) -> int:
        """`round_to` in rows of the group."""
        return max(1, self.round_to // group.width)

    def _out_of_reach(self, net: Net, smallest: Net, ctx: PassContext) -> str:
        before, after = ctx.cost(net), ctx.cost(smallest)
        reach = ", ".join(
            f"{metric} {after[metric] / before[metric]:.3f} (asked {share})" for metric, share in self.budget.items()
        )
        return f"prune: the budget is out of reach; with {self.round_to} channels in every group it comes to {reach}"


def ranking(module: nn.Module, group: Group) -> list[int]:
    """The group's channels from the most to the least important (L2 group magnitude)."""
    total = np.zeros(group.size)
    state = dict(module.named_parameters())
    for (name, dim), rows in group.slots.items():
        weight = state.get(name)
        if weight is None or weight.ndim < 2:
            continue
        squares = weight.detach().double().square().transpose(0, dim).flatten(1).sum(1).cpu().numpy()
        total += squares[rows].sum(1)
    return np.argsort(-total, kind="stable").tolist()
