"""Pieces that several families share.

No module is called twice in one forward pass, so that its path names what it computes, and none works in place.
"""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from edgekit.errors import BadInput

Activation = Callable[[], nn.Module] | None


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, never more than 10 % below it (MobileNet's rounding rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def check_arguments(classes: int, width: float = 1.0) -> None:
    """Raises BadInput where no network has so many classes or so wide layers."""
    if classes < 1:
        raise BadInput(f"classes = {classes}: a network needs at least one class; write 1 or more")
    if not (math.isfinite(width) and width > 0):
        raise BadInput(f"width = {width}: the factor on every layer's channels must be above 0, such as 0.5 or 1.0")


class Pyramid(nn.Module):
    """A network that can give its feature maps in place of class scores.

    When it does (`features_only`), forward returns one map for each stride as a list, from fine to coarse, and
    `feature_names` (the modules that make them), `feature_strides` and `feature_channels` describe them. Otherwise all
    three are empty. The head is absent then; every other weight keeps its name.
    """

    feature_names: tuple[str, ...] = ()
    feature_strides: tuple[int, ...] = ()

    def tap(self, names: Iterable[str]) -> None:
        """Give features from now on: of the maps that these modules make, in order, the last at each stride."""
        self.feature_names = tuple(names)
        strides = [2 ** round(math.log2(PROBE_SIZE / output.shape[-1])) for output in self._probe()]
        last = dict(zip(strides, self.feature_names))
        self.feature_names, self.feature_strides = tuple(last.values()), tuple(last)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Measured, so that it also holds after channels were removed."""
        return tuple(output.shape[1] for output in self._probe()) if self.feature_names else ()

    def _probe(self) -> list[torch.Tensor]:
        """The features of one square image, without data."""
        state = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}
        with torch.no_grad():
            return functional_call(self, state, (torch.empty(1, 3, PROBE_SIZE, PROBE_SIZE, device="meta"),))


PROBE_SIZE = 256


class Chain(Pyramid, nn.Sequential):
    """A trunk of parts run in order, then a head, which is left out with `features_only` (see `Pyramid`)."""

    def __init__(
        self, trunk: Mapping[str, nn.Module], head: Mapping[str, nn.Module] | None = None, features_only: bool = False
    ) -> None:
        super().__init__(OrderedDict({**trunk, **({} if features_only else head or {})}))
        init_weights(self)
        if features_only:
            self.tap(name for name, _ in self.parts())

    def __getitem__(self, index: Any) -> Any:
        """A slice is a plain Sequential of the same modules: another Chain would begin by drawing new weights."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self.named_children())[index]))
        return super().__getitem__(index)

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """The children in order; a plain Sequential counts as its own children."""
        for name, child in self.named_children():
            if type(child) is nn.Sequential:
                yield from ((f"{name}.{inner}", part) for inner, part in child.named_children())
            else:
                yield name, child

    def forward(self, x: torch.Tensor) -> Any:
        if not self.feature_names:
            return nn.Sequential.forward(self, x)
        features = []
        for name, part in self.parts():
            x = part(x)
            if name in self.feature_names:
                features.append(x)
        return features


class ConvNorm(nn.Sequential):
    """Convolution without bias, batch norm and an activation (None for none), padded to keep `size / stride`."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: Activation = nn.ReLU,
        **norm: Any,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out, **norm)
        if act is not None:
            self.act = act()


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate computed from their means (Hu et al., 2017, arXiv 1709.01507), hard sigmoid as gate."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU()
        self.expand = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))  # (B, C, H, W) · (B, C, 1, 1)


class DepthwiseSeparable(nn.Sequential):
    """Depthwise convolution, squeeze-and-excitation where `squeezed` is above 0, 1×1 convolution."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int, act: Activation = nn.ReLU, squeezed: int = 0
    ) -> None:
        super().__init__()
        self.depthwise = ConvNorm(c_in, c_in, kernel, stride, groups=c_in, act=act)
        if squeezed:
            self.se = SqueezeExcite(c_in, squeezed)
        self.pointwise = ConvNorm(c_in, c_out, act=act)


class InvertedResidual(nn.Module):
    """1×1 expansion to `hidden` channels (unless `expand` is False: `hidden` is `c_in`), depthwise convolution,
    squeeze-and-excitation where `squeezed` is above 0, 1×1 linear projection; added to the input where shapes agree.
    """

    def __init__(
        self,
        c_in: int,
        hidden: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        act: Activation = nn.ReLU6,
        squeezed: int = 0,
        expand: bool = True,
        multiplier: int = 1,
        **norm: Any,
    ) -> None:
        super().__init__()
        wide = hidden * multiplier
        self.expand = ConvNorm(c_in, hidden, act=act, **norm) if expand else nn.Identity()
        self.depthwise = ConvNorm(hidden, wide, kernel, stride, groups=hidden, act=act, **norm)
        self.se = SqueezeExcite(wide, squeezed) if squeezed else nn.Identity()
        self.project = ConvNorm(wide, c_out, act=None, **norm)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class SplitChannels(nn.Module):
    """(B, sum(sizes), H, W) to one tensor for each of `sizes`."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = list(sizes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.split(self.sizes, dim=1)

    def channels(self, _dim: str) -> int:
        return sum(self.sizes)

    def keep_channels(self, _dim: str, keep: Sequence[int]) -> None:
        """Keep these of the channels that come in."""
        bounds = [0, *itertools.accumulate(self.sizes)]
        self.sizes = [sum(low <= index < high for index in keep) for low, high in itertools.pairwise(bounds)]


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, with channels of zeros before and after: a shortcut without weights."""

    def __init__(self, c_before: int, c_after: int, stride: int) -> None:
        super().__init__()
        self.c_before = c_before
        self.c_after = c_after
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.c_before, self.c_after))

    def channels(self, _dim: str) -> int:
        return self.c_before + self.c_after

    def keep_channels(self, _dim: str, keep: Sequence[int]) -> None:
        """Keep these of the channels of zeros, counted from the first one before to the last one after."""
        before = sum(index < self.c_before for index in keep)
        self.c_before, self.c_after = before, len(keep) - before


class Classifier(nn.Sequential):
    """Global average pool, a hidden linear layer where `hidden` is above 0, dropout (None for none), a linear layer."""

    def __init__(
        self,
        c_in: int,
        classes: int,
        dropout: float | None = None,
        hidden: int = 0,
        act: Callable[[], nn.Module] = nn.Hardswish,
        hidden_bias: bool = True,
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        if hidden:
            self.hidden = nn.Linear(c_in, hidden, bias=hidden_bias)
            self.act = act()
        if dropout is not None:
            self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden or c_in, classes)


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
