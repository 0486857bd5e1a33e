"""The scale of batch norms.

Liu, Li, Shen, Huang, Yan, Zhang: Learning Efficient Convolutional Networks through Network Slimming, 2017, arXiv
1708.06519:

    score_i = mean over the tied norms of |γ_i|

Means what it says only where γ was trained, best under an L1 penalty. Not normalised: a norm's output has the spread γ
whatever the layer, so that channels of different layers compare as they are.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import nn

from edgekit.channels import Group
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.passes.importance.rows import row_sums


@dataclasses.dataclass(frozen=True)
class BNScale:
    """|γ| of the norms on the channel: batch, group and layer norms with an affine part."""

    name: Literal["bn_scale"] = "bn_scale"

    def scores(self, net: Net, groups: Sequence[Group], _ctx: PassContext) -> list[np.ndarray]:
        """Raises BadInput where channels of a group pass no norm."""
        kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
        norms = {name: layer for name, layer in net.module.named_modules() if isinstance(layer, kinds)}
        scales = {f"{name}.weight": norm.weight.abs() for name, norm in norms.items() if norm.weight is not None}
        counts = [sum(rows.shape[1] for (name, _), rows in group.slots.items() if name in scales) for group in groups]
        for group, count in zip(groups, counts):
            if not count:
                raise BadInput(
                    f'bn_scale: no norm with a scale follows {group.name}; write importance = "l2", or '
                    f"exclude = [{group.name!r}]"
                )
        return [row_sums(group, scales) / count for group, count in zip(groups, counts)]
