"""The edit that puts a bottleneck in the place of a network's early part."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import nn

from edgekit.bottlenecks import Bottleneck, Kind, Size, bottleneck_of, inserted
from edgekit.cuts import net_cuts
from edgekit.errors import BadInput
from edgekit.graph import Call, Graph, trace


class Skipped(nn.Module):
    """In the place of a module that the bottleneck stands in for: what comes in goes out."""

    def forward(self, x: torch.Tensor, *_rest: Any) -> torch.Tensor:
        return x


@dataclasses.dataclass(frozen=True)
class InsertBottleneck:
    """Replace what leads to the output of `layer` by a bottleneck, which takes the module's place.

    Modules that ran before it and are needed no more become `Skipped`. The bottleneck has fresh weights.

    Attributes:
        layer: a module behind which the network can be cut.
        kind: what quantises the latent: a factorised prior, or 8 bits.
        channels: of the latent.
        stride: of the latent's grid, against the encoder's input.
        shape: (C, H, W) of the network's input.
        size: of the encoder.
        width: channels of the encoder's last stage; None stands for twice those of the latent.
        after: the module whose output the encoder takes; "" is the network's input.
    """

    layer: str
    kind: Kind
    channels: Annotated[int, Gt(0)]
    stride: int
    shape: tuple[int, int, int]
    size: Size = "paper"
    width: Annotated[int, Gt(0)] | None = None
    after: str = ""

    def apply(self, module: nn.Module) -> None:
        """Raises BadInput where the network cannot be cut there, the encoder costs more than what it replaces, or code
        outside of modules runs before the cut."""
        if bottleneck_of(module) is not None:
            raise BadInput("insert_bottleneck: the network has a bottleneck already")
        graph = trace(module, self.shape)
        cuts = net_cuts(graph)
        cut = cuts.at(self.layer)
        start = cuts.at(self.after) if self.after else None
        if start and cuts.ends[self.after] >= cuts.ends[self.layer]:
            raise BadInput(f"insert_bottleneck: after = {self.after!r} does not come before the cut {self.layer!r}")
        before, left = (start.shape, start.macs_left) if start else (self.shape, 0)
        first = cuts.ends[self.after] + 1 if start else 0
        width = self.width or 2 * self.channels
        made = Bottleneck(self.kind, self.size, self.channels, self.stride, width, before, cut.shape)
        _check_cost(made, before, cut.macs_left - left, self)
        replaced = _outermost(graph, first, cuts.ends[self.layer] + 1)
        place = next(name for name in cut.names if name in replaced)
        for name in replaced:
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, made if name == place else Skipped())
        _check_alone(module, self)


def _check_cost(made: Bottleneck, before: Sequence[int], allowed: int, edit: InsertBottleneck) -> None:
    macs = trace(made.encoder, tuple(before)).macs
    if macs > allowed:
        smaller = 'size = "mobile", ' if edit.size == "paper" else ""
        raise BadInput(
            f"the encoder would cost {macs / 1e6:.1f} M MACs and the part up to {edit.layer!r}, which it replaces, "
            f"costs {allowed / 1e6:.1f} M; write {smaller}fewer channels or a smaller width, or a later cut"
        )


def _outermost(graph: Graph, first: int, last: int) -> list[str]:
    """The modules that run among the operations `first` … `last` − 1 only, those inside another left out."""
    inside: dict[str, bool] = {}
    for call in graph.calls:
        if call.layer:
            inside[call.layer] = inside.get(call.layer, True) and _within(call, first, last)
    names = [name for name, whole in inside.items() if whole]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _within(call: Call, first: int, last: int) -> bool:
    return first <= call.first < call.last <= last


def _check_alone(module: nn.Module, edit: InsertBottleneck) -> None:
    """Nothing but the bottleneck runs between its input's source and its end."""
    graph = trace(module, edit.shape)
    place, _ = inserted(module)
    calls = {call.layer: call for call in graph.calls}
    source = calls[edit.after].outputs if edit.after else graph.inputs
    first = calls[edit.after].last if edit.after else 0
    if place not in calls or calls[place].inputs != source or calls[place].first != first:
        raise BadInput(
            f"the network runs code outside of its modules before {edit.layer!r}, which a bottleneck cannot replace; "
            "put that code into modules, or cut without training by the rewrite `split`"
        )
