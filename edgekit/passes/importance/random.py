"""Importances drawn at random: the control that every other has to beat.

score_i ~ U(0, 1)
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from edgekit.channels import Group
from edgekit.context import PassContext
from edgekit.net import Net


@dataclasses.dataclass(frozen=True)
class Random:
    """Drawn by the run's seed and `seed`, the same for the same network."""

    name: Literal["random"] = "random"
    seed: int = 0

    def scores(self, _net: Net, groups: Sequence[Group], ctx: PassContext) -> list[np.ndarray]:
        generator = np.random.default_rng([ctx.seed, self.seed])
        return [generator.random(group.size) for group in groups]
