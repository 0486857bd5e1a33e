"""The structural changes that a Net can carry, each a frozen dataclass that serialises to JSON."""

import dataclasses
from typing import Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from edgekit.bottlenecks.edit import InsertBottleneck
from edgekit.coded import CodeWeight
from edgekit.errors import BadInput
from edgekit.factorise import Factorise
from edgekit.masked import MaskWeight
from edgekit.projected import ProjectWeight
from edgekit.shift.edit import ShiftWeight


@dataclasses.dataclass(frozen=True)
class KeepChannels:
    """Keep the channels `keep` (ascending) of the layer's output or input and delete the others.

    A depthwise convolution has one set of channels: keep it with dim "out". A grouped convolution keeps the same
    number in every group, and its input is indexed within a group.
    """

    layer: str
    dim: Literal["out", "in"]
    keep: tuple[int, ...]

    def apply(self, module: nn.Module) -> None:
        try:
            layer = module.get_submodule(self.layer)
        except AttributeError:
            raise BadInput(f"keep_channels: the network has no layer {self.layer!r}") from None
        if parametrize.is_parametrized(layer):
            raise BadInput(
                f"keep_channels: the weight of {self.layer} is kept in another form; remove channels before that"
            )
        size = channels(layer, self.dim)
        if not self.keep or max(self.keep) >= size or min(self.keep) < 0 or list(self.keep) != sorted(set(self.keep)):
            raise BadInput(f"keep_channels: {self.layer} has {size} channels ({self.dim}); cannot keep {self.keep}")
        _keep(layer, self.dim, torch.tensor(self.keep))


@dataclasses.dataclass(frozen=True)
class DropBlock:
    """Replace the module `layer`, a residual block, by the identity that its shortcut is (see blocks.py).

    Its parameters leave the state dict; the path stays, as an `nn.Identity`.
    """

    layer: str

    def apply(self, module: nn.Module) -> None:
        parent, _, name = self.layer.rpartition(".")
        try:
            block = module.get_submodule(self.layer)
        except AttributeError:
            raise BadInput(f"drop_block: the network has no layer {self.layer!r}") from None
        if not self.layer or isinstance(block, nn.Identity):
            raise BadInput(f"drop_block: {self.layer or 'the network itself'!r} is no block that can be dropped")
        setattr(module.get_submodule(parent), name, nn.Identity())


EDITS = {
    "keep_channels": KeepChannels,
    "drop_block": DropBlock,
    "factorise": Factorise,
    "code_weight": CodeWeight,
    "shift_weight": ShiftWeight,
    "project_weight": ProjectWeight,
    "mask_weight": MaskWeight,
    "insert_bottleneck": InsertBottleneck,
}


def channels(layer: nn.Module, dim: Literal["out", "in"]) -> int:
    """How many channels of a layer can be told apart on that side; of a grouped convolution's input, those of a group.

    Raises:
        BadInput: the layer has no channels that could be removed.
    """
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels if dim == "out" else layer.in_channels // layer.groups
    if isinstance(layer, nn.ConvTranspose2d) and layer.groups == 1:
        return layer.out_channels if dim == "out" else layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features if dim == "out" else layer.in_features
    if isinstance(layer, nn.BatchNorm2d):
        return layer.num_features
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return layer.normalized_shape[0]
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return layer.num_parameters
    if hasattr(layer, "keep_channels"):
        return layer.channels(dim)  # type: ignore[operator]
    raise BadInput(f"cannot remove channels from {type(layer).__name__}")


def layer_channels(module: nn.Module) -> dict[str, tuple[int, int]]:
    """(channels in, channels out) of every convolution and linear layer, by its module path."""
    found: dict[str, tuple[int, int]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            found[name] = layer.in_channels, layer.out_channels
        elif isinstance(layer, nn.Linear):
            found[name] = layer.in_features, layer.out_features
    return found


def _keep(layer: nn.Module, dim: Literal["out", "in"], keep: torch.Tensor) -> None:
    if isinstance(layer, nn.Conv2d):
        _keep_conv(layer, dim, keep)
    elif isinstance(layer, nn.ConvTranspose2d):
        _keep_side(layer, dim, keep, 1 if dim == "out" else 0, "channels")
    elif isinstance(layer, nn.Linear):
        _keep_side(layer, dim, keep, 0 if dim == "out" else 1, "features")
    elif hasattr(layer, "keep_channels"):
        layer.keep_channels(dim, keep.tolist())  # type: ignore[operator]
    else:
        _keep_per_channel(layer, keep)


def _keep_conv(layer: nn.Conv2d, dim: Literal["out", "in"], keep: torch.Tensor) -> None:
    if dim == "in":
        _select(layer, "weight", keep, 1)
        layer.in_channels = layer.groups * len(keep)
        return
    each = layer.out_channels // layer.groups
    _select(layer, "weight", keep, 0)
    _select(layer, "bias", keep, 0)
    if layer.groups == layer.in_channels and layer.groups > 1:
        # Depthwise: each input channel keeps all of its outputs or none, and goes with them.
        kept = torch.unique(keep // each)
        if len(keep) != each * len(kept):
            raise BadInput(f"keep_channels: a depthwise layer of {each} outputs a channel keeps all of them or none")
        layer.in_channels = layer.groups = len(kept)
    elif layer.groups > 1 and len(set(torch.bincount(keep // each, minlength=layer.groups).tolist())) > 1:
        raise BadInput("keep_channels: a grouped convolution keeps the same number of channels in every group")
    layer.out_channels = len(keep)


def _keep_side(layer: nn.Module, dim: Literal["out", "in"], keep: torch.Tensor, axis: int, unit: str) -> None:
    """A layer whose weight has one axis for each side, and which counts them as `in_<unit>` and `out_<unit>`."""
    _select(layer, "weight", keep, axis)
    if dim == "out":
        _select(layer, "bias", keep, 0)
    setattr(layer, f"{dim}_{unit}", len(keep))


def _keep_per_channel(layer: nn.Module, keep: torch.Tensor) -> None:
    """Norms and PReLU: one value a channel."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        _select(layer, name, keep, 0)
    if isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(keep)
    elif isinstance(layer, nn.GroupNorm):
        each = layer.num_channels // layer.num_groups
        if len(keep) != each * len(torch.unique(keep // each)):
            raise BadInput("keep_channels: group norm keeps whole groups")
        layer.num_channels, layer.num_groups = len(keep), len(keep) // each
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (len(keep),)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(keep)


def _select(layer: nn.Module, name: str, keep: torch.Tensor, axis: int) -> None:
    tensor = getattr(layer, name, None)
    if tensor is None:
        return
    kept = tensor.detach().index_select(axis, keep.to(tensor.device)).clone()
    if isinstance(tensor, nn.Parameter):
        setattr(layer, name, nn.Parameter(kept, requires_grad=tensor.requires_grad))
    else:
        setattr(layer, name, kept)
