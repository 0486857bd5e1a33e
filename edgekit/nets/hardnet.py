"""HarDNet: A Low Memory Traffic Network (Chao et al., 2019, arXiv 1909.00948).

Layer l of a block reads layers l − 2^i for every i ≥ 0 such that 2^i divides l (0 is the block's input), and has
k·m^n channels, 2^n the largest power of two that divides l. A block gives its odd layers and its last one.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from edgekit.nets.layers import Activation, Chain, Classifier, ConvNorm, check_arguments, init_weights


class Table(NamedTuple):
    """A network of the paper, one entry for each block; `downsample` numbers the blocks after which the size halves.

    `depthwise` gives the DS form; `last_dropout` stands before the last transition.
    """

    stem: tuple[int, int]
    multiplier: float
    transitions: tuple[int, ...]
    growths: tuple[int, ...]
    layers: tuple[int, ...]
    downsample: tuple[int, ...]
    dropout: float
    depthwise: bool = False
    last_dropout: float = 0.0


BLOCKS_39 = ((96, 320, 640, 1024), (16, 20, 64, 160), (4, 16, 8, 4), (1, 2, 3))
BLOCKS_68 = ((128, 256, 320, 640, 1024), (14, 16, 20, 40, 160), (8, 16, 16, 16, 4), (1, 3, 4))
BLOCKS_85 = ((192, 256, 320, 480, 720, 1280), (24, 24, 28, 36, 48, 256), (8, 16, 16, 16, 16, 4), (1, 3, 5))
HARDNET_39DS = Table((24, 48), 1.6, *BLOCKS_39, dropout=0.05, depthwise=True)
HARDNET_68DS = Table((32, 64), 1.7, *BLOCKS_68, dropout=0.05, depthwise=True)
HARDNET_68 = Table((32, 64), 1.7, *BLOCKS_68, dropout=0.1)
HARDNET_85 = Table((48, 96), 1.7, *BLOCKS_85, dropout=0.2, last_dropout=0.1)

# FC-HarDNet-70: channels and stride of the stem; growth, layers and transition of each block.
FC_STEM = ((16, 2), (24, 1), (32, 2), (48, 1))
FC_BLOCKS = ((10, 4, 64), (16, 4, 96), (18, 8, 160), (24, 8, 224), (32, 8, 320))


def links(layer: int) -> list[int]:
    """The layers that layer `layer` (1, 2, …) reads, nearest first; 0 is the block's input."""
    return [layer - 2**i for i in range(layer.bit_length()) if layer % 2**i == 0]


def layer_channels(layer: int, growth: int, multiplier: float) -> int:
    """k·m^n rounded to an even number."""
    power = (layer & -layer).bit_length() - 1  # 2^power is the largest power of two that divides it
    return int(growth * multiplier**power + 1) // 2 * 2


