"""The module that a graph becomes: its layers by name, run in the order of the nodes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

import torch
from torch import nn

DEEPEST_PATH = 16
LONGEST_PATH = 200


@dataclasses.dataclass(frozen=True)
class Step:
    """One call: the layer at path `layer` turns the values `inputs` into `outputs`."""

    layer: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class GraphModule(nn.Module):
    """Runs `steps` on one input. The state dict holds the weights of the layers and nothing else."""

    def __init__(self, steps: Iterable[Step], source: str, results: Sequence[str]) -> None:
        super().__init__()
        self.graph_steps = tuple(steps)
        self.graph_source = source
        self.graph_results = tuple(results)
        self.graph_last_use = _last_use(self.graph_steps, self.graph_results)

    def add_layer(self, path: str, layer: nn.Module) -> None:
        """Put a layer at a dotted path; the modules on the way hold nothing but the next one."""
        *parents, name = path.split(".")
        place: nn.Module = self
        for parent in parents:
            if parent not in place._modules:
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        place.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        values = {self.graph_source: x}
        for step, finished in zip(self.graph_steps, self.graph_last_use):
            result = self.get_submodule(step.layer)(*[values[name] for name in step.inputs])
            values.update(zip(step.outputs, result if isinstance(result, (tuple, list)) else [result]))
            for name in finished:
                values.pop(name, None)
        results = tuple(values[name] for name in self.graph_results)
        return results[0] if len(results) == 1 else results


def _last_use(steps: Sequence[Step], results: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """For each step the values that nothing later reads, so that they need not be kept."""
    needed = set(results)
    finished: list[tuple[str, ...]] = []
    for step in reversed(steps):
        finished.append(tuple(dict.fromkeys(name for name in (*step.inputs, *step.outputs) if name not in needed)))
        needed.update(step.inputs)
    return tuple(reversed(finished))


class Paths:
    """Gives out module paths, each once, none inside another's layer."""

    def __init__(self) -> None:
        self._template = GraphModule((), "", ())
        self._layers: set[str] = set()
        self._containers: set[str] = set()

    def take(self, *candidates: str) -> str:
        """The first candidate that is a free module path; else the first one with its odd characters replaced, and a
        number where that is taken too."""
        path = next((name for name in candidates if self._is_path(name) and self._is_free(name)), None)
        path = path or self._numbered(re.sub(r"[^A-Za-z0-9_]+", "_", candidates[0]).strip("_")[:LONGEST_PATH] or "node")
        self._layers.add(path)
        self._containers.update(_parents(path))
        return path

    def _numbered(self, stem: str) -> str:
        number, name = 0, stem
        while not self._is_free(name) or hasattr(self._template, name):
            number += 1
            name = f"{stem}_{number}"
        return name

    def _is_path(self, name: str) -> bool:
        parts = name.split(".")
        plain = re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", name) is not None
        short = len(parts) <= DEEPEST_PATH and len(name) <= LONGEST_PATH
        return plain and short and not any(hasattr(self._template, part) for part in parts)

    def _is_free(self, name: str) -> bool:
        taken = name in self._layers or name in self._containers
        return not taken and not self._layers.intersection(_parents(name))


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
