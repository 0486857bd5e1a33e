"""What the importances share: sums of tied weights by row of a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from edgekit.channels import Group
from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.removal import layer_side


class Importance(Protocol):
    """How much each row of a group matters, as the recipe describes it."""

    @property
    def name(self) -> str: ...

    def scores(self, net: Net, groups: Sequence[Group], ctx: PassContext) -> list[np.ndarray]:
        """For each group float64 (size,), at least 0; larger stays. Comparable between groups."""
        ...


def row_sums(group: Group, values: Mapping[str, torch.Tensor]) -> np.ndarray:
    """The sum of `values`, by parameter name and in the parameter's shape, over the slices tied to each row: float64
    (size,). Axes of parameters that are not in `values` add nothing."""
    total = np.zeros(group.size)
    for (name, dim), rows in group.slots.items():
        if name in values:
            value = values[name].detach()
            others = [axis for axis in range(value.ndim) if axis != dim]
            sums = value.sum(others, dtype=torch.float64) if others else value.double()
            total += sums.cpu().numpy()[rows].sum(1)
    return total


def matrices(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of convolutions and linear layers: a norm's scale or a bias is of another size, and is left out."""
    return {name: parameter.detach() for name, parameter in module.named_parameters() if parameter.ndim > 1}


def made_by(module: nn.Module, group: Group) -> list[tuple[str, int]]:
    """The axes that make the group's channels, in order; the others read them or norm them."""
    weights = matrices(module)
    sides = {axis: layer_side(module, axis)[1] for axis in group.slots if axis[0] in weights}
    return [axis for axis, side in sides.items() if side == "out"]


def relative(scores: np.ndarray) -> np.ndarray:
    """Divided by their mean, so that wide and narrow, large and small weights compare; zeros where all are 0."""
    mean = scores.mean()
    return scores / mean if mean > 0 else scores
