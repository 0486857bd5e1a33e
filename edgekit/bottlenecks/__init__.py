"""Bottlenecks: what a cut network sends is made small by an encoder and made into the tail's input by a decoder."""

from __future__ import annotations

import torch
from torch import nn

from edgekit.bottlenecks.affine import Affine
from edgekit.bottlenecks.coders import Kind, Size, decoder, encoder, enlargement
from edgekit.bottlenecks.prior import FactorisedPrior

__all__ = ["LATENTS", "Affine", "Bottleneck", "FactorisedPrior", "Kind", "Size", "bottleneck_of", "inserted"]

LATENTS: dict[Kind, type[FactorisedPrior] | type[Affine]] = {"entropic": FactorisedPrior, "reduction": Affine}


class Bottleneck(nn.Module):
    """Encoder, latent and decoder in the place of a part of a network."""

    def __init__(
        self, kind: Kind, size: Size, channels: int, stride: int, width: int, before: tuple[int, ...],
        behind: tuple[int, ...],
    ) -> None:  # fmt: skip
        """For an input `before` and an output `behind`, both (C, H, W). Raises BadInput where they do not go together
        with the stride."""
        super().__init__()
        enlarge = enlargement(stride, before, behind)
        self.encoder = encoder(kind, size, before[0], channels, stride, width)
        self.latent = LATENTS[kind](channels)
        self.decoder = decoder(kind, channels, behind[0], enlarge)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.latent(self.encoder(x)))


def bottleneck_of(module: nn.Module) -> tuple[str, Bottleneck] | None:
    """The path and the module of a network's bottleneck; None where it has none."""
    return next(((name, part) for name, part in module.named_modules() if isinstance(part, Bottleneck)), None)


def inserted(module: nn.Module) -> tuple[str, Bottleneck]:
    """`bottleneck_of` a network that has one."""
    found = bottleneck_of(module)
    assert found is not None
    return found
