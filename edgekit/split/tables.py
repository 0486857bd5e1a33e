"""Integer frequency tables of a latent's channels: the probabilities that both ends of the wire code with.

Symbol s of channel c has the probability f[c][s] / 2^b with whole f ≥ 1 and Σ_s f[c][s] = 2^b: every symbol can be
coded, and both ends compute with the same numbers whatever their processors do with floats. A latent x costs
Σ -log2(f[c][x] / 2^b) bits, and at least its entropy.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

from edgekit.schema import canonical, sha256

PRECISION_BITS = 16
MOST_BITS = 16
MOST_SYMBOLS = 256


@dataclasses.dataclass(frozen=True)
class Tables:
    """A row of frequencies for each channel, of at most 256 symbols."""

    precision_bits: int
    frequencies: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not 1 <= self.precision_bits <= MOST_BITS:
            raise ValueError(f"precision_bits = {self.precision_bits} must be from 1 to {MOST_BITS}")
        if not self.frequencies:
            raise ValueError("frequencies has no row; there must be one for each channel")
        for channel, row in enumerate(self.frequencies):
            self._check(channel, row)

    def _check(self, channel: int, row: tuple[int, ...]) -> None:
        if not 1 <= len(row) <= MOST_SYMBOLS:
            raise ValueError(f"channel {channel} has {len(row)} symbols; there may be 1 to {MOST_SYMBOLS}")
        if min(row) < 1:
            raise ValueError(f"channel {channel} has a frequency of {min(row)}; each must be at least 1")
        if sum(row) != 1 << self.precision_bits:
            raise ValueError(f"the frequencies of channel {channel} sum to {sum(row)}, not to 2^{self.precision_bits}")

    @functools.cached_property
    def id(self) -> bytes:
        """What a packet names them by: the first 8 bytes of the SHA-256 of their canonical JSON."""
        return bytes.fromhex(sha256(canonical(self)))[:8]

    @property
    def symbols(self) -> np.ndarray:
        """How many symbols each channel has, int64 (C,)."""
        return np.array([len(row) for row in self.frequencies])

    def bits(self, latent: np.ndarray) -> float:
        """What a latent, uint8 (C, H, W), costs by these tables."""
        costs = (self.precision_bits - np.log2(row) for row in self.frequencies)
        return float(sum(cost[channel].sum() for cost, channel in zip(costs, latent)))


def from_counts(counts: Iterable[np.ndarray], precision_bits: int = PRECISION_BITS) -> Tables:
    """The tables nearest to how often each symbol of each channel was seen; one never seen gets the least frequency.

    Args:
        counts: for each channel, whole numbers (symbols,); channels may differ in how many symbols they have.

    Raises:
        ValueError: no channel, no or too many symbols, or a count below 0.
    """
    return Tables(precision_bits, tuple(_row(np.asarray(channel), 1 << precision_bits) for channel in counts))


def _row(counts: np.ndarray, total: int) -> tuple[int, ...]:
    """Shares of `total` in whole numbers: 1 for what is rarer than that, the others in proportion, rounded by the
    largest remainder."""
    if counts.ndim != 1 or not 1 <= len(counts) <= min(MOST_SYMBOLS, total) or counts.min() < 0:
        raise ValueError(f"counts must be 1 to {min(MOST_SYMBOLS, total)} numbers of at least 0; got {counts!r}")
    counts = counts if counts.any() else np.ones_like(counts)
    share, rare = np.zeros(len(counts)), counts == 0
    while (share[~rare] < 1).any():
        rare = rare | (share < 1) & (share > 0)
        share = np.where(rare, 1.0, counts * ((total - rare.sum()) / counts[~rare].sum()))
    whole = np.floor(share).astype(np.int64)
    largest_remainders = np.argsort(whole - share, kind="stable")
    whole[largest_remainders[: total - whole.sum()]] += 1
    return tuple(map(int, whole))
