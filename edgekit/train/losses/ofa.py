"""One for all: distillation between unlike networks, at branches that turn each stage of the student into answers.

Hao et al.: One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation, 2023,
arXiv 2310.19444; as in the authors' code. Of each set of logits, with p_s and p_t the answers of student and teacher
and y the label as a row of 0 and one 1:

    L_OFA = mean over the batch of −sum over classes of [(p_t + y)^eps − y] · log p_s
    L = CE(student, label) + L_OFA(student) + sum over the branches of L_OFA(branch)

At eps 1 L_OFA is the cross-entropy with p_t; above 1 the right class weighs more. Of a mixed picture, y is its largest
class. With several teachers p_t is the mean of theirs. A branch halves its stage's resolution down to that of the last
stage, twice as many channels at a time, then averages over the pixels and classifies; branches are trained with the
student and dropped. These are the branches for convolutional students; those for transformers are not built here.

Published settings: branches at four stages, all weights 1, temperature 1; eps 1 for CIFAR-100, 1.5 for DeiT-T to
ResNet-18 on ImageNet; 100 epochs, SGD lr 0.1, a tenth every 30 epochs, weight decay 1e-4, batch 512, gradients clipped
to 5.
"""

import dataclasses
import itertools
import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import nn
from torch.nn import functional as F

from edgekit.train.losses.common import check_per_picture, device_of, embedding, own_stages
from edgekit.train.objective import Setup, Term, Views, consensus, cross_entropy
from edgekit.train.taps import Taps, forms

STAGES = 4  # of the published networks


@dataclasses.dataclass(frozen=True)
class OFA:
    """Labels, and the teachers' answers to the student and to its branches; for classification.

    Attributes:
        eps: the exponent; at least 1 in the paper.
        stages: the student's modules that get a branch; if empty, the last one at each of its last four resolutions.
    """

    name: Literal["ofa"] = "ofa"
    eps: Annotated[float, Gt(0)] = 1.0
    stages: tuple[str, ...] = ()

    def build(self, setup: Setup) -> Term:
        return _Term(self, setup).to(device_of(setup))


class _Term(nn.Module):
    """`branches`: one for each tapped stage, (B, C, H, W) to logits (B, outputs)."""

    def __init__(self, loss: OFA, setup: Setup) -> None:
        super().__init__()
        self.loss, self.setup = loss, setup
        found = own_stages(setup.student, setup.shape, loss.name)
        self.stages = loss.stages or tuple(found)[-STAGES:]
        smallest = list(found.values())[-1][1]
        width = max(embedding(network, setup.shape)[1] for network in (setup.student, *setup.teachers))
        self.branches = nn.ModuleList(
            _branch(channels, round(math.log2(height / smallest)), width, setup.outputs)
            for channels, height, _ in forms(setup.student, self.stages, setup.shape)
        )
        self.taps = Taps(setup.student, self.stages)
        setup.closing.callback(self.taps.remove)

    def forward(self, logits: torch.Tensor, views: Views) -> torch.Tensor:
        check_per_picture(views.labels, self.loss.name)
        largest = views.labels if views.targets is None else views.targets.argmax(1)
        teacher = consensus(self.setup.teachers, views.images)
        weights = _weights(teacher, F.one_hot(largest, self.setup.outputs), self.loss.eps)
        answers = [logits, *(branch(self.taps.values[name]) for name, branch in zip(self.stages, self.branches))]
        total = cross_entropy(logits, views)
        for answer in answers:
            total = total - (weights * F.log_softmax(answer.float(), dim=1)).sum(1).mean()
        return total


def _weights(teacher: torch.Tensor, label: torch.Tensor, eps: float) -> torch.Tensor:
    """(p_t + y)^eps − y, what each log-probability of the student is weighed with: (B, outputs)."""
    return (teacher + label) ** eps - label


def _branch(channels: int, halvings: int, width: int, outputs: int) -> nn.Sequential:
    """From maps of `channels` to logits, by way of `width` channels."""
    widths = [channels * 2**index for index in range(halvings)] + [width]
    blocks: list[nn.Module] = [_halved(before, after) for before, after in itertools.pairwise(widths)]
    linear = nn.Linear(width, outputs)
    branch = nn.Sequential(*(blocks or [nn.Conv2d(channels, width, 1)]), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    for layer in branch.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return branch


def _halved(channels: int, width: int) -> nn.Sequential:
    """Two depthwise-separable convolutions, the first of stride 2."""
    layers: list[nn.Module] = []
    for stride, after in ((2, channels), (1, width)):
        layers += [
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            nn.Conv2d(channels, after, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
