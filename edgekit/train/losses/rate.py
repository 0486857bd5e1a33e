"""Rate and distortion: any loss, and what the latent of a bottleneck costs on the wire.

    L = loss + beta · bits of a picture's latent by its prior

Singh, Abu-El-Haija, Johnston, Ballé, Shrivastava, Toderici: End-to-End Learning of Compressible Features, 2020, arXiv
2007.11797 (with cross-entropy); Matsubara et al., 2022, arXiv 2108.11898 (with feature matching, summed).
"""

import dataclasses
from typing import Any

import torch
from torch import nn

from edgekit.bottlenecks import FactorisedPrior, bottleneck_of
from edgekit.errors import BadInput
from edgekit.train.objective import Loss, Setup, Term, Views
from edgekit.train.taps import Taps


@dataclasses.dataclass(frozen=True)
class Rate:
    """Another loss, and beta times the bits; the prior's parameters train at a rate of their own."""

    loss: Loss
    beta: float
    prior_lr: float
    name: str = "rate"

    def build(self, setup: Setup) -> Term:
        """Raises BadInput where the student has no bottleneck with a prior."""
        found = bottleneck_of(setup.student)
        if found is None or not isinstance(found[1].latent, FactorisedPrior):
            raise BadInput("only a network with an entropic bottleneck has a rate to train")
        taps = Taps(setup.student, [f"{found[0]}.latent"])
        setup.closing.callback(taps.remove)
        return _Term(self, self.loss.build(setup), found[1].latent, taps)


class _Term(nn.Module):
    def __init__(self, rate: Rate, inner: Term, prior: FactorisedPrior, taps: Taps) -> None:
        super().__init__()
        self.beta, self.prior_lr, self.inner, self.taps = rate.beta, rate.prior_lr, inner, taps
        self.prior = (prior,)  # in a tuple, for it is part of the student

    def parameter_groups(self) -> list[dict[str, Any]]:
        own: list[dict[str, Any]] = getattr(self.inner, "parameter_groups", list)()
        return [*own, {"params": list(self.prior[0].parameters()), "lr": self.prior_lr, "weight_decay": 0.0}]

    def forward(self, logits: torch.Tensor, views: Views) -> torch.Tensor:
        (arrived,) = self.taps.values.values()
        return self.inner(logits, views) + self.beta * self.prior[0].bits(arrived.float())
