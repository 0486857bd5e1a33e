"""A factorised prior: a learned distribution of each channel, by which symbols are coded and their bits counted.

Ballé, Minnen, Singh, Hwang, Johnston: Variational Image Compression with a Scale Hyperprior, 2018, arXiv 1802.01436,
appendix 6.1. The cumulative of a channel is a small network that can only rise: with K layers

    c = σ ∘ f_K ∘ … ∘ f_1,    f_k(x) = g_k(softplus(H_k) x + b_k),    g_k(x) = x + tanh(a_k) ⊙ tanh(x),    g_K(x) = x,

and widths 1, 3, 3, 3, 3, 1. A value y costs −log2(c(y + ½) − c(y − ½)) bits. In training y is blurred by noise from
U(−½, ½), which has a gradient; otherwise it is rounded to a whole number and clipped to the symbols 0 … top of its
channel, which begin at `low`. `update` makes low, top and the symbols' whole-number weights from c; the ends have the
weight of what is clipped to them.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.onnx_split import MOST_LEVELS, Crossing

WIDTHS = (1, 3, 3, 3, 3, 1)
SPREAD = 10.0
"""About how wide the distribution is at the start."""
LEAST = 1e-9
"""No symbol is held less likely in training."""
REACH = 512
"""How far from 0 symbols are looked for."""
TAIL = 2.0**-17
"""Half of what the rarest entry of a table of 16 bits stands for: no symbol is wanted for less on either side."""
WEIGHT_BITS = 30


class FactorisedPrior(nn.Module):
    """Latents (B, C, H, W) as they arrive; in training, unless its parameters are frozen, blurred."""

    low: torch.Tensor
    top: torch.Tensor
    weights: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        scale = SPREAD ** (1 / (len(WIDTHS) - 1))
        pairs = list(itertools.pairwise(WIDTHS))
        starts = [float(np.log(np.expm1(1 / scale / after))) for _, after in pairs]
        self.matrices = nn.ParameterList(
            torch.full((channels, after, before), start) for (before, after), start in zip(pairs, starts)
        )
        self.biases = nn.ParameterList(torch.rand(channels, after, 1) - 0.5 for _, after in pairs)
        self.factors = nn.ParameterList(torch.zeros(channels, after, 1) for _, after in pairs[:-1])
        self.register_buffer("low", torch.full((channels, 1, 1), -MOST_LEVELS / 2))
        self.register_buffer("top", torch.full((channels, 1, 1), MOST_LEVELS - 1.0))
        self.register_buffer("weights", torch.ones(channels, MOST_LEVELS, dtype=torch.int64))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        if self.training and self.matrices[0].requires_grad:
            return y + torch.rand_like(y) - 0.5
        symbols = torch.minimum(torch.relu(torch.round(y) - self.low), self.top).to(torch.uint8)
        return symbols.to(y.dtype) + self.low

    def bits(self, arrived: torch.Tensor) -> torch.Tensor:
        """What a picture's latent costs, in the mean of a batch as it arrived, (B, C, H, W)."""
        return -self.likelihood(arrived).log2().sum() / len(arrived)

    def likelihood(self, y: torch.Tensor) -> torch.Tensor:
        """c(y + ½) − c(y − ½) of each value of (B, C, H, W), at least `LEAST`."""
        values = y.transpose(0, 1).reshape(y.shape[1], 1, -1)  # (C, 1, B · H · W)
        lower, upper = self._logits(values - 0.5), self._logits(values + 0.5)
        # Both on the side where sigmoids do not lose digits by lying near 1.
        sign = -torch.sign(lower + upper).detach()
        found = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs().clamp(min=LEAST)
        return found.reshape(y.shape[1], y.shape[0], *y.shape[2:]).transpose(0, 1)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """σ⁻¹(c(x)) of (C, 1, n)."""
        for index, (matrix, bias) in enumerate(zip(self.matrices, self.biases)):
            x = F.softplus(matrix) @ x + bias
            if index < len(self.factors):
                x = x + torch.tanh(self.factors[index]) * torch.tanh(x)
        return x

    @torch.no_grad()
    def update(self) -> None:
        """Set the symbols and their weights to what the prior holds now."""
        ends = torch.arange(-REACH, REACH, device=self.low.device) + 0.5  # upper end of −REACH, …
        risen = torch.sigmoid(self._logits(ends.double().to(self.biases[0].dtype).expand(len(self.low), 1, -1)))
        for channel, row in enumerate(risen[:, 0].double().cpu().numpy()):
            first, last = _window(row)
            inner = np.diff(row[first:last], prepend=0.0, append=1.0)  # (last − first + 1,)
            self.low[channel], self.top[channel] = first - REACH, last - first
            weights = np.zeros(MOST_LEVELS, np.int64)
            weights[: len(inner)] = np.round(inner.clip(0) * 2**WEIGHT_BITS)
            self.weights[channel] = torch.from_numpy(weights)

    def crossing(self, cut: str) -> Crossing:
        rows = [weights[: int(top) + 1] for weights, top in zip(self.weights.cpu().numpy(), self.top.flatten())]
        return Crossing(cut, "entropic", max(map(len, rows)), tuple(rows))


def _window(risen: np.ndarray) -> tuple[int, int]:
    """Places of the first and last symbol, of a cumulative at the upper end of each place."""
    first, last = np.searchsorted(risen, [TAIL, 1 - TAIL]).clip(max=len(risen) - 1).tolist()
    if last - first >= MOST_LEVELS:
        first = int(np.clip(np.searchsorted(risen, 0.5) - MOST_LEVELS // 2, 0, len(risen) - MOST_LEVELS))
        last = first + MOST_LEVELS - 1
    return first, last