class HarDBlock(nn.Module):
    """A harmonic dense block: (B, c_in, H, W) to (B, c_out, H, W), the block's input not among the outputs."""

    def __init__(
        self, c_in: int, growth: int, multiplier: float, layers: int, act: Activation, depthwise: bool = False
    ) -> None:
        super().__init__()
        channels = [c_in, *(layer_channels(layer, growth, multiplier) for layer in range(1, layers + 1))]
        self.layers = nn.ModuleList(
            _layer(sum(channels[link] for link in links(layer)), channels[layer], act, depthwise)
            for layer in range(1, layers + 1)
        )
        self.c_out = sum(channels[1::2]) + channels[-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [x]
        for index, layer in enumerate(self.layers, 1):
            inputs = [outputs[link] for link in links(index)]
            outputs.append(layer(torch.cat(inputs, 1) if len(inputs) > 1 else inputs[0]))
        return torch.cat([*outputs[1::2], outputs[-1]], 1)


def _layer(c_in: int, c_out: int, act: Activation, depthwise: bool) -> nn.Module:
    """A 3×3 convolution; in the DS form a 1×1 one and then a depthwise one without activation."""
    if not depthwise:
        return ConvNorm(c_in, c_out, 3, act=act)
    return nn.Sequential(ConvNorm(c_in, c_out, act=act), ConvNorm(c_out, c_out, 3, groups=c_out, act=None))


def _hardnet(table: Table, classes: int, features_only: bool) -> nn.Module:
    check_arguments(classes)
    first, channels = table.stem

    def down(c: int, pool: nn.Module) -> nn.Module:
        return ConvNorm(c, c, 3, 2, groups=c, act=None) if table.depthwise else pool

    trunk: dict[str, nn.Module] = {
        "conv1": ConvNorm(3, first, 3, 2, act=nn.ReLU6),
        "conv2": ConvNorm(first, channels, 1 if table.depthwise else 3, act=nn.ReLU6),
        "down0": down(channels, nn.MaxPool2d(3, 2, 1)),
    }
    rows = zip(table.transitions, table.growths, table.layers)
    for index, (transition, growth, layers) in enumerate(rows, 1):
        block = HarDBlock(channels, growth, table.multiplier, layers, nn.ReLU6, table.depthwise)
        trunk[f"block{index}"] = block
        if table.last_dropout and index == len(table.layers):
            trunk["dropout"] = nn.Dropout(table.last_dropout)
        trunk[f"transition{index}"] = ConvNorm(block.c_out, transition, act=nn.ReLU6)
        channels = transition
        if index in table.downsample:
            trunk[f"down{index}"] = down(channels, nn.MaxPool2d(2, 2))
    return Chain(trunk, {"classifier": Classifier(channels, classes, table.dropout)}, features_only)


def hardnet_39ds(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """HarDNet-39DS; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _hardnet(HARDNET_39DS, classes, features_only)


def hardnet_68ds(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """HarDNet-68DS; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _hardnet(HARDNET_68DS, classes, features_only)


def hardnet_68(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """HarDNet-68; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _hardnet(HARDNET_68, classes, features_only)


def hardnet_85(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """HarDNet-85; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _hardnet(HARDNET_85, classes, features_only)


class FcHarDNet(nn.Module):
    """A U-shaped segmentation network of HarD blocks: (B, 3, H, W) to (B, classes, H, W)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        channels, stem, skips = 3, nn.Sequential(), []
        for c, stride in FC_STEM:
            stem.append(ConvNorm(channels, c, 3, stride))
            channels = c
        self.stem = stem
        self.encoder, self.transitions, self.pools = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for index, (growth, layers, transition) in enumerate(FC_BLOCKS):
            block = HarDBlock(channels, growth, 1.7, layers, nn.ReLU)
            self.encoder.append(block)
            self.transitions.append(ConvNorm(block.c_out, transition))
            self.pools.append(nn.AvgPool2d(2) if index < len(FC_BLOCKS) - 1 else nn.Identity())
            skips.append(block.c_out)
            channels = transition
        self.reducers, self.decoder = nn.ModuleList(), nn.ModuleList()
        for skip, (growth, layers, _) in reversed(list(zip(skips, FC_BLOCKS[:-1]))):
            wide = channels + skip
            self.reducers.append(ConvNorm(wide, wide // 2))
            block = HarDBlock(wide // 2, growth, 1.7, layers, nn.ReLU)
            self.decoder.append(block)
            channels = block.c_out
        self.classifier = nn.Conv2d(channels, classes, 1)
        init_weights(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, skips = self.stem(x), []
        for block, transition, pool in zip(self.encoder, self.transitions, self.pools):
            skips.append(block(y))
            y = pool(transition(skips[-1]))
        for reduce, block, skip in zip(self.reducers, self.decoder, reversed(skips[:-1])):
            y = block(reduce(torch.cat([_resize(y, skip), skip], 1)))
        return _resize(self.classifier(y), x)


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)


def fc_hardnet_70(classes: int = 19) -> nn.Module:
    """FC-HarDNet-70, semantic segmentation at the input's size; 19 classes are those of Cityscapes.

    Raises:
        BadInput: `classes` not above 0.
    """
    check_arguments(classes)
    return FcHarDNet(classes)
