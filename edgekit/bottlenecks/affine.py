"""A latent of 8 bits: each channel between two ends in 256 steps, at inference only.

Quantisation of a bottleneck after training, as in Matsubara et al.: Supervised Compression for Resource-Constrained
Edge Computing Systems, 2022, arXiv 2108.11898, section 4 ("CR + BQ"); the arithmetic is that of `edgekit.onnx_split`.
Ends are each channel's own, so that the tail needs no number beside the symbols.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgekit.onnx_split import MOST_LEVELS, Crossing, grid

TOP = MOST_LEVELS - 1


class Affine(nn.Module):
    """Latents (B, C, H, W) as they arrive; in training as they are."""

    low: torch.Tensor
    step: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((channels, 1, 1), -8.0))
        self.register_buffer("step", torch.full((channels, 1, 1), 16 / TOP))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        if self.training:
            return y
        symbols = torch.clamp(torch.round((y - self.low) / self.step), 0, TOP).to(torch.uint8)
        return symbols.to(y.dtype) * self.step + self.low

    def update(self, values: np.ndarray) -> None:
        """Set the ends to what each channel held, (C, n)."""
        for own, found in zip((self.low, self.step), grid(values, MOST_LEVELS)):
            own.copy_(torch.from_numpy(found)[:, None, None])

    def crossing(self, cut: str) -> Crossing:
        return Crossing(cut, "reduction", MOST_LEVELS)
