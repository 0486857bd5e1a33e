"""Structured pruning: remove whole channels, and everything tied to them, until every budget is met.

Which channels go together is found on the graph and proven (`removal`), how much each matters is an importance's to say
(`importance/`), what the network costs with fewer of them is computed (`costs`), and how many each layer keeps is
allocated (`allocation`).
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from pydantic import PlainValidator

from edgekit.channels import Group, Ties
from edgekit.context import PassContext
from edgekit.costs import CostModel
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.passes.allocation import ALLOCATIONS, Allocation, given_back
from edgekit.passes.importance import IMPORTANCES, Importance
from edgekit.passes.importance.l2 import L2
from edgekit.removal import FEWEST, block_rows, edits, holds, keep_count, layers_of, makers_of, prunable
from edgekit.schema import chosen

Share = Annotated[float, Gt(0), Lt(1)]
Floor = Annotated[float, Ge(0), Le(1)]
Cost = Literal["params", "macs", "cio", "size_bytes", "peak_bytes", "latency"]


@dataclasses.dataclass(frozen=True)
class Prune:
    """Remove channels until every cost in `budget` is met.

    Attributes:
        budget: share of the uncompressed network's cost that may stay; several hold together. `size_bytes` are
            those of the float32 weights, `peak_bytes` those of the activations in memory at once, `latency` needs
            measured layers.
        importance: what says which channels matter, by its name alone or as a table with its settings.
        allocation: how many of them each layer keeps: the same share, all above one importance, or the least important
            for what it costs first.
        round_to: channel counts stay multiples of this, since odd widths are slow.
        exclude: globs over layer names; the channels that such a layer puts out stay.
        floor: the share of the channels that it puts out which a layer keeps at least, for all or by globs over layers.
    """

    budget: dict[Cost, Share]
    importance: Annotated[Importance, PlainValidator(chosen(IMPORTANCES, "l2"))] = dataclasses.field(default_factory=L2)
    allocation: Literal["uniform", "global", "greedy"] = "uniform"
    round_to: Annotated[int, Gt(0)] = 8
    exclude: tuple[str, ...] = ()
    floor: Floor | dict[str, Floor] = 0.0

    def __post_init__(self) -> None:
        if not self.budget:
            raise ValueError("the budget names no cost; write for example budget = { macs = 0.6 }")

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where nothing can be removed, a glob matches nothing, or the budget is out of reach."""
        found = prunable(net.module, ctx.input.shape)
        groups = self._groups(found, net, ctx)
        problem = self._problem(found, groups, net, ctx)
        if problem.met(problem.sizes):
            raise BadInput(
                "prune: the network that comes in meets its budget already, "
                f"{self._reached(problem, problem.sizes)} of the uncompressed network; ask for less"
            )
        if not problem.met(problem.floors):
            raise BadInput(self._out_of_reach(problem, groups, found, net))
        kept = given_back(problem, ALLOCATIONS[self.allocation](problem))
        removed = [problem.ranking(number)[count:].tolist() for number, count in enumerate(kept.tolist())]
        if not holds(net.module, ctx.input.shape, groups, removed, found.classes):
            raise BadInput("prune: the code of this network does not follow the removal; exclude the layers it slices")
        result = net.edited(*edits(net.module, groups, removed))
        self._check(problem, kept, ctx.cost(result))
        share = kept.sum() / problem.sizes.sum()
        ctx.log(f"prune: {share:.3f} of the channels stay in {len(groups)} groups; {self._reached(problem, kept)}")
        return result

    def _groups(self, found: Ties, net: Net, ctx: PassContext) -> list[Group]:
        layers = {name for group in found.groups for name in layers_of(group)} | dict(net.module.named_modules()).keys()
        floors = self.floor if isinstance(self.floor, dict) else {}
        for field, patterns in (("exclude", self.exclude), ("floor", floors)):
            for pattern in patterns:
                if not fnmatch.filter(layers, pattern):
                    raise BadInput(f"prune: {field} = {pattern!r} matches no layer")
        for name, reason in sorted(found.frozen.items()):
            ctx.log(f"prune: {name} stays, {reason}")
        free = [group for group in found.groups if not self._excluded(group, net)]
        groups = [group for group in free if self._floor(group, net) < group.size]
        if not groups:
            raise BadInput(
                f"prune: no channels of this network can be removed in blocks of {self.round_to}"
                + (f", without {', '.join(self.exclude)}" if self.exclude else "")
            )
        return groups

    def _problem(self, found: Ties, groups: Sequence[Group], net: Net, ctx: PassContext) -> Allocation:
        model = CostModel(found, groups)
        if "latency" in self.budget:
            model.add("latency", ctx.layer_latency(net).layer_cost())
        steps = np.array([block_rows(group, self.round_to) for group in groups])
        floors = np.array([self._floor(group, net) for group in groups])
        limits = ctx.limits(self.budget)
        scores = self.importance.scores(net, groups, ctx)
        for group, each in zip(groups, scores):
            if not np.isfinite(each).all():
                raise BadInput(f"prune: {self.importance.name} of {group.name} is not finite; look at its weights")
        return Allocation(model, scores, steps, floors, limits)

    def _excluded(self, group: Group, net: Net) -> bool:
        return any(fnmatch.filter(makers_of(net.module, group), pattern) for pattern in self.exclude)

    def _floor(self, group: Group, net: Net) -> int:
        """Rows that stay at least: one block, or the largest floor asked for."""
        if isinstance(self.floor, dict):
            makers = makers_of(net.module, group)
            share = max((s for glob, s in self.floor.items() if fnmatch.filter(makers, glob)), default=0.0)
        else:
            share = self.floor
        return keep_count(group.size, max(share, FEWEST / group.size), block_rows(group, self.round_to))

    def _check(self, problem: Allocation, kept: np.ndarray, measured: dict[str, int]) -> None:
        """The computed costs are those of the network that was made."""
        for name, limit in problem.limits.items():
            if measured.get(name, 0) > limit:
                raise BadInput(
                    f"prune: {name} is {measured[name]}, above the budget, and not the computed "
                    f"{problem.costs.metrics[name].total(kept):.0f}: this network makes tensors that do not follow its "
                    "channels. Ask for less"
                )

    def _reached(self, problem: Allocation, kept: np.ndarray) -> str:
        shares = {name: problem.costs.metrics[name].total(kept) / limit for name, limit in problem.limits.items()}
        return ", ".join(f"{name} {shares[name] * asked:.3f} (asked {asked})" for name, asked in self.budget.items())

    def _out_of_reach(self, problem: Allocation, groups: Sequence[Group], found: Ties, net: Net) -> str:
        """How far it can go, and of the budget that is furthest from met the three layers that hold it back most."""
        metrics, floors = problem.costs.metrics, problem.floors
        worst = max(problem.limits, key=lambda name: metrics[name].total(floors) / problem.limits[name])
        total = metrics[worst].total(floors)
        by_layer = sorted(metrics[worst].by_layer(floors).items(), key=lambda item: -item[1])[:3]
        held = "; ".join(
            f"{layer or 'top'} {cost / total:.0%}, {self._why(layer, groups, found, net)}" for layer, cost in by_layer
        )
        return (
            f"prune: the budget is out of reach; with {self.round_to} channels or the floor in every group it comes to "
            f"{self._reached(problem, floors)}. What is left of {worst}: {held}"
        )

    def _why(self, layer: str, groups: Sequence[Group], found: Ties, net: Net) -> str:
        """Why the channels that a layer makes, or else those it reads, do not get fewer."""
        of_layer = [group for group in found.groups if layer in layers_of(group)]
        own = [group for group in of_layer if layer in makers_of(net.module, group)]
        if not own and f"{layer}.weight" in found.frozen:
            return found.frozen[f"{layer}.weight"]
        own = own or of_layer
        if any(group in groups for group in own):
            return "at its floor"
        if any(self._excluded(group, net) for group in own):
            return "excluded"
        return f"of too few channels for blocks of {self.round_to}" if own else "has no channels of its own"
