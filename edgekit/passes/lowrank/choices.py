"""What each layer can become, at which loss and cost, and the choice that meets a budget.

Every layer stays whole or takes one of its forms at one of some ranks: a multiple-choice knapsack problem. What is to
be largest is the product of the layers' shares of energy that stay (layers' energies as a measure of the network's
accuracy: Kim, Khan, Kyung, Efficient Neural Network Compression, 2018, arXiv 1811.12781), so the loss is

    loss = − log(share that stays).

Again and again that step is taken, to any cheaper choice of any layer, that loses least for what it saves,

    (loss' − loss) / (cost − cost'),

the cost being that of the budget which is furthest from met (the greedy rule that solves the problem's relaxation:
Sinha, Zoltners, The Multiple-Choice Knapsack Problem, Operations Research 27(3), 1979). What the last steps saved too
much is given back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from edgekit.factorise import Form

TINY = 1e-12
"""Of a layer of which nothing stays, so that its loss is finite."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A layer whole (no form) or factorised: what is lost, as a share of its energy, and what it costs."""

    layer: str
    form: Form | None
    ranks: tuple[int, ...]
    loss: float
    costs: dict[str, float]

    def pays(self, whole: Choice, units: Iterable[str]) -> bool:
        """Whether it costs less than the whole layer in each unit."""
        return all(self.costs[unit] < whole.costs[unit] for unit in units)


Menu = list[Choice]
"""A layer's choices, the whole layer first."""


def levels(spectra: Sequence[torch.Tensor], step: int) -> Iterator[tuple[tuple[int, ...], float]]:
    """Ranks in multiples of `step` and a bound of what is lost, from one block at each cut on: next comes the block
    that holds most. The spectra are as `decompose.spectra` gives them."""
    blocks = [spectrum[: len(spectrum) // step * step].reshape(-1, step).sum(1).tolist() for spectrum in spectra]
    if not all(blocks):
        return
    total = float(spectra[0].sum()) or 1.0
    ranks = [step] * len(spectra)
    rest = sum(float(spectrum[step:].sum()) for spectrum in spectra)
    yield tuple(ranks), min(1.0, rest / total)
    following = sorted(((held, cut) for cut, each in enumerate(blocks) for held in each[1:]), key=lambda item: -item[0])
    for held, cut in following:
        ranks[cut] += step
        rest -= held
        yield tuple(ranks), min(1.0, max(0.0, rest / total))


class Problem:
    """Which choice to take of each menu, so that every budget is met.

    Attributes:
        costs: of the network with every layer whole.
        limits: the budgets, in the unit of each cost.
    """

    def __init__(self, menus: Sequence[Menu], costs: Mapping[str, float], limits: Mapping[str, float]) -> None:
        self.limits = limits
        self.choices = [choice for menu in menus for choice in menu]
        counts = [len(menu) for menu in menus]
        self._whole = np.cumsum([0, *counts[:-1]])
        self._owner = np.repeat(np.arange(len(menus)), counts)
        self._loss = -np.log([max(1 - choice.loss, TINY) for choice in self.choices])
        self._costs = {name: np.array([choice.costs[name] for choice in self.choices]) for name in limits}
        self._rest = {name: costs[name] - each[self._whole].sum() for name, each in self._costs.items()}

    def totals(self, taken: np.ndarray) -> dict[str, float]:
        """The network's costs with these choices, int64 (menus,), each a place among all choices."""
        return {name: self._rest[name] + float(costs[taken].sum()) for name, costs in self._costs.items()}

    def met(self, taken: np.ndarray) -> bool:
        return all(total <= self.limits[name] for name, total in self.totals(taken).items())

    def solved(self) -> np.ndarray:
        """The choices taken, int64 (menus,); where they do not meet the budgets, nothing cheaper was found."""
        taken = self._whole.copy()
        while not self.met(taken):
            totals = self.totals(taken)
            binding = max(totals, key=lambda name: totals[name] / self.limits[name])
            saved = self._change(-self._costs[binding], taken)
            dearer = np.any([self._change(costs, taken) > 0 for costs in self._costs.values()], axis=0)
            useful = (saved > 0) & ~dearer
            if not useful.any():
                return taken
            price = np.where(useful, self._change(self._loss, taken), np.inf) / np.where(useful, saved, 1.0)
            best = int(np.argmin(price))
            taken[self._owner[best]] = best
        return self._given_back(taken)

    def _given_back(self, taken: np.ndarray) -> np.ndarray:
        """With the steps that fit into every budget and gain most, while there is one."""
        while True:
            totals, gained = self.totals(taken), -self._change(self._loss, taken)
            over = [
                totals[name] + self._change(costs, taken) > self.limits[name] for name, costs in self._costs.items()
            ]
            fits = (gained > 0) & ~np.any(over, axis=0)
            if not fits.any():
                return taken
            best = int(np.argmax(np.where(fits, gained, 0.0)))
            taken[self._owner[best]] = best

    def _change(self, values: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """What each choice would change, beside the one that its menu has taken: (choices,)."""
        return values - values[taken][self._owner]
