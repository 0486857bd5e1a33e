"""What every training pass has in common."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from edgekit.train.augment import Augment

Share = Annotated[float, Ge(0), Le(1)]
MILESTONES = (0.5, 0.75)
"""Shares of a run after which the schedule "step" divides the rate by ten (He et al., 2015, arXiv 1512.03385)."""


@dataclasses.dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        epochs: passes over the training pictures. A last part smaller than a batch is left out of each epoch.
        batch: pictures a step, over all processes.
        optimiser: "sgd" with Nesterov momentum, or "adamw".
        lr: peak learning rate, reached linearly in the share `warmup` of the steps; then by `schedule` a cosine to 0,
            or a tenth after one half and after three quarters of the run.
        weight_decay: not applied to norms and biases.
        clip: gradients are scaled down to this norm; 0 leaves them alone.
        ema: the trained network is the running mean of the weights with this decay; 0 takes the last weights.
        label_smoothing: share of each label that is spread over all classes.
        mixup, cutmix: α of each way of mixing pictures; 0 is off.
        freeze_norm: batch norms keep their statistics, as at inference.
        amp: bfloat16 where a GPU is.
        workers: processes that decode and crop beside the training; 0 does so between the steps.
        score: the task's metrics on the calibration pictures after every so many epochs; 0 never.
        save_s: seconds between the states that a killed run goes on from; one is kept after each epoch, too.
    """

    epochs: Annotated[int, Gt(0)] = 5
    batch: Annotated[int, Gt(1)] = 64
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Gt(0)] = 0.02
    schedule: Literal["cosine", "step"] = "cosine"
    warmup: Share = 0.05
    weight_decay: Annotated[float, Ge(0)] = 1e-4
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    clip: Annotated[float, Ge(0)] = 0.0
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    mixup: Annotated[float, Ge(0)] = 0.0
    cutmix: Annotated[float, Ge(0)] = 0.0
    augment: Augment = dataclasses.field(default_factory=Augment)
    freeze_norm: bool = False
    amp: bool = True
    workers: Annotated[int, Ge(0)] = 0
    score: Annotated[int, Ge(0)] = 1
    save_s: Annotated[float, Ge(0)] = 60.0

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def rate(self, steps: int) -> Callable[[int], float]:
        """The factor on `lr` at each of `steps` steps."""
        warm = max(1, round(steps * self.warmup))

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            if self.schedule == "step":
                return 0.1 ** sum(step >= share * steps for share in MILESTONES)
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

        return factor
