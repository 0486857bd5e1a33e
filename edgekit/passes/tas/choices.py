"""What may be chosen, and how logits choose: the closed forms of the search (see `search.py` for the source).

o = (log softmax(logits) + g) / τ,  g Gumbel noise
two options drawn without replacement from softmax(o), their shares softmax over the two o's
E[C] = Σ softmax(logits) · C, un-perturbed
τ(e) = τ_min + (τ_max − τ_min)(1 + cos(π e)) / 2, e the share of the search that is done
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import nn

from edgekit.removal import FEWEST

TENTHS = range(3, 11)
"""The shares 0.3, 0.4, …, 1.0 of a layer's channels that may stay."""
NEVER = -1e9
"""The logit of a place in the table that holds no option: finite, as 0 · −∞ is no number."""


def width_choices(size: int, block: int = 1) -> tuple[int, ...]:
    """Of `size` rows those counts that may stay: each share rounded down, then up to whole blocks."""
    wanted = (max(FEWEST, size * tenths // 10) for tenths in TENTHS)
    return tuple(sorted({min(size, -(-rows // block) * block) for rows in wanted}))


def depth_choices(blocks: int) -> tuple[int, ...]:
    """How many of a stage's blocks may stay: all counts up to three, else the odd ones and all."""
    return tuple(range(1, blocks + 1)) if blocks <= 3 else tuple(sorted({*range(1, blocks + 1, 2), blocks}))


@functools.lru_cache(maxsize=1024)
def interpolation(size: int, wanted: int) -> torch.Tensor:
    """Channel-wise interpolation (CWI), (wanted, size): adaptive average pooling along the channels as a matrix.

    Row i is the mean of the inputs from ⌊i · size / wanted⌋ to ⌈(i + 1) · size / wanted⌉ − 1.
    """
    matrix = torch.zeros(wanted, size)
    for row in range(wanted):
        first, end = row * size // wanted, -(-(row + 1) * size // wanted)
        matrix[row, first:end] = 1 / (end - first)
    return matrix


def temperature(done: float, high: float, low: float) -> float:
    """τ at the share `done` of the search."""
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


def gumbel(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise of the shape of `like`."""
    return -torch.empty_like(like).exponential_(generator=generator).log()


class Choices(nn.Module):
    """Choices among whole numbers, one a row, each by logits of its own that begin as N(0, 0.01).

    Attributes:
        options: of each row, ascending.
        table: the same as float64 (rows, most options), 0 where a row has fewer.
    """

    table: torch.Tensor

    def __init__(self, options: Sequence[tuple[int, ...]], generator: torch.Generator) -> None:
        super().__init__()
        self.options = tuple(options)
        most = max(map(len, self.options), default=1)
        padded = [[*row, *[0] * (most - len(row))] for row in self.options]
        self.register_buffer("table", torch.tensor(padded, dtype=torch.float64).reshape(-1, most))
        self.logits = nn.Parameter(0.01 * torch.randn(len(padded), most, generator=generator))

    def log_probabilities(self) -> torch.Tensor:
        """(rows, most options), un-perturbed."""
        return self.logits.where(self.table > 0, torch.tensor(NEVER)).log_softmax(1)

    def expected(self) -> torch.Tensor:
        """The mean of each row's options, float64 (rows,)."""
        return (self.log_probabilities().exp() * self.table).sum(1)

    def perturbed(self, tau: float, generator: torch.Generator) -> torch.Tensor:
        """o, (rows, most options)."""
        found = self.log_probabilities()
        return (found + gumbel(found, generator)) / tau

    def two(self, tau: float, generator: torch.Generator) -> tuple[list[list[int]], torch.Tensor]:
        """For each row the places of two options, and their shares (rows, 2)."""
        perturbed = self.perturbed(tau, generator)
        # Gumbel's trick once more: the two largest of o + g' are two drawn from softmax(o), however small that gets.
        places = (perturbed.detach() + gumbel(perturbed, generator)).topk(2, 1).indices
        return places.tolist(), perturbed.gather(1, places).softmax(1)

    def likeliest(self) -> list[int]:
        """The place of each row's most probable option."""
        return self.log_probabilities().argmax(1).tolist()

    def entropy(self) -> float:
        """In nats, the mean over the rows."""
        found = self.log_probabilities().detach()
        return float(-(found.exp() * found).sum(1).mean()) if len(found) else 0.0


def cost_loss(expected: torch.Tensor, found: float, wanted: float, tolerance: float) -> torch.Tensor:
    """log E[F] where the most probable network costs more than `wanted`, −log E[F] where it costs less than that by
    more than `tolerance`, else 0. All are shares of the whole network's cost."""
    if found > wanted:
        return expected.log()
    return -expected.log() if found < wanted - tolerance else torch.zeros_like(expected)
