"""SqueezeNet: AlexNet-level accuracy with 50x fewer parameters (Iandola et al., 2016, arXiv 1602.07360).

Version 1.1 is the authors' later form with 2.4 times fewer operations. Weights are named as in torchvision.
"""

import torch
from torch import nn

from edgekit.nets.layers import Chain, check_arguments

# Channels of the squeeze layer and of each expand layer; None for a pooling layer.
FIRES = ((16, 64), (16, 64), None, (32, 128), (32, 128), None, (48, 192), (48, 192), (64, 256), (64, 256))


class Fire(nn.Module):
    """1×1 squeeze, then 1×1 and 3×3 expansion side by side."""

    def __init__(self, c_in: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeezed, 1)
        self.squeeze_activation = nn.ReLU()
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand1x1_activation = nn.ReLU()
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.expand3x3_activation = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        left = self.expand1x1_activation(self.expand1x1(x))
        return torch.cat([left, self.expand3x3_activation(self.expand3x3(x))], 1)


def _pool() -> nn.Module:
    return nn.MaxPool2d(3, 2, ceil_mode=True)


def squeezenet_1_1(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """SqueezeNet 1.1. The first layer and the pools do not pad: maps are a little smaller than input / stride.

    Args:
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `classes` not above 0.
    """
    check_arguments(classes)
    features, channels = nn.Sequential(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), _pool()), 64
    for row in FIRES:
        features.append(_pool() if row is None else Fire(channels, *row))
        channels = channels if row is None else 2 * row[1]
    classifier = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(channels, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return Chain({"features": features}, {"classifier": classifier, "flatten": nn.Flatten(1)}, features_only)
