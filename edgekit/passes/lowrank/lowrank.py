"""The pass: which layers become chains, of which form and rank.

    energy    each layer by itself at the lowest rank that holds the share, in the form of the fewest MACs
    budget    all layers together, so that the shares of energy that they lose are the least (`choices`)
    ranks     as given

A layer is replaced only where its chain costs less in every unit that counts: those of the budget, else MACs and
parameters. Latency is that of chains measured in the network: once with each layer in its first form at the largest
rank that has fewer MACs and parameters, once with each in its second, and so on; lower ranks are the latency model's
to say.

Put first in a recipe, before any training, with `ranks` or a budget (fresh weights have flat spectra, of which no rank
holds much), the pass makes a network that is trained in its low-rank form; its chains
then start from the decomposition of the fresh weights, which trains better than fresh factors do (Khodak, Tenenholtz,
Mackey, Fusi, 2021, arXiv 2105.01029).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Lt
from pydantic import Strict

from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.factorise import Form, full_ranks
from edgekit.net import Net
from edgekit.passes.lowrank.candidates import Candidate, candidates
from edgekit.passes.lowrank.choices import Choice, Menu, Problem
from edgekit.passes.lowrank.moments import output_moments
from edgekit.passes.lowrank.timing import edits, timed

Share = Annotated[float, Gt(0), Lt(1)]
Rank = Annotated[int, Strict(), Gt(0)]
Cost = Literal["params", "macs", "cio", "size_bytes", "latency"]
AUTO: tuple[Form, ...] = ("channel", "spatial", "tucker2")
UNITS = ("macs", "params")
BATCH = 8


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Replace convolutions and linear layers by chains of low rank. One of `energy`, `budget` and `ranks` is given.

    Attributes:
        form: "channel", "spatial", "tucker2", "cp", "tt" (see `factorise`), or "auto": of the first three whichever
            loses least for what it saves. A linear layer and a 1×1 convolution have one form, "channel".
        energy: the share of each layer's energy ‖W‖² that stays.
        budget: share of the uncompressed network's cost that may stay; several hold together. `latency` needs measured
            layers.
        ranks: by globs over layers, the first that fits: a rank for every cut, one for each, or the share of the full
            ranks that stays.
        weighted: the energy is that of the layer's outputs on calibration images, and "channel" keeps most of it.
        images: calibration images for it, drawn by the seed; no labels needed.
        round_to: ranks are multiples of this, unless given as numbers, since odd widths are slow.
        exclude: globs over layers that stay whole.
    """

    form: Literal["auto", "channel", "spatial", "tucker2", "cp", "tt"] = "auto"
    energy: Share | None = None
    budget: dict[Cost, Share] = dataclasses.field(default_factory=dict)
    ranks: dict[str, Rank | Share | tuple[Rank, ...]] = dataclasses.field(default_factory=dict)
    weighted: bool = False
    images: Annotated[int, Gt(0)] = 64
    round_to: Annotated[int, Gt(0)] = 8
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.energy is not None) + bool(self.budget) + bool(self.ranks) != 1:
            raise ValueError(
                "give one of energy, budget and ranks; write for example budget = { macs = 0.6 } or energy = 0.9"
            )
        if self.weighted and self.form != "channel":
            raise ValueError('weighted has a closed form for "channel" alone; write form = "channel" beside it')
        if self.ranks and self.form == "auto":
            raise ValueError('ranks are those of one form; write for example form = "channel" beside them')

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where a glob matches nothing, a rank cannot be, no chain pays, or the budget is out of
        reach."""
        found = self._found(net, ctx)
        chosen = self._chosen(found, net, ctx)
        if not chosen:
            raise BadInput(
                f"lowrank: in none of the {len(found)} layers that could be replaced does a chain cost less in "
                f"{' and '.join(self._units)}, in blocks of {self.round_to}; ask for less energy, or give a budget"
            )
        result = net.edited(*edits(chosen))
        for choice in chosen:
            found[choice.layer].fill(result.module.get_submodule(choice.layer), choice)  # type: ignore[arg-type]
        self._report(chosen, found, result, ctx)
        return result

    @property
    def _units(self) -> tuple[str, ...]:
        return tuple(self.budget) or UNITS

    @property
    def _forms(self) -> tuple[Form, ...]:
        return AUTO if self.form == "auto" else (self.form,)

    # Layers

    def _found(self, net: Net, ctx: PassContext) -> dict[str, Candidate]:
        found, left = candidates(net.module, ctx.input.shape)
        for field, patterns in (("exclude", self.exclude), ("ranks", self.ranks)):
            for pattern in patterns:
                if not fnmatch.filter([*found, *left], pattern):
                    raise BadInput(f"lowrank: {field} = {pattern!r} matches no convolution or linear layer")
        for name in self.ranks:
            if name in left:
                raise BadInput(f"lowrank: {name} cannot be replaced, as it {left[name]}; take it out of ranks")
        for reason in sorted(set(left.values())):
            names = [name for name, why in left.items() if why == reason]
            ctx.log(f"lowrank: {', '.join(names)} {'stays' if len(names) == 1 else 'stay'}: {reason}")
        kept = {name: each for name, each in found.items() if not _first(name, self.exclude)}
        if not kept:
            raise BadInput("lowrank: no layer is left that could be replaced; exclude fewer")
        return self._weighed(kept, net, ctx) if self.weighted else kept

    def _weighed(self, found: dict[str, Candidate], net: Net, ctx: PassContext) -> dict[str, Candidate]:
        samples = ctx.data.role("calibrate").subset(self.images, ctx.seed)
        batches = (torch.from_numpy(batch) for batch, _, _ in samples.batches(ctx.input, BATCH))
        moments = output_moments(net.module, list(found), batches)
        return {name: dataclasses.replace(each, moments=moments[name]) for name, each in found.items()}

    # Choices

    def _chosen(self, found: dict[str, Candidate], net: Net, ctx: PassContext) -> list[Choice]:
        if self.ranks:
            return self._given(found, ctx)
        if self.energy is None:
            return self._within_budget(found, net, ctx)
        holding = [
            [each for each in menu[1:] if each.loss <= 1 - self.energy] for menu in self._menus(found, UNITS, ctx)
        ]
        return [min(menu, key=lambda choice: choice.costs["macs"]) for menu in holding if menu]

    def _menus(self, found: dict[str, Candidate], units: Sequence[str], ctx: PassContext) -> list[Menu]:
        each = ctx.track(found.values(), "lowrank", len(found))
        return [candidate.menu(self._forms, self.round_to, units) for candidate in each]

    def _given(self, found: dict[str, Candidate], ctx: PassContext) -> list[Choice]:
        """Raises BadInput for a layer given by its name in which the ranks do not pay; others are named in the log."""
        chosen = []
        for name, candidate in found.items():
            if (glob := _first(name, self.ranks)) is None:
                continue
            form = candidate.forms(self._forms)[0]
            ranks = self._ranks(self.ranks[glob], candidate, form)
            choice = candidate.choice(form, ranks)
            if choice.pays(candidate.whole, UNITS):
                chosen.append(choice)
                continue
            message = f"lowrank: {name} at rank {_numbers(ranks)} costs no less in macs and params than whole"
            if glob == name:
                raise BadInput(f"{message}; give a lower one")
            ctx.log(f"{message}: it stays")
        return chosen

    def _ranks(self, given: int | float | tuple[int, ...], candidate: Candidate, form: Form) -> tuple[int, ...]:
        full = full_ranks(candidate.layer, form)
        if isinstance(given, tuple):
            return given
        if isinstance(given, int):
            return (given,) * len(full)
        blocks = (max(1, math.ceil(given * most / self.round_to)) for most in full)
        return tuple(min(most, count * self.round_to) for most, count in zip(full, blocks))

    def _within_budget(self, found: dict[str, Candidate], net: Net, ctx: PassContext) -> list[Choice]:
        costs, limits = self._costs(net, ctx), ctx.limits(self.budget)
        if all(costs[name] <= limit for name, limit in limits.items()):
            raise BadInput(
                f"lowrank: the network that comes in meets its budget already, {self._reached(costs, limits)} of the "
                "uncompressed network; ask for less"
            )
        menus = self._menus(found, [unit for unit in self.budget if unit != "latency"] or UNITS, ctx)
        if "latency" in self.budget:
            menus = timed(menus, net, ctx)
        problem = Problem(menus, costs, limits)
        taken = problem.solved()
        reached = self._reached(problem.totals(taken), limits)
        if not problem.met(taken):
            raise BadInput(
                f"lowrank: the budget is out of reach; at ranks of {self.round_to} wherever a chain costs less in "
                f"{' and '.join(self._units)} it comes to {reached}. Prune channels for the rest"
            )
        ctx.log(f"lowrank: {reached}")
        return [choice for place in taken if (choice := problem.choices[place]).form is not None]

    def _costs(self, net: Net, ctx: PassContext) -> dict[str, float]:
        costs: dict[str, float] = dict(ctx.cost(net))
        if "latency" in self.budget:
            costs["latency"] = ctx.layer_latency(net).latency_ms(net.module)
        return costs

    def _reached(self, costs: Mapping[str, float], limits: Mapping[str, float]) -> str:
        return ", ".join(
            f"{name} {costs[name] / limits[name] * asked:.3f} (asked {asked})" for name, asked in self.budget.items()
        )

    def _report(self, chosen: Sequence[Choice], found: dict[str, Candidate], result: Net, ctx: PassContext) -> None:
        """Raises BadInput where the network that was made cannot run, or costs more than was computed."""
        try:
            costs, base = ctx.cost(result), ctx.cost(ctx.base)
        except BadInput as error:
            raise BadInput(f"lowrank: code asks a layer for what a chain does not have; exclude it: {error}") from None
        for name, limit in ctx.limits(self.budget).items():
            if costs.get(name, 0) > limit:
                raise BadInput(f"lowrank: {name} is {costs[name]}, above the budget's {limit:.0f}: ask for less")
        for choice in chosen:
            assert choice.form is not None
            full = _numbers(full_ranks(found[choice.layer].layer, choice.form))
            rank = f"rank {_numbers(choice.ranks)} of {full}"
            ctx.log(f"lowrank: {choice.layer}: {choice.form}, {rank}, energy {1 - choice.loss:.3f}")
        shares = ", ".join(f"{name} {costs[name] / base[name]:.3f}" for name in UNITS)
        ctx.log(f"lowrank: {len(chosen)} of {len(found)} layers are replaced; {shares} of the uncompressed network")


def _first(name: str, globs: Iterable[str]) -> str | None:
    return next((glob for glob in globs if fnmatch.fnmatchcase(name, glob)), None)


def _numbers(ranks: Sequence[int]) -> str:
    return "/".join(map(str, ranks))
