"""What chains take on this machine."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from edgekit.context import PassContext
from edgekit.factorise import Factorise, axis_sizes, widths
from edgekit.net import Net
from edgekit.passes.lowrank.choices import Choice, Menu

if TYPE_CHECKING:
    from edgekit.latency import LatencyModel


def edits(chosen: Sequence[Choice]) -> list[Factorise]:
    """The edits of choices, but for whole layers."""
    return [Factorise(choice.layer, choice.form, choice.ranks) for choice in chosen if choice.form is not None]


def timed(menus: Sequence[Menu], net: Net, ctx: PassContext) -> list[Menu]:
    """The menus with the latency of each choice in ms, without those that take longer than the whole layer.

    Measured is the network with each layer in its first form at the largest rank of its menu, then in its second form,
    and so on. Narrower chains are to the latency model what any narrower network is: fewer channels.
    """
    whole = ctx.layer_latency(net)
    largest = [list({choice.form: choice for choice in menu[1:]}.values()) for menu in menus]
    models: dict[tuple[str, str | None], LatencyModel] = {(menu[0].layer, None): whole for menu in menus}
    for number in range(max(map(len, largest), default=0)):
        of_form = [choices[number] for choices in largest if len(choices) > number]
        model = ctx.latency(net.edited(*edits(of_form)))
        models.update({(choice.layer, choice.form): model for choice in of_form})

    def with_latency(choice: Choice) -> Choice:
        latency_ms = _latency_ms(choice, net.module, models[choice.layer, choice.form])
        return dataclasses.replace(choice, costs={**choice.costs, "latency": latency_ms})

    full = [[with_latency(choice) for choice in menu] for menu in menus]
    return [[menu[0], *(choice for choice in menu[1:] if choice.pays(menu[0], ["latency"]))] for menu in full]


def _latency_ms(choice: Choice, module: nn.Module, model: LatencyModel) -> float:
    layer = module.get_submodule(choice.layer)
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    if choice.form is None:
        return model.cost(choice.layer, axis_sizes(layer)["i"], axis_sizes(layer)["o"])
    pairs = itertools.pairwise(widths(layer, choice.form, choice.ranks))
    return sum(model.cost(f"{choice.layer}.{number}", *pair) for number, pair in enumerate(pairs))
