"""Depth: drop whole residual blocks until every budget is met.

A residual network hardly notices that one block is gone (Veit, Wilber, Belongie, 2016, arXiv 1605.06431), and a block
that is gone saves its time whole, where a narrower one may save none. Blocks go one by one, each time the one with the
least

    ( || y − y' ||² / || y ||² ) / (cost saved),

y being the network's output on calibration images before the pass and y' without the blocks gone so far and this one;
the cost is that of the budget which is furthest from met.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt, Lt

from edgekit.blocks import droppable
from edgekit.context import PassContext
from edgekit.costs import layer_total
from edgekit.edits import DropBlock
from edgekit.errors import BadInput
from edgekit.graph import tensors_in, trace
from edgekit.net import Net

Share = Annotated[float, Gt(0), Lt(1)]


@dataclasses.dataclass(frozen=True)
class Depth:
    """Drop residual blocks until every cost in `budget` is met.

    Attributes:
        budget: share of the uncompressed network's cost that may stay; several hold together.
        images: calibration images on which the change of the output is measured, drawn by the seed; no labels needed.
        exclude: globs over the blocks' names; these stay.
    """

    budget: dict[Literal["params", "macs", "cio", "size_bytes", "latency"], Share]
    images: Annotated[int, Gt(0)] = 32
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.budget:
            raise ValueError("the budget names no cost; write for example budget = { macs = 0.8 }")

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where no block can be dropped, a glob matches nothing, or the budget is out of reach."""
        blocks = self._blocks(net, ctx)
        measure = self._measure(net, ctx)
        before, limits = measure(net), ctx.limits(self.budget)
        if _met(before, limits):
            raise BadInput(
                f"depth: the network that comes in meets its budget already, {self._reached(before, limits)} of the "
                "uncompressed network; ask for less"
            )
        least = measure(_without(net, blocks))
        if not _met(least, limits):
            raise BadInput(
                f"depth: the budget is out of reach; without {', '.join(blocks)} it comes to "
                f"{self._reached(least, limits)}. "
                "Prune channels for the rest"
            )
        alone = {block: measure(_without(net, [block])) for block in blocks}
        saved = {block: {name: before[name] - cost[name] for name in limits} for block, cost in alone.items()}
        gone = self._chosen(net, ctx, measure, limits, saved)
        ctx.log(f"depth: {', '.join(gone)} dropped, {len(blocks) - len(gone)} blocks that could be dropped stay")
        return net.edited(*(DropBlock(block) for block in gone))

    def _reached(self, cost: dict[str, float], limits: dict[str, float]) -> str:
        shares = {name: cost[name] / limit for name, limit in limits.items()}
        return ", ".join(f"{name} {shares[name] * asked:.3f} (asked {asked})" for name, asked in self.budget.items())

    def _blocks(self, net: Net, ctx: PassContext) -> list[str]:
        found = droppable(net.module, ctx.input.shape)
        for layer, reason in sorted(found.left.items()):
            ctx.log(f"depth: {layer} stays, {reason}")
        for pattern in self.exclude:
            if not fnmatch.filter(found.layers, pattern):
                known = ", ".join(found.layers) or "none"
                raise BadInput(f"depth: exclude = {pattern!r} matches no block that can be dropped; these are: {known}")
        blocks = [layer for layer in found.layers if not any(fnmatch.fnmatch(layer, glob) for glob in self.exclude)]
        if not blocks:
            raise BadInput("depth: this network has no residual block that can be dropped; prune its channels instead")
        return blocks

    def _measure(self, net: Net, ctx: PassContext) -> Callable[[Net], dict[str, float]]:
        if "latency" not in self.budget:
            return lambda net: dict(ctx.cost(net))
        timed = ctx.layer_latency(net).layer_cost()
        return lambda net: {**ctx.cost(net), "latency": layer_total(trace(net.module, ctx.input.shape), timed)}

    def _chosen(
        self,
        net: Net,
        ctx: PassContext,
        measure: Callable[[Net], dict[str, float]],
        limits: dict[str, float],
        saved: dict[str, dict[str, float]],
    ) -> list[str]:
        """The blocks to drop, in the order in which they go."""
        images = torch.from_numpy(self._images(ctx))
        wanted = _answer(net, images)
        gone: list[str] = []
        while not _met(cost := measure(_without(net, gone)), limits):
            binding = max(limits, key=lambda name: cost[name] / limits[name])

            def price(block: str, binding: str = binding) -> float:
                change = (_answer(_without(net, [*gone, block]), images) - wanted).square().sum()
                return float(change / wanted.square().sum()) / max(saved[block][binding], 1e-9)

            left = [block for block in saved if block not in gone]
            gone.append(min(ctx.track(left, "depth: trying blocks", len(left)), key=price))
        for block in list(gone):  # an early one may no longer be needed
            fewer = [other for other in gone if other != block]
            gone = fewer if _met(measure(_without(net, fewer)), limits) else gone
        return gone

    def _images(self, ctx: PassContext) -> np.ndarray:
        samples = ctx.data.role("calibrate").subset(self.images, ctx.seed)
        return next(samples.batches(ctx.input, self.images))[0]


def _without(net: Net, blocks: Sequence[str]) -> Net:
    return net.edited(*(DropBlock(block) for block in blocks))


def _met(cost: dict[str, float], limits: dict[str, float]) -> bool:
    return all(cost[name] <= limit for name, limit in limits.items())


def _answer(net: Net, images: torch.Tensor) -> torch.Tensor:
    """All that the network gives, in float64, as one vector."""
    net.module.eval()
    with torch.no_grad():
        return torch.cat([output.double().flatten() for output in tensors_in(net.module(images))])
