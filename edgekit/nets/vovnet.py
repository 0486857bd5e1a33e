"""VoVNet: An Energy and GPU-Computation Efficient Backbone Network (Lee et al., 2019, arXiv 1904.09730), and VoVNetV2
of CenterMask (Lee and Park, 2019, arXiv 1911.06667), which adds effective squeeze-and-excitation (eSE).
"""

from typing import NamedTuple

import torch
from torch import nn

from edgekit.nets.layers import Chain, Classifier, ConvNorm, check_arguments


class Table(NamedTuple):
    """Channels of the stem; then for each stage: channels of its 3×3 convolutions, its output, and its modules."""

    stem: tuple[int, int, int]
    convs: tuple[int, int, int, int]
    outputs: tuple[int, int, int, int]
    modules: tuple[int, int, int, int]
    layers: int  # 3×3 convolutions in a module
    depthwise: bool = False


STEM, DW_STEM = (64, 64, 128), (64, 64, 64)
CONVS, SLIM_CONVS = (128, 160, 192, 224), (64, 80, 96, 112)
OUTPUTS, SLIM_OUTPUTS = (256, 512, 768, 1024), (112, 256, 384, 512)

V27_SLIM = Table(STEM, SLIM_CONVS, (128, 256, 384, 512), (1, 1, 1, 1), 5)
V19_SLIM = Table(STEM, SLIM_CONVS, SLIM_OUTPUTS, (1, 1, 1, 1), 3)
V19_SLIM_DW = Table(DW_STEM, SLIM_CONVS, SLIM_OUTPUTS, (1, 1, 1, 1), 3, depthwise=True)
V19 = Table(STEM, CONVS, OUTPUTS, (1, 1, 1, 1), 3)
V19_DW = Table(DW_STEM, CONVS, OUTPUTS, (1, 1, 1, 1), 3, depthwise=True)
V39 = Table(STEM, CONVS, OUTPUTS, (1, 1, 2, 2), 5)
V57 = Table(STEM, CONVS, OUTPUTS, (1, 1, 4, 3), 5)
V99 = Table(STEM, CONVS, OUTPUTS, (1, 3, 9, 3), 5)


class Separable(nn.Sequential):
    """3×3 depthwise and 1×1 convolution with one norm and activation, after both."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False)
        self.pointwise = ConvNorm(c_in, c_out)


class EffectiveSqueezeExcite(nn.Module):
    """Channels scaled by a gate: one 1×1 convolution, no reduction, of their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv2d(channels, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.conv(self.pool(x)))


def _conv3x3(c_in: int, c_out: int, stride: int, depthwise: bool) -> nn.Module:
    return Separable(c_in, c_out, stride) if depthwise else ConvNorm(c_in, c_out, 3, stride)


class OneShotAggregation(nn.Module):
    """A chain of 3×3 convolutions; the input and all of their outputs are concatenated once and reduced by a 1×1 one.

    The depthwise form first reduces what the chain reads, not what is concatenated, to the chain's channels.
    """

    def __init__(self, c_in: int, c_conv: int, c_out: int, table: Table, identity: bool, ese: bool) -> None:
        super().__init__()
        reduced = table.depthwise and c_in != c_conv
        self.reduce = ConvNorm(c_in, c_conv) if reduced else nn.Identity()
        first = c_conv if reduced else c_in
        widths = [first] + [c_conv] * (table.layers - 1)
        self.layers = nn.ModuleList(_conv3x3(c, c_conv, 1, table.depthwise) for c in widths)
        self.aggregate = ConvNorm(c_in + table.layers * c_conv, c_out)
        self.ese = EffectiveSqueezeExcite(c_out) if ese else nn.Identity()
        self.identity = identity

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, y = [x], self.reduce(x)
        for layer in self.layers:
            y = layer(y)
            outputs.append(y)
        y = self.ese(self.aggregate(torch.cat(outputs, 1)))
        return x + y if self.identity else y


