"""Weights kept as codes.

A weight of N · m numbers, flattened output channel by output channel and cut into N chunks of m consecutive ones (Stock
et al., And the Bit Goes Down, 2019, arXiv 1907.05686, section 3.1), is

    weight[i] = codebook[codes[i]] · factor of the output channel,    codes (N,) in 0 … k − 1, codebook (k, m).

With m = 1 and whole numbers in the codebook that is a quantised weight and its scale, and with powers of two a shift
network's. In the module the weight is a parametrisation (`torch.nn.utils.parametrize`): layers keep their class and
their `weight`, and what is trained stands behind it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from edgekit.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Codes:
    """A weight as data: codes (N,) of int64, codebook (k, m) of float32, and factor (C_out,) of float32 or None."""

    codes: torch.Tensor
    codebook: torch.Tensor
    factor: torch.Tensor | None
    shape: tuple[int, ...]

    def decode(self) -> torch.Tensor:
        """The weight that it stands for."""
        weight = self.codebook[self.codes].reshape(self.shape)
        return weight if self.factor is None else weight * self.factor.reshape(-1, *[1] * (len(self.shape) - 1))

    @property
    def bits(self) -> int:
        """Without entropy coding: codes of whole bits, and codebook and factors as float16."""
        each = max(1, math.ceil(math.log2(len(self.codebook))))
        return len(self.codes) * each + 16 * (self.codebook.numel() + (0 if self.factor is None else len(self.factor)))


class Form(nn.Module):
    """A parametrisation of `weight`: another form of it, which trains. `decoded` gives a layer its weight back."""


class Coded(Form):
    """A parametrisation of `weight` that stands for codes. `trains` says whether training changes the codes."""

    trains = False

    def codes_of(self, *originals: torch.Tensor) -> Codes:
        """The codes of the weight that `forward(*originals)` gives; decoded they are bit-equal to it."""
        raise NotImplementedError


class CodebookWeight(Coded):
    """Frozen codes, and a codebook, unless it is fixed, and factors that train. The codebook is the parametrisation's
    `original`, where it is `half` to be rounded to float16; gradients pass the rounding."""

    codes: torch.Tensor

    def __init__(self, shape: tuple[int, ...], k: int, m: int, per_channel: bool, half: bool = False) -> None:
        super().__init__()
        self.shape, self.size, self.half_book = shape, (k, m), half
        self.register_buffer(
            "codes", torch.zeros(math.prod(shape) // m, dtype=torch.uint8 if k <= 256 else torch.int32)
        )
        self.factor = nn.Parameter(torch.ones(shape[0])) if per_channel else None

    def forward(self, codebook: torch.Tensor) -> torch.Tensor:
        return self.codes_of(codebook).decode()

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.new_zeros(self.size)

    def codes_of(self, *originals: torch.Tensor) -> Codes:
        codebook = originals[0]
        if self.half_book:
            codebook = codebook + (codebook.half().float() - codebook).detach()  # exact: the two are close
        return Codes(self.codes.long(), codebook, self.factor, self.shape)


@dataclasses.dataclass(frozen=True)
class CodeWeight:
    """The edit that keeps a layer's weight as a codebook of `k` entries of `m` numbers each, and codes.

    With `per_channel`, every output channel has a factor of its own; a `fixed` codebook does not train, a `half` one
    holds float16. The codes are to be set (`set_codes`).
    """

    layer: str
    k: int
    m: int = 1
    per_channel: bool = False
    fixed: bool = False
    half: bool = False

    def apply(self, module: nn.Module) -> None:
        layer = codable(module, self.layer, "code_weight", (Form,))
        row = layer.weight[0].numel()
        if self.m < 1 or row % self.m:
            raise BadInput(f"code_weight: {self.layer} has {row} weights an output, which m = {self.m} does not divide")
        if not 1 <= self.k <= layer.weight.numel() // self.m:
            raise BadInput(
                f"code_weight: {self.layer} has {layer.weight.numel() // self.m} subvectors of {self.m}; "
                f"k = {self.k} must be between 1 and that"
            )
        shape = tuple(layer.weight.shape)
        parametrise(layer, CodebookWeight(shape, self.k, self.m, self.per_channel, self.half))
        originals(layer)[0].requires_grad_(not self.fixed)


def parametrise(layer: nn.Conv2d | nn.Linear, form: Form) -> None:
    """Put a parametrisation in front of a layer's weight, in the place of one that it may have."""
    if parametrize.is_parametrized(layer):
        _make_plain(layer)
    parametrize.register_parametrization(layer, "weight", form.to(layer.weight.device))


