"""Densely Connected Convolutional Networks (Huang et al., 2016, arXiv 1608.06993), weights named as in torchvision."""

from collections import OrderedDict

import torch
from torch import nn

from edgekit.nets.layers import Chain, check_arguments

GROWTH = 32
# Layers in each block (table 1 of the paper).
LAYERS_121, LAYERS_201 = (6, 12, 24, 16), (6, 12, 48, 32)


def _layer(c_in: int) -> nn.Sequential:
    """Norm, activation and 1×1 convolution to 4 times the growth, then the same with 3×3 to the growth."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            norm1=nn.BatchNorm2d(c_in),
            relu1=nn.ReLU(),
            conv1=nn.Conv2d(c_in, 4 * GROWTH, 1, bias=False),
            norm2=nn.BatchNorm2d(4 * GROWTH),
            relu2=nn.ReLU(),
            conv2=nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False),
        )
    )


class DenseBlock(nn.Module):
    """Each layer reads the concatenation of the block's input and of all earlier layers."""

    def __init__(self, c_in: int, layers: int) -> None:
        super().__init__()
        for index in range(layers):
            self.add_module(f"denselayer{index + 1}", _layer(c_in + index * GROWTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


def _transition(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            norm=nn.BatchNorm2d(c_in),
            relu=nn.ReLU(),
            conv=nn.Conv2d(c_in, c_out, 1, bias=False),
            pool=nn.AvgPool2d(2, 2),
        )
    )


def _densenet(layers: tuple[int, ...], classes: int, features_only: bool) -> nn.Module:
    check_arguments(classes)
    channels = 2 * GROWTH
    features: dict[str, nn.Module] = {
        "conv0": nn.Conv2d(3, channels, 7, 2, 3, bias=False),
        "norm0": nn.BatchNorm2d(channels),
        "relu0": nn.ReLU(),
        "pool0": nn.MaxPool2d(3, 2, 1),
    }
    for index, repeats in enumerate(layers, 1):
        features[f"denseblock{index}"] = DenseBlock(channels, repeats)
        channels += repeats * GROWTH
        if index < len(layers):
            features[f"transition{index}"] = _transition(channels, channels // 2)
            channels //= 2
    features |= {"norm5": nn.BatchNorm2d(channels), "relu5": nn.ReLU()}
    head = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(1), "classifier": nn.Linear(channels, classes)}
    return Chain({"features": nn.Sequential(OrderedDict(features))}, head, features_only)


def densenet_121(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """DenseNet-121; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _densenet(LAYERS_121, classes, features_only)


def densenet_201(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """DenseNet-201; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _densenet(LAYERS_201, classes, features_only)
