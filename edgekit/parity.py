"""How close two outputs are."""

import numpy as np

from edgekit.errors import ParityError

CEILING_DB = 300.0
"""Stands for equality: double precision does not resolve more."""


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal-to-quantisation-noise ratio in dB: 10 log10(sum reference² / sum (reference − other)²).

    Raises:
        ParityError: the shapes differ or a value is not finite.
    """
    if reference.shape != other.shape:
        raise ParityError(f"output shapes differ: {reference.shape} and {other.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(other).all()):
        raise ParityError("an output holds values that are not finite")
    signal = float(np.square(reference, dtype=np.float64).sum())
    return decibels(signal, float(np.square(reference.astype(np.float64) - other).sum()))


def agreement(reference: np.ndarray, other: np.ndarray) -> float:
    """The share in percent of classes on which two outputs agree: (B,), masks (B, H, W), or the first of (B, k).

    Raises:
        ParityError: the shapes differ.
    """
    if reference.shape != other.shape:
        raise ParityError(f"output shapes differ: {reference.shape} and {other.shape}")
    same = reference == other
    return 100 * float((same[:, 0] if same.ndim == 2 else same).mean())


def decibels(signal: float, noise: float) -> float:
    """The ratio of two sums of squares in dB, within ±CEILING_DB where one of them is 0."""
    if noise == 0 or signal == 0:
        return CEILING_DB if noise == 0 else -CEILING_DB
    return min(CEILING_DB, float(10 * np.log10(signal / noise)))
