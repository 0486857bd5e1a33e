"""Additive powers of two: levels that are sums of a few (Li, Dong, Wang, Additive Powers-of-Two Quantization, 2020,
arXiv 1909.13144).

With b bits a magnitude has B = b − 1, a sum of one term from each of these sets, and the largest sum stands for 1:

    B = 2:  {0, 2⁻¹, 2⁻², 2⁻³}
    B = 3:  {0, 2⁻¹, 2⁻², 2⁻⁴} + {0, 2⁻³}
    B = 4:  {0, 2⁻¹, 2⁻³, 2⁻⁵} + {0, 2⁻², 2⁻⁴, 2⁻⁶}
    B = 5:  {0, 2⁻¹, 2⁻³, 2⁻⁶} + {0, 2⁻², 2⁻⁴, 2⁻⁷} + {0, 2⁻⁵}

and with 2 bits the levels are 0 and 1. The weight is normalised over the layer and clipped at a learned α,

    x = (w − mean) / (std · α),    weight = α · nearest level of clip(x, −1, 1) · gain,

where rounding is the identity backwards. So the gradient of α is ±1 of a clipped weight's, and level − x of any
other's. What is clipped gets no gradient; with 2 bits it gets it whole. From scratch α begins at 3.

The gain of an output channel is not the paper's, which leaves that to the batch norm behind. Here it is trained; from
scratch it begins at He's standard deviation. From weights, α begins at the least squared error of the normalised weight
and the gain at that of the weight.

Not here: the paper's quantised activations.
"""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import torch

from edgekit.shift.base import Levels, Originals, Shift, he_normal, least_squares

TERMS: dict[int, list[tuple[int, ...]]] = {
    2: [(0, 1)],
    3: [(0, 1, 2, 4)],
    4: [(0, 1, 4, 8), (0, 2)],
    5: [(0, 2, 8, 32), (0, 1, 4, 16)],
    6: [(0, 2, 16, 64), (0, 1, 8, 32), (0, 4)],
}
"""By bits: the sets, each times the power of two that makes all its terms whole."""
CLIP = 3.0


class APoT(Shift):
    """Originals: gain (C_out,), α (), and w."""

    LEVELS: ClassVar[Levels] = {
        bits: sorted(float(sum(terms)) for terms in itertools.product(*sets)) for bits, sets in TERMS.items()
    }

    def sign_and_rank(self, *originals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = _normalised(*originals[1:]) * self.top
        levels = self.codebook[-len(self.levels) :]
        return x >= 0, torch.bucketize(x.abs().contiguous(), (levels[1:] + levels[:-1]) / 2)

    def surrogate(self, *originals: torch.Tensor) -> torch.Tensor:
        _, clip, weight = originals
        x = _normalised(clip, weight)
        # α has its gradient of a clipped weight from `factor`, so here it must have none.
        outside = x * clip / clip.detach() if len(self.levels) == 2 else x.sign()
        return self.top * torch.where(x.abs() <= 1, x, outside)

    def factor(self, *originals: torch.Tensor) -> torch.Tensor:
        gain, clip, _ = originals
        return gain * clip / self.top

    def right_inverse(self, weight: torch.Tensor) -> Originals:
        x = _normalised(weight.new_ones(()), weight)
        clip = least_squares(x.abs().reshape(1, -1), self.levels)[0] * self.top
        level = self.codebook[self.code(clip, clip, weight)].flatten(1) * clip / self.top
        gain = (weight.flatten(1) * level).sum(1) / level.square().sum(1).clamp(min=torch.finfo(weight.dtype).tiny)
        return gain, clip, weight.clone()

    def scratch(self, weight: torch.Tensor, generator: torch.Generator) -> Originals:
        fan = weight[0].numel()
        gain = weight.new_full((len(weight),), math.sqrt(2 / fan))
        return gain, weight.new_tensor(CLIP), he_normal(weight, fan, generator)


def _normalised(clip: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x, of a constant weight 0."""
    std = weight.std(correction=0).clamp(min=torch.finfo(weight.dtype).tiny)
    return (weight - weight.mean()) / (std * clip)
