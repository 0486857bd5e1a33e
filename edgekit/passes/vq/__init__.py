"""Product quantisation of weights: subvectors of each layer replaced by the entries of a small codebook.

Stock et al.: And the Bit Goes Down, 2019, arXiv 1907.05686, Martinez et al.: Permute, Quantize, and Fine-tune, 2021,
arXiv 2010.15703, and Zhu et al.: LR²VQ, 2022, arXiv 2211.11397. The rules for layers stand in subvectors.py, how chunks
become codes in plain.py and weighted.py, the order of channels in permute.py, the low rank in project.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from pydantic import PlainValidator

from edgekit.coded import Codes, CodeWeight, decoded, set_codes
from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.parity import sqnr_db
from edgekit.passes.vq.permute import permuted
from edgekit.passes.vq.plain import Found, KMeans
from edgekit.passes.vq.project import Dimension, Project, dimension, projected
from edgekit.passes.vq.size import convention_bytes
from edgekit.passes.vq.subvectors import Layer, Subvectors, chunks
from edgekit.passes.vq.weighted import EM
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
        points = {layer.name: self._points(plain, layer, ctx.seed) for layer in layers}
        found = self.method.codes(plain, layers, points, ctx)
        made = ordered.edited(*(CodeWeight(layer.name, layer.k, layer.m) for layer in layers))
        for layer in layers:
            codebook, codes = found[layer.name]
            shape = tuple(plain.module.get_submodule(layer.name).weight.shape)
            set_codes(made.module, layer.name, Codes(codes, codebook, None, shape))
        _report(plain, made, layers, found, ctx)
        return made

    def _points(self, net: Net, layer: Layer, seed: int) -> torch.Tensor:
        points = chunks(net.module.get_submodule(layer.name).weight, layer.m)
        return points if self.d is None else projected(points, dimension(self.d, layer, points, seed, "vq"))


def _report(plain: Net, made: Net, layers: Sequence[Layer], found: dict[str, Found], ctx: PassContext) -> None:
    """A line for each layer, and one for all."""
    weights = bits = 0
    for layer in layers:
        weight = plain.module.get_submodule(layer.name).weight
        codes = Codes(found[layer.name][1], found[layer.name][0], None, tuple(weight.shape))
        kept_db = sqnr_db(weight.detach().numpy(), codes.decode().numpy())
        each = codes.bits / weight.numel()
        ctx.log(
            f"vq: {layer.name} ({layer.kind}) k = {layer.k}, m = {layer.m}: {each:.2f} bits a weight, {kept_db:.1f} dB"
        )
        weights, bits = weights + weight.numel(), bits + codes.bits
    size = convention_bytes(made.module) / 2**20
    ctx.log(f"vq: {len(layers)} layers, {bits / weights:.2f} bits a weight; {size:.3f} MiB by the papers' convention")
