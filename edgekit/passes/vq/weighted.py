"""Codes for what a layer puts out, by expectation and maximisation weighted with activations.

Stock, Joulin, Gribonval, Graham, Jégou: And the Bit Goes Down, 2019, arXiv 1907.05686, section 3.2. With X the windows
of a layer's input, cut into the same chunks of m as the weight and stacked, and G = Xᵀ X (m, m),

    code_i = argmin_c ‖ X (c − v_i) ‖² = (c − v_i)ᵀ G (c − v_i),    c = the mean of the v_i of its code.

With G = R Rᵀ that is k-means on the rows v R, whose centroids times R⁻¹ are the codebook, and no window is needed
twice. Layers are coded in the order in which they run: X is what the layers before, coded already, give the layer.

What is not the paper's, which draws windows anew in every iteration: chunk i weighs tr(G⁻¹ G_p) / m, with G_p the sum
over the windows at its place p in the row alone, since places differ in how much they are given, the groups of a
depthwise layer most of all. The iterations go on from k-means without data, whose codes stay where their output is
closer on these windows. What is coded is the fit of the layer's first output to its input as it is now, and its bias,
or the mean of the batch norm behind, takes what is left of the error's mean (`reconstruct/windows.py`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from edgekit.coded import Codes
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.parity import decibels
from edgekit.passes.coding import Target, fit_layer
from edgekit.passes.reconstruct.walk import Layer as Place
from edgekit.passes.reconstruct.walk import Walk
from edgekit.passes.reconstruct.windows import WIDEST, columns_of
from edgekit.passes.vq.kmeans import kmeans
from edgekit.passes.vq.plain import Prepare
from edgekit.passes.vq.subvectors import Count, Layer, chunks

DAMP = 1e-3
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

    def code(
        self, net: Net, layers: Sequence[Layer], prepare: Prepare, ctx: PassContext
    ) -> tuple[dict[str, Codes], dict[str, torch.Tensor]]:
        """The codes of each layer, and the biases and norms' means that were shifted.

        Raises:
            BadInput: there are no calibration images, or a layer's input cannot be followed.
        """
        samples = ctx.data.role("calibrate").subset(self.images, ctx.seed)
        coded, found, shifted = net.clone().module.eval(), dict[str, Codes](), dict[str, torch.Tensor]()
        with torch.no_grad(), tempfile.TemporaryDirectory(dir=ctx.state and ctx.state.parent) as folder:
            walk = Walk(net.module, coded, ctx.input.shape, Path(folder))
            places = {place.weight.removesuffix(".weight"): place for place in walk.layers}
            state = coded.state_dict()
            for layer in layers:
                if layer.name not in places or columns_of(state[f"{layer.name}.weight"]) > WIDEST:
                    raise BadInput(
                        f"vq: em cannot follow what {layer.name} is given, or a row of it is longer than {WIDEST}; "
                        'exclude it, or write method = "kmeans"'
                    )
            walk.start(torch.from_numpy(batch) for batch, _, _ in samples.batches(ctx.input, 1))
            for layer in ctx.track(layers, "vq", len(layers)):
                moved = self._code_layer(walk, places[layer.name], layer, prepare, state, found, ctx)
                shifted.update({name: state[name] for name in moved})
        return found, shifted

    def _code_layer(
        self,
        walk: Walk,
        place: Place,
        layer: Layer,
        prepare: Prepare,
        state: dict[str, torch.Tensor],
        found: dict[str, Codes],
        ctx: PassContext,
    ) -> list[str]:
        """Put the layer's codes into `found`, and into `state` its weight and the bias or mean whose name is given."""
        seed = ctx.seed + len(found)

        def coder(_name: str, target: Target) -> Codes:
            weight, square = torch.from_numpy(target.weight), torch.from_numpy(target.hessian).float()
            codes = self._fit(prepare(layer, chunks(weight, layer.m)), square, layer, seed)
            codes = dataclasses.replace(codes, codebook=codes.codebook.half().float())  # as the file holds it
            left_db = decibels(lost(weight.float(), square), lost(weight.float() - codes.decode(), square))
            ctx.log(f"vq: {layer.name} keeps {left_db:.1f} dB of its outputs on the images")
            return codes

        found[layer.name], shifted = fit_layer(walk, place, state, seed, coder)
        return shifted

    def _fit(self, points: torch.Tensor, square: torch.Tensor, layer: Layer, seed: int) -> Codes:
        """Codes of points that stand for a weight of (G, O, K), by E x xᵀ (G, K, K)."""
        shape = (len(square), -1, square.shape[2])
        first = kmeans(points, layer.k, self.iterations, seed)
        plain = Codes(first[1], first[0], None, shape)
        if not square.diagonal(dim1=1, dim2=2).mean() > 0:
            return plain
        metric, weights = _metric(square, len(points), layer.m)
        start = first[0] @ metric
        centroids, codes = kmeans(points @ metric, layer.k, self.iterations, seed, weights=weights, start=start)
        codebook = torch.linalg.solve_triangular(metric, centroids, upper=False, left=False)
        found = Codes(codes, codebook, None, shape)
        return min((plain, found), key=lambda tried: lost(points.reshape(shape) - tried.decode(), square))


def _metric(square: torch.Tensor, count: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """R (m, m), and how much each chunk weighs (N,)."""
    groups, columns, _ = square.shape
    places = columns // m
    grams = square.reshape(groups, places, m, places, m).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # (G, P, m, m)
    whole = grams.mean((0, 1))
    whole = whole + DAMP * whole.diagonal().mean() * torch.eye(m)
    power = torch.linalg.solve(whole, grams).diagonal(dim1=2, dim2=3).mean(2)  # (G, P)
    outputs = count // power.numel()  # of a group
    return torch.linalg.cholesky(whole), power.repeat_interleave(outputs, 0).flatten().clamp(min=DAMP)


def lost(rest: torch.Tensor, square: torch.Tensor) -> float:
    """The mean square of what weights that are off by `rest` (G, O, K) change in the outputs, summed over them."""
    return float((rest @ square * rest).sum())
