"""The second moments of layers' outputs on calibration images."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from edgekit.errors import BadInput


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Of a layer's outputs y without its bias, float64: E[y yᵀ] (O, O), about the mean where the layer has a bias.

    Attributes:
        mean: E[y] (O,) where the layer has a bias, else 0.
        energies, basis: the eigenvalues, descending, and in the columns of (O, O) their eigenvectors.
    """

    mean: torch.Tensor
    energies: torch.Tensor
    basis: torch.Tensor


def output_moments(module: nn.Module, layers: Sequence[str], batches: Iterable[torch.Tensor]) -> dict[str, Moments]:
    """The moments of the `layers`, each a convolution or linear layer, over batches of (B, C, H, W).

    Raises:
        BadInput: a layer puts out what is not finite.
    """
    twin = copy.deepcopy(module).eval()
    sums = {name: _Sums(twin.get_submodule(name)) for name in layers}
    with torch.no_grad():
        for batch in batches:
            twin(batch)
    for name, each in sums.items():
        if not bool(each.square.isfinite().all()):
            raise BadInput(
                f"lowrank: what {name} puts out on the calibration images is not finite; look at its weights"
            )
    return {name: each.moments() for name, each in sums.items()}


class _Sums:
    """Σ y, Σ y yᵀ and how many y there were, from a layer's runs."""

    def __init__(self, layer: nn.Module) -> None:
        assert isinstance(layer, (nn.Conv2d, nn.Linear))
        self.layer, self.count = layer, 0
        outputs = layer.weight.shape[0]
        self.total = torch.zeros(outputs, dtype=torch.float64)
        self.square = torch.zeros(outputs, outputs, dtype=torch.float64)
        layer.register_forward_hook(lambda _layer, _given, output: self._add(output))

    def _add(self, output: torch.Tensor) -> None:
        rows = output.movedim(1, -1) if isinstance(self.layer, nn.Conv2d) else output
        rows = rows.reshape(-1, rows.shape[-1]).double().cpu()
        if self.layer.bias is not None:
            rows = rows - self.layer.bias.double().cpu()
        self.count += len(rows)
        self.total += rows.sum(0)
        self.square += rows.T @ rows

    def moments(self) -> Moments:
        square, mean = self.square / self.count, torch.zeros_like(self.total)
        if self.layer.bias is not None:
            mean = self.total / self.count
            square = square - torch.outer(mean, mean)
        energies, basis = torch.linalg.eigh(square)
        return Moments(mean, energies.flip(0).clamp(min=0), basis.flip(1))
