"""Generalised divisive normalisation, which makes a picture's coefficients nearly independent of one another.

Ballé, Laparra, Simoncelli: Density Modeling of Images using a Generalized Normalization Transformation, 2015, arXiv
1511.06281; in the form with exponents of 1 (Johnston et al.: Computationally Efficient Neural Image Compression, 2019,
arXiv 1912.08771, section 3.1). At every pixel, over channels i and j,

    y_i = x_i / (β_i + Σ_j γ_ij |x_j|),    and its approximate inverse    y_i = x_i (β_i + Σ_j γ_ij |x_j|).

β and γ are what was learned squared, β no less than 1e-6, so that nothing is divided by zero. Σ is a 1×1 convolution.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

LEAST_BETA = 1e-6
GAMMA = 0.1
"""γ_ii at the start."""
OFF_DIAGONAL = 2**-9
"""The root of γ_ij at the start: at 0 its gradient would be 0 for ever."""


class GDN(nn.Module):
    """(B, C, H, W) to the same shape."""

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.root_beta = nn.Parameter(torch.ones(channels))
        self.root_gamma = nn.Parameter(
            torch.full((channels, channels), OFF_DIAGONAL).fill_diagonal_(GAMMA**0.5)[:, :, None, None]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = F.conv2d(x.abs(), self.root_gamma.square(), self.root_beta.square() + LEAST_BETA)
        return x * norm if self.inverse else x / norm
