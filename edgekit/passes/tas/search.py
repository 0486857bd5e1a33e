"""Transformable Architecture Search (Dong, Yang, 2019, arXiv 1905.09717): widths and depths found by gradients.

Every width and every depth is chosen by logits. In turn, on one half of the training pictures the weights are trained,
on the other half the logits,

    w ← w − η ∇_w CE(weights' half),    α ← Adam(∇_α [CE(logits' half) + λ · cost]),

    cost = log E[F] where F(argmax α) > R,  −log E[F] where F(argmax α) < R − t,  else 0,

F the MACs, R those wanted, t a tolerance. What is drawn in each step, and how, stands in `choices.py`, what a network
of several widths at once computes in `supernet.py`. The published setting is 600 epochs of batches of 256, SGD 0.1 and
Adam 1e-3, λ = 2, t = 5 % of the full network, τ from 5 to 0.1. The network found is then to be trained, by
distillation from the unpruned one (the pass `distil`).

Where this differs from the paper:
- A choice belongs to a channel group: layers that an addition ties have one width, where the paper lets a shortcut's
  ends differ and adds a 1×1 convolution. So the depths of a stage need no alignment: all its blocks have one width.
- The weights begin as they come in and are handed on, those of the norms as the chosen option had them. So that the
  first C channels are the best C of a trained network, a group's channels are taken in the order of their L2 magnitude.
- τ falls with every step and not with every epoch, as a short search has few of these.
- The most probable network may still miss R, or R − t from below; then those steps are taken, one choice each, that
  lose the least probability for the MACs they save or add.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Lt

from edgekit.context import PassContext
from edgekit.data import Samples
from edgekit.edits import DropBlock
from edgekit.errors import BadInput, TrainingStopped
from edgekit.files import csv_bytes, write_bytes
from edgekit.net import Net
from edgekit.parallel import World
from edgekit.passes.importance.l2 import L2
from edgekit.passes.tas.choices import cost_loss, temperature
from edgekit.passes.tas.space import Macs, Space, affordable, search_space, staying
from edgekit.passes.tas.supernet import Supernet
from edgekit.train.augment import Augment
from edgekit.train.feed import Feed
from edgekit.train.loop import optimiser, set_rate
from edgekit.train.objective import Views, cross_entropy
from edgekit.train.settings import Training

Share = Annotated[float, Gt(0), Lt(1)]
COLUMNS = ("step", "epoch", "lr", "tau", "loss", "held_loss", "macs_expected", "macs_likeliest", "entropy_widths",
           "entropy_depths")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tas:
    """Search the widths and depths of a classification network. A search that was interrupted begins anew.

    Attributes:
        budget: share of the uncompressed network's MACs that may stay.
        epochs: passes over the half of the training pictures that the weights learn from, the logits seeing as many
            of the other half.
        batch: pictures a step, of each half.
        lr, weight_decay: of the weights; Nesterov's momentum, a cosine to 0.
        arch_lr, arch_weight_decay: of the logits. They travel about `arch_lr` a step, so a shorter search wants more.
        pull: λ, the weight of the cost.
        tolerance: the cost is left alone this share of the full MACs below the budget.
        tau: of the Gumbel noise, at the start and at the end.
        round_to: channel counts stay multiples of this, since odd widths are slow.
        exclude: globs over layers and blocks; the channels that such a layer puts out, and such blocks, stay.
        workers: processes that decode pictures beside the search.
    """

    budget: dict[Literal["macs"], Share]
    epochs: Annotated[int, Gt(0)] = 10
    batch: Annotated[int, Gt(1)] = 64
    lr: Annotated[float, Gt(0)] = 0.02
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    arch_lr: Annotated[float, Gt(0)] = 2e-2
    arch_weight_decay: Annotated[float, Ge(0)] = 1e-3
    pull: Annotated[float, Ge(0)] = 2.0
    tolerance: Annotated[float, Ge(0), Lt(1)] = 0.05
    tau: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (5.0, 0.1)
    round_to: Annotated[int, Gt(0)] = 8
    exclude: tuple[str, ...] = ()
    augment: Augment = dataclasses.field(default_factory=Augment)
    workers: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        if not self.budget:
            raise ValueError("the budget names no cost; write for example budget = { macs = 0.5 }")

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where nothing can be searched, the budget is out of reach, or there are no class labels."""
        if ctx.output.task != "classify":
            raise BadInput(
                f"tas: learns from class labels, and the task is {ctx.output.task}; the pass prune needs none"
            )
        space = search_space(net.module, ctx.input.shape, self.round_to, self.exclude)
        for name, reason in sorted(space.left.items()):
            ctx.log(f"tas: {name} stays, {reason}")
        space = space.ranked(L2().scores(net, space.groups, ctx))
        incoming = ctx.cost(net)["macs"] / ctx.cost(ctx.base)["macs"]
        if incoming <= self.budget["macs"]:
            raise BadInput(
                f"tas: the network that comes in meets its budget already, macs {incoming:.3f} (asked "
                f"{self.budget['macs']}) of the uncompressed network; ask for less"
            )
        macs = Macs(space, incoming)
        least = macs.of([widths[0] for widths in space.widths], [depths[0] for depths in space.depths])
        if least > self.budget["macs"]:
            raise BadInput(
                f"tas: the budget is out of reach; with the fewest channels and blocks everywhere it comes to macs "
                f"{least:.3f} (asked {self.budget['macs']}). Ask for more, a smaller round_to, or exclude less"
            )
        search = _Search(net, space, macs, self, ctx)
        search.run()
        return self._found(net, search, ctx)

    def _found(self, net: Net, search: _Search, ctx: PassContext) -> Net:
        """The chosen network with the weights of the supernet."""
        space, (widths, depths) = search.space, search.chosen()
        kept = [options[place] for options, place in zip(space.widths, widths)]
        stay = [options[place] for options, place in zip(space.depths, depths)]
        changes = space.edits(net.module, kept, stay)
        trained = search.supernet.settle(widths)
        trained.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        result = Net(net.source, net.edits, trained).edited(*changes)
        share = search.macs.of(kept, stay)
        if (found := ctx.cost(result)["macs"]) > ctx.limits(self.budget)["macs"]:
            raise BadInput(
                f"tas: the network found has {found} MACs, above the budget and not the computed share {share:.3f}: "
                "this network makes tensors that do not follow its channels. Ask for less"
            )
        rows = ", ".join(f"{group.name} {count} of {group.size}" for group, count in zip(space.groups, kept))
        dropped = ", ".join(edit.layer for edit in changes if isinstance(edit, DropBlock)) or "no block"
        ctx.log(f"tas: macs {share:.3f} (asked {self.budget['macs']}); channels {rows}; {dropped} dropped")
        return result


