"""Distance from the geometric median.

He, Liu, Wang, Hu, Yang: Filter Pruning via Geometric Median (FPGM), 2019, arXiv 1811.00250, eq. 7: the filters nearest
to the median of a layer are those that the others can replace.

    I_i = Σ_j || w_i − w_j ||_2,    score_i = I_i / mean_j I_j

w_i holds the filters of every layer that makes channel i, one behind the other.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from edgekit.channels import Group
from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.passes.importance.rows import made_by, matrices, relative


@dataclasses.dataclass(frozen=True)
class GeometricMedian:
    """Sum of the distances to the group's other filters, relative to the group's mean."""

    name: Literal["geometric_median"] = "geometric_median"

    def scores(self, net: Net, groups: Sequence[Group], _ctx: PassContext) -> list[np.ndarray]:
        weights = matrices(net.module)
        found = []
        for group in groups:
            filters = []
            for name, dim in made_by(net.module, group):
                rows = torch.from_numpy(group.slots[name, dim])
                flat = weights[name].double().cpu().transpose(0, dim).flatten(1)  # (channels, weights a filter)
                filters.append(flat[rows].flatten(1))
            stacked = torch.cat(filters, 1) if filters else torch.zeros(group.size, 1)
            found.append(relative(torch.cdist(stacked, stacked).sum(1).numpy().astype(np.float64)))
        return found
