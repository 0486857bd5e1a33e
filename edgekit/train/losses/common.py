"""What several losses ask of their setup, and of the other processes."""

import torch
from torch import distributed, nn

from edgekit.errors import BadInput
from edgekit.train import taps
from edgekit.train.objective import Setup


def one_teacher(setup: Setup, loss: str) -> nn.Module:
    """Raises BadInput where there are several: their insides cannot be averaged as their answers can."""
    if len(setup.teachers) != 1:
        raise BadInput(
            f'loss = "{loss}" looks inside its teacher and takes one, not {len(setup.teachers)}; '
            'keep one, or write "kd", "ofa" or "meal_v2", which average the answers of several'
        )
    return setup.teachers[0]


def check_per_picture(labels: torch.Tensor, loss: str) -> None:
    """Raises BadInput where each pixel has a label."""
    if labels.ndim != 1:
        raise BadInput(
            f'loss = "{loss}" is for one label a picture; these are masks {tuple(labels.shape)}. '
            'Write "ce", "kd" or "features" for segmentation'
        )


def own_stages(network: nn.Module, shape: tuple[int, int, int], loss: str) -> dict[str, tuple[int, int, int]]:
    """`taps.stages`, of which there must be one.

    Raises:
        BadInput: no module of the network gives maps larger than 1×1.
    """
    found = taps.stages(network, shape)
    if not found:
        raise BadInput(
            f'loss = "{loss}" works on feature maps, but no module of {type(network).__name__} gives one above 1×1 '
            f"for an input {shape}; write a larger [input] size, or another loss"
        )
    return found


def embedding(network: nn.Module, shape: tuple[int, int, int]) -> tuple[str, int]:
    """The name of the last layer, whose input is the embedding of a picture, and the embedding's length."""
    name = taps.classifier(network, shape)
    layer = network.get_submodule(name)
    return name, int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def device_of(setup: Setup) -> torch.device:
    return next(setup.student.parameters()).device


def several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """The rows (B, ...) of all processes, each with as many, in the processes' order: (processes · B, ...)."""
    if not several_processes():
        return rows
    parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
