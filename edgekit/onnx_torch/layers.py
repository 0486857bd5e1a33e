"""Layers for what torch has as a function only, so that every node of a graph is a module with a name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgekit.errors import BadInput


class Function(nn.Module):
    """`function(x, ..., **settings)`."""

    def __init__(self, function: Callable[..., Any], **settings: Any) -> None:
        super().__init__()
        self.function = function
        self.settings = settings

    def forward(self, *values: torch.Tensor) -> Any:
        return self.function(*values, **self.settings)

    def extra_repr(self) -> str:
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        return getattr(self.function, "__name__", str(self.function)) + settings


class WithNumber(nn.Module):
    """An operator between an activation and a number; `first` where the number stands on the left."""

    def __init__(self, operator: Callable[[Any, Any], torch.Tensor], number: float, first: bool) -> None:
        super().__init__()
        self.operator = operator
        self.number = number
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operator(self.number, x) if self.first else self.operator(x, self.number)


class WithWeight(nn.Module):
    """An operator between an activation and a weight of `shape`, e.g. a learned scale (C, 1, 1), whose one long axis
    can lose channels (see channels.py)."""

    def __init__(
        self, operator: Callable[..., torch.Tensor], shape: tuple[int, ...], first: bool, device: str | None = None
    ) -> None:
        super().__init__()
        self.operator = operator
        self.first = first
        self.long = [axis for axis, size in enumerate(shape) if size > 1]
        self.weight = nn.Parameter(torch.empty(shape, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operator(self.weight, x) if self.first else self.operator(x, self.weight)

    def channels(self, _dim: str) -> int:
        if len(self.long) != 1:
            raise BadInput(f"cannot remove channels from a weight of {tuple(self.weight.shape)}")
        return self.weight.shape[self.long[0]]

    def keep_channels(self, _dim: str, keep: Sequence[int]) -> None:
        rows = torch.tensor(keep, device=self.weight.device)
        self.weight = nn.Parameter(self.weight.detach().index_select(self.long[0], rows))


class Concat(nn.Module):
    """Activations joined along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return torch.cat(values, self.axis)


class Slice(nn.Module):
    """x[slices]: one slice an axis."""

    def __init__(self, slices: tuple[slice, ...]) -> None:
        super().__init__()
        self.slices = slices

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[self.slices]


class Reshape(nn.Module):
    """A new shape whose sizes are numbers, or products of the input's sizes from axis a up to b, given as (a, b).

    Sizes are written as products wherever they can be, so that neither the batch nor a number of channels is fixed.
    """

    def __init__(self, sizes: tuple[int | tuple[int, int], ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = [math.prod(x.shape[slice(*size)]) if isinstance(size, tuple) else size for size in self.sizes]
        return x.reshape(shape)

    def extra_repr(self) -> str:
        return str(self.sizes)


class MeanOfInside(nn.Module):
    """Average pooling over the pixels inside the picture alone, with padding (left, right, top, bottom) that may be
    uneven: (B, C, H, W) -> (B, C, H', W').

    The mean over a padded window, over the share of the window that is inside: the window's size cancels.
    """

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride
        self.padding = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
        return self._mean(x) / self._mean(inside)  # (B, C, H', W') / (1, 1, H', W')

    def _mean(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(functional.pad(x, self.padding), self.kernel, self.stride)


class DepthToSpace(nn.Module):
    """(B, k·k·C, H, W) -> (B, C, k·H, k·W), the block's place counted before the channel (ONNX's mode DCR)."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        k = self.block
        x = x.reshape(batch, k, k, channels // k**2, height, width)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // k**2, k * height, k * width)


class SpaceToDepth(nn.Module):
    """(B, C, k·H, k·W) -> (B, k·k·C, H, W), the block's place counted before the channel."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        k = self.block
        x = x.reshape(batch, channels, height // k, k, width // k, k)
        return x.permute(0, 3, 5, 1, 2, 4).reshape(batch, channels * k**2, height // k, width // k)


class Resample(nn.Module):
    """Height and width resampled by tables, one an axis: output i is low[i] + share[i] · (high[i] − low[i]) of the
    input's rows (columns). For the coordinate conventions of ONNX that torch does not have."""

    def __init__(self, tables: dict[int, tuple[Any, Any, Any]]) -> None:
        super().__init__()
        self.axes = tuple(tables)
        self.mixes = {axis: bool(share.any()) for axis, (_, _, share) in tables.items()}
        for axis, (low, high, share) in tables.items():
            self.register_buffer(f"low{axis}", torch.as_tensor(low), persistent=False)
            self.register_buffer(f"high{axis}", torch.as_tensor(high), persistent=False)
            self.register_buffer(f"share{axis}", torch.as_tensor(share), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for axis in self.axes:
            low = x.index_select(axis, self.get_buffer(f"low{axis}"))
            if not self.mixes[axis]:
                x = low
                continue
            high = x.index_select(axis, self.get_buffer(f"high{axis}"))
            share = self.get_buffer(f"share{axis}")
            x = low + (high - low) * (share[:, None] if axis == 2 else share)
        return x
