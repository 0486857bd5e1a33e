"""Rounding weights so that the layer's output, not the weight, comes out closest.

For a layer y = W x with inputs x̂ that are already quantised and the float output y as target, the quadratic

    E‖Ŵ x̂ − W x‖² = tr (Ŵ − W*) H (Ŵ − W*)ᵀ + const,   H = E[x̂ x̂ᵀ],   W* = W + W E[(x − x̂) x̂ᵀ] (H + λI)⁻¹

(x centred: means belong to the bias). Ŵ on the grid is found column by column as GPTQ does (Frantar et al. 2022,
arXiv 2210.17323): with U the upper Cholesky factor of (H + λI)⁻¹, rounding column j leaves the error
e = (w_j − q_j) / U_jj, and the columns to come take it up, W_k −= e U_jk; columns of large H_jj first. Then coordinate
descent on the same quadratic (Behdin et al. 2023, QuantEase, arXiv 2309.01885), each step of which can only lower it:

    q_j ← round( (W*_j + sum_{k≠j} (W*_k − Ŵ_k) H_kj / H_jj) / s )

Weights that are held at 0, or within bounds of their own, round to what is there, and the others make up for it as for
any error (Frantar and Alistarh 2023, SparseGPT, arXiv 2301.00774).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Nearest = Callable[[np.ndarray], np.ndarray]
"""Rounding: the nearest level to each of some values in steps."""
FREE = np.array([-np.inf, np.inf], np.float32).reshape(2, 1, 1, 1)
"""Bounds that bind nothing."""
DAMP = 0.01
TRUST = 0.5
"""λ of the target: so many images say only so much about how errors of inputs go together; less fits their noise."""
ROWS_PER_COLUMN = 8
BLOCK = 64


def least_squares_target(weight: np.ndarray, hessian: np.ndarray, cross: np.ndarray, damp: float = TRUST) -> np.ndarray:
    """W*: the float weights (G, O, K) that make up for the error of the layer's inputs.

    Args:
        hessian: (G, K, K) of the quantised inputs.
        cross: (G, K, K), E[(x − x̂) x̂ᵀ].
    """
    shift = np.linalg.solve(damped(hessian, damp), (weight @ cross).transpose(0, 2, 1))
    return weight + shift.transpose(0, 2, 1)


def scarcity(rows: int, columns: int) -> float:
    """What λ is multiplied by where there are too few rows for so many columns, e.g. one row an image for a linear
    layer: directions that no row shows would else take any error for free.
    """
    return max(1.0, ROWS_PER_COLUMN * columns / rows)


def damped(hessian: np.ndarray, damp: float = DAMP) -> np.ndarray:
    """H + λI, λ a share of the mean diagonal, so that inputs that are always 0 leave it invertible."""
    size = hessian.shape[-1]
    mean = np.trace(hessian, axis1=1, axis2=2) / size
    return hessian + (damp * np.maximum(mean, 1e-12))[:, None, None] * np.eye(size)


def quadratic(weight: np.ndarray, other: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """(G, O): (w − v) H (w − v)ᵀ of each row."""
    error = weight - other
    return np.einsum("gok,gok->go", error @ hessian, error)


def to_integers(high: int) -> Nearest:
    """Rounding to the nearest integer in ±high."""
    return lambda values: np.clip(np.rint(values), -high, high)


def held(kept: np.ndarray | None) -> np.ndarray:
    """Bounds (2, G, O, K) that hold every weight at 0 that is not kept (G, O, K); None keeps all."""
    return FREE if kept is None else np.where(kept, FREE, np.float32(0))


def to_book(book: np.ndarray) -> Nearest:
    """Rounding to the nearest of ascending levels."""
    middle = (book[1:] + book[:-1]) / 2
    return lambda values: book[np.searchsorted(middle, values)]


def gptq(
    weight: np.ndarray,
    scale: np.ndarray,
    hessian: np.ndarray,
    nearest: Nearest,
    damp: float = DAMP,
    sweeps: int = 2,
    bounds: np.ndarray = FREE,
) -> np.ndarray:
    """Levels (G, O, K) for weights (G, O, K) on scales (G, O); no row is worse than rounding each weight alone.

    Args:
        bounds: (2, G, O, K), the least and the greatest level of each weight.
    """
    bounds = np.broadcast_to(bounds, (2, *weight.shape))
    smooth = damped(hessian, damp)
    order = np.argsort(-np.diagonal(smooth, axis1=1, axis2=2), axis=1, kind="stable")  # (G, K)
    sorted_weight, low, high = (np.take_along_axis(array, order[:, None], axis=2) for array in (weight, *bounds))
    sorted_hessian = np.take_along_axis(np.take_along_axis(smooth, order[:, :, None], 1), order[:, None], 2)
    found = _columns(sorted_weight, scale, _factor(sorted_hessian), nearest, np.stack([low, high]))
    result = np.empty_like(found)
    np.put_along_axis(result, order[:, None], found, axis=2)
    step = scale[..., None]
    alone = np.clip(nearest(weight / step), *bounds)
    better = quadratic(result * step, weight, smooth) < quadratic(alone * step, weight, smooth)
    return descend(np.where(better[..., None], result, alone), weight, scale, smooth, nearest, sweeps, bounds)


def _factor(hessian: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor U of H⁻¹ = Uᵀ U."""
    return np.linalg.cholesky(np.linalg.inv(hessian)).transpose(0, 2, 1).astype(np.float32)


def _columns(
    weight: np.ndarray, scale: np.ndarray, factor: np.ndarray, nearest: Nearest, bounds: np.ndarray
) -> np.ndarray:
    """GPTQ's loop, in blocks so that most of the work is matrix products."""
    left, scale = (
        weight.astype(np.float32),
        scale.astype(np.float32),
    )  # half the memory traffic; H was inverted in float64
    result = np.empty_like(left)
    size = weight.shape[2]
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        errors = np.empty((*weight.shape[:2], end - start), np.float32)
        for j in range(start, end):
            result[:, :, j] = np.clip(nearest(left[:, :, j] / scale), *bounds[..., j])
            errors[:, :, j - start] = (left[:, :, j] - result[:, :, j] * scale) / factor[:, None, j, j]
            left[:, :, j:end] -= errors[:, :, j - start, None] * factor[:, None, j, j:end]
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return result


def descend(
    levels: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray,
    hessian: np.ndarray,
    nearest: Nearest,
    sweeps: int,
    bounds: np.ndarray = FREE,
) -> np.ndarray:
    """Coordinate descent from given levels; stops when a sweep changes nothing."""
    bounds = np.broadcast_to(bounds, (2, *levels.shape))
    gradient = ((weight - levels * scale[..., None]) @ hessian).astype(np.float32)  # (G, O, K)
    levels, scale, hessian = (array.astype(np.float32) for array in (levels, scale, hessian))
    for _ in range(sweeps):
        before = levels.copy()
        for j in range(weight.shape[2]):
            step = gradient[:, :, j] / (hessian[:, None, j, j] * scale)
            moved = np.clip(nearest(levels[:, :, j] + step), *bounds[..., j])
            change = (moved - levels[:, :, j]) * scale
            if change.any():
                gradient -= change[..., None] * hessian[:, None, j]
                levels[:, :, j] = moved
        if np.array_equal(before, levels):
            break
    return levels
