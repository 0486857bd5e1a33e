"""Codes for the weights alone: k-means on the chunks of each layer; no data needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from edgekit.coded import Codes
from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.passes.vq.kmeans import kmeans
from edgekit.passes.vq.subvectors import Count, Layer, chunks, weight_of

Prepare = Callable[[Layer, torch.Tensor], torch.Tensor]
"""The points (N, m) that are clustered instead of a layer's chunks."""


@dataclasses.dataclass(frozen=True)
class KMeans:
    """k-means on the chunks.

    Attributes:
        iterations: at most.
        anneal: with noise on the points that fades, as in Permute, Quantize, and Fine-tune (see kmeans.py).
    """

    name: Literal["kmeans"] = "kmeans"
    iterations: Count = 25
    anneal: bool = False

    def code(
        self, net: Net, layers: Sequence[Layer], prepare: Prepare, ctx: PassContext
    ) -> tuple[dict[str, Codes], dict[str, torch.Tensor]]:
        """The codes of each layer; and no other tensor is changed."""
        found = {}
        for number, layer in enumerate(ctx.track(layers, "vq", len(layers))):
            weight = weight_of(net.module, layer)
            points = prepare(layer, chunks(weight, layer.m))
            codebook, codes = kmeans(points, layer.k, self.iterations, ctx.seed + number, anneal=self.anneal)
            found[layer.name] = Codes(codes, codebook, None, tuple(weight.shape))
        return found, {}
