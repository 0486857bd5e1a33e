"""SkipblockNet, from Bias Loss for Mobile Neural Networks (Abrahamyan et al., 2021, arXiv 2107.11170).

Early features are carried to the later stages by skip blocks, which bring them to a later stage's shape:

    x0 = base(stem(image)); y = stage2(stage1(x0)); y = stage3(y + skip1(x0)); y = stage4(y + skip2(x0)); y = stage5(y)
"""

from typing import Any, NamedTuple

import torch
from torch import nn

from edgekit.nets.layers import (
    Classifier,
    ConvNorm,
    InvertedResidual,
    Pyramid,
    check_arguments,
    init_weights,
    make_divisible,
)


class Row(NamedTuple):
    kernel: int
    expansion: float
    channels: int
    squeeze: bool
    hard_swish: bool
    stride: int


STAGES = (
    (Row(3, 4, 24, False, False, 2), Row(3, 3, 24, False, False, 1)),
    (Row(5, 3, 40, True, False, 2), Row(5, 3, 40, True, False, 1), Row(5, 6, 40, True, True, 1)),
    (
        Row(3, 6, 80, False, True, 2),
        Row(3, 2.5, 80, False, True, 1),
        Row(3, 2.3, 80, False, True, 1),
        Row(3, 2.3, 80, False, True, 1),
    ),
    (Row(3, 6, 112, True, True, 1), Row(3, 6, 112, True, True, 1)),
    (Row(5, 6, 160, True, True, 2), Row(5, 6, 160, True, True, 1), Row(5, 6, 160, True, True, 1)),
)
BASE = Row(3, 1, 16, False, True, 1)
# How far the base block's output is pooled, and the block that follows.
SKIP1 = (4, Row(5, 6, 40, False, False, 1))
SKIP2 = (8, Row(3, 2.3, 80, False, False, 1))


def _block(row: Row, c_in: int) -> InvertedResidual:
    hidden = make_divisible(c_in * row.expansion)
    act = nn.Hardswish if row.hard_swish else nn.ReLU
    squeezed = make_divisible(hidden / 4) if row.squeeze else 0
    return InvertedResidual(c_in, hidden, row.channels, row.kernel, row.stride, act, squeezed)


def _stage(rows: tuple[Row, ...], c_in: int) -> nn.Sequential:
    inputs = [c_in, *(row.channels for row in rows)]
    return nn.Sequential(*(_block(row, c) for row, c in zip(rows, inputs)))


def _skip(pool: int, row: Row) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(pool), _block(row, BASE.channels))


class SkipblockNet(Pyramid):
    def __init__(self, classes: int, features_only: bool) -> None:
        super().__init__()
        self.stem = ConvNorm(3, BASE.channels, 3, 2, act=nn.Hardswish)
        self.base = _block(BASE, BASE.channels)
        inputs = [BASE.channels, *(rows[-1].channels for rows in STAGES)]
        self.stages = nn.ModuleList(_stage(rows, c) for rows, c in zip(STAGES, inputs))
        self.skip1, self.skip2 = _skip(*SKIP1), _skip(*SKIP2)
        if not features_only:
            self.head = ConvNorm(inputs[-1], 960, act=nn.Hardswish)
            self.classifier = Classifier(960, classes, dropout=0.2, hidden=1280)
        init_weights(self)
        if features_only:
            self.tap(["base", "stages.0", "stages.1", "stages.3", "stages.4"])

    def forward(self, x: torch.Tensor) -> Any:
        stage1, stage2, stage3, stage4, stage5 = self.stages
        base = self.base(self.stem(x))  # (B, 16, H/2, W/2)
        y4 = stage1(base)  # (B, 24, H/4, W/4)
        y8 = stage2(y4)  # (B, 40, H/8, W/8)
        y16 = stage4(stage3(y8 + self.skip1(base)) + self.skip2(base))  # (B, 112, H/16, W/16)
        y32 = stage5(y16)  # (B, 160, H/32, W/32)
        return [base, y4, y8, y16, y32] if self.feature_names else self.classifier(self.head(y32))


def skipblocknet_large(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """SkipblockNet, the large one; the input's sides must be multiples of 16.

    Args:
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `classes` not above 0.
    """
    check_arguments(classes)
    return SkipblockNet(classes, features_only)