def _vovnet(table: Table, ese: str, classes: int, features_only: bool) -> nn.Module:
    """`ese` is where eSE stands: "none", "last" (the last module of each stage) or "all"."""
    check_arguments(classes)
    c1, c2, channels = table.stem
    stem = [ConvNorm(3, c1, 3, 2), _conv3x3(c1, c2, 1, table.depthwise), _conv3x3(c2, channels, 2, table.depthwise)]
    trunk: dict[str, nn.Module] = {"stem": nn.Sequential(*stem)}
    for stage, (c_conv, c_out, modules) in enumerate(zip(table.convs, table.outputs, table.modules), 2):
        trunk[f"stage{stage}"] = parts = nn.Sequential()
        if stage > 2:
            parts.add_module("pool", nn.MaxPool2d(3, 2, ceil_mode=True))
        for index in range(modules):
            attend = ese == "all" or (ese == "last" and index == modules - 1)
            module = OneShotAggregation(channels, c_conv, c_out, table, identity=index > 0, ese=attend)
            parts.add_module(f"osa{index + 1}", module)
            channels = c_out
    return Chain(trunk, {"classifier": Classifier(channels, classes)}, features_only)


def _v2(table: Table, classes: int, ese_everywhere: bool, features_only: bool) -> nn.Module:
    return _vovnet(table, "all" if ese_everywhere else "last", classes, features_only)


def vovnet_27_slim(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """VoVNet-27-slim; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _vovnet(V27_SLIM, "none", classes, features_only)


def vovnet_39(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """VoVNet-39; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _vovnet(V39, "none", classes, features_only)


def vovnet_57(classes: int = 1000, features_only: bool = False) -> nn.Module:
    """VoVNet-57; `features_only` returns the last output at each stride as a list (see `Pyramid`)."""
    return _vovnet(V57, "none", classes, features_only)


def vovnet_v2_19_slim_dw(classes: int = 1000, ese_everywhere: bool = False, features_only: bool = False) -> nn.Module:
    """VoVNetV2-19-slim-dw; arguments as in `vovnet_v2_39`."""
    return _v2(V19_SLIM_DW, classes, ese_everywhere, features_only)


def vovnet_v2_19_dw(classes: int = 1000, ese_everywhere: bool = False, features_only: bool = False) -> nn.Module:
    """VoVNetV2-19-dw; arguments as in `vovnet_v2_39`."""
    return _v2(V19_DW, classes, ese_everywhere, features_only)


def vovnet_v2_19_slim(classes: int = 1000, ese_everywhere: bool = False, features_only: bool = False) -> nn.Module:
    """VoVNetV2-19-slim; arguments as in `vovnet_v2_39`."""
    return _v2(V19_SLIM, classes, ese_everywhere, features_only)


def vovnet_v2_19(classes: int = 1000, ese_everywhere: bool = False, features_only: bool = False) -> nn.Module:
    """VoVNetV2-19; arguments as in `vovnet_v2_39`."""
    return _v2(V19, classes, ese_everywhere, features_only)


def vovnet_v2_39(classes: int = 1000, ese_everywhere: bool = False, features_only: bool = False) -> nn.Module:
    """VoVNetV2-39.

    Args:
        ese_everywhere: eSE in every module (the authors' detection code) and not just in the last one of each stage.
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `classes` not above 0.
    """
    return _v2(V39, classes, ese_everywhere, features_only)


def vovnet_v2_57(classes: int = 1000, ese_everywhere: bool = False, features_only: bool = False) -> nn.Module:
    """VoVNetV2-57; arguments as in `vovnet_v2_39`."""
    return _v2(V57, classes, ese_everywhere, features_only)


def vovnet_v2_99(classes: int = 1000, ese_everywhere: bool = False, features_only: bool = False) -> nn.Module:
    """VoVNetV2-99; arguments as in `vovnet_v2_39`."""
    return _v2(V99, classes, ese_everywhere, features_only)
