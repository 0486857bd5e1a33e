"""S³: sign, sparsity and shift as latents of their own (Li et al., S³: Sign-Sparse-Shift Reparametrization for
Effective Training of Low-bit Shift Networks, 2021, arXiv 2107.03453).

    3 bits:  w = sgn(w_s) · b(w_v) · 2^t,    t = b(w_1) · (b(w_2) + 1),    so w ∈ {0, ±1, ±2, ±4}
    2 bits:  w = sgn(w_s) · b(w_v)

Backwards b and sgn are the identity. From scratch all latents are N(0, 2 / (k · k · C_out)), w_v with a positive sign
(the dense prior) and w_1, w_2 with a negative one, so that all weights begin at ±1.

Not here: the paper's addition to the loss, 10⁻⁵ Σ max(−w_v, 0), which keeps weights from 0. Its strength belongs to
latents of the size that they have from scratch; with those of a start from weights it would do away with every zero.

The factor of the channel is not the paper's (see `base.Peaked`), nor is the start from weights: w_v, w_1 and w_2 stand
for the boundaries between 0, 1, 2 and 4.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekit.shift.base import Levels, Originals, Peaked, he_normal, sign, step


class S3(Peaked):
    """Originals: peak (C_out,), w_s, w_v and in 3 bits w_1, w_2, of the weight's shape."""

    LEVELS: ClassVar[Levels] = {2: [0.0, 1.0], 3: [0.0, 1.0, 2.0, 4.0]}

    def sign_and_rank(self, *originals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, first, dense, *bits = originals
        return first >= 0, ((dense > 0) * (1 + _shift(bits))).long()

    def surrogate(self, *originals: torch.Tensor) -> torch.Tensor:
        _, first, dense, *bits = originals
        return sign(first) * step(dense) * 2 ** _shift(bits)

    def right_inverse(self, weight: torch.Tensor) -> Originals:
        peak, first, bits = self.started(weight)
        return peak, first, *bits

    def scratch(self, weight: torch.Tensor, generator: torch.Generator) -> Originals:
        fan = len(weight) * weight[0, 0].numel()
        first, dense, *bits = (he_normal(weight, fan, generator) for _ in self.levels)
        return self.fresh(weight, [first, dense.abs(), *(-bit.abs() for bit in bits)])


def _shift(bits: list[torch.Tensor]) -> torch.Tensor | int:
    return step(bits[0]) * (step(bits[1]) + 1) if bits else 0
