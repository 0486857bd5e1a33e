"""The layers that can become a chain, and what each of them can become."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from edgekit.errors import BadInput
from edgekit.factorise import Form, axis_sizes, chain, full_ranks, possible, unsuited
from edgekit.graph import Shape, meta_copy, trace
from edgekit.passes.lowrank.choices import Choice, Menu, levels
from edgekit.passes.lowrank.decompose import factors, lost, projected, spectra
from edgekit.passes.lowrank.moments import Moments

T = TypeVar("T")
LEVELS = 32
"""Ranks tried of one form in one layer, at most; "cp", which is fitted anew for each, takes a quarter."""


@dataclasses.dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that can be replaced.

    Attributes:
        shape: of its input, without the batch.
        moments: of its outputs, where the images decide what is lost.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    shape: Shape
    moments: Moments | None = None

    def menu(self, forms: Sequence[Form], step: int, units: Sequence[str]) -> Menu:
        """Whole, and in each of the forms at ranks that are multiples of `step`, where that costs less in each unit."""
        return [self.whole, *(choice for form in self.forms(forms) for choice in self._paying(form, step, units))]

    def forms(self, wanted: Sequence[Form]) -> Sequence[Form]:
        """Of the wanted forms those that the layer can take: a matrix has its SVD alone."""
        sizes = axis_sizes(self.layer)
        return ("channel",) if sizes["h"] == sizes["w"] == 1 else wanted

    @functools.cached_property
    def whole(self) -> Choice:
        return Choice(self.name, None, (), 0.0, _costs(self.layer, self.shape))

    def choice(self, form: Form, ranks: tuple[int, ...], loss: float | None = None) -> Choice:
        """With the loss where it is not known.

        Raises:
            BadInput: the layer does not have these ranks.
        """
        made = chain(self._twin, form, ranks, self.name)
        loss = self.lost(form, ranks) if loss is None else loss
        return Choice(self.name, form, ranks, loss, _costs(made, self.shape))

    def weights(self, form: Form, ranks: tuple[int, ...]) -> list[torch.Tensor]:
        """Of the chain's layers, float64 (out, in / groups, kh, kw)."""
        if self.moments is not None:
            return projected(self.layer.weight, self.moments.basis[:, : ranks[0]])
        return factors(self.layer.weight, form, ranks)

    def lost(self, form: Form, ranks: tuple[int, ...]) -> float:
        """The share of the energy that is lost: of the weight, or of the outputs where there are moments."""
        if self.moments is not None:
            energies = self.moments.energies
            return float(energies[ranks[0] :].sum()) / (float(energies.sum()) or 1.0)
        return lost(self.layer.weight, self.weights(form, ranks))

    def fill(self, made: nn.Sequential, choice: Choice) -> None:
        """Give a chain of that choice its weights, and the last layer the bias."""
        assert choice.form is not None
        weights, state = self.weights(choice.form, choice.ranks), made.state_dict()
        for place, weight in enumerate(weights):
            state[f"{place}.weight"].copy_(weight.reshape(state[f"{place}.weight"].shape))
        if self.layer.bias is not None:
            state[f"{len(weights) - 1}.bias"].copy_(self.layer.bias.detach() + self._shift(weights))

    def _shift(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """(W − Ŵ) E[x]: what the outputs' mean loses by the projection."""
        if self.moments is None:
            return torch.zeros(1).to(self.layer.weight)
        basis = self.moments.basis[:, : weights[-1].shape[1]]
        return (self.moments.mean - basis @ (basis.T @ self.moments.mean)).to(self.layer.weight)

    @functools.cached_property
    def _twin(self) -> nn.Module:
        """The layer's shapes alone: chains of it are made by the hundred."""
        return meta_copy(self.layer)

    def _paying(self, form: Form, step: int, units: Sequence[str]) -> list[Choice]:
        """Costs rise with the ranks, so that the last that pays is found by halving."""
        tried = self._tried(form, step)
        count = bisect.bisect_left(tried, True, key=lambda each: not self.choice(form, *each).pays(self.whole, units))
        shown = thinned(tried[:count], LEVELS // 4 if form == "cp" else LEVELS)
        exact = len(full_ranks(self.layer, form)) == 1 and form != "cp"
        return [self.choice(form, ranks, bound if exact else None) for ranks, bound in shown]

    def _tried(self, form: Form, step: int) -> list[tuple[tuple[int, ...], float]]:
        """Ranks, rising, and a bound of what each loses."""
        full = full_ranks(self.layer, form)
        if form == "cp":
            return [((rank,), 1.0) for rank in range(step, full[0] + 1, step)]
        energies = spectra(self.layer.weight, form) if self.moments is None else [self.moments.energies[: full[0]]]
        return [each for each in levels(energies, step) if possible(self.layer, form, each[0])]


def candidates(module: nn.Module, input_shape: Shape) -> tuple[dict[str, Candidate], dict[str, str]]:
    """The convolutions and linear layers that can be replaced, by name, and why the others cannot.

    Raises:
        BadInput: the network cannot be traced on that input.
    """
    graph = trace(module, input_shape)
    calls = Counter(call.layer for call in graph.calls)
    given = {call.layer: call.inputs[0].shape for call in graph.calls if len(call.inputs) == 1}
    params = ((op.layer, str(value.param)) for op in graph.ops for value in op.params)
    read_elsewhere = {name.rpartition(".")[0] for layer, name in params if name.rpartition(".")[0] != layer}
    found: dict[str, Candidate] = {}
    left: dict[str, str] = {}
    for name, layer in module.named_modules(remove_duplicate=False):
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        if reason := unsuited(module, name):
            left[name] = reason
        elif calls[name] > 1:
            left[name] = f"is called {calls[name]} times"
        elif name not in given or name in read_elsewhere:
            left[name] = "is not only called as a layer; other code reads its weight"
        elif not bool(layer.weight.isfinite().all()):
            raise BadInput(f"lowrank: the weight of {name} is not finite; look at the training that it comes from")
        else:
            found[name] = Candidate(name, layer, _one(layer, given[name]))
    return found, left


def thinned(items: list[T], most: int) -> list[T]:
    """At most so many of the items, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[place] for place in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _one(layer: nn.Module, shape: Shape) -> Shape:
    """The shape of a linear layer's vectors, however they are arranged, or of the one image of a convolution."""
    return (math.prod(shape[:-1]), shape[-1]) if isinstance(layer, nn.Linear) else shape[1:]


def _costs(layer: nn.Module, shape: Shape) -> dict[str, float]:
    return dict(trace(layer, shape).cost())
