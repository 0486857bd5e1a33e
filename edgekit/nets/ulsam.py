"""ULSAM: Ultra-Lightweight Subspace Attention Module (Saini et al., 2020, arXiv 2006.15102).

The channels are split into groups F_1 … F_g; each has one attention map A over its pixels and becomes A·F + F:
A = softmax over H·W of relu(norm(pointwise(maxpool(relu(norm(depthwise 1×1(F))))))).
"""

import torch
from torch import nn

from edgekit.errors import BadInput
from edgekit.nets.layers import SplitChannels


class Subspace(nn.Module):
    """Attention over the pixels of one group of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.Sequential(
            nn.Conv2d(channels, channels, 1, groups=channels),
            nn.BatchNorm2d(channels, momentum=0.9),
            nn.ReLU(),
            nn.MaxPool2d(3, 1, 1),
            nn.Conv2d(channels, 1, 1),
            nn.BatchNorm2d(1, momentum=0.9),
            nn.ReLU(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.attend(x)  # (B, 1, H, W)
        attention = scores.flatten(2).softmax(-1).reshape(scores.shape)
        return attention * x + x


class Ulsam(nn.Module):
    """(B, C, H, W) to the same shape.

    Raises:
        BadInput: `groups` does not divide `channels`.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        if groups < 1 or channels % groups:
            raise BadInput(f"ulsam_groups = {groups}: must divide the {channels} channels of the layer it attends to")
        self.split = SplitChannels([channels // groups] * groups)
        self.subspaces = nn.ModuleList(Subspace(size) for size in self.split.sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([attend(part) for attend, part in zip(self.subspaces, self.split(x))], 1)
