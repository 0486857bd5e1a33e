"""k-means: N points of m numbers become k centroids, and for each point the number of the nearest.

Lloyd's iteration (Lloyd, Least squares quantization in PCM, 1982) from a start after k-means++ (Arthur, Vassilvitskii,
2007), with points that weigh w_i:

    code_i = argmin_c ‖x_i − centroid_c‖²,    centroid_c = Σ w_i x_i / Σ w_i over the points of code c.

Neither step raises Σ w_i ‖x_i − centroid‖². A centroid without points takes the one that is served worst, so neither
does that. With `anneal` every update of the centroids sees points with noise on them, of the points' own spread times
(1 − i / n)^½ at iteration i of n (SR-C of Martinez et al., Permute, Quantize, and Fine-tune, 2021, arXiv 2010.15703,
section 3.2). A mean over noise is noise with a spread smaller by √count: only the centroids need any.
"""

from __future__ import annotations

import torch

BLOCK = 1024
"""Points whose distances to all centroids are in memory at once: fewer stay in the processor's cache."""
SAMPLE = 16
"""k-means++ looks at so many points for each centroid."""


def kmeans(
    points: torch.Tensor,
    k: int,
    iterations: int,
    seed: int,
    *,
    weights: torch.Tensor | None = None,
    start: torch.Tensor | None = None,
    anneal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The centroids (k, m) and the codes (N,) of int64; the same for the same seed.

    Args:
        points: (N, m) of float32, N at least k.
        weights: (N,), not negative; 1 each if None.
        start: centroids to go on from, instead of k-means++.
        anneal: with noise that fades.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.ones(len(points)) if weights is None else weights
    centre, spread = points.mean(0), points.std(0, correction=0)
    points = points - centre  # products of small numbers are more exact
    centroids = _spread_out(points, k, weights, generator) if start is None else start - centre
    codes = nearest(points, centroids)
    for step in range(1, iterations + 1):
        centroids, total = _means(points, codes, centroids, weights)
        if anneal:
            noise = torch.randn(centroids.shape, generator=generator) * spread
            centroids += noise * ((1 - step / iterations) / total.clamp(min=1)[:, None]).sqrt()
        before, codes = codes, nearest(points, centroids)
        if not anneal and torch.equal(before, codes):
            break
    return centroids + centre, codes


def nearest(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """For each point the number of the nearest centroid: the largest x · c − ‖c‖² / 2; (N,) of int64."""
    halves, columns = -centroids.square().sum(1) / 2, centroids.T.contiguous()
    codes = torch.empty(len(points), dtype=torch.int64)
    room = torch.empty(min(BLOCK, len(points)), len(centroids))
    for block, found in zip(points.split(BLOCK), codes.split(BLOCK)):
        scores = torch.addmm(halves, block, columns, out=room[: len(block)])
        # NumPy's argmax along rows is four times as fast as PyTorch's.
        found.copy_(torch.from_numpy(scores.numpy().argmax(1)))
    return codes


def _means(
    points: torch.Tensor, codes: torch.Tensor, centroids: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted mean of each cluster and its weight; a cluster of no weight takes the point served worst."""
    exact = torch.float64
    total = torch.zeros(len(centroids), dtype=exact).index_add_(0, codes, weights.to(exact))
    sums = torch.zeros(centroids.shape, dtype=exact).index_add_(0, codes, (points * weights[:, None]).to(exact))
    means = (sums / total[:, None]).float()
    empty = (total == 0).nonzero()[:, 0]
    if len(empty):
        lost = (points - centroids[codes]).square().sum(1) * weights
        means[empty] = points[lost.topk(len(empty)).indices]
    return means, total.float()


def _spread_out(points: torch.Tensor, k: int, weights: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """k-means++ on a sample: each next centroid is a point drawn by its squared distance to those before."""
    drawn = torch.randperm(len(points), generator=generator)[: max(SAMPLE * k, k)]
    points, weights = points[drawn], weights[drawn].clamp(min=torch.finfo(torch.float32).tiny)
    chosen = torch.multinomial(weights, 1, generator=generator)
    distance = torch.full((len(points),), torch.inf)
    for _ in range(k - 1):
        distance = torch.minimum(distance, (points - points[chosen[-1:]]).square().sum(1))
        chance = distance * weights
        chance = chance if chance.sum() > 0 else weights  # fewer different points than centroids
        chosen = torch.cat([chosen, torch.multinomial(chance, 1, generator=generator)])
    return points[chosen]
