"""Group magnitude by squares.

Fang, Ma, Song, Mi, Wang: DepGraph: Towards Any Structural Pruning, 2023, arXiv 2301.12900, section 3.3:

    I_i = sqrt( Σ over tied weight slices w of ||w_i||² ),    score_i = I_i / mean_j I_j
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
class L2:
    """Euclidean norm, relative to the group's mean: 1 is an average channel, whatever the layer."""

    name: Literal["l2"] = "l2"

    def scores(self, net: Net, groups: Sequence[Group], _ctx: PassContext) -> list[np.ndarray]:
        squares = {name: weight.square() for name, weight in matrices(net.module).items()}
        return [relative(np.sqrt(row_sums(group, squares))) for group in groups]
