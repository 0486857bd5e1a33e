"""Random networks: whatever is offered for removal can be removed, and removing is zeroing.

Hypothesis draws a program, a list of small integers; every three of them add an operation on tensors made before, so
that adds, concatenations and splits nest in any way. Batch norms get statistics under which the output depends on the
input.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from edgekit.channels import slots
from edgekit.costs import CostModel
from edgekit.graph import trace
from edgekit.net import Net, Source
from edgekit.removal import FEWEST, edits, holds, prunable
from tests.nets import calibrate
from tests.test_channels import sqnr

SHAPE = (3, 8, 8)
SIZE = 8


class Program(nn.Module):
    """A directed graph of operations on (B, C, H, W), H = W ∈ {8, 4}; ends in a linear layer on all loose ends."""

    def __init__(self, draws: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1)])
        self.steps: list[tuple[str, int, int, int]] = []  # (operation, first input, second input, layer)
        self.shapes = [(8, SIZE)]  # (channels, height) of each tensor
        for kind, first, second in draws:
            name = KINDS[kind % len(KINDS)]
            self._step(name, first % len(self.shapes), second)
        self.head = nn.Linear(sum(self.shapes[n][0] for n in self.loose), 5)

    @property
    def loose(self) -> list[int]:
        used = {n for name, first, second, _ in self.steps for n in ((first, second) if name in BINARY else (first,))}
        return [n for n in range(len(self.shapes)) if n not in used]

    def _step(self, name: str, first: int, second: int) -> None:
        channels, size = self.shapes[first]
        other = second
        if name in BINARY:
            alike = [
                n for n, shape in enumerate(self.shapes) if shape[1] == size and (name == "cat" or shape[0] == channels)
            ]
            other = alike[second % len(alike)]
        layer = self._layer(name, channels, second)
        if layer is None and name in LAYERED:
            return
        number = -1
        if layer is not None:
            self.layers.append(layer)
            number = len(self.layers) - 1
        made = self._made(name, channels, size, other, layer)
        if made is not None:
            self.steps.append((name, first, other, number))
            self.shapes.extend(made)

    @staticmethod
    def _layer(name: str, channels: int, draw: int) -> nn.Module | None:
        wide = 4 * (1 + draw % 4)
        if name == "conv":
            return nn.Conv2d(channels, wide, (1, 3)[draw % 2], padding=draw % 2, bias=draw % 3 > 0)
        if name == "depthwise":
            return nn.Conv2d(channels, channels * (1 + draw % 2), 3, padding=1, groups=channels)
        if name == "grouped":
            return nn.Conv2d(channels, wide, 1, groups=2) if channels % 2 == 0 and channels > 2 else None
        if name == "up":
            return nn.ConvTranspose2d(channels, wide, 2, stride=2)
        if name == "norm":
            return nn.BatchNorm2d(channels)
        return nn.PReLU(channels) if name == "prelu" else None

    def _made(
        self, name: str, channels: int, size: int, other: int, layer: nn.Module | None
    ) -> list[tuple[int, int]] | None:
        if name == "cat":
            return [(channels + self.shapes[other][0], size)] if channels + self.shapes[other][0] <= 64 else None
        if name in ("split", "chunk"):
            return [(channels // 2, size)] * 2 if channels % 2 == 0 and channels >= 4 else None
        if name in ("pool", "max"):
            return [(channels, size // 2)] if size == SIZE else None
        if name in ("resize", "up"):
            out = getattr(layer, "out_channels", channels)
            return [(out, 2 * size)] if size < SIZE else None
        if name in ("conv", "depthwise", "grouped"):
            return [(layer.out_channels, size)]  # type: ignore[union-attr]
        return [(channels, size)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [self.layers[0](x)]
        for name, first, second, number in self.steps:
            value = values[first]
            if name in BINARY:
                values.append(BINARY[name](value, values[second]))
            elif number >= 0:
                values.append(self.layers[number](value))
            elif name == "split":
                values.extend(value.split(value.shape[1] // 2, 1))
            elif name == "chunk":
                values.extend(value.chunk(2, 1))
            else:
                values.append(PLAIN[name](value))
        return self.head(torch.cat([values[n].mean((2, 3)) for n in self.loose], 1))


BINARY = {"add": torch.add, "mul": lambda a, b: a * b.sigmoid(), "cat": lambda a, b: torch.cat([a, b], 1)}
PLAIN = {
    "relu": F.relu,
    "swish": F.hardswish,
    "pool": lambda x: F.avg_pool2d(x, 2),
    "max": lambda x: F.max_pool2d(x, 2),
    "resize": lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"),
}
LAYERED = ["conv", "depthwise", "grouped", "up", "norm", "prelu"]
KINDS = [*LAYERED, "conv", "norm", *BINARY, "add", "cat", "split", "chunk", *PLAIN]
DRAWS = st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999), st.integers(0, 999)), min_size=4, max_size=14)


def check(draws: list[tuple[int, int, int]], seed: int) -> int:
    torch.manual_seed(seed)
    module = calibrate(Program(draws), SHAPE).double()
    found = prunable(module, SHAPE)
    generator = np.random.default_rng(seed)
    removed = []
    for group in found.groups:
        count = generator.integers(0, max(1, group.size - FEWEST + 1))
        removed.append(sorted(generator.choice(group.size, count, replace=False).tolist()))
    smaller = Net(Source("zoo", "test"), (), module).edited(*edits(module, found.groups, removed)).module
    kept = np.array([group.size - len(rows) for group, rows in zip(found.groups, removed)], np.int64)
    assert CostModel(found, found.groups).costs(kept) == trace(smaller, SHAPE).cost()
    state = dict(module.named_parameters())
    transposed = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.ConvTranspose2d)}
    for group, rows in zip(found.groups, removed):
        for (name, dim), indices in slots(group, rows).items():
            if name in state and (dim == (1 if name in transposed else 0) or state[name].ndim == 1):
                state[name].data.index_fill_(dim, torch.tensor(indices, dtype=torch.int64), 0)
    x = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert sqnr(module(x), smaller(x)) >= 200
    assert holds(module, SHAPE, found.groups, removed, found.classes)
    return len(found.groups)


@settings(max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(DRAWS, st.integers(0, 99))
def test_removing_is_zeroing_on_random_graphs(draws, seed):
    check(draws, seed)


@pytest.mark.slow
@settings(max_examples=600, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(DRAWS, st.integers(0, 10**6))
def test_removing_is_zeroing_on_many_random_graphs(draws, seed):
    check(draws, seed)


def test_most_random_graphs_have_something_to_remove():
    """Or the tests above would prove nothing."""
    generator = np.random.default_rng(0)
    found = [check([tuple(row) for row in generator.integers(0, 999, (10, 3)).tolist()], seed) for seed in range(12)]
    assert sum(count > 0 for count in found) >= 8 and max(found) >= 3
