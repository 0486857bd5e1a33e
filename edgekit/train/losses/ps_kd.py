"""Progressive self-knowledge distillation: each picture's label is softened by the network's own last answer to it.

Kim et al.: Self-Knowledge Distillation with Progressive Refinement of Targets, 2021, arXiv 2006.12000. With y the label
as a distribution and p the student's answer to the same picture one epoch before (y in the first epoch), of E epochs:

    alpha_t = alpha · (epoch + 1) / E
    L = CE(student, (1 − alpha_t) · y + alpha_t · p)

The answer is that to the picture as it was augmented then; it is tied to the picture, not to the view. Answers to
mixed pictures are answers to none, so mixing is refused. A picture left out of an epoch keeps its latest answer. All
answers are kept: samples · outputs numbers of 4 bytes (CIFAR-100: 20 MB; ImageNet: 5 GB).

Published settings: alpha 0.8; CIFAR-100: 300 epochs, SGD lr 0.1, a tenth at 150 and 225, Nesterov momentum 0.9, weight
decay 5e-4, batch 128.
"""

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import nn
from torch.nn import functional as F

from edgekit.errors import BadInput
from edgekit.train.losses.common import check_per_picture, device_of, gathered
from edgekit.train.objective import Setup, Term, Views


@dataclasses.dataclass(frozen=True)
class PSKD:
    """Labels, and the student's own answers of the epoch before; for classification without mixing.

    Attributes:
        alpha: weight of the own answers in the last epoch.
    """

    name: Literal["ps_kd"] = "ps_kd"
    alpha: Annotated[float, Ge(0), Le(1)] = 0.8

    def build(self, setup: Setup) -> Term:
        return _Term(self, setup).to(device_of(setup))


class _Term(nn.Module):
    """Buffers `answers` (samples, outputs), the latest answer to each picture, and `seen` (samples,), if there is one.

    One buffer serves two epochs, as each picture comes once an epoch: its answer is read, then replaced.
    """

    answers: torch.Tensor
    seen: torch.Tensor

    def __init__(self, loss: PSKD, setup: Setup) -> None:
        super().__init__()
        self.loss = loss
        self.register_buffer("answers", torch.zeros(setup.samples, setup.outputs))
        self.register_buffer("seen", torch.zeros(setup.samples, dtype=torch.bool))

    def forward(self, logits: torch.Tensor, views: Views) -> torch.Tensor:
        check_per_picture(views.labels, self.loss.name)
        if views.targets is not None:
            raise BadInput(
                'loss = "ps_kd" remembers an answer to each picture, and mixed pictures give none; '
                "turn mixup and cutmix off, or write another loss"
            )
        logits, outputs = logits.float(), logits.shape[1]
        label = F.one_hot(views.labels, outputs) * (1 - views.smoothing) + views.smoothing / outputs
        last = torch.where(self.seen[views.indices, None], self.answers[views.indices], label)
        share = self.loss.alpha * (views.epoch + 1) / views.epochs
        self._remember(views.indices, F.softmax(logits.detach(), dim=1))
        return F.cross_entropy(logits, (1 - share) * label + share * last)

    def _remember(self, indices: torch.Tensor, answers: torch.Tensor) -> None:
        """In every process, as the picture may come up in another one next time."""
        indices = gathered(indices)
        self.answers[indices] = gathered(answers)
        self.seen[indices] = True
