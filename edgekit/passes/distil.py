"""Distil from the network as it was before the first pass.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.

    L = (1 − alpha) · CE(student, label) + alpha · T² · KL(softmax(teacher / T) || softmax(student / T))
"""

import dataclasses
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le

from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.train.loop import Schedule, fit
from edgekit.train.losses import distillation


@dataclasses.dataclass(frozen=True)
class Distil(Schedule):
    """Train the whole network towards its teacher's answers and the labels.

    Attributes:
        temperature: T of the paper; softens both answers.
        alpha: weight of the teacher's part, 0 to 1.
    """

    temperature: Annotated[float, Gt(0)] = 4.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        student = net.clone()
        teacher = ctx.base.clone().module.eval()

        def loss(logits: torch.Tensor, labels: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                target = teacher(images)
            return distillation(logits, labels, target, self.temperature, self.alpha)

        fit(student.module, loss, self, ctx, "distil")
        return student
