"""Product quantisation of weights: subvectors of each layer replaced by the entries of a small codebook.

Stock et al.: And the Bit Goes Down, 2019, arXiv 1907.05686, Martinez et al.: Permute, Quantize, and Fine-tune, 2021,
arXiv 2010.15703, and Zhu et al.: LR²VQ, 2022, arXiv 2211.11397. The rules for layers stand in subvectors.py, how chunks
become codes in plain.py and weighted.py, the order of channels in permute.py, the low rank in project.py.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import PlainValidator

from edgekit.coded import Codes, CodeWeight, decoded, set_codes
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.parity import sqnr_db
from edgekit.passes.vq.permute import permuted
from edgekit.passes.vq.plain import KMeans
from edgekit.passes.vq.project import Dimension, Project, dimension
from edgekit.passes.vq.size import convention_bytes
from edgekit.passes.vq.subvectors import Layer, Subvectors, weight_of
from edgekit.passes.vq.weighted import EM
from edgekit.projected import basis_of, principal, within
from edgekit.schema import chosen

__all__ = ["VQ", "Project", "convention_bytes"]
METHODS = {"kmeans": KMeans, "em": EM}


@dataclasses.dataclass(frozen=True)
class VQ(Subvectors):
    """Keep each layer's weight as codes and a codebook. Training passes that follow train the codebooks; codes stay.

    Attributes:
        method: how chunks become codes, by its name alone or as a table with its settings: `kmeans` on the weights, or
            `em`, which weighs them with activations on calibration images.
        d: clustering dimension (see project.py) of layers that were not projected and trained before; for all layers,
            or by kind, or "auto".
    """

    method: Annotated[KMeans | EM, PlainValidator(chosen(METHODS, "kmeans"))] = dataclasses.field(
        default_factory=KMeans
    )
    d: Dimension | None = None

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where a layer cannot be coded so, or `em` has no calibration images."""
        layers = self.layers(net, ctx, "vq", projected=True)
        ordered = permuted(net, layers, ctx, "vq") if self.permute else net
        plain = dataclasses.replace(ordered, module=decoded(ordered.module))
        prepare = functools.partial(self._points, self._bases(net, layers), ctx.seed)
        found, shifted = self.method.code(plain, layers, prepare, ctx)
        made = ordered.edited(*(CodeWeight(layer.name, layer.k, layer.m, half=True) for layer in layers))
        for layer in layers:
            set_codes(made.module, layer.name, found[layer.name])
        for name, tensor in shifted.items():
            made.module.state_dict()[name].copy_(tensor)
        _report(plain, made, layers, found, ctx)
        return made

    def _bases(self, net: Net, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """B (d, m) of the layers that were projected."""
        found = {layer.name: basis_of(net.module.get_submodule(layer.name)) for layer in layers}
        bases = {name: basis for name, basis in found.items() if basis is not None}
        for layer in layers:
            if layer.name in bases and (self.d is not None or bases[layer.name].shape[1] != layer.m):
                raise BadInput(
                    f"vq: {layer.name} was projected to d = {len(bases[layer.name])} of m = "
                    f"{bases[layer.name].shape[1]}; write that m, and no d"
                )
        return bases

    def _points(self, bases: Mapping[str, torch.Tensor], seed: int, layer: Layer, points: torch.Tensor) -> torch.Tensor:
        if layer.name in bases:
            return within(points, bases[layer.name])
        if self.d is None:
            return points
        return within(points, principal(points)[0][: dimension(self.d, layer, points, seed, "vq")])


def _report(plain: Net, made: Net, layers: Sequence[Layer], found: dict[str, Codes], ctx: PassContext) -> None:
    """A line for each layer, and one for all."""
    for layer in layers:
        codes, weight = found[layer.name], weight_of(plain.module, layer)
        each, left = codes.bits / weight.numel(), sqnr_db(weight.numpy(), codes.decode().numpy())
        ctx.log(
            f"vq: {layer.name} ({layer.kind}) k = {layer.k}, m = {layer.m}: {each:.2f} bits a weight, {left:.1f} dB"
        )
    share = sum(codes.bits for codes in found.values()) / sum(math.prod(codes.shape) for codes in found.values())
    size = convention_bytes(made.module) / 2**20
    ctx.log(f"vq: {len(layers)} layers, {share:.2f} bits a weight; {size:.3f} MiB by the papers' convention")
