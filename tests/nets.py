"""Small networks for the tests."""

import numpy as np
import torch
from torch import nn

from edgekit.channels import Group
from edgekit.nets.layers import Classifier, ConvNorm
from edgekit.passes.importance.rows import matrices, row_sums


class Tiny(nn.Module):
    """Stem, one inverted residual and a classifier: MobileNetV2's ties, small enough to train in seconds."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3, 2)
        self.expand = ConvNorm(16, 48)
        self.depthwise = ConvNorm(48, 48, 3, groups=48)
        self.project = ConvNorm(48, 16, act=None)
        self.head = ConvNorm(16, 32)
        self.classifier = Classifier(32, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        return self.classifier(self.head(x))


def calibrate(module: nn.Module, shape: tuple[int, int, int], seed: int = 0) -> nn.Module:
    """Give batch norms statistics and affine parameters under which the output depends on the input."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.bias.data.uniform_(-0.3, 0.3, generator=generator)
            layer.momentum = None
    module.train()
    with torch.no_grad():
        module(torch.randn(16, *shape, generator=generator))
    return module.eval()


def tiny(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return calibrate(Tiny(classes), (3, 16, 16))


class TinySegment(nn.Module):
    """Fully convolutional, (B, 3, H, W) to (B, classes, H, W), with a skip that is concatenated after scaling up."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3, 2)
        self.down = ConvNorm(16, 32, 3, 2)
        self.deep = ConvNorm(32, 32, 3)
        self.fuse = ConvNorm(48, 16)
        self.classifier = nn.Conv2d(16, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = self.stem(x)
        y = _scaled_to(self.deep(self.down(skip)), skip)
        return _scaled_to(self.classifier(self.fuse(torch.cat([y, skip], 1))), x)


def _scaled_to(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


def tiny_segment(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return calibrate(TinySegment(classes), (3, 64, 64))


def ranking(module: nn.Module, group: Group) -> list[int]:
    """The group's rows from the most to the least important by L2 magnitude."""
    squares = {name: weight.square() for name, weight in matrices(module).items()}
    return np.argsort(-row_sums(group, squares), kind="stable").tolist()
