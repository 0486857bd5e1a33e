"""ND loss: the student's embedding should be long, and point where the teacher's embeddings of its class point.

Wang et al.: Improving Knowledge Distillation via Regularizing Feature Norm and Direction, 2023, arXiv 2305.17007; as
in the authors' code (KD++). s and t are the embeddings of student and teacher, that is the inputs of their last
layers, and c_y the mean of t over the training pictures of class y.

    L_ND = mean of 1 − <s, c_y / ||c_y||> / max(||s||, ||t||)
    L = cls · CE(student, label) + kd · min(1, epoch / warm_up) · T² · KL(teacher at T || student at T) + nd · L_ND

Where their lengths differ, s first goes through batch norm, dropout and a linear layer, which are trained and dropped.
A mixed picture counts with each of its classes by their shares.

Published settings: cls 1; CIFAR: T 4, warm-up of 20 of 240 epochs, (kd, nd) = (1, 2) for ResNet-56 to ResNet-20, else
kd 1 to 4 and nd 0.5 to 2, lr 0.1 (0.02 for MobileNet and ShuffleNet), weight decay 5e-4, batch 64. ImageNet: T 1,
warm-up of 5 of 100 epochs, (2.5, 1) for ResNet-34 to ResNet-18, lr 0.2, weight decay 1e-4, batch 512.
"""

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn
from torch.nn import functional as F

from edgekit.train.losses.common import check_per_picture, device_of, embedding, one_teacher
from edgekit.train.objective import Setup, Term, Views, consensus, cross_entropy, divergence
from edgekit.train.taps import Taps


@dataclasses.dataclass(frozen=True)
class ND:
    """Softened answers, labels, and the direction and length of embeddings; for classification, from one teacher.

    Attributes:
        temperature: T of both answers.
        cls, kd, nd: weights of the three parts.
        warm_up: epochs over which kd rises from 0; 0 for none.
        dropout: of the projection, where there is one.
    """

    name: Literal["nd"] = "nd"
    temperature: Annotated[float, Gt(0)] = 4.0
    cls: Annotated[float, Ge(0)] = 1.0
    kd: Annotated[float, Ge(0)] = 1.0
    nd: Annotated[float, Ge(0)] = 2.0
    warm_up: Annotated[int, Ge(0)] = 0
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5

    def build(self, setup: Setup) -> Term:
        return _Term(self, setup).to(device_of(setup))


class _Term(nn.Module):
    """Buffer `directions` (outputs, D): the unit vector to each class's centre, zeros for a class without pictures."""

    directions: torch.Tensor

    def __init__(self, loss: ND, setup: Setup) -> None:
        super().__init__()
        self.loss, self.teachers = loss, (one_teacher(setup, loss.name),)  # in a tuple, for it is no part of the term
        self.ours, own = _tapped(setup.student, setup)
        self.theirs, its = _tapped(self.teachers[0], setup)
        self.project = nn.Identity() if own == its else _projection(own, its, loss.dropout)
        self.register_buffer("directions", F.normalize(self._centres(setup, its), dim=1))

    def _centres(self, setup: Setup, width: int) -> torch.Tensor:
        """(outputs, D): the means of the teacher's embeddings over each class's training pictures."""
        device = next(self.teachers[0].parameters()).device
        total, count = torch.zeros(setup.outputs, width, device=device), torch.zeros(setup.outputs, 1, device=device)
        for images, labels in setup.plain():
            check_per_picture(labels, self.loss.name)
            with torch.no_grad():
                self.teachers[0](images.to(device))
            found = _latest(self.theirs)
            total.index_add_(0, labels.to(device), found)
            count.index_add_(0, labels.to(device), torch.ones_like(found[:, :1]))
        return total / count.clamp(min=1)

    def forward(self, logits: torch.Tensor, views: Views) -> torch.Tensor:
        check_per_picture(views.labels, self.loss.name)
        temperature, warm_up = self.loss.temperature, self.loss.warm_up
        target = consensus(self.teachers, views.images, temperature)  # this forward also fills the teacher's tap
        soft = temperature**2 * divergence(F.log_softmax(logits / temperature, dim=1), target)
        rise = min(1.0, views.epoch / warm_up) if warm_up else 1.0
        return (
            self.loss.cls * cross_entropy(logits, views)
            + self.loss.kd * rise * soft
            + self.loss.nd * self._misdirection(views)
        )

    def _misdirection(self, views: Views) -> torch.Tensor:
        """L_ND, the mean over the pictures whose class has a centre."""
        student, teacher = self.project(_latest(self.ours)), _latest(self.theirs)
        outputs = len(self.directions)
        share = F.one_hot(views.labels, outputs).float() if views.targets is None else views.targets
        known = share @ self.directions.any(1).float()  # (B,)
        along = (student * (share @ self.directions)).sum(1)
        longest = torch.maximum(student.norm(dim=1), teacher.norm(dim=1)).clamp(min=1e-12)
        return (known - along / longest).sum() / known.sum().clamp(min=1e-12)


def _tapped(network: nn.Module, setup: Setup) -> tuple[Taps, int]:
    """A tap on what the last layer takes, and its length."""
    name, width = embedding(network, setup.shape)
    tap = Taps(network, [name], inputs=True)
    setup.closing.callback(tap.remove)
    return tap, width


def _latest(tap: Taps) -> torch.Tensor:
    """(B, D). A last layer that is a convolution takes maps (B, D, H, W): their mean over the pixels."""
    (value,) = tap.values.values()
    return value.float() if value.ndim == 2 else value.float().flatten(2).mean(2)


def _projection(own: int, its: int, dropout: float) -> nn.Module:
    linear = nn.Linear(own, its)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.normal_(linear.bias, std=0.01)
    return nn.Sequential(nn.BatchNorm1d(own), nn.Dropout(dropout), linear)
