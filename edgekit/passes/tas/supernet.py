"""The supernet: a network in which every choice is open, over the network's own weights.

A layer runs at full width. Of its output the first C_a and the first C_b channels of each group, a and b the two
options drawn for that group, go each through a batch norm of their own, are aligned to max(C_a, C_b) by CWI, summed
with their shares, and filled up with zeros to full width. The batch norm's statistics apart this is linear in the
channels, so it is one 1×1 convolution: with n the normalised output, γ and β the options' own scale and shift,

    y = W n + b,    W = Σ_j p_j · CWI_j · diag(γ_j),    b = Σ_j p_j · CWI_j · β_j.

The statistics of a batch are those of each channel, whichever option it is in, so n is computed once; the running
statistics are kept by each option for itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from edgekit.edits import channels
from edgekit.errors import BadInput
from edgekit.passes.tas.choices import Choices, interpolation
from edgekit.passes.tas.space import LAYERS, Space
from edgekit.removal import layer_side


@dataclasses.dataclass
class Drawn:
    """What the next forward pass is: of each group two options and their shares, of each stage the depths' shares."""

    places: list[list[int]] = dataclasses.field(default_factory=list)
    shares: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, 2))
    depths: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, 1))


class Supernet(nn.Module):
    """images (B, C, H, W) -> logits (B, classes), each time of other options.

    Args:
        module: of the user's network; in the hands of the supernet until `settle`.
    """

    def __init__(self, module: nn.Module, space: Space, generator: torch.Generator) -> None:
        super().__init__()
        self.module, self.space, self.drawn = module, space, Drawn()
        self.widths = Choices(space.widths, generator)
        self.depths = Choices(space.depths, generator)
        self._attached = contextlib.ExitStack()
        self.mixtures = [self._attached_to(layer, parts) for layer, parts in self._parts().items()]
        self.registered = nn.ModuleList(self.mixtures)
        for number, stage in enumerate(space.stages):
            self._mix_depths(number, stage)

    @property
    def choices(self) -> list[nn.Parameter]:
        """The logits."""
        return [self.widths.logits, self.depths.logits]

    def to_device(self, device: torch.device) -> None:
        """All but the logits, which are few."""
        for part in (self.module, self.registered):
            part.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def weights(self) -> list[nn.Parameter]:
        """All that is no logit."""
        return [p for p in self.parameters() if all(p is not logits for logits in self.choices)]

    def draw(self, tau: float, generator: torch.Generator) -> None:
        """Draw the options of the next forward pass."""
        places, shares = self.widths.two(tau, generator)
        self.drawn.places, self.drawn.shares = places, shares
        self.drawn.depths = self.depths.perturbed(tau, generator).softmax(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.module(images)

    def check(self, images: torch.Tensor) -> None:
        """See, at the smallest widths, that no layer reads anything in the channels that are left out.

        Raises:
            BadInput: one does, e.g. as a sigmoid made 0.5 of their zeros.
        """
        self.drawn.places = [[0, 1] for _ in self.space.groups]
        self.drawn.shares = torch.full((len(self.space.groups), 2), 0.5)
        self.drawn.depths = self.depths.log_probabilities().detach().exp()
        with contextlib.ExitStack() as closing, torch.no_grad():
            for group, widths in zip(self.space.groups, self.space.widths):
                for axis, rows in group.slots.items():
                    layer, side = layer_side(self.module, axis)
                    module = self.module.get_submodule(layer)
                    if side == "in" and isinstance(module, LAYERS) and getattr(module, "groups", 1) == 1:
                        hook = _reads_nothing(layer, group.name, torch.from_numpy(rows[widths[1] :].flatten()))
                        closing.callback(module.register_forward_pre_hook(hook).remove)
            self.eval()(images)

    def settle(self, places: Sequence[int]) -> nn.Module:
        """The network again, at full width; the first channels of each batch norm are those of the option chosen."""
        for mixture in self.mixtures:
            mixture.settle(places)
        self._attached.close()
        return self.module

    def _parts(self) -> dict[str, list[Part]]:
        """For each layer the groups that it makes channels of."""
        found: dict[str, list[Part]] = {}
        for number, group in enumerate(self.space.groups):
            for axis, rows in group.slots.items():
                layer, side = layer_side(self.module, axis)
                makes = side == "out" and isinstance(self.module.get_submodule(layer), LAYERS)
                if makes and axis[0] == f"{layer}.weight":
                    part = Part(number, torch.from_numpy(rows), self.space.widths[number])
                    found.setdefault(layer, []).append(part)
        return found

    def _attached_to(self, layer: str, parts: list[Part]) -> Mixture:
        """A mixture in the place of the batch norm behind a layer, or behind the layer itself."""
        name = self.space.norms.get(layer, layer)
        module = self.module.get_submodule(name)
        if isinstance(module, nn.BatchNorm2d):
            mixture = Mixture(parts, module.num_features, module, self.drawn)
            path, _, own = name.rpartition(".")
            parent = self.module.get_submodule(path)
            setattr(parent, own, mixture)
            self._attached.callback(setattr, parent, own, module)
        else:
            mixture = Mixture(parts, channels(module, "out"), None, self.drawn)
            handle = module.register_forward_hook(lambda _module, _given, output: mixture(output))
            self._attached.callback(handle.remove)
        return mixture

    def _mix_depths(self, number: int, stage: tuple[str, ...]) -> None:
        """The last block of a stage gives the sum of what the blocks that may be last give."""
        options = self.space.depths[number]
        outputs: list[torch.Tensor] = []

        def hook(place: int):  # type: ignore[no-untyped-def]  # torch names no type for hooks
            def note(_module: nn.Module, _given: tuple, output: torch.Tensor) -> torch.Tensor:
                outputs.append(output)
                if place < options[-1]:
                    return output
                shares = self.drawn.depths[number]
                mixed = sum((share * each for share, each in zip(shares, outputs)), torch.zeros_like(output))
                outputs.clear()
                return mixed

            return note

        for place in options:
            handle = self.module.get_submodule(stage[place - 1]).register_forward_hook(hook(place))
            self._attached.callback(handle.remove)


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Channels of a layer's output, rows int64 (size, n), of which one of `choices` may stay: those of a group, or
    without a number those of none, which all stay."""

    group: int | None
    rows: torch.Tensor
    choices: tuple[int, ...]

    def columns(self, place: int) -> torch.Tensor:
        """The channels that an option keeps."""
        return self.rows[: self.choices[place]].flatten()


class Mixture(nn.Module):
    """Layer output (B, C, ...) -> what its drawn options give, (B, C, ...) with zeros beyond the wider of the two.

    Attributes:
        options: of each part the norm of each of its choices.
    """

    def __init__(self, parts: Sequence[Part], channels: int, norm: nn.BatchNorm2d | None, drawn: Drawn) -> None:
        super().__init__()
        taken = torch.cat([part.rows.flatten() for part in parts])
        rest = torch.tensor(sorted(set(range(channels)) - set(taken.tolist())), dtype=torch.int64)[:, None]
        self.parts = [*parts, *([Part(None, rest, (len(rest),))] if len(rest) else [])]
        self.channels, self.norm, self._drawn = channels, norm, drawn
        self.options = [
            [OptionNorm(norm, part.columns(place)) for place in range(len(part.choices))] for part in self.parts
        ]
        self.registered = nn.ModuleList(own for options in self.options for own in options)

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        if self.norm is not None and self.training:
            output = self._normalised(output, self.norm.eps)
        weight, bias = self._matrix(output)
        if output.ndim == 2:
            return F.linear(output, weight, bias)
        return F.conv2d(output, weight[:, :, None, None], bias)

    def settle(self, places: Sequence[int]) -> None:
        """Write the norm of each chosen option into the first channels of the network's own."""
        for part, options in zip(self.parts, self.options):
            place = 0 if part.group is None else places[part.group]
            if self.norm is not None:
                options[place].write(self.norm, part.columns(place))

    def _in_use(self) -> Iterator[tuple[Part, list[tuple[int, torch.Tensor | float, OptionNorm]]]]:
        """Of each part the places, shares and norms of its drawn options."""
        for part, options in zip(self.parts, self.options):
            if part.group is None:
                yield part, [(0, 1.0, options[0])]
            else:
                places, shares = self._drawn.places[part.group], self._drawn.shares[part.group]
                yield part, [(place, share, options[place]) for place, share in zip(places, shares)]

    def _normalised(self, output: torch.Tensor, eps: float) -> torch.Tensor:
        """By the batch's statistics, which each norm in use takes note of."""
        mean, var = output.new_zeros(self.channels), output.new_ones(self.channels)
        output = F.batch_norm(output, mean, var, None, None, True, 1.0, eps)  # at the rate 1 they are the batch's own
        for part, options in self._in_use():
            for place, _, norm in options:
                norm.note(mean[part.columns(place)], var[part.columns(place)])
        return output

    def _matrix(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """W (C, C) and b (C,)."""
        weight, bias = like.new_zeros(self.channels, self.channels), like.new_zeros(self.channels)
        for part, options in self._in_use():
            widest = max((place for place, _, _ in options), key=lambda place: part.choices[place])
            targets = part.columns(widest)
            for place, share, norm in options:
                spread = interpolation(part.choices[place], part.choices[widest])
                aligned = torch.kron(spread, torch.eye(part.rows.shape[1])).to(like) * share
                scale, shift = norm.scale_shift()
                columns = part.columns(place)
                weight = weight.index_put((targets[:, None], columns[None]), aligned * scale, accumulate=True)
                bias = bias.index_put((targets,), aligned @ shift, accumulate=True)
        return weight, bias


class OptionNorm(nn.Module):
    """The batch norm of one option, as the scale and shift that it comes to; 1 and 0 where the layer has no norm.

    It begins as the network's own on the channels `columns`.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, norm: nn.BatchNorm2d | None, columns: torch.Tensor) -> None:
        super().__init__()
        self.learns = norm is not None
        like = norm if norm is not None else nn.BatchNorm2d(1 + int(columns.max()), eps=0.0)
        self.eps, self.momentum, self.tracked = like.eps, like.momentum, 0
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(like, name).detach()[columns].clone()
            if self.learns and name in ("weight", "bias"):
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def note(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        """Take a batch's statistics into the running ones."""
        self.tracked += 1
        rate = 1 / self.tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(var, rate)

    def scale_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(C,) each: in training of normalised channels, in evaluation of channels as they come."""
        if self.training or not self.learns:
            return self.weight, self.bias
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def write(self, norm: nn.BatchNorm2d, columns: torch.Tensor) -> None:
        """Into the channels `columns` of the network's own."""
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data[columns] = getattr(self, name).data


def _reads_nothing(layer: str, maker: str, closed: torch.Tensor):  # type: ignore[no-untyped-def]  # torch names no type for hooks
    def look(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        axis = -1 if isinstance(module, nn.Linear) else 1
        if given[0].index_select(axis, closed).any():
            raise BadInput(
                f"tas: {layer} reads something in channels that are left out, as an activation before it makes no zero "
                f'of zero; write exclude = ["{maker}"], or another activation'
            )

    return look