def codable(module: nn.Module, name: str, edit: str, forms: tuple[type[Form], ...] = ()) -> nn.Conv2d | nn.Linear:
    """The layer of that name, whose weight an edit may keep in another form.

    Args:
        forms: that the weight may have already; they are no codes (see projected.py and masked.py).

    Raises:
        BadInput: there is none, it is no convolution or linear layer, its weight is kept as codes already, or another
            layer uses the same weight.
    """
    try:
        layer = module.get_submodule(name)
    except AttributeError:
        raise BadInput(f"{edit}: the network has no layer {name!r}") from None
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        raise BadInput(f"{edit}: {name} is {type(layer).__name__}; only convolutions and linear layers can be coded")
    if name in _layers(module, Coded):
        raise BadInput(f"{edit}: the weight of {name} is kept as codes already")
    if parametrize.is_parametrized(layer) and name not in _layers(module, forms):
        raise BadInput(f"{edit}: the weight of {name} is kept in another form already")
    holders = [path for path, other in module.named_modules(remove_duplicate=False) if _holds(other, layer.weight)]
    if len(holders) > 1:
        raise BadInput(f"{edit}: {' and '.join(holders)} share one weight; exclude them")
    return layer


def _holds(module: nn.Module, weight: torch.Tensor) -> bool:
    return any(tensor is weight for tensor in module._parameters.values())


def set_codes(module: nn.Module, layer: str, codes: Codes) -> None:
    """Fill in a weight that `CodeWeight` made room for."""
    found: Any = module.get_submodule(layer)
    code = found.parametrizations.weight[0]
    with torch.no_grad():
        found.parametrizations.weight.original.copy_(codes.codebook)
        code.codes.copy_(codes.codes)
        if codes.factor is not None:
            code.factor.copy_(codes.factor)


def coded_weights(module: nn.Module) -> dict[str, Codes]:
    """The weights of a network that are kept as codes, by the names that their layers have for them."""
    found = {}
    for name, layer in _layers(module, Coded).items():
        codes = _codes(layer)
        factor = None if codes.factor is None else codes.factor.detach()
        found[f"{name}.weight".removeprefix(".")] = dataclasses.replace(codes, factor=factor)
    return found


def trained_codes(module: nn.Module) -> torch.Tensor | None:
    """All codes of a network that training may change, (N,) of uint8; None where it has none."""
    layers = [layer for layer in _layers(module, Coded).values() if layer.parametrizations.weight[0].trains]
    return torch.cat([_codes(layer).codes.byte() for layer in layers]) if layers else None


def originals(layer: Any) -> list[nn.Parameter]:
    """What a coded layer's parametrisation computes the weight from, in its order."""
    return list(layer.parametrizations.weight.parameters(recurse=False))


def _codes(layer: Any) -> Codes:
    return layer.parametrizations.weight[0].codes_of(*(value.detach() for value in originals(layer)))


def decoded(module: nn.Module) -> nn.Module:
    """The same network with plain weights; the module itself where none is kept in another form."""
    if not _layers(module, Form):
        return module
    plain = copy.deepcopy(module)
    for layer in _layers(plain, Form).values():
        _make_plain(layer)
    return plain


def _make_plain(layer: Any) -> None:
    weight = layer.weight.detach().clone()
    # Not by `remove_parametrizations`: it would take `weight` from the class, which copies share.
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer.parametrizations
    layer.weight = nn.Parameter(weight)


def _layers(module: nn.Module, form: type[Form] | tuple[type[Form], ...]) -> dict[str, Any]:
    return {
        name: layer
        for name, layer in module.named_modules()
        if parametrize.is_parametrized(layer, "weight") and isinstance(layer.parametrizations["weight"][0], form)
    }
