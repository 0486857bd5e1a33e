"""What the methods of power-of-two weights have in common.

A weight is an entry of a small codebook, symmetric about zero, times a factor of its output channel (where the method
has one). Real numbers behind it, the latents, decide which entry, and they are trained. Forwards a weight is the entry;
its gradient is that of another function of the latents, the surrogate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from edgekit.coded import Coded, Codes

Levels = Mapping[int, Sequence[float]]
Originals = tuple[torch.Tensor, ...]


class Shift(Coded):
    """A weight of trained codes.

    Attributes:
        LEVELS: the magnitudes of a weight, ascending, by the numbers of bits that the method has.
        codebook: (k,) levels of both signs in ascending order; of odd length where there is a zero.
    """

    trains = True
    LEVELS: ClassVar[Levels]
    codebook: torch.Tensor

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = self.LEVELS[bits]
        self.top = self.levels[-1]
        codebook = torch.tensor(sorted([*self.levels, *(-level for level in self.levels if level)]))
        self.register_buffer("codebook", codebook, persistent=False)

    def forward(self, *originals: torch.Tensor) -> torch.Tensor:
        weight = instead(self.codebook[self.code(*originals)], self.surrogate(*originals))
        factor = self.factor(*originals)
        return weight if factor is None else weight * factor.reshape(-1, *[1] * (weight.ndim - 1))

    def codes_of(self, *originals: torch.Tensor) -> Codes:
        codes = self.code(*originals)
        return Codes(codes.flatten(), self.codebook[:, None], self.factor(*originals), tuple(codes.shape))

    def code(self, *originals: torch.Tensor) -> torch.Tensor:
        """int64 places in the codebook, in the weight's shape."""
        positive, rank = self.sign_and_rank(*originals)
        return torch.where(positive, len(self.codebook) // 2 + rank, (len(self.codebook) - 1) // 2 - rank)

    def sign_and_rank(self, *originals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether each weight is positive, and the place of its magnitude among `levels`, int64."""
        raise NotImplementedError

    def surrogate(self, *originals: torch.Tensor) -> torch.Tensor:
        """A function whose gradient is taken for that of the level; its value does not matter."""
        raise NotImplementedError

    def factor(self, *_originals: torch.Tensor) -> torch.Tensor | None:
        """(C_out,), or None: the levels are absolute."""
        return None

    def right_inverse(self, weight: torch.Tensor) -> Originals | torch.Tensor:
        """Latents whose weight is near to a given one."""
        raise NotImplementedError

    def scratch(self, weight: torch.Tensor, generator: torch.Generator) -> Originals:
        """Fresh latents of a weight of that shape."""
        raise NotImplementedError


class Peaked(Shift):
    """Levels that are whole numbers, with a factor peak / (largest level) for each output channel.

    The originals are peak (C_out,), a latent for the sign, and one for each boundary between two levels. The published
    methods have no factor: the batch norm behind takes it. Here it is trained, for layers without one, and so that
    training can begin with a network's weights. The peak is as large as the weights whatever the number of bits, so it
    bears their learning rate.
    """

    def factor(self, *originals: torch.Tensor) -> torch.Tensor:
        return originals[0] / self.top

    def started(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Peak, latent of the sign, and a latent for each boundary, the lowest first, that give the nearest levels.

        At the channel's factor f of least squared error a latent is f times the weight's distance to its boundary,
        which is 0 for the sign. Its gradient is f times the weight's and the surrogate's slope, of the order of 1, so
        SGD takes the weight over a boundary about when it would have taken a float weight there.
        """
        factor = least_squares(weight.flatten(1).abs(), self.levels)
        unit = factor.reshape(-1, *[1] * (weight.ndim - 1))
        boundaries = [(low + high) / 2 for low, high in itertools.pairwise(self.levels)]
        latents = [unit * (weight.abs() - unit * boundary) for boundary in boundaries]
        return factor * self.top, unit * weight, latents

    def fresh(self, weight: torch.Tensor, latents: Sequence[torch.Tensor]) -> Originals:
        """Originals with one peak for all channels, at which the weights have He's variance, 2 / fan-in."""
        peak = weight.new_ones(len(weight))
        level = self.codebook[self.code(peak, *latents)]
        variance = 2 / weight[0].numel()
        return (peak * self.top * (variance / level.square().mean()).sqrt(), *latents)


class _Instead(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, value: torch.Tensor, _surrogate: torch.Tensor) -> torch.Tensor:
        return value

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, gradient


def instead(value: torch.Tensor, surrogate: torch.Tensor) -> torch.Tensor:
    """`value`, to the bit, with the gradient of `surrogate`."""
    return _Instead.apply(value, surrogate)


def step(x: torch.Tensor) -> torch.Tensor:
    """b(x): 1 where x > 0, else 0; the gradient is the identity's."""
    return instead((x > 0).to(x), x)


def sign(x: torch.Tensor) -> torch.Tensor:
    """sgn(x): 1 where x ≥ 0, else −1; the gradient is the identity's."""
    return instead(torch.where(x >= 0, 1.0, -1.0).to(x), x)


def he_normal(weight: torch.Tensor, fan: int, generator: torch.Generator) -> torch.Tensor:
    """N(0, 2 / fan) in the shape of `weight`."""
    return normal(weight, math.sqrt(2 / fan), generator)


def normal(weight: torch.Tensor, std: float, generator: torch.Generator) -> torch.Tensor:
    return torch.empty_like(weight).normal_(0, std, generator=generator)


def least_squares(sizes: torch.Tensor, levels: Sequence[float], importance: torch.Tensor | None = None) -> torch.Tensor:
    """(C_out,) f with the least Σ h · (size − f · nearest level)², for sizes and h (C_out, n); no other f does better.

    As f falls, sizes pass from each level l to the next. Between two passings all levels stay, and of all f
    Σ h size l / Σ h l² does best: the error is then Σ h size² − (Σ h size l)² / Σ h l².
    """
    weights = torch.ones_like(sizes) if importance is None else importance
    ladder = torch.tensor(levels, dtype=torch.float64)
    return torch.stack([_least(row.double(), h.double(), ladder) for row, h in zip(sizes, weights)]).to(sizes)


def _least(size: torch.Tensor, h: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    passing = (size[:, None] / (levels[1:] + levels[:-1])).flatten().argsort(descending=True)
    gains = (h * size)[:, None] * levels.diff(), h[:, None] * levels.square().diff()
    lowest = (h * size).sum() * levels[0], h.sum() * levels[0].square()
    product, square = (
        nn.functional.pad(gain.flatten()[passing].cumsum(0), (1, 0)) + first for gain, first in zip(gains, lowest)
    )
    square = square.clamp(min=torch.finfo(torch.float64).tiny)
    best = (product.square() / square).argmax()
    return product[best] / square[best]
