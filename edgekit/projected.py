"""Weights of low rank across subvectors: what is trained before it is clustered.

A weight cut into N chunks of m numbers (see coded.py) is kept as L · B, L (N, d) and B (d, m), both trained. Clusters
of the rows of L, times B, are a codebook (k, m) like any other: B costs nothing in the end. (Zhu, Zhou, Zhong: LR²VQ,
2022, arXiv 2211.11397. Only its abstract was at hand; L · B with one B a layer is inferred from it.)
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn.utils import parametrize

from edgekit.coded import Form, codable, parametrise
from edgekit.errors import BadInput


class ProjectedWeight(Form):
    """L is the parametrisation's `original`; it starts as the chunks in the coordinates of B, whose rows are
    orthonormal."""

    def __init__(self, shape: tuple[int, ...], basis: torch.Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.basis = nn.Parameter(basis)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows @ self.basis).reshape(self.shape)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(-1, self.basis.shape[1]) @ self.basis.T


@dataclasses.dataclass(frozen=True)
class ProjectWeight:
    """The edit that keeps a layer's weight as L · B: chunks of `m` numbers in `d` dimensions.

    It starts from the L · B that is closest to the weight.
    """

    layer: str
    m: int
    d: int

    def apply(self, module: nn.Module) -> None:
        layer = codable(module, self.layer, "project_weight")
        row = layer.weight[0].numel()
        if self.m < 1 or row % self.m:
            raise BadInput(f"project_weight: {self.layer} has {row} weights an output, which {self.m} does not divide")
        if not 1 <= self.d <= self.m:
            raise BadInput(
                f"project_weight: {self.layer} has subvectors of {self.m}; d = {self.d} must be 1 … {self.m}"
            )
        basis = principal(layer.weight.detach().reshape(-1, self.m))[0][: self.d]
        parametrise(layer, ProjectedWeight(tuple(layer.weight.shape), basis))


def basis_of(layer: nn.Module) -> torch.Tensor | None:
    """B (d, m) of a layer whose weight is kept as L · B."""
    form = layer.parametrizations["weight"][0] if parametrize.is_parametrized(layer, "weight") else None  # type: ignore[index]
    return form.basis.detach() if isinstance(form, ProjectedWeight) else None


def principal(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal directions (m, m), a row each, and Σ (x · v)² of the points (N, m) in each, the most first."""
    squares, directions = torch.linalg.eigh(points.double().T @ points.double())
    return directions.flip(1).T.to(points), squares.flip(0).clamp(min=0)


def within(points: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The parts of the points (N, m) that lie in the span of the rows of a basis (d, m)."""
    if len(basis) == points.shape[1]:
        return points
    directions = torch.linalg.qr(basis.T)[0]
    return points @ directions @ directions.T
