"""Counts of symbols: their entropy, the tables they are coded with, and which tensors share one.

A stream of n symbols with counts c costs its entropy Σ c log2(n / c) bits and a table; two tensors share theirs where
that is cheaper than two tables.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from edgekit.transport.unpack import MOST_CODE, STEPS

ENTRY_BITS = 5.0
"""About what an entry of a table costs, and a stream, once they are compressed with all others."""
STREAM_BITS = 40.0
LARGEST = 7 << MOST_CODE // 4


def entropy_bits(counts: np.ndarray) -> np.ndarray:
    """Σ c log2(n / c) over the last axis."""
    total = counts.sum(-1, keepdims=True)
    return (counts * (np.log2(np.maximum(total, 1)) - np.log2(np.maximum(counts, 1)))).sum(-1)


def window(counts: np.ndarray) -> tuple[int, int]:
    """First symbol and number of symbols of the shortest run, modulo the alphabet, that holds all that occur."""
    used = np.flatnonzero(counts)
    gaps = np.diff(used, append=used[0] + len(counts))
    first = used[(int(gaps.argmax()) + 1) % len(used)]
    return int(first), int(len(counts) - gaps.max() + 1)


@dataclasses.dataclass(frozen=True)
class Table:
    """How a stream is coded; no codes: it is stored."""

    codes: bytes
    first: int = 0
    step: int = 1
    bits: float = 0.0
    """What the stream and its table cost, about."""

    @property
    def constant(self) -> bool:
        """Whether there is one symbol only, which nothing is spent on."""
        return len(self.codes) * self.step == 1


def table(counts: np.ndarray) -> Table:
    """The cheapest form of a stream of these counts: stored (a nibble as a byte), or by a table of some fineness."""
    first, count = window(counts)
    used = np.roll(counts, -first)[:count]
    made = [Table(b"", bits=STREAM_BITS + 8.0 * float(counts.sum()))]
    for step in STEPS:
        pooled = np.add.reduceat(used, np.arange(0, count, step))
        bits = float(entropy_bits(pooled) + counts.sum() * np.log2(step)) + ENTRY_BITS * len(pooled)
        made.append(Table(_codes(pooled), first, step, STREAM_BITS + bits))
    return min(made, key=lambda item: item.bits)


@functools.cache
def _weights() -> np.ndarray:
    code = np.arange(1, MOST_CODE + 1)
    return (4 + code % 4) << (code // 4)


def _codes(counts: np.ndarray) -> bytes:
    """The nearest code of each count, the largest at the top; 0 for what does not occur."""
    scaled = counts * (LARGEST / counts.max())
    upper = np.searchsorted(_weights(), scaled).clip(1, MOST_CODE - 1)
    below, above = _weights()[upper - 1], _weights()[upper]
    nearest = upper + (scaled * scaled > below * above)
    return np.where(counts > 0, nearest, 0).astype(np.uint8).tobytes()


def total_bits(histogram: np.ndarray) -> float:
    """What a tensor costs by tables of its own, from its counts (planes, alphabet)."""
    return sum(table(counts).bits for counts in histogram)


def shared(histograms: Sequence[np.ndarray]) -> list[list[int]]:
    """Which tensors share tables: those of neighbouring entropy are put together while that saves bits.

    Args:
        histograms: counts (planes, alphabet) of each tensor.
    """
    if not histograms:
        return []
    order = np.argsort([entropy_bits(item).sum() / item.sum() for item in histograms], kind="stable")
    members = [[int(index)] for index in order]
    merged = [histograms[index] for index in order]
    bits = [total_bits(item) for item in merged]
    saved = [bits[i] + bits[i + 1] - total_bits(merged[i] + merged[i + 1]) for i in range(len(merged) - 1)]
    while saved and max(saved) > 0:
        at = int(np.argmax(saved))
        members[at : at + 2] = [members[at] + members[at + 1]]
        merged[at : at + 2] = [merged[at] + merged[at + 1]]
        bits[at : at + 2] = [total_bits(merged[at])]
        del saved[at]
        for pair in (at - 1, at):
            if 0 <= pair < len(saved):
                saved[pair] = bits[pair] + bits[pair + 1] - total_bits(merged[pair] + merged[pair + 1])
    return [sorted(item) for item in members]
