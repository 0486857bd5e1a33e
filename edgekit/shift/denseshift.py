"""DenseShift: weights ±2^s without a zero (Li et al., DenseShift: Towards Accurate and Efficient Low-Bit Power-of-Two
Networks, 2023, arXiv 2208.09708).

n bits are one of sign and n − 1 of shift, s ∈ 0 … J with J = 2^(n−1) − 1, from J + 1 latents t_0 … t_J:

    w = sgn(t_0) · 2^s,    s = s_J,  s_1 = b(t_1),  s_j = (s_{j−1} + 1) · b(t_j),

so s is the number of ones at the end of b(t_1) … b(t_J). Backwards the weight is taken for sgn(t_0) · √(s + 1), and b
and sgn for the identity: large shifts learn more slowly. From scratch all latents are N(0, 10⁻⁶), the low-variance
start. The published code has 3 bits; 2 and 4 are by the same rule.

The factor of the channel is not the paper's (see `base.Peaked`); nor is the start from weights: with b(t_{J+1−i}) = 1
where |w| is above the boundary between 2^(i−1) and 2^i the ones stand at the end, and each latent passes zero when the
weight passes its boundary.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekit.shift.base import Levels, Originals, Peaked, normal, sign, step

LOW = 1e-3
"""The standard deviation of latents from scratch."""


class DenseShift(Peaked):
    """±1, ±2 … ±2^J. Originals: peak (C_out,), t_0 … t_J of the weight's shape."""

    LEVELS: ClassVar[Levels] = {bits: [2.0**shift for shift in range(2 ** (bits - 1))] for bits in (2, 3, 4)}

    def sign_and_rank(self, *originals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, first, *bits = originals
        return first >= 0, _shift(bits).long()

    def surrogate(self, *originals: torch.Tensor) -> torch.Tensor:
        _, first, *bits = originals
        return sign(first) * (_shift(bits) + 1).sqrt()

    def right_inverse(self, weight: torch.Tensor) -> Originals:
        peak, first, bits = self.started(weight)
        return peak, first, *reversed(bits)

    def scratch(self, weight: torch.Tensor, generator: torch.Generator) -> Originals:
        return self.fresh(weight, [normal(weight, LOW, generator) for _ in self.levels])


def _shift(bits: list[torch.Tensor]) -> torch.Tensor:
    shift = torch.zeros_like(bits[0])
    for bit in bits:
        shift = (shift + 1) * step(bit)
    return shift
