"""Pieces that several families share."""

from collections.abc import Callable
from typing import Any

from torch import nn


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, never more than 10 % below it (MobileNet's rounding rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm and an activation (None for none), padded to keep `size / stride`."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: Callable[[], nn.Module] | None = nn.ReLU,
        **norm: Any,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out, **norm)
        if act is not None:
            self.act = act()


class Classifier(nn.Sequential):
    """Global average pool, dropout (None for none) and a linear layer."""

    def __init__(self, c_in: int, classes: int, dropout: float | None = None) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        if dropout is not None:
            self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(c_in, classes)


def init_weights(module: nn.Module) -> None:
    """He-normal (fan out) convolutions, unit batch norms, N(0, 0.01) linear layers (He et al., 2015, 1502.01852)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
