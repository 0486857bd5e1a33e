"""Windows of a layer's input, and the sums that least squares over them needs."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch.nn import functional as F

from edgekit.graph import Op
from edgekit.passes.reconstruct.walk import Layer, Walk

WINDOWS_PER_COLUMN = 8
FEWEST_WINDOWS = 4096
WIDEST = 8192
"""Of a layer with more weights a row Σ x xᵀ would take more than 512 MiB."""


def columns_of(weight: torch.Tensor) -> int:
    return weight[0].numel()


@dataclasses.dataclass(frozen=True)
class Moments:
    """Second moments of a layer's inputs x and wanted outputs y*, centred where the layer can shift its output.

    Attributes:
        square: E x xᵀ, (G, K, K).
        cross: E y* xᵀ, (G, O, K).
        mean, target: E x (G, 1, K) and E y* (G, O, 1); zeros where nothing was centred.
        scarcity: by how much to raise λ, as there are few windows for so many weights.
    """

    square: torch.Tensor
    cross: torch.Tensor
    mean: torch.Tensor
    target: torch.Tensor
    scarcity: float

    def solve(self, weight: torch.Tensor, ridge: float) -> torch.Tensor:
        """The weights (G, O, K) near `weight` whose outputs are closest to those wanted."""
        size = self.square.diagonal(dim1=1, dim2=2).mean(1)
        damp = ridge * self.scarcity * size.clamp(min=1e-12)
        damped = self.square + damp[:, None, None] * torch.eye(weight.shape[2], dtype=torch.float64)
        return weight + torch.linalg.solve(damped, (self.cross - weight @ self.square).mT).mT

    def shift(self, weight: torch.Tensor) -> torch.Tensor:
        """The bias (G · O,) that makes the means equal."""
        return (self.target - weight @ self.mean.mT).flatten()


class Sums:
    """Σ x xᵀ (G, K + 1, K + 1) and Σ y xᵀ (G, O, K + 1) in float64, x with a 1 appended."""

    def __init__(self, groups: int, outputs: int, columns: int) -> None:
        self.columns = columns
        self.square = torch.zeros(groups, columns + 1, columns + 1, dtype=torch.float64)
        self.cross = torch.zeros(groups, outputs, columns + 1, dtype=torch.float64)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Windows x (G, n, K) and what is wanted there, y (G, n, O)."""
        x = F.pad(x, (0, 1), value=1.0)
        self.square += x.mT @ x
        self.cross += y.mT @ x

    def moments(self, centred: bool) -> Moments:
        count = self.square[0, -1, -1]
        mean, target = self.square[:, -1:, :-1] / count, self.cross[:, :, -1:] / count
        square, cross = self.square[:, :-1, :-1] / count, self.cross[:, :, :-1] / count
        if centred:
            square, cross = square - mean.mT @ mean, cross - target @ mean
        else:
            mean, target = torch.zeros_like(mean), torch.zeros_like(target)
        return Moments(square, cross, mean, target, max(1.0, WINDOWS_PER_COLUMN * self.columns / float(count)))


def layer_moments(
    walk: Walk, layer: Layer, weight: torch.Tensor, rows: np.ndarray | None, centred: bool, seed: int
) -> Moments:
    """What a layer is given now against what it put out before, in the `rows` of outputs that it still has."""
    groups = layer.now.groups
    sums = Sums(groups, len(weight) // groups, columns_of(weight))
    per_image = math.ceil(max(FEWEST_WINDOWS, WINDOWS_PER_COLUMN * sums.columns) / walk.images)
    generator = np.random.default_rng(seed)
    for x, wanted in walk.samples(layer):
        wanted = wanted if rows is None else wanted[:, torch.from_numpy(rows)]
        sums.add(*windows(layer.now, x, wanted, per_image, generator))
    return sums.moments(centred)


def windows(
    op: Op, x: torch.Tensor, y: torch.Tensor, count: int, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` windows of the input (G, n, K) and the outputs there (G, n, O), in the order of the weight's axes."""
    if not op.is_conv:
        return x.reshape(1, -1, x.shape[-1]), y.reshape(1, -1, y.shape[-1])
    stride, padding, dilation, groups = op.args[3], op.args[4], op.args[5], op.args[8]
    kernel = op.args[1].shape[2:]
    height, width = y.shape[2:]
    drawn = generator.permutation(height * width)[:count]
    places = np.unravel_index(np.sort(drawn), (height, width))
    rows, columns = (
        torch.from_numpy(place[:, None] * step + np.arange(size) * gap)
        for place, step, size, gap in zip(places, stride, kernel, dilation)
    )  # (n, kh), (n, kw)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))[0] if any(padding) else x[0]
    windows = padded[:, rows[:, :, None], columns[:, None, :]]  # (C, n, kh, kw)
    windows = windows.reshape(groups, -1, len(drawn), math.prod(kernel)).transpose(1, 2)  # (G, n, C / G, kh · kw)
    wanted = y[0][:, torch.from_numpy(places[0]), torch.from_numpy(places[1])].reshape(groups, -1, len(drawn))
    return windows.reshape(groups, len(drawn), -1), wanted.mT
