"""Which weights are cut into subvectors, how long these are and how many centroids each layer gets.

Rows are output channels and run over input channel, height and width, so a chunk of kh · kw numbers is the kernel of
one pair of channels, and a chunk of m numbers of a 1×1 convolution or linear layer spans m channels that are read
(Stock et al., And the Bit Goes Down, 2019, arXiv 1907.05686, section 3.1).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import nn

from edgekit.coded import codable
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.net import Net
from edgekit.passes.coding import without
from edgekit.projected import ProjectedWeight

Kind = Literal["conv", "pointwise", "depthwise", "linear"]
Count = Annotated[int, Ge(1)]
Rule = Count | dict[Kind, Count]
K, M = 256, 4


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer whose weight is cut into N chunks of `m`, which `k` centroids are to stand for."""

    name: str
    kind: Kind
    k: int
    m: int


@dataclasses.dataclass(frozen=True)
class Subvectors:
    """What `project` and `vq` ask for alike.

    Attributes:
        k: centroids of a layer, 256 for one byte a code; for all layers, or by kind of layer (`conv`, `pointwise`,
            `depthwise`, `linear`).
        m: numbers that one code stands for; for all layers, or by kind: a kernel (9 for 3×3) for convolutions and
            depthwise ones, 4 for 1×1 convolutions and linear layers.
        clamp: a layer gets no more centroids than the largest power of two within a quarter of its subvectors.
        permute: first order channels so that those that share subvectors are alike; what the network computes stays.
        exclude: globs over layers whose weights stay as they are. Without it the first convolution stays.
    """

    k: Rule = K
    m: Rule = dataclasses.field(default_factory=dict)
    clamp: bool = True
    permute: bool = False
    exclude: tuple[str, ...] | None = None

    def layers(self, net: Net, ctx: PassContext, method: str, projected: bool = False) -> list[Layer]:
        """The layers to code, in the order in which they run; with `projected` those that `project` was at, too.

        Raises:
            BadInput: there is none, a glob matches nothing, or a layer cannot be coded; the message says why.
        """
        graph = trace(net.module, ctx.input.shape)
        runs = Counter(call.layer for call in graph.calls)
        names = [name for name in runs if isinstance(net.module.get_submodule(name), (nn.Conv2d, nn.Linear))]
        excluded = self._excluded(net.module, names, method)
        found = []
        for name in names:
            if name in excluded:
                ctx.log(f"{method}: {name} stays as it is")
                continue
            if runs[name] > 1:
                raise BadInput(f"{method}: {name} is run {runs[name]} times, by several callers; exclude it")
            found.append(self._layer(net.module, name, method, projected))
        if not found:
            raise BadInput(f"{method}: no convolution or linear layer is left to code; exclude fewer")
        return found

    def _excluded(self, module: nn.Module, names: list[str], method: str) -> set[str]:
        if self.exclude is None:
            return set([name for name in names if isinstance(module.get_submodule(name), nn.Conv2d)][:1])
        return set(names) - set(without(names, self.exclude, method, "convolution or linear layer"))

    def _layer(self, module: nn.Module, name: str, method: str, projected: bool) -> Layer:
        layer = codable(module, name, method, (ProjectedWeight,) if projected else ())
        kind = kind_of(layer)
        row, m = layer.weight[0].numel(), self._length(layer, kind)
        if row % m:
            raise BadInput(
                f"{method}: {name} ({kind}) has {row} weights an output, which m = {m} does not divide; write "
                f"another m (m = {{ {kind} = … }}), or exclude it"
            )
        count = layer.weight.numel() // m
        k = self.k if isinstance(self.k, int) else self.k.get(kind, K)
        if self.clamp:
            k = min(k, 1 << max(0, (count // 4).bit_length() - 1))
        if k > count:
            raise BadInput(
                f"{method}: {name} has {count} subvectors of {m}, too few for k = {k}; write a smaller k or "
                "clamp = true, or exclude it"
            )
        if not torch.isfinite(layer.weight).all():
            raise BadInput(f"{method}: the weight of {name} is not finite")
        return Layer(name, kind, k, m)

    def _length(self, layer: nn.Conv2d | nn.Linear, kind: Kind) -> int:
        if isinstance(self.m, int):
            return self.m
        kernel = layer.weight[0, 0].numel()
        return self.m.get(kind, kernel if kernel > 1 else M)


def kind_of(layer: nn.Conv2d | nn.Linear) -> Kind:
    if isinstance(layer, nn.Linear):
        return "linear"
    if layer.groups == layer.in_channels > 1:
        return "depthwise"
    return "conv" if layer.weight[0, 0].numel() > 1 else "pointwise"


def weight_of(module: nn.Module, layer: Layer) -> torch.Tensor:
    weight: torch.Tensor = module.get_submodule(layer.name).weight  # type: ignore[assignment]
    return weight.detach()


def chunks(weight: torch.Tensor, m: int) -> torch.Tensor:
    """(N, m)."""
    return weight.float().cpu().reshape(-1, m)
