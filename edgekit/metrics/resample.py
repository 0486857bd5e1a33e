"""Resamples of the pictures that a network is scored on, the same for every network: a drop in each of them is paired.

The bootstrap (B. Efron, Bootstrap methods: another look at the jackknife, 1979) draws n pictures out of n with
repetition. Here every picture counts in every resample a number of times of its own, Poisson distributed with mean 1:
nearly the same where n is large, and no picture need be kept, nor their number known (N. Chamandy et al., Estimating
uncertainty for massive data streams, 2012). These numbers follow from the picture's index alone. With m_r a metric of
resample r,

    drop_r = m_r(one network) − m_r(another)

are the drops on other pictures of the same kind. What a file keeps of a metric is m_1 … m_500, however many pictures,
classes and boxes there are.
"""

from __future__ import annotations

import math

import numpy as np

RESAMPLES = 500
_UP_TO = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(16)])
"""P(a picture counts 0 times), at most once, at most twice, …"""


def times(index: int) -> np.ndarray:
    """How often the picture of this index counts in each resample: uint8 (RESAMPLES,).

    From the generator's raw bits, which NumPy promises never to change: baselines are kept for years.
    """
    uniform = (np.random.PCG64(index).random_raw(RESAMPLES) >> np.uint64(11)) * 2.0**-53
    return np.searchsorted(_UP_TO, uniform, side="right").astype(np.uint8)


def packed(values: np.ndarray) -> str:
    """A metric of each resample, in percent, as the digits of float32: 4 kB."""
    return values.astype("<f4").tobytes().hex()


def unpacked(text: str) -> np.ndarray:
    """Raises ValueError for what `packed` does not write of a metric."""
    values = np.frombuffer(bytes.fromhex(text), "<f4").astype(np.float64)
    if len(values) != RESAMPLES or not ((values >= 0) & (values <= 100)).all():
        raise ValueError(f"{len(values)} resampled values, not {RESAMPLES} in percent")
    return values
