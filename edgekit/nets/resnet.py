"""Deep Residual Learning for Image Recognition (He et al., 2015, arXiv 1512.03385).

Weights are named as in torchvision (`layer1.0.conv1`, `layer2.0.downsample.0`, `fc`); those of the CIFAR networks as in
the usual CIFAR checkpoints (`layer1.0.conv1`, `linear`, no weights on shortcuts).
"""

import torch
from torch import nn

from edgekit.errors import BadInput
from edgekit.nets.layers import Chain, PadShortcut, check_arguments

# Blocks in each of the four stages of 64, 128, 256 and 512 channels (table 1 of the paper).
BLOCKS_18, BLOCKS_34, BLOCKS_50 = (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 6, 3)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; the shortcut is added before the last activation."""

    def __init__(self, c_in: int, c_out: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = downsample
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution; the stride is on the 3×3 one, or on the first in the paper's own form."""

    def __init__(self, c_in: int, width: int, stride: int, downsample: nn.Module, stride_on_1x1: bool) -> None:
        super().__init__()
        c_out = 4 * width
        stride1, stride2 = (stride, 1) if stride_on_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(c_in, width, 1, stride1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(width, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out)
        self.downsample = downsample
        self.relu3 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + self.downsample(x))


def _projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The shortcut: as it is where the shape stays, else a strided 1×1 convolution (option B)."""
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))


def _basic_stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(c_in, c_out, stride, _projection(c_in, c_out, stride))
    return nn.Sequential(first, *(BasicBlock(c_out, c_out, 1, nn.Identity()) for _ in range(blocks - 1)))


def _bottleneck_stage(c_in: int, width: int, blocks: int, stride: int, stride_on_1x1: bool) -> nn.Sequential:
    c_out = 4 * width
    first = Bottleneck(c_in, width, stride, _projection(c_in, c_out, stride), stride_on_1x1)
    rest = (Bottleneck(c_out, width, 1, nn.Identity(), stride_on_1x1) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


def _stem() -> dict[str, nn.Module]:
    return {
        "conv1": nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        "bn1": nn.BatchNorm2d(64),
        "relu": nn.ReLU(),
        "maxpool": nn.MaxPool2d(3, 2, 1),
    }


def _head(channels: int, classes: int, name: str = "fc") -> dict[str, nn.Module]:
    return {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1), name: nn.Linear(channels, classes)}


def _basic_resnet(blocks: tuple[int, ...], classes: int, features_only: bool) -> nn.Module:
    check_arguments(classes)
    trunk, channels = _stem(), 64
    for index, repeats in enumerate(blocks):
        c_out = 64 * 2**index
        trunk[f"layer{index + 1}"] = _basic_stage(channels, c_out, repeats, 2 if index else 1)
        channels = c_out
    return Chain(trunk, _head(channels, classes), features_only)


def resnet_18(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """ResNet-18; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _basic_resnet(BLOCKS_18, classes, features_only)


def resnet_34(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """ResNet-34; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _basic_resnet(BLOCKS_34, classes, features_only)


def resnet_50(classes: int = 1000, stride_on_1x1: bool = False, features_only: bool = False) -> nn.Module:
    """ResNet-50.

    Args:
        stride_on_1x1: stages are strided by their first 1×1 convolution, as in the paper, and not by the 3×3 one.
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `classes` not above 0.
    """
    check_arguments(classes)
    trunk, channels = _stem(), 64
    for index, repeats in enumerate(BLOCKS_50):
        width = 64 * 2**index
        trunk[f"layer{index + 1}"] = _bottleneck_stage(channels, width, repeats, 2 if index else 1, stride_on_1x1)
        channels = 4 * width
    return Chain(trunk, _head(channels, classes), features_only)


def _cifar_stage(c_in: int, c_out: int, blocks: int) -> nn.Sequential:
    shortcut: nn.Module = nn.Identity()
    if c_in != c_out:
        before = (c_out - c_in) // 2
        shortcut = PadShortcut(before, c_out - c_in - before, stride=2)
    first = BasicBlock(c_in, c_out, 1 if c_in == c_out else 2, shortcut)
    return nn.Sequential(first, *(BasicBlock(c_out, c_out, 1, nn.Identity()) for _ in range(blocks - 1)))


def _cifar_resnet(depth: int, classes: int, width: int, features_only: bool) -> nn.Module:
    """Three stages of (depth − 2) / 6 blocks with w, 2w and 4w channels, shortcuts of option A (section 4.2)."""
    check_arguments(classes)
    if not isinstance(width, int) or width < 1:
        raise BadInput(f"width = {width}: the first stage's channels must be a whole number, 1 or more; it has 16")
    blocks = (depth - 2) // 6
    trunk = {
        "conv1": nn.Conv2d(3, width, 3, 1, 1, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
        "layer1": _cifar_stage(width, width, blocks),
        "layer2": _cifar_stage(width, 2 * width, blocks),
        "layer3": _cifar_stage(2 * width, 4 * width, blocks),
    }
    return Chain(trunk, _head(4 * width, classes, "linear"), features_only)


def cifar_resnet_20(classes: int = 10, width: int = 16, features_only: bool = False) -> nn.Module:
    """ResNet-20 for 32×32; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _cifar_resnet(20, classes, width, features_only)


def cifar_resnet_32(classes: int = 10, width: int = 16, features_only: bool = False) -> nn.Module:
    """ResNet-32 for 32×32; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _cifar_resnet(32, classes, width, features_only)


def cifar_resnet_56(classes: int = 10, width: int = 16, features_only: bool = False) -> nn.Module:
    """ResNet-56 for 32×32; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _cifar_resnet(56, classes, width, features_only)


def cifar_resnet_110(classes: int = 10, width: int = 16, features_only: bool = False) -> nn.Module:
    """ResNet-110 for 32×32; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _cifar_resnet(110, classes, width, features_only)
