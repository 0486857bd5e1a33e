"""MEAL V2: the mean answer of several teachers, and a discriminator on the logits, without labels.

Shen, Savvides: MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1 Accuracy on ImageNet without Tricks, 2020,
arXiv 2009.08453; as in the authors' code. D is a perceptron of three layers, outputs → outputs/8 → outputs/64 → 2 (1000
→ 125 → 15 → 2 in the paper, here at least 2 wide), with ReLU after each, the last one too; BCE takes what D gives as
logits.

    L = CE(student, mean of the teachers' softmax) + BCE(D(student's logits), [1, 0])/2
        + BCE(D(mean of the teachers' logits), [0, 1])/2

One update minimises the sum for student and discriminator together: no gradient is reversed, and the student's passes
through D. The last ReLU can start at 0 for every picture, and D then adds a constant: at 100 outputs and fewer in
about one start of ten.

Published settings: student from pretrained weights; teachers SENet-154 and ResNet-152-v1s; weight decay 0, which the
recipe must set; SGD with momentum 0.9, lr 0.01 for 100 epochs, then 0.001 up to epoch 180 to 200; batch 512; no tricks.
D's lr is 1e-4 in the paper and here; the published code overwrites it with the student's at each epoch.
"""

import dataclasses
import itertools
from typing import Annotated, Any, Literal

import torch
from annotated_types import Gt
from torch import nn
from torch.nn import functional as F

from edgekit.train.losses.common import device_of
from edgekit.train.objective import Setup, Term, Views


@dataclasses.dataclass(frozen=True)
class MealV2:
    """The teachers' answers alone; start from trained weights and set weight_decay = 0.

    Attributes:
        discriminator_lr: of the discriminator, beside the recipe's own lr for the student.
    """

    name: Literal["meal_v2"] = "meal_v2"
    discriminator_lr: Annotated[float, Gt(0)] = 1e-4

    def build(self, setup: Setup) -> Term:
        return _Term(self, setup).to(device_of(setup))


class _Term(nn.Module):
    def __init__(self, loss: MealV2, setup: Setup) -> None:
        super().__init__()
        self.loss, self.setup = loss, setup
        widths = [setup.outputs, max(setup.outputs // 8, 2), max(setup.outputs // 64, 2), 2]
        layers = [(nn.Linear(before, after), nn.ReLU()) for before, after in itertools.pairwise(widths)]
        self.discriminator = nn.Sequential(*(layer for pair in layers for layer in pair))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser is to train the discriminator with."""
        return [{"params": list(self.parameters()), "lr": self.loss.discriminator_lr, "weight_decay": 0.0}]

    def forward(self, logits: torch.Tensor, views: Views) -> torch.Tensor:
        with torch.no_grad():
            answers = torch.stack([teacher(views.images).float() for teacher in self.setup.teachers])
            target = F.softmax(answers, dim=2).mean(0)
        soft = -(target * F.log_softmax(logits.float(), dim=1)).sum(1).mean()
        return soft + self._telling(_rows(logits.float()), _rows(answers.mean(0)))

    def _telling(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """How badly the discriminator tells the student's logits (N, outputs) from the teachers'."""
        told = self.discriminator(torch.cat([student, teacher]))  # (2N, 2)
        wanted = torch.eye(2, device=told.device).repeat_interleave(len(student), dim=0)
        return F.binary_cross_entropy_with_logits(told, wanted)


def _rows(logits: torch.Tensor) -> torch.Tensor:
    """(B, outputs, ...) as (N, outputs): pixels are judged one by one."""
    return logits.movedim(1, -1).flatten(0, -2)
