"""The range of a tensor from a running histogram: memory stays the same for any number of images.

A histogram of 2B bins covers [−R, R), R a power of two. A value beyond R doubles R, which joins neighbouring bins in
pairs exactly, so the result does not depend on how the values came in batches, and histograms can be joined. Methods:

- minmax: the extremes.
- percentile: the quantiles p and 1 − p of all values (Li et al. 2019, "Fully Quantized Network", arXiv 1810.05723).
- mse: the range with the least squared error of rounding and clipping, found end by end on a grid.
- kl: the threshold at which the clipped and re-quantised histogram keeps most information about the original
  (Migacz 2017, "8-bit Inference with TensorRT"), D(P‖Q) = sum P log(P / Q).
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import numpy as np

Method = Literal["minmax", "percentile", "mse", "kl"]
HALF = 4096
PERCENTILE = 0.99995
STEPS = 255
ENDS = np.linspace(1.0, 0.3, 36)


class Histogram:
    """Extremes of everything that `add` was given, and its histogram where `bins` is set."""

    def __init__(self, bins: bool = True) -> None:
        self.bins = bins
        self.counts = np.zeros(2 * HALF, np.int64)
        self.radius = 0.0
        self.low, self.high = float("inf"), float("-inf")

    def add(self, values: np.ndarray) -> None:
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.bins:
            self._count(values, max(-low, high))

    def _count(self, values: np.ndarray, radius: float) -> None:
        self._grow(radius)
        if self.radius:
            index = (values.ravel() * np.float32(HALF / self.radius)).astype(np.int32)
            index -= np.signbit(values.ravel())  # truncation rounds towards 0; below 0 the bin is the next lower one
            np.clip(index, -HALF, HALF - 1, out=index)
            self.counts += np.bincount(index + HALF, minlength=2 * HALF)

    def _grow(self, wanted: float) -> None:
        if self.radius == 0.0 and wanted > 0.0:
            self.radius = 2.0 ** math.ceil(math.log2(wanted))
        while self.radius < wanted:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.pad(pairs, HALF // 2)
            self.radius *= 2

    def joined(self, other: Histogram) -> Histogram:
        """Of the values of both."""
        both = Histogram(self.bins)
        both.low, both.high = min(self.low, other.low), max(self.high, other.high)
        for part in (self, other):
            both.radius = both.radius or part.radius
            both._grow(part.radius)
            grown = copy.deepcopy(part)
            grown._grow(both.radius)
            both.counts += grown.counts
        return both

    def outside(self, low: float, high: float) -> float:
        """The share of values that are cut off at these ends, to a bin."""
        x, counts = self.occupied()
        return float(counts[(x < low) | (x > high)].sum() / max(counts.sum(), 1))

    def occupied(self) -> tuple[np.ndarray, np.ndarray]:
        """Centres and counts of the bins that hold values."""
        width = self.radius / HALF
        (filled,) = np.nonzero(self.counts)
        centres = (filled - HALF + 0.5) * width
        return np.clip(centres, self.low, self.high), self.counts[filled].astype(np.float64)


def find_range(histogram: Histogram, method: Method, symmetric: bool) -> tuple[float, float]:
    """(low, high) by a method; never wider than the extremes."""
    low, high = histogram.low, histogram.high
    if method == "minmax" or not low < high:
        return low, high
    x, counts = histogram.occupied()
    if method == "percentile":
        total = np.cumsum(counts) / counts.sum()
        ends = np.searchsorted(total, [1 - PERCENTILE, PERCENTILE])
        return float(x[ends[0]]), float(x[min(ends[1], len(x) - 1)])
    if method == "kl":
        return _least_divergence(x, counts, low, high)
    return _least_error(x, counts, low, high, symmetric)


def squared_error(x: np.ndarray, counts: np.ndarray, ends: tuple[float, float], symmetric: bool) -> float:
    """What rounding to 8 bits between the two `ends` and clipping to them costs the values x, each `counts` times."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    step = (high - low) / (STEPS - 1 if symmetric else STEPS)
    error = np.clip(np.rint(x / step) * step, low, high) - x
    # Within a bin values are spread out, not at its centre: rounding costs step²/12 wherever nothing is clipped.
    inside = (x >= low) & (x <= high)
    return float((counts * np.where(inside, np.maximum(error**2, step**2 / 12), error**2)).sum())


def _least_error(x: np.ndarray, counts: np.ndarray, low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """Shrink one end after the other while the error falls."""
    for _ in range(2):
        candidates = [(low, high * share) for share in ENDS] if high > 0 else [(low, high)]
        low, high = min(candidates, key=lambda ends: squared_error(x, counts, ends, symmetric))
        candidates = [(low * share, high) for share in ENDS] if low < 0 else [(low, high)]
        low, high = min(candidates, key=lambda ends: squared_error(x, counts, ends, symmetric))
    return low, high


def _least_divergence(x: np.ndarray, counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    radius = max(-low, high)
    best = min(ENDS, key=lambda share: _divergence(x, counts, max(low, -radius * share), min(high, radius * share)))
    return max(low, -radius * best), min(high, radius * best)


def _divergence(x: np.ndarray, counts: np.ndarray, low: float, high: float) -> float:
    """D(P‖Q) of the values clipped to [low, high], P, and of their bins spread evenly over the steps, Q."""
    clipped = np.clip(x, low, high)
    bins = np.rint((clipped - low) / (high - low) * STEPS).astype(np.int64)
    p = counts / counts.sum()
    inside = (x >= low) & (x <= high)
    mass = np.bincount(bins[inside], p[inside], STEPS + 1)  # what was clipped is in P but not in Q, as in the original
    members = np.bincount(bins[inside], minlength=STEPS + 1)
    reference = p.copy()
    for end, outside in ((low, x < low), (high, x > high)):
        if outside.any() and inside.any():
            reference[np.argmin(np.where(inside, np.abs(x - end), np.inf))] += p[outside].sum()
    q = mass[bins] / np.maximum(members[bins], 1)
    keep = inside & (reference > 0)
    return float((reference[keep] * np.log(reference[keep] / np.maximum(q[keep] / q[keep].sum(), 1e-12))).sum())
