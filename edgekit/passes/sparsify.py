"""Sparsify: the smallest weights become 0 and stay 0, through training, `cluster` and int8, for a smaller packed file.

Either a share of all weights (Han, Pool, Tran and Dally, Learning both Weights and Connections for Efficient Neural
Networks, 2015, arXiv 1506.02626), or all but n of every m weights that stand side by side along the input channels, at
one place of one filter: 2 of 4 is what sparse tensor cores skip (Mishra et al., Accelerating Sparse Deep Neural
Networks, 2021, arXiv 2104.08378) and what TensorRT looks for. Sizes count, and what stays of each layer is fitted to
its outputs: rounding as in `quant/gptq.py` on a grid so fine that the zeros are the only error.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt, Lt

from edgekit.coded import codable
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.masked import MaskedWeight, MaskWeight, set_kept
from edgekit.net import Net
from edgekit.passes.coding import Target, as_matrix, fit_in_order, fit_weight, layers_to_code
from edgekit.passes.reconstruct.walk import Layer, Walk

Weights = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Sparsify:
    """Hold small weights of convolutions and linear layers at 0. May be repeated, with training in between.

    Attributes:
        share: of the weights that become 0; or
        n, m: how many stay of how many along the input channels.
        scope: the share is that of each layer, or that of all layers together, the smallest weights wherever they are.
        reconstruct: leave the other weights as they are, or fit them to each layer's output.
        images: how many calibration images that takes; no labels.
        exclude: globs over layers that stay as they are.
    """

    share: Annotated[float, Gt(0), Lt(1)] | None = None
    n: Annotated[int, Gt(0)] | None = None
    m: Annotated[int, Gt(0)] | None = None
    scope: Literal["layer", "global"] = "layer"
    reconstruct: Literal["none", "gptq"] = "gptq"
    images: Annotated[int, Gt(0)] = 128
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.share is None) == (self.n is None) or (self.n is None) != (self.m is None):
            raise ValueError("give share, e.g. 0.5, or n and m, e.g. 2 and 4, and not both")
        if self.n is not None and self.m is not None and self.n >= self.m:
            raise ValueError(f"n = {self.n} of m = {self.m} leaves every weight; n must be below m")
        if self.n is not None and self.scope == "global":
            raise ValueError('scope = "global" needs share; n of m are the same everywhere')

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where a layer cannot be that sparse or its weight is shared or coded, a glob matches none, or
        there are no calibration images."""
        names = layers_to_code(net.module, self.exclude, "sparsify", (MaskedWeight,))
        weights = {name: codable(net.module, name, "sparsify", (MaskedWeight,)).weight.detach() for name in names}
        kept = self._kept(weights)
        result = net.edited(*(MaskWeight(name) for name in names))
        for name in names:
            set_kept(result.module.get_submodule(name), kept[name])
        if self.reconstruct == "gptq":
            _fit(net, result, ctx, weights, kept, self.images)
        zeros, count = sum(int((~mask).sum()) for mask in kept.values()), sum(mask.numel() for mask in kept.values())
        ctx.log(f"sparsify: {zeros} of {count} weights of {len(names)} layers are 0 ({zeros / count:.1%})")
        return result

    def _kept(self, weights: Weights) -> Weights:
        """Which weights stay, by layer."""
        if self.n is not None and self.m is not None:
            _check_channels(weights, self.m)
            return {name: best_of(weight, self.n, self.m) for name, weight in weights.items()}
        assert self.share is not None
        if self.scope == "layer":
            kept = {name: largest(weight, self.share) for name, weight in weights.items()}
        else:
            together = largest(torch.cat([weight.flatten() for weight in weights.values()]), self.share)
            parts = together.split([weight.numel() for weight in weights.values()])
            kept = {name: part.reshape(weight.shape) for (name, weight), part in zip(weights.items(), parts)}
        if empty := [name for name, mask in kept.items() if not mask.any()]:
            raise BadInput(
                f"sparsify: share = {self.share} leaves nothing of {', '.join(empty)}; exclude them, or take less"
            )
        return kept


def largest(weight: torch.Tensor, share: float) -> torch.Tensor:
    """Where the largest of some weights are, but for that share of them."""
    order = weight.abs().flatten().argsort(dim=0, stable=True)
    kept = torch.ones_like(order, dtype=torch.bool)
    kept[order[: round(share * len(order))]] = False
    return kept.reshape(weight.shape)


def best_of(weight: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Where the n largest of every m weights along the input channels of (O, C, ...) are."""
    runs = weight.abs().reshape(len(weight), -1, m, weight[0, 0].numel())
    rank = runs.argsort(dim=2, descending=True, stable=True).argsort(dim=2)
    return (rank < n).reshape(weight.shape)


def _check_channels(weights: Weights, m: int) -> None:
    if odd := {name: weight.shape[1] for name, weight in weights.items() if weight.shape[1] % m}:
        name, channels = next(iter(odd.items()))
        raise BadInput(
            f"sparsify: m = {m} does not divide the {channels} channels that a filter of {name} reads; "
            f"exclude = {list(odd)}"
        )


def _fit(net: Net, result: Net, ctx: PassContext, weights: Weights, kept: Weights, images: int) -> None:
    """Let the weights that stay, and biases, make up for those that went. `net` is the reference."""
    layers: dict[str, Any] = {name: result.module.get_submodule(name) for name in kept}

    def fit(walk: Walk, layer: Layer, state: Weights, seed: int) -> None:
        name = layer.weight.removesuffix(".weight")
        state[layer.weight].copy_(weights[name])
        fit_weight(walk, layer, state, seed, _held, as_matrix(layers[name], kept[name].numpy()))
        layers[name].parametrizations.weight.original.copy_(state[layer.weight])

    fit_in_order(net, result, ctx, list(kept), images, fit)


def _held(target: Target) -> torch.Tensor:
    return torch.from_numpy(target.rounded(np.ones(target.weight.shape[:2]), lambda values: values))
