"""Looking inside a network while it runs: what chosen layers took or gave, and which layers are worth choosing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from edgekit.errors import unknown


class Taps:
    """The inputs (or outputs) of chosen modules in the network's latest forward pass, under their names.

    Raises:
        BadInput: the network has no module of that name.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], inputs: bool = False) -> None:
        self.values: dict[str, torch.Tensor] = {}
        modules = dict(network.named_modules())
        for name in names:
            if name not in modules:
                raise unknown("module", name, (key for key in modules if key))
        self._hooks = [modules[name].register_forward_hook(self._hook(name, inputs)) for name in names]

    def _hook(self, name: str, inputs: bool):  # type: ignore[no-untyped-def]  # torch names no type for hooks
        def keep(_module: nn.Module, given: tuple, output: torch.Tensor) -> None:
            self.values[name] = given[0] if inputs else output

        return keep

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def classifier(network: nn.Module, shape: tuple[int, int, int]) -> str:
    """The name of the last layer with weights, whose input is the embedding of a picture."""
    return _calls(network, shape, lambda module, _output: isinstance(module, (nn.Linear, nn.Conv2d)))[-1][0]


def stages(network: nn.Module, shape: tuple[int, int, int]) -> dict[str, tuple[int, int, int]]:
    """The last module at each resolution above 1×1, largest first: its name and the (C, H, W) it gives.

    These are the network's stages, whatever it calls them. Only the outermost modules at a resolution count, as an
    inverted residual that shrinks the picture begins with an expansion at the resolution before.
    """
    found: dict[tuple[int, int], tuple[str, tuple[int, int, int]]] = {}
    for name, output in _calls(network, shape, lambda _module, output: output.ndim == 4):
        channels, height, width = output[1:]
        best = found.get((height, width))
        if name and (height, width) != (1, 1) and (best is None or name.count(".") <= best[0].count(".")):
            found[height, width] = name, (channels, height, width)
    return {name: form for _, (name, form) in sorted(found.items(), reverse=True)}


def forms(network: nn.Module, names: Sequence[str], shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The (C, H, W) that each of these modules gives.

    Raises:
        BadInput: the network has no such module, or the module gives no maps (B, C, H, W).
    """
    found = {name: output for name, output in _calls(network, shape, lambda _module, output: output.ndim == 4) if name}
    for name in names:
        if name not in found:
            raise unknown("stage", name, found)
    return [(channels, height, width) for _, channels, height, width in (found[name] for name in names)]


def _calls(network: nn.Module, shape: tuple[int, int, int], wanted) -> list[tuple[str, torch.Size]]:  # type: ignore[no-untyped-def]
    """Name and output shape of each wanted module, in the order in which they end."""
    calls: list[tuple[str, torch.Size]] = []

    def hook(name: str):  # type: ignore[no-untyped-def]
        def note(module: nn.Module, _given: tuple, output: object) -> None:
            if isinstance(output, torch.Tensor) and wanted(module, output):
                calls.append((name, output.shape))

        return note

    hooks = [module.register_forward_hook(hook(name)) for name, module in network.named_modules()]
    training = network.training
    like = next(network.parameters())
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
    finally:
        network.train(training)
        for handle in hooks:
            handle.remove()
    return calls
