"""The structural changes that a Net can carry, each a frozen dataclass that serialises to JSON."""

import dataclasses
from typing import Literal

import torch
from torch import nn

from edgekit.errors import BadInput


@dataclasses.dataclass(frozen=True)
class KeepChannels:
    """Keep the channels `keep` (ascending) of the layer's output or input and delete the others.

    A depthwise convolution has one set of channels: keep it with dim "out". In a grouped convolution whole groups
    go, or the same number from each group.
    """

    layer: str
    dim: Literal["out", "in"]
    keep: tuple[int, ...]

    def apply(self, module: nn.Module) -> None:
        try:
            layer = module.get_submodule(self.layer)
        except AttributeError:
            raise BadInput(f"keep_channels: the network has no layer {self.layer!r}") from None
        size = channels(layer, self.dim)
        if not self.keep or max(self.keep) >= size or min(self.keep) < 0 or list(self.keep) != sorted(set(self.keep)):
            raise BadInput(f"keep_channels: {self.layer} has {size} channels ({self.dim}); cannot keep {self.keep}")
        _keep(layer, self.dim, torch.tensor(self.keep))


EDITS = {"keep_channels": KeepChannels}


def channels(layer: nn.Module, dim: Literal["out", "in"]) -> int:
    """How many channels a layer has on that side.

    Raises:
        BadInput: the layer has no channels that could be removed.
    """
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return layer.out_channels if dim == "out" else layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features if dim == "out" else layer.in_features
    if isinstance(layer, nn.BatchNorm2d):
        return layer.num_features
    raise BadInput(f"cannot remove channels from {type(layer).__name__}")


def _keep(layer: nn.Module, dim: Literal["out", "in"], keep: torch.Tensor) -> None:
    if isinstance(layer, nn.BatchNorm2d):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _select(layer, name, keep, 0)
        layer.num_features = len(keep)
    elif isinstance(layer, nn.Linear):
        _select(layer, "weight", keep, 0 if dim == "out" else 1)
        if dim == "out":
            _select(layer, "bias", keep, 0)
            layer.out_features = len(keep)
        else:
            layer.in_features = len(keep)
    elif isinstance(layer, nn.Conv2d):
        _keep_conv(layer, dim, keep)
    else:
        raise BadInput(f"cannot remove channels from {type(layer).__name__}")


def _keep_conv(layer: nn.Conv2d, dim: Literal["out", "in"], keep: torch.Tensor) -> None:
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    if layer.groups > 1 and not depthwise:
        raise BadInput("keep_channels: grouped convolutions other than depthwise ones cannot be pruned yet")
    if dim == "out":
        _select(layer, "weight", keep, 0)
        _select(layer, "bias", keep, 0)
        layer.out_channels = len(keep)
        if depthwise:
            layer.in_channels = layer.groups = len(keep)
    else:
        _select(layer, "weight", keep, 1)
        layer.in_channels = len(keep)


def _select(layer: nn.Module, name: str, keep: torch.Tensor, axis: int) -> None:
    tensor = getattr(layer, name, None)
    if tensor is None:
        return
    kept = tensor.detach().index_select(axis, keep.to(tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        setattr(layer, name, nn.Parameter(kept, requires_grad=tensor.requires_grad))
    else:
        setattr(layer, name, kept)
