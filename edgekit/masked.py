"""Weights of which some are 0 and stay 0, whatever is trained."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn
from torch.nn.utils import parametrize

from edgekit.coded import Form, codable, parametrise


class MaskedWeight(Form):
    """`original` where `kept` is set, and 0 elsewhere, which gets no gradient."""

    kept: torch.Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(shape, dtype=torch.bool))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.where(self.kept, weight, 0.0)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight


@dataclasses.dataclass(frozen=True)
class MaskWeight:
    """The edit after which weights of a layer can be held at 0. Which these are is to be set (`set_kept`)."""

    layer: str

    def apply(self, module: nn.Module) -> None:
        layer = codable(module, self.layer, "mask_weight", (MaskedWeight,))
        parametrise(layer, MaskedWeight(tuple(layer.weight.shape)))


def set_kept(layer: nn.Module, kept: torch.Tensor) -> None:
    """Say which weights stay, by a tensor of the weight's shape that is not 0 there."""
    layer.parametrizations.weight[0].kept.copy_(kept)  # type: ignore[index, union-attr]


def kept_of(layer: nn.Module) -> torch.Tensor | None:
    """Which weights of a layer are not held at 0, in its shape; None where none is."""
    form = layer.parametrizations["weight"][0] if parametrize.is_parametrized(layer, "weight") else None  # type: ignore[index]
    return form.kept if isinstance(form, MaskedWeight) else None
