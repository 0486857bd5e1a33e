"""The one training loop, of every pass that trains.

On several processes (see `edgekit.parallel`) the gradient is the mean over their shares of the batch. Batch norm then
normalises by each process's own share, so its running statistics, of which the mean is taken after every epoch, and
with them the result, differ a little from those of one process; with `freeze_norm` they do not.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from edgekit.coded import trained_codes
from edgekit.context import TrainingContext
from edgekit.data import check_task
from edgekit.errors import BadInput, TrainingStopped
from edgekit.files import csv_bytes, write_bytes
from edgekit.net import Net
from edgekit.train.feed import Feed
from edgekit.train.objective import Loss, Objective, Setup, Views
from edgekit.train.settings import Training
from edgekit.train.state import State

SLOW_DATA = 0.25


def fit(
    net: Net, loss: Loss, settings: Training, ctx: TrainingContext, label: str, teachers: Sequence[nn.Module] = ()
) -> None:
    """Train the module of `net` in place on the role `train`, from where an interrupted run left off.

    Raises:
        TrainingStopped: the loss or the weights are not finite; names the step and where the last good state is.
        BadInput: fewer images than one batch, images of another task than [output] says, boxes, or teachers whose
            outputs are not the student's.
    """
    with contextlib.ExitStack() as closing:
        run = _Run(net, loss, settings, ctx, label, teachers, closing)
        run.train()
    net.module.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    net.module.eval()


class _Run:
    """One training, from its first step or from a saved one to its last."""

    def __init__(
        self, net: Net, loss: Loss, settings: Training, ctx: TrainingContext, label: str, teachers: Sequence[nn.Module],
        closing: contextlib.ExitStack,
    ) -> None:  # fmt: skip
        self.net, self.settings, self.ctx, self.label, self.world = net, settings, ctx, label, ctx.world
        outputs = _outputs(net.module, teachers, ctx, label)
        self.feed = Feed(ctx.data.role("train"), ctx.input, ctx.output, settings, outputs, ctx.seed, ctx.world)
        self._check()
        self.device = self.world.device
        for network in (net.module, *teachers):
            network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster, CPU too
        setup = Setup(
            net.module, tuple(teachers), ctx.input.shape, outputs, len(self.feed.samples), self.feed.plain, closing
        )
        objective = Objective(net.module, loss.build(setup)).to(self.device)
        mean = {name: tensor.clone() for name, tensor in net.module.state_dict().items()} if settings.ema else {}
        own: list[dict[str, Any]] = getattr(objective.term, "parameter_groups", list)()
        made = optimiser(objective.parameters(), settings, own)
        self.state = State(objective, made, mean, codes=trained_codes(net.module))
        self.total = self.feed.steps * settings.epochs
        self.saved, self.waited = 0.0, 0.0
        self.began, self.first = time.monotonic(), 0  # of this epoch

    def train(self) -> None:
        if self.ctx.state and self.world.agreed(self.ctx.state.is_file()):
            self.state.restore(self.ctx.state)
            self.ctx.log(f"{self.label}: goes on after step {self.state.step} of {self.total}")
        else:
            self._save()
        rate = self.settings.rate(self.total)
        model = self._parallel()
        start = self.first = self.state.step
        views = self._timed(self.feed.views(start))
        self.began = time.monotonic()
        self._train_mode()
        for batch in self.ctx.track(views, self.label, self.total - start, self._status):
            self._step(model, batch, rate(self.state.step))
            if self.state.step % self.feed.steps == 0:
                self._end_epoch()
                self.began, self.first, self.waited = time.monotonic(), self.state.step, 0.0
            elif time.monotonic() - self.saved >= self.settings.save_s and self.world.size == 1:
                self._save()
        if self.settings.ema:
            self.net.module.load_state_dict(self.state.mean)

    def _step(self, model: nn.Module, batch: Views, factor: float) -> None:
        set_rate(self.state.optimiser, factor)
        with torch.autocast(self.device.type, torch.bfloat16, self.settings.amp and self.device.type == "cuda"):
            value = model(batch)
        shown = value.detach().clone()
        self.world.mean_(shown)
        if not math.isfinite(loss := shown.item()):
            self._stop(f"the loss is {loss}")
        self.state.optimiser.zero_grad()
        value.backward()
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.state.objective.parameters(), self.settings.clip)
        self.state.optimiser.step()
        if self.settings.ema:
            self._average()
        self.state.step += 1
        self.state.log.append((self.settings.lr * factor, loss))

    def _end_epoch(self) -> None:
        seconds, steps = time.monotonic() - self.began, self.state.step - self.first
        # Every process has the same weights; the statistics of its norms are of its own pictures.
        self.world.mean_(*(buffer for buffer in self.net.module.buffers() if buffer.is_floating_point()))
        epoch = self.state.step // self.feed.steps
        losses = [loss for _, loss in self.state.log[-steps:]]
        line = f"{self.label}: epoch {epoch} of {self.settings.epochs}, loss {sum(losses) / steps:.4f}"
        metrics = self._frozen()
        if self.settings.score and epoch % self.settings.score == 0 and "calibrate" in self.ctx.data.roles:
            metrics |= self._score()
        if metrics:
            self.state.scores[self.state.step] = metrics
            line += "".join(f", {name} {value:.2f}" for name, value in metrics.items())
        self.ctx.log(f"{line}, {steps * self.settings.batch / seconds:.0f} images/s")
        if epoch == 1 and self.waited > SLOW_DATA * seconds:
            share = 100 * self.waited / seconds
            self.ctx.log(f"{self.label}: {share:.0f} % of the time went into waiting for pictures; raise workers")
        self._save()
        self._train_mode()  # scoring left it

    def _score(self) -> dict[str, float]:
        """Of the network as it would be handed over now."""
        if not self.settings.ema:
            return self.ctx.score(self.net)
        latest = {name: tensor.clone() for name, tensor in self.net.module.state_dict().items()}
        self.net.module.load_state_dict(self.state.mean)
        metrics = self.ctx.score(self.net)
        self.net.module.load_state_dict(latest)
        return metrics

    def _frozen(self) -> dict[str, float]:
        """The share in percent of trained codes that are what they were an epoch ago; empty where there are none."""
        codes, before = trained_codes(self.net.module), self.state.codes
        if codes is None or before is None:
            return {}
        self.state.codes = codes
        return {"frozen": 100 * (codes == before).double().mean().item()}

    def _average(self) -> None:
        """mean ← decay · mean + (1 − decay) · weights, with a decay that grows from 1/10 to `ema`."""
        decay = min(self.settings.ema, (1 + self.state.step) / (10 + self.state.step))
        for name, tensor in self.net.module.state_dict().items():
            if tensor.is_floating_point():
                self.state.mean[name].lerp_(tensor, 1 - decay)
            else:
                self.state.mean[name].copy_(tensor)

    def _train_mode(self) -> None:
        self.state.objective.train()
        for module in self.net.module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                # One whose parameters do not train is part of a network that is not to change.
                frozen = module.affine and not module.weight.requires_grad
                module.train(not (frozen or self.settings.freeze_norm))

    def _save(self) -> None:
        self.saved = time.monotonic()
        if not all(torch.isfinite(weight).all() for weight in self.state.objective.parameters()):
            self._stop("a weight is not finite")
        if self.world.first and self.ctx.state:
            self.state.save(self.ctx.state)
        if self.world.first and self.ctx.journal:
            write_bytes(self.ctx.journal, _journal(self.state, self.feed.steps))

    def _stop(self, what: str) -> None:
        step = self.state.step
        kept = f"the last good state is kept in {self.ctx.state}. " if self.ctx.state else ""
        raise TrainingStopped(
            f"{self.label}: {what} at step {step} (epoch {step // self.feed.steps + 1}); {kept}"
            f"A lower lr (now {self.settings.lr}) usually helps, or clip = 1.0"
        )

    def _parallel(self) -> nn.Module:
        if self.world.size == 1:
            return self.state.objective
        own = [self.device] if self.device.type == "cuda" else None
        # Not broadcast: the running statistics are averaged instead, so that they are of everybody's pictures.
        return DistributedDataParallel(self.state.objective, own, broadcast_buffers=False)

    def _timed(self, items: Any) -> Any:
        """The same items; the time spent on waiting for them is added up."""
        items = iter(items)
        while True:
            began = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            self.waited += time.monotonic() - began
            yield item

    def _status(self) -> str:
        if not self.state.log:
            return ""
        rate = (self.state.step - self.first) * self.settings.batch / (time.monotonic() - self.began)
        last = next(reversed(self.state.scores.values()), {}).get("frozen")
        frozen = "" if last is None else f", {last:.1f} % frozen"
        return f"loss {self.state.log[-1][1]:.3f}{frozen}, {rate:.0f} images/s"

    def _check(self) -> None:
        samples, batch = self.feed.samples, self.settings.batch
        check_task(samples, self.ctx.output.task)
        if self.ctx.output.task == "detect":
            raise BadInput(
                f"{self.label}: detection networks cannot be trained here, as each has a loss of its own; remove the "
                "pass, or train the pruned network in your own code"
            )
        if self.feed.steps == 0:
            raise BadInput(f"{self.label}: {len(samples)} training images are fewer than a batch of {batch}")
        if batch % self.world.size:
            raise BadInput(f"{self.label}: batch = {batch} cannot be shared by {self.world.size} processes")
        if self.ctx.output.task != "classify" and (self.settings.mixes or self.settings.augment.photometric):
            raise BadInput(f"{self.label}: mixup, cutmix, jitter, randaugment and erase are for classification only")


def _outputs(student: nn.Module, teachers: Sequence[nn.Module], ctx: TrainingContext, label: str) -> int:
    """How many outputs the student has; every teacher must have as many."""
    probe = torch.zeros(1, *ctx.input.shape)
    with torch.no_grad():
        outputs, *others = [tuple(network.eval()(probe).shape[1:]) for network in (student, *teachers)]
    if wrong := [shape for shape in others if shape != outputs]:
        raise BadInput(
            f"{label}: a teacher gives outputs of {wrong[0]} where the student gives {outputs}; "
            "a teacher must know the student's classes"
        )
    return outputs[0]


def optimiser(
    parameters: Iterable[nn.Parameter], settings: Training, own: Sequence[dict[str, Any]] = ()
) -> torch.optim.Optimizer:
    """Weight decay is for weights with more than one axis; the groups `own` (of a term) may set rates of their own."""
    elsewhere = {id(parameter) for group in own for parameter in group["params"]}
    weights = [p for p in parameters if p.requires_grad and id(p) not in elsewhere]
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
        *own,
    ]
    groups = [{"peak_lr": group.get("lr", settings.lr), **group} for group in groups if group["params"]]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, settings.lr)
    return torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=settings.momentum > 0)


def set_rate(made: torch.optim.Optimizer, factor: float) -> None:
    """Each group at `factor` times its peak."""
    for group in made.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _journal(state: State, steps: int) -> bytes:
    """One row a step as CSV: step, epoch, lr, loss, and the metrics where they were taken.

    `frozen` is the share in percent of trained codes that an epoch did not change (see `coded`).
    """
    names = sorted({name for metrics in state.scores.values() for name in metrics})
    rows = []
    for step, (rate, loss) in enumerate(state.log, 1):
        metrics = state.scores.get(step, {})
        row = [f"{rate:.6g}", f"{loss:.6g}", *(metrics.get(name, "") for name in names)]
        rows.append([step, (step - 1) // steps + 1, *row])
    return csv_bytes(["step", "epoch", "lr", "loss", *names], rows)
