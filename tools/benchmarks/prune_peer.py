"""Torch-Pruning beside edgekit: its pruner on its own, and its decisions as edgekit's edits.

What it removed is read from its history, written as edits of the same network, and compared with its own module's
output. So its network goes through the very same passes, export and scoring.
"""

import copy
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.graph import Shape, trace
from edgekit.net import Net
from edgekit.parity import sqnr_db
from edgekit.removal import edits, prunable

VERSION = "1.6.1"
SAME_DB = 100.0


def missing() -> str | None:
    """Why there are no rows of it; None where it is installed."""
    if importlib.util.find_spec("torch_pruning"):
        return None
    return f"torch-pruning is not installed, its rows are left out: pip install --no-deps torch-pruning=={VERSION}"


def cut(
    module: nn.Module,
    shape: Shape,
    ratio: float,
    ignored: Sequence[nn.Module],
    across: bool = False,
    history: list[Any] | None = None,
) -> nn.Module:
    """`module`, cut in place by its magnitude pruner.

    Args:
        ratio: of the channels that go.
        across: one ranking over all layers (its `global_pruning`), or the same share in each.
        history: takes (layer, whether its outputs, indices) for every group removed.
    """
    import torch_pruning

    pruner = torch_pruning.pruner.MagnitudePruner(
        module, torch.zeros(1, *shape), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=across, pruning_ratio=ratio, ignored_layers=list(ignored),
    )  # fmt: skip
    pruner.step()
    if history is not None:
        history.extend(pruner.pruning_history())
    return module


def pruned(net: Net, shape: Shape, macs: float, ignored: Sequence[str], across: bool) -> Net:
    """`net` as Torch-Pruning prunes it: the largest network within the share `macs` that its ratio gives."""
    limit = macs * trace(net.module, shape).macs
    low, high, best = 0.0, 1.0, None
    for _ in range(10):
        middle = (low + high) / 2
        made, history = copy.deepcopy(net.module), []
        cut(made, shape, middle, [made.get_submodule(name) for name in ignored], across, history)
        if trace(made, shape).macs <= limit:
            high, best = middle, (made, history)
        else:
            low = middle
    if best is None:
        raise SystemExit(f"Torch-Pruning does not reach {macs} of the MACs")
    return translated(net, shape, *best)


def translated(net: Net, shape: Shape, made: nn.Module, history: Sequence[Any]) -> Net:
    """The same removals as edgekit's edits; the output must be that of `made`."""
    groups = prunable(net.module, shape).groups
    removed: list[set[int]] = [set() for _ in groups]
    for layer, of_outputs, indices in history:
        axis = f"{layer}.weight", 0 if of_outputs else 1
        holding = [number for number, group in enumerate(groups) if axis in group.slots]
        rows = {int(i): (number, row) for number in holding for row, each in enumerate(groups[number].slots[axis])
                for i in each}  # fmt: skip
        for index in indices:
            number, row = rows[index]
            removed[number].add(row)
    result = net.edited(*edits(net.module, groups, [sorted(rows) for rows in removed]))
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((8, *shape), np.float32))
    with torch.no_grad():
        db = sqnr_db(made.eval()(images).numpy(), result.module.eval()(images).numpy())
    if db < SAME_DB:
        raise SystemExit(f"Torch-Pruning's network was not translated faithfully: {db:.1f} dB")
    return result
