"""Codes for what a layer puts out, by expectation and maximisation weighted with activations.

Stock, Joulin, Gribonval, Graham, Jégou: And the Bit Goes Down, 2019, arXiv 1907.05686, section 3.2. With X the windows
of a layer's input, cut into the same chunks of m as the weight and stacked, and G = Xᵀ X (m, m),

    code_i = argmin_c ‖ X (c − v_i) ‖² = (c − v_i)ᵀ G (c − v_i),    c = the mean of the v_i of its code.

With G = R Rᵀ that is k-means on the rows v R, whose centroids times R⁻¹ are the codebook, and no window is needed twice.
Layers are coded in the order in which they run: X is what the layers before, coded already, give the layer.

Two things are not the paper's, which draws windows anew in every iteration. Chunk i weighs tr(G⁻¹ G_p) / m, with G_p
the sum over the windows at its place p in the row alone: places differ in how much they are given, the groups of a
depthwise layer most of all. And the iterations go on from k-means without data, whose codes stay where their output is
closer on these windows.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.passes.reconstruct.least_squares import windows
from edgekit.passes.reconstruct.walk import Layer as Place
from edgekit.passes.reconstruct.walk import Walk
from edgekit.passes.vq.kmeans import kmeans
from edgekit.passes.vq.plain import Found
from edgekit.passes.vq.subvectors import Count, Layer

WINDOWS = 4096
RIDGE = 1e-3
"""Share of the mean of diag G added to it: directions that the images do not show count a little."""


@dataclasses.dataclass(frozen=True)
class EM:
    """k-means in the metric of each layer's input on calibration images.

    Attributes:
        images: at most so many, drawn by the seed.
        iterations: at most, before data is looked at and with it.
    """

    name: Literal["em"] = "em"
    images: Count = 256
    iterations: Count = 25

    def codes(
        self, net: Net, layers: Sequence[Layer], points: Mapping[str, torch.Tensor], ctx: PassContext
    ) -> dict[str, Found]:
        """Raises BadInput where there are no calibration images."""
        samples = ctx.data.role("calibrate").subset(self.images, ctx.seed)
        coded, found = net.clone().module, dict[str, Found]()
        with torch.no_grad(), tempfile.TemporaryDirectory(dir=ctx.state and ctx.state.parent) as folder:
            walk = Walk(net.module, coded, ctx.input.shape, Path(folder))
            places = {place.weight.removesuffix(".weight"): place for place in walk.layers}
            for layer in layers:
                if layer.name not in places:
                    raise BadInput(
                        f'vq: the input of {layer.name} is not found; exclude it, or write method = "kmeans"'
                    )
            walk.start(torch.from_numpy(batch) for batch, _, _ in samples.batches(ctx.input, 1))
            for number, layer in enumerate(ctx.track(layers, "vq", len(layers))):
                given = self._windows(walk, places[layer.name], ctx.seed + number)
                found[layer.name] = self._fit(points[layer.name], given, layer, ctx.seed + number)
                weight = coded.get_submodule(layer.name).weight
                weight.copy_(found[layer.name][0][found[layer.name][1]].reshape(weight.shape))
        return found

    def _windows(self, walk: Walk, place: Place, seed: int) -> torch.Tensor:
        """What the layer is given now, at drawn places of each image: (G, n, K)."""
        per_image = math.ceil(WINDOWS / walk.images)
        generator = np.random.default_rng(seed)
        return torch.cat([windows(place.now, x, y, per_image, generator)[0] for x, y in walk.samples(place)], 1)

    def _fit(self, points: torch.Tensor, given: torch.Tensor, layer: Layer, seed: int) -> Found:
        plain = kmeans(points, layer.k, self.iterations, seed)
        metric, weights = _metric(given, len(points), layer.m)
        if not metric.diagonal().mean() > 0:
            return plain
        centroids, codes = kmeans(
            points @ metric, layer.k, self.iterations, seed, weights=weights, start=plain[0] @ metric
        )
        codebook = torch.linalg.solve_triangular(metric, centroids, upper=False, left=False)
        return min((plain, (codebook, codes)), key=lambda found: _lost(points, found, given))


def _metric(given: torch.Tensor, count: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """R (m, m), and how much each chunk weighs (N,)."""
    groups, n, columns = given.shape
    parts = given.reshape(groups, n, columns // m, m).transpose(1, 2)  # (G, P, n, m)
    grams = parts.mT @ parts / n
    whole = grams.mean((0, 1))
    whole = whole + RIDGE * whole.diagonal().mean() * torch.eye(m)
    power = torch.linalg.solve(whole, grams).diagonal(dim1=2, dim2=3).mean(2)  # (G, P)
    rows = count // power.numel()  # output channels of a group
    return torch.linalg.cholesky(whole), power.repeat_interleave(rows, 0).flatten().clamp(min=RIDGE)


def _lost(points: torch.Tensor, found: Found, given: torch.Tensor) -> float:
    """Σ over windows and outputs of the squared difference that codes make."""
    rest = (points - found[0][found[1]]).reshape(len(given), -1, given.shape[2])  # (G, O, K)
    return float((given @ rest.mT).square().sum())
