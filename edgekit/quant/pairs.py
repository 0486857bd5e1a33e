"""Pairs of weights whose products x86 without VNNI adds in 16 bits, and weights that fit them.

`vpmaddubsw` multiplies uint8 activations by int8 weights and adds neighbouring products with saturation:

    clip(a₁ w₁ + a₂ w₂, −2¹⁵, 2¹⁵ − 1),   0 ≤ a ≤ 255

so a pair is safe exactly where the weights of one sign in it sum to at most 32767 // 255 = 128 in magnitude; weights of
opposite signs never saturate. Neighbours are 2j and 2j + 1 in the order in which the kernel reduces: for convolutions
all input channels of a group at one position of the window, then the next position, as ONNX Runtime's kernels read
images channels-last. A convolution of one input and one output channel a group has a kernel of its own that widens to
16 bits first and adds in 32: it never saturates. (ONNX Runtime 1.31 under an emulated Haswell agrees pair by pair; its
kernels for SSE4 are exact.)

Weights that fit, for targets t₁, t₂ in steps: half of the pair's room goes to each, moved by half of their difference,

    d = round((t₁ − t₂) / 2),   −64 + d ≤ w₁ ≤ 64 + d,   −64 − d ≤ w₂ ≤ 64 − d

Whatever is chosen within, w₁ + w₂ ≤ 128 and ≥ −128, also for one of them alone. t₁ + t₂ > 128 is projected: both lose
the same. d = 0 is the usual remedy, weights within ±64. Activations within 0…127 would do, too, but no kernel clips
there: only what an operator bounds by itself, as Sigmoid does, stays within.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgekit.quant.gptq import quadratic
from edgekit.quant.graph import attributes
from edgekit.quant.grid import rounded

if TYPE_CHECKING:
    import onnx

MOST = 128
"""Of the sum of two neighbours of one sign, where activations reach 255."""
WIDEST = 127
TOPS = (64, 80, 96, 112, WIDEST)
"""Steps of a channel's largest weight that are tried: more of them are finer, and more pairs do not fit."""


def conv_pairs(shape: tuple[int, ...], groups: int) -> np.ndarray:
    """Columns (P, 2) of a convolution's weight (C_out, C_in / groups, *window) as a matrix whose products share a sum;
    none where it is depthwise."""
    inputs, positions = shape[1], int(np.prod(shape[2:], dtype=np.int64))
    if inputs == 1 and shape[0] == groups:
        return np.empty((0, 2), np.int64)
    return _neighbours(np.arange(inputs * positions).reshape(inputs, positions).T.ravel())


def product_pairs(inputs: int) -> np.ndarray:
    """As `conv_pairs`, of a product with a matrix of so many inputs."""
    return _neighbours(np.arange(inputs))


def layer_pairs(node: onnx.NodeProto, shape: tuple[int, ...], inputs: int) -> np.ndarray:
    """As `conv_pairs`, of a float layer's node; `inputs` is K of `layer_matrix`."""
    return conv_pairs(shape, attributes(node).get("group", 1)) if node.op_type == "Conv" else product_pairs(inputs)


def _neighbours(order: np.ndarray) -> np.ndarray:
    return order[: len(order) // 2 * 2].reshape(-1, 2)


def one_sign_sums(weight: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The larger of the sums of positive and of negative weights, in magnitude, of each pair: (..., K) to (..., P)."""
    both = weight[..., pairs].astype(np.int32)
    return np.maximum(both.clip(min=0).sum(-1), -both.clip(max=0).sum(-1))


def pair_bounds(target: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The least and the greatest integer (2, ..., K) of each weight, for targets (..., K) in steps."""
    bounds = np.empty((2, *target.shape), np.float32)
    bounds[0], bounds[1] = -WIDEST, WIDEST
    first, second = pairs.T
    moved = np.rint((target[..., first] - target[..., second]) / 2).clip(MOST // 2 - WIDEST, WIDEST - MOST // 2)
    for columns, shift in ((first, moved), (second, -moved)):
        bounds[0][..., columns], bounds[1][..., columns] = shift - MOST // 2, shift + MOST // 2
    return bounds


def best_scales(
    target: np.ndarray, hessian: np.ndarray | None, pairs: np.ndarray, scales: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Of scales (G, O) for each of `TOPS` those on which rounding to what fits costs the layer's output least.

    Args:
        target: weights (G, O, K).
        hessian: (G, K, K) of the layer's inputs; None: the error of the weights counts.
        scales: gives the scales for a largest integer.
    """
    best, least = np.empty(target.shape[:2]), np.full(target.shape[:2], np.inf)
    for top in TOPS:
        scale = scales(top)
        levels = np.clip(rounded(target, scale, WIDEST), *pair_bounds(target / scale[..., None], pairs))
        found = levels * scale[..., None]
        cost = np.square(found - target).sum(-1) if hessian is None else quadratic(found, target, hessian)
        best, least = np.where(cost < least, scale, best), np.minimum(cost, least)
    return best
