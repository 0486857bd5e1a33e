"""Shift: put power-of-two weights that train in the place of float ones (see `edgekit.shift` for the methods).

Nothing is trained here: `finetune` or `distil` after it does.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import nn

from edgekit.coded import originals
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.net import Net
from edgekit.parity import decibels
from edgekit.passes.coding import without
from edgekit.shift.edit import ShiftWeight, parametrisation


@dataclasses.dataclass(frozen=True)
class Shift:
    """Keep the weights of convolutions, depthwise ones too, and of linear layers as powers of two.

    Attributes:
        method: "denseshift" in 2 to 4 bits, "s3" in 2 or 3, "deepshift_q" and "deepshift_ps" in 2 to 6, or "apot",
            sums of powers of two, in 2 to 6.
        bits: of a weight, its sign included.
        start: near the network's weights, or afresh as the method trains from scratch.
        exclude: globs over layer names; these stay float.
        ends: the first and the last layer, too. Most of the papers leave these in float.
    """

    method: Literal["denseshift", "s3", "deepshift_q", "deepshift_ps", "apot"] = "denseshift"
    bits: int = 3
    start: Literal["weights", "scratch"] = "weights"
    exclude: tuple[str, ...] = ()
    ends: bool = False

    def __post_init__(self) -> None:
        try:
            parametrisation(self.method, self.bits)
        except BadInput as error:
            raise ValueError(str(error)) from None

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where a glob matches nothing, no layer is left, or a layer's weight is shared or coded."""
        layers = self._layers(net, ctx)
        result = net.edited(*(ShiftWeight(name, self.method, self.bits) for name in layers))
        if self.start == "scratch":
            generator = torch.Generator().manual_seed(ctx.seed)
            for name in layers:
                _reset(result.module.get_submodule(name), generator)
        ctx.log(self._summary(net, result, layers))
        return result

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