class _Search:
    """One search from its first step to its last."""

    def __init__(self, net: Net, space: Space, macs: Macs, settings: Tas, ctx: PassContext) -> None:
        self.space, self.macs, self.settings, self.ctx = space, macs, settings, ctx
        self.generator = torch.Generator().manual_seed(ctx.seed)
        self.training = Training(
            epochs=settings.epochs, batch=settings.batch, lr=settings.lr, weight_decay=settings.weight_decay,
            warmup=0.0, augment=settings.augment, workers=settings.workers,
        )  # fmt: skip
        # Every process searches by itself, and comes to the same.
        world = World(local_rank=ctx.world.local_rank)
        self.feeds = [Feed(half, ctx.input, ctx.output, self.training, 0, ctx.seed, world) for half in self._halves()]
        self.total = self.feeds[0].steps * settings.epochs
        self.supernet = Supernet(net.clone().module, space, self.generator)
        self.supernet.check(torch.randn(2, *ctx.input.shape, generator=self.generator))
        self.supernet.to_device(world.device)
        self.weights = optimiser(self.supernet.weights(), self.training)
        self.arch = torch.optim.Adam(self.supernet.choices, settings.arch_lr, weight_decay=settings.arch_weight_decay)
        self.log: list[list[Any]] = []

    def run(self) -> None:
        self.supernet.train()
        rate, began = self.training.rate(self.total), time.monotonic()
        pairs = zip(*(feed.views(0) for feed in self.feeds))
        for step, (batch, held) in enumerate(self.ctx.track(pairs, "tas", self.total, self._status)):
            tau = temperature(step / max(1, self.total - 1), *self.settings.tau)
            factor = rate(step)
            loss = self._train_weights(batch, tau, factor)
            held_loss = self._train_choices(held, tau)
            self._note(step, factor, tau, loss, held_loss)
            if (step + 1) % self.feeds[0].steps == 0:
                self._end_epoch(step + 1, time.monotonic() - began)

    def chosen(self) -> tuple[list[int], list[int]]:
        """The places of the chosen widths and depths: the most probable ones, or those near them within the budget."""
        supernet, groups = self.supernet, len(self.space.groups)
        scores = [
            found[: len(options)]
            for choices in (supernet.widths, supernet.depths)
            for options, found in zip(choices.options, choices.log_probabilities().tolist())
        ]

        def cost(places: Sequence[int]) -> float:
            return self._share(places[:groups], places[groups:])

        likeliest = [*supernet.widths.likeliest(), *supernet.depths.likeliest()]
        high = self.settings.budget["macs"]
        places = affordable(scores, likeliest, cost, high - self.settings.tolerance, high)
        return places[:groups], places[groups:]

    def _halves(self) -> tuple[Samples, Samples]:
        """The pictures for the weights and those for the logits, drawn by the seed."""
        samples = self.ctx.data.role("train")
        size = len(samples) // 2
        if size < self.settings.batch:
            raise BadInput(
                f"tas: half of {len(samples)} training images are fewer than a batch of {self.settings.batch}"
            )
        first = samples.subset(size, self.ctx.seed)
        taken = set(first.ids)
        rest = tuple(sample for sample in samples if sample.id not in taken)
        return first, dataclasses.replace(samples, items=rest[:size])

    def _train_weights(self, batch: Views, tau: float, factor: float) -> float:
        with torch.no_grad():
            self.supernet.draw(tau, self.generator)
        loss = cross_entropy(self.supernet(batch.images), batch)
        set_rate(self.weights, factor)
        self.weights.zero_grad()
        loss.backward()
        self.weights.step()
        return self._finite(loss)

    def _train_choices(self, batch: Views, tau: float) -> float:
        self.supernet.draw(tau, self.generator)
        loss = cross_entropy(self.supernet(batch.images), batch)
        budget, tolerance = self.settings.budget["macs"], self.settings.tolerance
        cost = cost_loss(self.expected(), self._likeliest(), budget, tolerance)
        self.arch.zero_grad()
        (loss + self.settings.pull * cost).backward(inputs=[p for p in self.supernet.choices if p.numel()])
        self.arch.step()
        return self._finite(loss)

    def expected(self) -> torch.Tensor:
        """E[F], a share of the full network's."""
        widths, depths = self.supernet.widths, self.supernet.depths
        stay = [staying(options, found) for options, found in zip(depths.options, depths.log_probabilities().exp())]
        return self.macs(widths.expected(), stay)

    def _likeliest(self) -> float:
        return self._share(self.supernet.widths.likeliest(), self.supernet.depths.likeliest())

    def _share(self, widths: Sequence[int], depths: Sequence[int]) -> float:
        kept = [options[place] for options, place in zip(self.space.widths, widths)]
        return self.macs.of(kept, [options[place] for options, place in zip(self.space.depths, depths)])

    def _finite(self, loss: torch.Tensor) -> float:
        if not math.isfinite(value := loss.item()):
            raise TrainingStopped(
                f"tas: the loss is {value} at step {len(self.log)}; a lower lr (now {self.settings.lr}) usually helps"
            )
        return value

    def _note(self, step: int, factor: float, tau: float, loss: float, held_loss: float) -> None:
        supernet = self.supernet
        with torch.no_grad():
            numbers = (
                self.settings.lr * factor, tau, loss, held_loss, float(self.expected()), self._likeliest(),
                supernet.widths.entropy(), supernet.depths.entropy(),
            )  # fmt: skip
        self.log.append([step + 1, step // self.feeds[0].steps + 1, *(f"{number:.6g}" for number in numbers)])

    def _end_epoch(self, steps: int, seconds: float) -> None:
        last = dict(zip(COLUMNS, self.log[-1]))
        rate = 2 * steps * self.settings.batch / seconds
        self.ctx.log(
            f"tas: epoch {last['epoch']} of {self.settings.epochs}, loss {last['held_loss']}, macs "
            f"{last['macs_likeliest']} (expected {last['macs_expected']}), {rate:.0f} images/s"
        )
        if self.ctx.world.first and self.ctx.journal:
            write_bytes(self.ctx.journal, csv_bytes(COLUMNS, self.log))

    def _status(self) -> str:
        return f"loss {float(self.log[-1][5]):.3f}, macs {float(self.log[-1][7]):.3f}" if self.log else ""
