"""One training loop: SGD with Nesterov momentum, one cosine from `lr` to 0 after a linear warm-up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import nn

from edgekit.context import PassContext
from edgekit.data import Output, Samples, check_masks, check_task
from edgekit.errors import BadInput, TrainingStopped

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(logits, labels, images) -> mean loss of the batch."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What every training pass has in common.

    Attributes:
        epochs: passes over the training images.
        lr: peak learning rate; the first 5 % of the steps rise to it linearly, the rest falls to 0 by a cosine.
        weight_decay: not applied to norms and biases.
    """

    epochs: Annotated[int, Gt(0)] = 5
    batch: Annotated[int, Gt(1)] = 64
    lr: Annotated[float, Gt(0)] = 0.02
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    momentum: Annotated[float, Ge(0)] = 0.9


def fit(module: nn.Module, loss: Loss, schedule: Schedule, ctx: PassContext, label: str) -> None:
    """Train `module` in place on the role `train`.

    Raises:
        TrainingStopped: the loss is not finite; names the step and where the weights of the last good epoch are.
        BadInput: fewer images than one batch, images of another task than [output] says, or boxes.
    """
    samples = ctx.data.role("train")
    _check_trainable(samples, ctx.output, label)
    steps = len(samples) // schedule.batch
    if steps == 0:
        raise BadInput(f"{label}: {len(samples)} training images are fewer than a batch of {schedule.batch}")
    optimiser = torch.optim.SGD(
        _parameter_groups(module, schedule.weight_decay), schedule.lr, schedule.momentum, nesterov=schedule.momentum > 0
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_cosine(steps * schedule.epochs))
    kept = ctx.keep(module)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # several times faster on a CPU
    module.train()
    batches = _batches(samples, schedule, ctx)
    for step, (images, labels) in enumerate(ctx.track(batches, label, steps * schedule.epochs)):
        value = loss(module(images), ctx.output.channels(labels), images)
        if not torch.isfinite(value):
            raise TrainingStopped(
                f"{label}: the loss is {value.item()} at step {step} (epoch {step // steps + 1}); "
                f"the last good weights are kept in {kept}. A lower lr (now {schedule.lr}) usually helps"
            )
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        scheduler.step()
        if (step + 1) % steps == 0:
            kept = ctx.keep(module)
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    module.eval()


def warm_cosine(steps: int) -> Callable[[int], float]:
    """The factor on the learning rate at each step."""
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor


def _check_trainable(samples: Samples, output: Output, label: str) -> None:
    check_task(samples, output.task)
    if output.task == "detect":
        raise BadInput(
            f"{label}: detection networks cannot be trained here, as each has a loss of its own; remove the pass, "
            "or train the pruned network in your own code"
        )


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _batches(samples: Samples, schedule: Schedule, ctx: PassContext) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled full batches, a new order each epoch from the seed."""
    rng = np.random.default_rng(ctx.seed)
    whole = len(samples) // schedule.batch * schedule.batch
    for _ in range(schedule.epochs):
        order = rng.permutation(len(samples))[:whole]
        for images, labels, indices in samples.batches(ctx.input, schedule.batch, order=order.tolist()):
            if ctx.output.task == "segment" and ctx.output.classes is not None:
                check_masks(samples, labels, indices, ctx.output.classes)
            yield torch.from_numpy(images).to(memory_format=torch.channels_last), torch.from_numpy(labels)
