"""DeepShift: powers of two up to 1, by quantising or as parameters (Elhoushi et al., DeepShift: Towards Multiplication-
Less Neural Networks, 2021, arXiv 1905.13298).

b bits are one of sign and b − 1 of shift. The levels are absolute: there is no factor, and in few bits the smallest is
large beside a trained network's weights, so a start from weights wants 5 bits or so.

    Q:   w = sgn(x) · 2^round(log2 |x|),                smallest 2^−(2^(b−1) − 1), for a weight x
    PS:  w = sgn(round(S)) · 2^round(P),  0 with sgn 0, smallest 2^−(2^(b−1) − 2), for two latents P and S

Before every step |x| and P are put back into the range of the levels. Backwards, in Q the weight is x; in PS the
rounding and the sign are the identity, and the product is asymmetric: the gradient g of w is g · sgn(S) for 2^P, but g
and not g · 2^P for S. From scratch P is uniform in its range and S in ±1; x is He's.

PS: the gradient of a small weight's P is small, as is its effect, so take adamw (the paper takes RAdam) and
weight_decay = 0, which would pull P to 0, that is |w| to 1.

Not here: the paper's rounding of biases and activations to 16 + 16 bits of fixed point.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekit.shift.base import Levels, Originals, Shift, he_normal, instead, sign


class DeepShiftQ(Shift):
    """±2^smin … ±1. The original is x; an exact 0 counts as positive, as there is no such level."""

    LEVELS: ClassVar[Levels] = {bits: [2.0**shift for shift in range(1 - 2 ** (bits - 1), 1)] for bits in range(2, 7)}

    @property
    def smallest(self) -> int:
        """smin."""
        return 1 - len(self.levels)

    def forward(self, *originals: torch.Tensor) -> torch.Tensor:
        (x,) = originals
        if self.training:
            with torch.no_grad():
                x.copy_(sign(x) * x.abs().clamp(self.levels[0], 1))
        return super().forward(x)

    def sign_and_rank(self, *originals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (x,) = originals
        return x >= 0, x.abs().log2().round().clamp(self.smallest, 0).long() - self.smallest

    def surrogate(self, *originals: torch.Tensor) -> torch.Tensor:
        return originals[0]

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def scratch(self, weight: torch.Tensor, generator: torch.Generator) -> Originals:
        return (he_normal(weight, weight[0].numel(), generator),)


class DeepShiftPS(Shift):
    """0, ±2^smin … ±1. Originals: P and S of the weight's shape."""

    LEVELS: ClassVar[Levels] = {
        bits: [0.0, *(2.0**shift for shift in range(2 - 2 ** (bits - 1), 1))] for bits in range(2, 7)
    }

    @property
    def smallest(self) -> int:
        """smin."""
        return 2 - len(self.levels)

    def forward(self, *originals: torch.Tensor) -> torch.Tensor:
        if self.training:
            with torch.no_grad():
                originals[0].clamp_(self.smallest, 0)
        return super().forward(*originals)

    def sign_and_rank(self, *originals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shift, signs = originals
        rank = shift.round().clamp(self.smallest, 0).long() - self.smallest + 1
        return signs > 0, rank * (signs.round() != 0)

    def surrogate(self, *originals: torch.Tensor) -> torch.Tensor:
        shift, signs = originals
        power = 2 ** instead(shift.round().clamp(self.smallest, 0), shift)
        return signs.round().sign() * power + signs

    def right_inverse(self, weight: torch.Tensor) -> Originals:
        """The nearest shift; S is below the half that rounds to 0 where the weight is nearer to 0 than to 2^smin."""
        signs = (weight / 2.0**self.smallest).clamp(-1, 1)
        return weight.abs().log2().clamp(self.smallest, 0), signs

    def scratch(self, weight: torch.Tensor, generator: torch.Generator) -> Originals:
        shift = torch.empty_like(weight).uniform_(self.smallest, 0, generator=generator)
        return shift, torch.empty_like(weight).uniform_(-1, 1, generator=generator)
