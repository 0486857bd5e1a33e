"""Group magnitude by absolute values.

Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets, 2016, arXiv 1608.08710, over all tied slices
as in Fang et al.: DepGraph, 2023, arXiv 2301.12900:

    I_i = Σ over tied weight slices w of ||w_i||_1,    score_i = I_i / mean_j I_j
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from edgekit.channels import Group
from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.passes.importance.rows import matrices, relative, row_sums


@dataclasses.dataclass(frozen=True)
class L1:
    """Sum of magnitudes, relative to the group's mean: 1 is an average channel, whatever the layer."""

    name: Literal["l1"] = "l1"

    def scores(self, net: Net, groups: Sequence[Group], _ctx: PassContext) -> list[np.ndarray]:
        sizes = {name: weight.abs() for name, weight in matrices(net.module).items()}
        return [relative(row_sums(group, sizes)) for group in groups]
