"""ONNX's conventions of resizing, as tables: which input pixels, in which shares, make an output pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Table = tuple[np.ndarray, np.ndarray, np.ndarray]
"""low, high (int64) and share (float32) of each output position; see `layers.Resample`."""

# Positions of output pixels in the input, in the float32 arithmetic of ONNX Runtime: (i, scale, size, wanted).
POSITIONS: dict[str, Callable[[np.ndarray, np.float32, int, int], np.ndarray]] = {
    "half_pixel": lambda i, scale, _size, _wanted: (i + np.float32(0.5)) / scale - np.float32(0.5),
    "pytorch_half_pixel": lambda i, scale, _size, wanted: (
        (i + np.float32(0.5)) / scale - np.float32(0.5) if wanted > 1 else i * 0
    ),
    "asymmetric": lambda i, scale, _size, _wanted: i / scale,
    "align_corners": lambda i, _scale, size, wanted: (
        i * np.float32(size - 1) / np.float32(wanted - 1) if wanted > 1 else i * 0
    ),
}
ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - np.float32(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + np.float32(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def coordinates(how: str, size: int, wanted: int, scale: float) -> np.ndarray | None:
    """The position (wanted,) of each output pixel among `size` input pixels; None for an unknown convention."""
    if how not in POSITIONS or not scale > 0:
        return None
    return POSITIONS[how](np.arange(wanted, dtype=np.float32), np.float32(scale), size, wanted)


def table(positions: np.ndarray, size: int, rounding: str | None) -> Table | None:
    """The table for positions; `rounding` picks the nearest pixel, None interpolates. None for an unknown rounding."""
    if rounding is not None:
        if rounding not in ROUNDINGS:
            return None
        low = np.clip(ROUNDINGS[rounding](positions), 0, size - 1).astype(np.int64)
        return low, low, np.zeros(len(low), np.float32)
    inside = np.clip(positions, 0, size - 1).astype(np.float32)
    low = np.floor(inside).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), inside - low.astype(np.float32)


def is_torch_nearest(sizes: Sequence[int], tables: dict[int, Table]) -> bool:
    """Whether the tables are floor(i · size / wanted), which is torch's "nearest"."""
    return all(
        np.array_equal(low, np.arange(len(low)) * size // len(low)) for size, (low, _, _) in zip(sizes, tables.values())
    )


def is_torch_bilinear(how: str, sizes: Sequence[int], scales: Sequence[tuple[int, float]]) -> bool:
    """Whether these are torch's half-pixel positions: its scale is the ratio of the sizes, unrounded."""
    exact = all(abs(wanted / size - scale) < 1e-6 * scale for size, (wanted, scale) in zip(sizes, scales))
    # They differ at a single output pixel, where PyTorch does not do what ONNX calls pytorch_half_pixel.
    several = how == "half_pixel" or all(wanted > 1 for wanted, _ in scales)
    return how in ("half_pixel", "pytorch_half_pixel") and exact and several
