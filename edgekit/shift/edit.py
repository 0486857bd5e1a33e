"""The edit that puts trained power-of-two weights into a network."""

from __future__ import annotations

import dataclasses

from torch import nn

from edgekit.coded import codable, parametrise
from edgekit.errors import BadInput, unknown
from edgekit.shift import METHODS
from edgekit.shift.base import Shift


@dataclasses.dataclass(frozen=True)
class ShiftWeight:
    """Keep a layer's weight as the latents of a power-of-two weight, which begin near to it."""

    layer: str
    method: str
    bits: int

    def apply(self, module: nn.Module) -> None:
        code = parametrisation(self.method, self.bits)
        parametrise(codable(module, self.layer, "shift_weight"), code)


def parametrisation(method: str, bits: int) -> Shift:
    """That of a method.

    Raises:
        BadInput: there is no such method, or it does not have so many bits.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS, "shift")
    if bits not in (known := METHODS[method].LEVELS):
        raise BadInput(f"shift: {method} has {', '.join(map(str, known))} bits; bits = {bits}")
    return METHODS[method](bits)
