"""The arithmetic of affine grids (Jacob et al. 2018, arXiv 1712.05877): x = s · (q − z), q an integer in [low, high].

A weight's scale per channel is max|w| / high, or the one with the least squared error (Nagel et al. 2021, "A White
Paper on Neural Network Quantization", arXiv 2106.08295, 3.1.1), found on a grid of shrunken maxima: a single outlier
then saturates instead of widening the steps of all others.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from edgekit.schema import to_json

BIAS_LIMIT = 2.0**26
"""Most steps of s_x · s_w that a bias may take: int32 clips at 2^31, and sums must still fit beside it."""
SHRINK = np.linspace(1.0, 0.4, 31)


@dataclasses.dataclass(frozen=True)
class Grid:
    """How one tensor is quantised: a row of `quant.json`.

    Attributes:
        scale: one value, or one for each index of `axis`.
        zero_point: the integer that stands for 0.
    """

    scale: tuple[float, ...]
    zero_point: int
    axis: int | None
    symmetric: bool
    bits: int = 8

    def to_json(self) -> dict[str, Any]:
        return to_json(self)


def activation_grid(low: float, high: float, symmetric: bool, limits: tuple[int, int]) -> Grid:
    """The grid of the range [low, high], widened to hold 0; a range of one point 0 gets scale 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return Grid((1.0,), 0, None, symmetric)
    if symmetric:
        return Grid((float(np.float32(max(-low, high) / limits[1])),), 0, None, True)
    scale = float(np.float32((high - low) / (limits[1] - limits[0])))
    zero = int(np.clip(np.rint(limits[0] - low / scale), *limits))
    return Grid((scale,), zero, None, False)


def grid_ends(grid: Grid, limits: tuple[int, int]) -> tuple[float, float]:
    """The least and the greatest value that a tensor's grid holds."""
    low, high = (grid.scale[0] * (limit - grid.zero_point) for limit in limits)
    return low, high


def fake_quantised(x: np.ndarray, grid: Grid, limits: tuple[int, int]) -> np.ndarray:
    """x through QuantizeLinear and DequantizeLinear, in float32."""
    scale = np.float32(grid.scale[0])
    y = x / scale
    np.rint(y, out=y)
    np.clip(y, limits[0] - grid.zero_point, limits[1] - grid.zero_point, out=y)
    y *= scale
    return y


def rounded(weight: np.ndarray, scale: np.ndarray, high: int) -> np.ndarray:
    """Nearest integers (..., K) in ±high of weights (..., K) on scales (...)."""
    return np.clip(np.rint(weight / scale[..., None]), -high, high)


def max_scales(weight: np.ndarray, high: int) -> np.ndarray:
    """Scales (...) of weights (..., K) by their largest magnitude; 1 where all are 0."""
    top = np.abs(weight).max(axis=-1)
    return np.where(top > 0, top / high, 1.0)


def mse_scales(weight: np.ndarray, high: int, importance: np.ndarray | None = None) -> np.ndarray:
    """Scales (...) of weights (..., K) with the least squared error, each input weighed by `importance` (..., K)."""
    full = max_scales(weight, high)
    best, least = full, np.full(full.shape, np.inf)
    for shrink in SHRINK:
        scale = full * shrink
        error = np.square(rounded(weight, scale, high) * scale[..., None] - weight)
        total = (error if importance is None else error * importance).sum(axis=-1)
        best, least = np.where(total < least, scale, best), np.minimum(total, least)
    return best


def bias_floor(bias: np.ndarray, input_scale: float) -> np.ndarray:
    """The least weight scale per channel at which the int32 bias keeps within BIAS_LIMIT steps."""
    return np.abs(bias) / (input_scale * BIAS_LIMIT)
