"""CSPNet: A New Backbone that can Enhance Learning Capability of CNN (Wang et al., 2019, arXiv 1911.11929).

Only part of a stage's channels goes through its blocks; the rest crosses the stage and is concatenated at the end.
"""

import functools

import torch
from torch import nn

from edgekit.nets.layers import (
    Chain,
    Classifier,
    ConvNorm,
    InvertedResidual,
    PadShortcut,
    SplitChannels,
    check_arguments,
)

leaky_relu = functools.partial(nn.LeakyReLU, 0.1)

# CSPResNeXt-50 as in csresnext50.cfg of the authors' repository, WongKinYiu/CrossStagePartialNetworks. For each stage:
# blocks, channels that cross it, channels of the main path, output, stride, and whether the split is activated.
RESNEXT_STAGES = (
    (3, 128, 64, 256, 1, True),
    (3, 256, 256, 512, 2, False),
    (5, 512, 512, 1024, 2, False),
    (2, 1024, 1024, 2048, 2, True),
)

# CSPMobileNetV2 as in csmobilenet-v2.cfg of the same repository. For each stage: channels of the 1×1 transition into it
# (0 for none), stride, channels that cross it, and the main path's blocks as (expanded, projected). The depthwise
# convolutions double the channels, but for the first stage's, so the expansion is half of MobileNetV2's.
MOBILE_STAGES: tuple[tuple[int, int, int, int, tuple[tuple[int, int], ...]], ...] = (
    (0, 1, 16, 1, ((32, 16),)),
    (48, 2, 48, 2, ((48, 24), (72, 24))),
    (72, 2, 72, 2, ((72, 32), (96, 32), (96, 32), (96, 64), (192, 64), (192, 64), (192, 64))),
    (192, 2, 192, 2, ((192, 96), (288, 96), (288, 96))),
    (288, 2, 288, 2, ((288, 160), (480, 160), (480, 160), (480, 320))),
)


class ResNeXtBlock(nn.Module):
    """1×1, 3×3 in 32 groups and 1×1 convolution, all of the same width, added to the input and activated.

    A narrower input is added to the first channels.
    """

    def __init__(self, c_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(c_in, channels, act=leaky_relu)
        self.conv2 = ConvNorm(channels, channels, 3, groups=32, act=leaky_relu)
        self.conv3 = ConvNorm(channels, channels, act=None)
        self.shortcut = PadShortcut(0, channels - c_in, 1) if c_in != channels else nn.Identity()
        self.act = leaky_relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class CrossStage(nn.Module):
    """Down-sampling, 1×1 expansion, and a split: some channels cross the stage beside the blocks and a transition.

    Both are concatenated and merged by a 1×1 convolution.
    """

    def __init__(
        self, c_in: int, blocks: int, crossing: int, main: int, c_out: int, stride: int, activated: bool
    ) -> None:
        super().__init__()
        half = c_out // 2
        self.down = ConvNorm(c_in, c_in, 3, stride, groups=32, act=leaky_relu) if stride > 1 else nn.Identity()
        self.expand = ConvNorm(c_in, crossing + main, act=leaky_relu if activated else None)
        self.split = SplitChannels([crossing, main])
        self.blocks = nn.Sequential(ResNeXtBlock(main, half), *(ResNeXtBlock(half, half) for _ in range(blocks - 1)))
        self.transition = ConvNorm(half, half, act=leaky_relu)
        self.merge = ConvNorm(half + crossing, c_out, act=leaky_relu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        crossing, main = self.split(self.expand(self.down(x)))
        return self.merge(torch.cat([self.transition(self.blocks(main)), crossing], 1))


class MobileCrossStage(nn.Module):
    """A transition; from there one grouped 3×3 convolution crosses the stage beside the inverted residuals."""

    def __init__(
        self,
        c_in: int,
        transition: int,
        stride: int,
        crossing: int,
        multiplier: int,
        rows: tuple[tuple[int, int], ...],
    ) -> None:
        super().__init__()
        self.transition = ConvNorm(c_in, transition) if transition else nn.Identity()
        channels = transition or c_in
        self.cross = ConvNorm(channels, crossing, 3, stride, groups=crossing)
        self.blocks = nn.Sequential()
        for index, (hidden, c_out) in enumerate(rows):
            first = index == 0
            expand = not (first and transition)  # the transition is the first block's expansion
            step = stride if first else 1
            block = InvertedResidual(
                channels, hidden, c_out, stride=step, act=nn.ReLU, expand=expand, multiplier=multiplier
            )
            self.blocks.append(block)
            channels = c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.transition(x)
        return torch.cat([self.blocks(x), self.cross(x)], 1)


def csp_resnext_50(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """CSPResNeXt-50, by the authors' Darknet file.

    Args:
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `classes` not above 0.
    """
    check_arguments(classes)
    channels = 64
    trunk: dict[str, nn.Module] = {"stem": ConvNorm(3, channels, 7, 2, act=leaky_relu), "pool": nn.MaxPool2d(2, 2)}
    for index, row in enumerate(RESNEXT_STAGES, 1):
        trunk[f"stage{index}"] = CrossStage(channels, *row)
        channels = row[3]
    return Chain(trunk, {"classifier": Classifier(channels, classes)}, features_only)


def csp_mobilenet_v2(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """CSPMobileNetV2, by the authors' Darknet file (the paper prints no table of it).

    Args:
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `classes` not above 0.
    """
    check_arguments(classes)
    channels = 32
    trunk: dict[str, nn.Module] = {"stem": ConvNorm(3, channels, 3, 2)}
    for index, row in enumerate(MOBILE_STAGES, 1):
        trunk[f"stage{index}"] = MobileCrossStage(channels, *row)
        _, _, crossing, _, blocks = row
        channels = crossing + blocks[-1][1]
    trunk["merge"] = ConvNorm(channels, 640)
    return Chain(trunk, {"classifier": Classifier(640, classes)}, features_only)
