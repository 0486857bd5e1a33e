"""Shift: power-of-two weights in the place of float ones (see `edgekit.shift` for the methods and their levels).

Nothing is trained here. Either latents begin near the weights, or afresh, and `finetune` or `distil` behind it trains
them; or codes are fitted at once. Then the levels are whole numbers up to 64, which every int8 kernel takes, and each
output channel has a factor, of all factors f the one with the least

    Σ_k h_k (w_k − f · nearest level)²,    h = diag E[x xᵀ] of the layer's inputs, or 1 without pictures,

and levels make up for each other's errors as in `coding.py`. DenseShift and DeepShift Q have one level less in 4 bits,
the smallest: 2⁷ does not fit. DeepShift's levels are no longer absolute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch import nn

from edgekit.coded import Codes, originals
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.net import Net
from edgekit.parity import decibels
from edgekit.passes.coding import HIGHEST, Target, as_codes, check_codable, code_layers, without
from edgekit.quant.gptq import to_book
from edgekit.shift.base import least_squares
from edgekit.shift.edit import ShiftWeight, parametrisation

SMALL = 2.0**-10
"""The least factor of a channel, as a share of its layer's largest."""


@dataclasses.dataclass(frozen=True)
class Shift:
    """Keep the weights of convolutions, depthwise ones too, and of linear layers as powers of two.

    Attributes:
        method: "denseshift" in 2 to 4 bits, "s3" in 2 or 3, "deepshift_q" and "deepshift_ps" in 2 to 6, or "apot",
            sums of powers of two, in 2 to 6.
        bits: of a weight, its sign included.
        start: near the network's weights, or afresh as the method trains from scratch.
        fit: "train" leaves codes to training; "mse" fits them to each weight and "gptq" to each layer's output on
            calibration images, without labels. Those codes stay; training behind it changes factors alone.
        images: how many calibration images.
        exclude: globs over layer names; these stay float.
        ends: the first and the last layer, too. Most of the papers leave these in float.
    """

    method: Literal["denseshift", "s3", "deepshift_q", "deepshift_ps", "apot"] = "denseshift"
    bits: int = 3
    start: Literal["weights", "scratch"] = "weights"
    fit: Literal["train", "mse", "gptq"] = "train"
    images: Annotated[int, Gt(0)] = 128
    exclude: tuple[str, ...] = ()
    ends: bool = False

    def __post_init__(self) -> None:
        try:
            levels = parametrisation(self.method, self.bits).levels
        except BadInput as error:
            raise ValueError(str(error)) from None
        if self.fit != "train":
            if self.start == "scratch":
                raise ValueError('start = "scratch" is for training; leave it out, or write fit = "train"')
            if not whole_levels(levels):
                raise ValueError(
                    f"{self.method} in {self.bits} bits has levels too far apart for int8, which fit = "
                    f'"{self.fit}" is for; take fewer bits, or fit = "train"'
                )

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where a glob matches nothing, no layer is left, a layer's weight is shared or coded, or codes
        are fitted and there are no calibration images."""
        layers = self._layers(net, ctx)
        result = self._latents(net, ctx, layers) if self.fit == "train" else self._codes(net, ctx, layers)
        ctx.log(self._summary(net, result, layers))
        return result

    def _latents(self, net: Net, ctx: PassContext, layers: list[str]) -> Net:
        result = net.edited(*(ShiftWeight(name, self.method, self.bits) for name in layers))
        if self.start == "scratch":
            generator = torch.Generator().manual_seed(ctx.seed)
            for name in layers:
                _reset(result.module.get_submodule(name), generator)
        return result

    def _codes(self, net: Net, ctx: PassContext, layers: list[str]) -> Net:
        check_codable(net.module, layers, "shift")
        coder = _Fit(whole_levels(parametrisation(self.method, self.bits).levels))
        return code_layers(net, ctx, layers, self.images if self.fit == "gptq" else 0, coder, fixed=True)

    def _layers(self, net: Net, ctx: PassContext) -> list[str]:
        found = _weighted(net.module)
        left = without(found, self.exclude, "shift", "convolution or linear layer")
        run = [op.layer for op in trace(net.module, ctx.input.shape).ops if op.layer in found]
        ends = set() if self.ends else {run[0], run[-1]} if run else set()
        if not (layers := [name for name in left if name not in ends]):
            raise BadInput("shift: no layer is left to code; exclude fewer, or write ends = true")
        return layers

    def _summary(self, net: Net, result: Net, layers: list[str]) -> str:
        before, after = _weighted(net.module), _weighted(result.module)
        share = sum(before[name].numel() for name in layers) / sum(weight.numel() for weight in before.values())
        line = f"shift: {len(layers)} layers, {share:.1%} of the weights, in {self.bits} bits of {self.method}"
        if self.start == "scratch":
            return f"{line}, from scratch"
        signal = sum(before[name].square().sum().item() for name in layers)
        noise = sum((before[name] - after[name]).square().sum().item() for name in layers)
        return f"{line}, {decibels(signal, noise):.1f} dB from the float weights"


class _Fit:
    """Levels of both signs on a scale of each channel."""

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = levels
        self.nearest = to_book(np.unique([*levels, *(-level for level in levels)]))

    def __call__(self, _name: str, target: Target) -> Codes:
        scale = _scales(target, self.levels)
        return as_codes(target.rounded(scale, self.nearest), scale)


def _scales(target: Target, levels: Sequence[float]) -> np.ndarray:
    """Scales (G, O). A channel of zeros gets a small one: its levels may have no 0."""
    sizes = torch.from_numpy(np.abs(target.weight))
    importance = None
    if target.importance is not None:
        importance = torch.from_numpy(target.importance.copy()).expand(sizes.shape).flatten(0, 1)
    scale = least_squares(sizes.flatten(0, 1), levels, importance).numpy()
    return np.maximum(scale, max(SMALL * scale.max(), 1e-12)).reshape(sizes.shape[:2])


def whole_levels(levels: Sequence[float]) -> list[float]:
    """Levels as whole numbers up to 64, without those that are too small for that.

    Nothing where they are not whole, or so many are too small that fewer bits would do.
    """
    unit = max(min(level for level in levels if level), levels[-1] / HIGHEST)
    kept = [level / unit for level in levels if not 0 < level < unit]
    whole = all(level.is_integer() for level in kept)
    return kept if whole and len(kept) > len(levels) / 2 else []


def _weighted(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of convolutions and linear layers, by their layers' names."""
    found = {name: layer for name, layer in module.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    return {name: layer.weight.detach() for name, layer in found.items()}


def _reset(layer: Any, generator: torch.Generator) -> None:
    """Begin from scratch."""
    code = layer.parametrizations.weight[0]
    with torch.no_grad():
        for original, value in zip(originals(layer), code.scratch(layer.weight, generator)):
            original.copy_(value)
