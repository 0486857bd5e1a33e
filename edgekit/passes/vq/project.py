"""Weights of low rank before they are clustered, after LR²VQ.

Zhu, Zhou, Zhong: LR²VQ, 2022, arXiv 2211.11397. k and m set the compression, the clustering dimension d ≤ m the
accuracy: fewer dimensions are clustered better and say less. The weights of a layer are kept as L · B of rank d (see
projected.py), trained on the task by any training pass that follows, and then clustered by `vq`.

"auto" estimates d before any training. Only the paper's abstract was at hand, which says that d trades one error
against the other and can be estimated; the rule is edgekit's own. With V_d the d directions that hold most of the
chunks,

    low-rank error    E(d) = ‖ W − W V_dᵀ V_d ‖²,         falling in d to 0,
    clustering error  C(d) = that of k-means on W V_dᵀ,   rising in d.

d is the smallest with E(d) ≤ C(d): with fewer most of what is lost is lost before clustering, with more the clusters
are what limits. Their sum says nothing, as it falls to its least at d = m: only the training makes up for E.
"""

from __future__ import annotations

import bisect
import dataclasses
from typing import Literal

import torch

from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.passes.vq.kmeans import kmeans
from edgekit.passes.vq.permute import permuted
from edgekit.passes.vq.subvectors import Layer, Rule, Subvectors, chunks, weight_of
from edgekit.projected import ProjectWeight, principal

Dimension = Rule | Literal["auto"]
SAMPLE, ITERATIONS = 64, 10
"""The estimate's k-means: chunks for each centroid, and iterations."""


@dataclasses.dataclass(frozen=True)
class Project(Subvectors):
    """Keep weights as products of low rank, which the training that follows trains and `vq` then clusters.

    Write the same `k`, `m` and `exclude` for both; `permute` here and not there.

    Attributes:
        d: clustering dimension; for all layers, or by kind of layer (all dimensions for the others), or "auto".
    """

    d: Dimension = "auto"

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where a layer cannot be cut so, or d is above its m."""
        layers = self.layers(net, ctx, "project")
        ordered = permuted(net, layers, ctx, "project") if self.permute else net
        edits = []
        for number, layer in enumerate(ctx.track(layers, "project", len(layers))):
            points = chunks(weight_of(ordered.module, layer), layer.m)
            d = dimension(self.d, layer, points, ctx.seed + number, "project")
            edits.append(ProjectWeight(layer.name, layer.m, d))
            squares = principal(points)[1]
            left = float(squares[:d].sum() / squares.sum().clamp(min=1e-30))
            ctx.log(f"project: {layer.name} ({layer.kind}) m = {layer.m}, d = {d}, {left:.1%} of its square stays")
        return ordered.edited(*edits)


def dimension(rule: Dimension, layer: Layer, points: torch.Tensor, seed: int, method: str) -> int:
    """The clustering dimension of a layer by what the recipe says.

    Raises:
        BadInput: it is above m.
    """
    if rule == "auto":
        return estimate(points, layer.k, seed)
    d = rule if isinstance(rule, int) else rule.get(layer.kind, layer.m)
    if d > layer.m:
        raise BadInput(
            f"{method}: d = {d} is above m = {layer.m} of {layer.name} ({layer.kind}); write d = {{ {layer.kind} = … }}"
        )
    return d


def estimate(points: torch.Tensor, k: int, seed: int) -> int:
    """The smallest d whose low-rank error is no larger than its clustering error, on a sample of the points (N, m)."""
    drawn = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[: SAMPLE * k]
    points = points[drawn]
    directions, squares = principal(points)
    turned = points @ directions.T

    def clusters_limit(d: int) -> bool:
        centroids, codes = kmeans(turned[:, :d], k, ITERATIONS, seed)
        return bool(squares[d:].sum() <= (turned[:, :d] - centroids[codes]).square().sum())

    return bisect.bisect_left(range(1, points.shape[1]), True, key=clusters_limit) + 1
