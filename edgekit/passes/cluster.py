"""Scalar weight clustering: few levels a weight, and the fewest bits where they matter least.

With `bits` the levels of an output channel c are all multiples of one step Δ_c, and the codes are meant to be entropy
coded. At high resolution (Gish and Pierce, Asymptotically Efficient Quantizing, IEEE Trans. Information Theory, 1968)
that costs an error of Δ²/12 a weight at h(w) − log₂ Δ bits. The sum of what the errors cost, Σ F_c E[x²] Δ_c² / 12
(`coding.sensitivities`), is then least for so many bits in all where F_c E[x²] Δ_c² is the same α² everywhere: α is
found by bisection on the entropies of the rounded weights.

With `levels` every layer has so many: on a uniform grid with a scale of each output channel that has the least squared
error, or where k-means over the layer's weights puts them (Han, Mao and Dally, Deep Compression, 2015,
arXiv 1510.00149).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from edgekit.coded import Codes, coded_weights
from edgekit.context import PassContext
from edgekit.masked import MaskedWeight
from edgekit.net import Net
from edgekit.passes.coding import (
    HIGHEST,
    Coder,
    Target,
    as_codes,
    code_layers,
    layers_to_code,
    matrix,
    sensitivities,
)
from edgekit.passes.vq.kmeans import kmeans
from edgekit.quant.gptq import to_book, to_integers
from edgekit.quant.grid import mse_scales

MANTISSA = 3
"""Bits of a step's mantissa: how fine a step is hardly matters, and the file holds one for each channel."""
ALPHAS = (2.0**-40, 2.0**40)
HALVINGS = 40


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Store weights as codes of few levels, after training; needs calibration images, no labels. What `sparsify` made 0
    stays 0.

    Attributes:
        bits: the mean entropy a weight, shared out between layers and channels; or
        levels: how many levels each layer has.
        grid: where the `levels` lie.
        reconstruct: round each weight to nearest, or for the closest output of each layer.
        images: how many calibration images.
        exclude: globs over layers that stay as they are.
    """

    bits: Annotated[float, Gt(0), Le(8)] | None = None
    levels: Annotated[int, Ge(2), Le(255)] | None = None
    grid: Literal["uniform", "kmeans"] = "uniform"
    reconstruct: Literal["none", "gptq"] = "gptq"
    images: Annotated[int, Gt(0)] = 128
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.bits is None) == (self.levels is None):
            raise ValueError("give bits, e.g. 4.0, or levels, e.g. 16, and not both")
        if self.bits is not None and self.grid != "uniform":
            raise ValueError('grid = "kmeans" needs levels; bits are shared out on uniform grids')

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where a layer cannot be coded, a glob matches none, or there are no calibration images."""
        names = layers_to_code(net.module, self.exclude, "cluster", (MaskedWeight,))
        images = self.images if self.reconstruct == "gptq" else 0
        result = code_layers(net, ctx, names, images, self._coder(net, ctx, names))
        codes = coded_weights(result.module)
        weights = sum(len(codes[f"{name}.weight"].codes) for name in names)
        coded_bits = sum(_entropy(code.codes.numpy()) * len(code.codes) for code in codes.values())
        ctx.log(f"cluster: {len(names)} layers, {weights} weights of {coded_bits / weights:.2f} bits (their entropy)")
        return result

    def _coder(self, net: Net, ctx: PassContext, names: Sequence[str]) -> Coder:
        if self.levels is not None and self.grid == "kmeans":
            return _KMeans(self.levels, ctx.seed)
        if self.levels is not None:
            return _Uniform(self.levels)
        assert self.bits is not None
        costs = sensitivities(net, ctx, self.images)
        return _Steps(shared_steps({name: (matrix(net.module, name), costs[name]) for name in names}, self.bits))


class _Steps:
    """Multiples of given steps (G, O)."""

    def __init__(self, steps: dict[str, np.ndarray]) -> None:
        self.steps = steps

    def __call__(self, name: str, target: Target) -> Codes:
        return as_codes(target.rounded(self.steps[name], to_integers(HIGHEST)), self.steps[name])


class _Uniform:
    """So many levels around 0 on a scale of each channel."""

    def __init__(self, levels: int) -> None:
        self.low, self.high = -((levels - 1) // 2), levels // 2

    def __call__(self, _name: str, target: Target) -> Codes:
        weight = target.weight if target.kept is None else target.weight * target.kept
        scale = mse_scales(weight, self.high, target.importance)
        return as_codes(target.rounded(scale, lambda x: np.clip(np.rint(x), self.low, self.high)), scale)


class _KMeans:
    """So many levels where k-means puts them, one of them 0 where weights are held at that."""

    def __init__(self, levels: int, seed: int) -> None:
        self.levels, self.seed = levels, seed

    def __call__(self, _name: str, target: Target) -> Codes:
        weights = target.weight.ravel() if target.kept is None else target.weight[target.kept]
        points, count = torch.from_numpy(weights).float()[:, None], self.levels - (target.kept is not None)
        book = kmeans(points, min(count, len(points)), 25, self.seed)[0].flatten().sort().values.double().numpy()
        return as_codes(target.rounded(np.ones(target.weight.shape[:2]), to_book(book)), None)


def shared_steps(layers: dict[str, tuple[np.ndarray, np.ndarray]], bits: float) -> dict[str, np.ndarray]:
    """For weights (G, O, K) and the costs (C_out,) of their channels, the steps (G, O) at which they take `bits`."""
    low, high = ALPHAS
    count = sum(weight.size for weight, _ in layers.values())
    for _ in range(HALVINGS):
        alpha = (low * high) ** 0.5
        steps = {name: _step(alpha, weight, cost) for name, (weight, cost) in layers.items()}
        taken = sum(_entropy(np.rint(w / steps[name][..., None])) * w.size for name, (w, _) in layers.items())
        low, high = (alpha, high) if taken > bits * count else (low, alpha)
    return steps


def _step(alpha: float, weight: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """α / √cost within what the weights of the channel can use, of few digits."""
    top = np.maximum(np.abs(weight).max(axis=2), 1e-12)
    ideal = alpha / np.sqrt(np.maximum(cost.reshape(top.shape), 1e-30))
    mantissa, exponent = np.frexp(np.clip(ideal, top / HIGHEST, 4 * top))
    return np.ldexp(np.ceil(mantissa * 2**MANTISSA) / 2**MANTISSA, exponent)


def _entropy(levels: np.ndarray) -> float:
    """Bits a level, by how often each occurs."""
    _, counts = np.unique(levels, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
