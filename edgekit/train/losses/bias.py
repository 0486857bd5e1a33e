"""Bias loss: pictures whose last feature map varies little, and so tells little, weigh less.

Abrahamyan et al.: Bias Loss for Mobile Neural Networks, 2021, arXiv 2107.11170; in the form of the authors' code, which
differs from the paper's exp(alpha · v) − beta by a constant. v is the variance of a picture's last feature map (all
channels and pixels; unbiased, without gradient), GMIN the smallest v since training began:

    v~ = (v − GMIN) / (max over the batch of v − min over the batch of v), or 0 where all v are equal
    z = exp(beta · v~) − 1 + alpha
    L = mean over the batch of z · CE(student, label)

Published settings: alpha = beta = 0.3.
"""

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import distributed, nn

from edgekit.train.losses.common import check_per_picture, device_of, own_stages, several_processes
from edgekit.train.objective import Setup, Term, Views, cross_entropy_each
from edgekit.train.taps import Taps


@dataclasses.dataclass(frozen=True)
class Bias:
    """The labels, weighed by how much each picture's features vary; for classification.

    Attributes:
        alpha: the smallest weight.
        beta: how much the weight grows with the variance.
    """

    name: Literal["bias"] = "bias"
    alpha: Annotated[float, Ge(0)] = 0.3
    beta: Annotated[float, Ge(0)] = 0.3

    def build(self, setup: Setup) -> Term:
        return _Term(self, setup).to(device_of(setup))


class _Term(nn.Module):
    """Buffer `smallest`: GMIN, a number."""

    smallest: torch.Tensor

    def __init__(self, loss: Bias, setup: Setup) -> None:
        super().__init__()
        self.loss = loss
        self.stage = list(own_stages(setup.student, setup.shape, loss.name))[-1]
        self.taps = Taps(setup.student, [self.stage])
        setup.closing.callback(self.taps.remove)
        self.register_buffer("smallest", torch.tensor(1e5))  # the code's start

    def forward(self, logits: torch.Tensor, views: Views) -> torch.Tensor:
        check_per_picture(views.labels, self.loss.name)
        weights = self._weights(self.taps.values[self.stage].detach().float().flatten(1).var(1))
        return (weights * cross_entropy_each(logits, views)).mean()

    def _weights(self, variance: torch.Tensor) -> torch.Tensor:
        """z of each picture: (B,) of variances (B,)."""
        lowest, highest = _range(variance)
        self.smallest.copy_(torch.minimum(self.smallest, lowest))
        spread = highest - lowest
        scaled = torch.where(spread > 0, (variance - self.smallest) / spread, 0.0)
        return torch.exp(self.loss.beta * scaled) - 1 + self.loss.alpha


def _range(values: torch.Tensor) -> torch.Tensor:
    """The smallest and the largest, over all processes: the batch is whole for them together only."""
    ends = torch.stack([values.min(), -values.max()])
    if several_processes():
        distributed.all_reduce(ends, distributed.ReduceOp.MIN)
    return ends * ends.new_tensor([1, -1])
