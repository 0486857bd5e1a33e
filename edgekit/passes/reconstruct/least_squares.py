"""Every layer fitted anew to what the layers before it give it now.

He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, 2017, arXiv 1707.06168, section 3, and Luo,
Wu, Lin: ThiNet, 2017, arXiv 1707.06342. For a layer y = W x + b let x be a window of its input in the network as it is
now, and y* what the layer put out there in the reference. In the order of execution,

    min over W', b'   Σ ‖ y* − W' x − b' ‖² + λ ‖ W' − W ‖²,
    W' = W + ( Σ (y* − W x) xᵀ ) ( Σ x xᵀ + λ I )⁻¹,   b' = mean(y*) − W' mean(x),

x and y* centred in the sums where there is a b'. The layers before are fitted already: each makes up for what is lost
in its own input and for what they left over (the papers' asymmetric form). The layer is drawn to its weights as they
are, not to 0, so that what the images do not show stays. λ is a share of the mean of diag Σ x xᵀ, raised where there
are few windows for so many weights. Grouped convolutions are fitted group by group, depthwise ones channel by channel.

Where a batch norm alone reads the layer, it is given the reference's parameters and statistics, and takes b' into its
mean if the layer has no bias.

Windows are drawn: so many places of each image, the same in both networks, that there are 8 for each weight of a row.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch.nn import functional as F

from edgekit.context import PassContext
from edgekit.graph import Op
from edgekit.net import Net
from edgekit.passes.reconstruct.changes import Changes
from edgekit.passes.reconstruct.walk import Layer, Walk

WINDOWS_PER_COLUMN = 8
FEWEST_WINDOWS = 4096
WIDEST = 8192
"""A layer with more weights a row is left as it is: Σ x xᵀ would take more than 512 MiB."""


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """Least squares of each layer's output on calibration images; no labels needed.

    Attributes:
        images: at most so many, drawn by the seed.
        ridge: λ, as a share of the mean square of the layer's input.
    """

    name: Literal["least_squares"] = "least_squares"
    images: Annotated[int, Gt(0)] = 200
    ridge: Annotated[float, Gt(0)] = 0.001

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where there are no calibration images."""
        changes = Changes(ctx, net)
        samples = ctx.data.role("calibrate").subset(self.images, ctx.seed)
        result = net.clone()
        with torch.no_grad(), tempfile.TemporaryDirectory(dir=ctx.state and ctx.state.parent) as folder:
            walk = Walk(changes.before.module, result.module, ctx.input.shape, Path(folder))
            for weight, reason in walk.left.items():
                ctx.log(f"reconstruct: {weight} is left as it is, {reason}")
            walk.start(torch.from_numpy(batch) for batch, _, _ in samples.batches(ctx.input, 1))
            state = result.module.state_dict()
            for number, layer in enumerate(ctx.track(walk.layers, "reconstruct", len(walk.layers))):
                if _columns(state[layer.weight]) > WIDEST:
                    ctx.log(f"reconstruct: {layer.weight} is left as it is, a row has more than {WIDEST} weights")
                    continue
                self._fit(walk, layer, changes, state, ctx.seed + number)
        return result

    def _fit(self, walk: Walk, layer: Layer, changes: Changes, state: dict[str, torch.Tensor], seed: int) -> None:
        weight, bias = state[layer.weight], state.get(layer.weight.removesuffix("weight") + "bias")
        rows = changes.rows((layer.weight, 0))
        groups = layer.now.groups
        sums = _Sums(groups, len(weight) // groups, _columns(weight))
        per_image = math.ceil(max(FEWEST_WINDOWS, WINDOWS_PER_COLUMN * sums.columns) / walk.images)
        generator = np.random.default_rng(seed)
        for x, wanted in walk.samples(layer):
            wanted = wanted if rows is None else wanted[:, torch.from_numpy(rows)]
            sums.add(*_windows(layer.now, x, wanted, per_image, generator))
        intercept = bias is not None or layer.norm is not None
        fitted, shift = sums.solve(weight.reshape(groups, -1, sums.columns).double(), self.ridge, intercept)
        weight.copy_(fitted.reshape(weight.shape))
        for value in layer.norm.params if layer.norm else ():
            state[str(value.param)].copy_(changes.left(str(value.param)))
        if bias is not None:
            bias.copy_(shift)
        elif layer.norm is not None:
            state[str(layer.norm.args[3].param)].sub_(shift)


def _columns(weight: torch.Tensor) -> int:
    return weight[0].numel()


class _Sums:
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

    def solve(self, weight: torch.Tensor, ridge: float, intercept: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """W' (G, O, K) near `weight`, and b' (G · O,)."""
        count = self.square[0, -1, -1]
        mean, target = self.square[:, -1:, :-1] / count, self.cross[:, :, -1:] / count  # (G, 1, K), (G, O, 1)
        square, cross = self.square[:, :-1, :-1] / count, self.cross[:, :, :-1] / count
        if intercept:
            square, cross = square - mean.mT @ mean, cross - target @ mean
        size = square.diagonal(dim1=1, dim2=2).mean(1)
        scarcity = max(1.0, WINDOWS_PER_COLUMN * self.columns / float(count))
        damp = ridge * scarcity * size.clamp(min=1e-12)
        damped = square + damp[:, None, None] * torch.eye(self.columns, dtype=torch.float64)
        fitted = weight + torch.linalg.solve(damped, (cross - weight @ square).mT).mT
        return fitted, (target - fitted @ mean.mT).flatten()


def _windows(
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
