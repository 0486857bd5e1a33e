"""Statistics of times: medians and ratios with bootstrap intervals, tails, and an interval to stop a measurement by.

The interval to stop by is a confidence sequence: it holds at every look at once, so one may look after each sample and
stop when it says enough. For the median m of samples r_1, r_2, …, each of which lies below m with probability 1/2
whatever came before, the share of a coin that is not fair, mixed over all coins uniformly,

    e_n(m) = ∫ p^S (1 - p)^(n - S) dp / 2^-n = 2^n / ((n + 1) C(n, S)),    S = #{r_i ≤ m},

is a martingale that starts at 1, so it ever reaches 1/α with probability α at most (J. Ville, Étude critique de la
notion de collectif, 1939; H. Robbins, Statistical methods related to the law of the iterated logarithm, 1970). The
medians with e_n < 1/α lie between two order statistics. Nothing is asked of the samples' distribution, nor that they be
independent; see S. R. Howard and A. Ramdas, Sequential estimation of quantiles, 2022, arXiv 1906.09712.
"""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

TAILS = {"p90": (0.90, 64), "p99": (0.99, 662)}
"""Quantiles and the samples that they need, those of MLPerf's LoadGen."""


def interval(samples: Sequence[float], seed: int = 0, level: float = 0.95) -> dict[str, float]:
    """Median with a bootstrap percentile interval (1,000 resamples)."""
    values = np.asarray(samples, np.float64)
    medians = [np.median(values[picks], axis=1) for picks in _resamples(len(values), seed)]
    return _interval(float(np.median(values)), np.concatenate(medians), level, len(values))


def ratio_interval(
    samples: Sequence[float], reference: Sequence[float], seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """Ratio of the medians of two interleaved series, with a bootstrap interval that resamples rounds as pairs."""
    values, base = np.asarray(samples, np.float64), np.asarray(reference, np.float64)
    ratios = [np.median(values[p], axis=1) / np.median(base[p], axis=1) for p in _resamples(len(values), seed)]
    return _interval(float(np.median(values) / np.median(base)), np.concatenate(ratios), level, len(values))


def _resamples(n: int, seed: int, count: int = 1000) -> Iterator[np.ndarray]:
    """Indices (k, n) of `count` resamples, a few at a time so that long series need little memory."""
    rng, step = np.random.default_rng(seed), max(1, min(count, 2_000_000 // n))
    for start in range(0, count, step):
        yield rng.integers(0, n, (min(step, count - start), n))


def _interval(point: float, resampled: np.ndarray, level: float, n: int) -> dict[str, float]:
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return {"median": point, "low": float(low), "high": float(high), "level": level, "n": n}


def tails(samples: Sequence[float]) -> dict[str, float]:
    """The quantiles that this many samples can tell, each the smallest sample with that share at or below it."""
    return {
        name: float(np.quantile(samples, share, method="inverted_cdf"))
        for name, (share, needed) in TAILS.items()
        if len(samples) >= needed
    }


def sequence(samples: Sequence[float], level: float = 0.999) -> dict[str, float] | None:
    """The median with an interval that holds at every look at once; None while there are too few samples for one (14
    at the level 0.999)."""
    n = len(samples)
    left = _outside(n, level)
    if left == 0:
        return None
    ordered = np.sort(samples)
    low, high = float(ordered[left - 1]), float(ordered[n - left])
    return {"median": float(np.median(ordered)), "low": low, "high": high, "level": level, "n": n}


@functools.cache
def _outside(n: int, level: float) -> int:
    """The least S with e_n < 1/α; 0 where even S = 0 has it, n // 2 at most."""
    limit = n * math.log(2) - math.log(n + 1) + math.log(1 - level)  # of ln C(n, S), which grows up to n / 2

    def inside(below: int) -> bool:
        return math.lgamma(n + 1) - math.lgamma(below + 1) - math.lgamma(n - below + 1) > limit

    return bisect.bisect_left(range(n // 2), True, key=inside)
