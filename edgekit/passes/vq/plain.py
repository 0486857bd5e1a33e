"""Codes for the weights alone: k-means on the chunks of each layer; no data needed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.passes.vq.kmeans import kmeans
from edgekit.passes.vq.subvectors import Count, Layer

Found = tuple[torch.Tensor, torch.Tensor]
"""A codebook (k, m) and the codes (N,)."""


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

    def codes(
        self, _net: Net, layers: Sequence[Layer], points: Mapping[str, torch.Tensor], ctx: PassContext
    ) -> dict[str, Found]:
        return {
            layer.name: kmeans(points[layer.name], layer.k, self.iterations, ctx.seed + number, anneal=self.anneal)
            for number, layer in enumerate(ctx.track(layers, "vq", len(layers)))
        }
