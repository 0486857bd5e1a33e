"""Two networks run side by side, operation by operation, halting before each layer.

What an image's later operations still need lies on disk between two halts: memory does not grow with the number of
images, and every operation is run once an image.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit.errors import BadInput
from edgekit.graph import BATCH_NORMS, LINEAR, Op, Shape, Value, trace

Values = dict[int, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution or linear layer: the name of its weight, and the operation in each of the two networks."""

    weight: str
    before: Op
    now: Op
    norm: Op | None
    """The batch norm that alone reads what the layer puts out now."""


class Walk:
    """`layers` in the order of execution; `left` names those that are run and cannot be fitted, with the reason.

    Args:
        chained: where a weight's layer takes the place of one that is called otherwise in `before`, that one's weight.
    """

    def __init__(
        self,
        before: nn.Module,
        now: nn.Module,
        shape: Shape,
        folder: Path,
        chained: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.runners = _Runner(before, shape), _Runner(now, shape)
        self.images = 0
        old, new = (runner.layers() for runner in self.runners)
        counts = Counter(weight for weight, _ in new)
        ops = dict(old)
        self.left = {
            weight: "it is run several times" if counts[weight] > 1 else "it is transposed"
            for weight, op in new
            if counts[weight] > 1 or (op.is_conv and op.args[6])
        }
        norms = self.runners[1].norms()
        self.layers = [
            Layer(weight, ops[place], op, norms.get(op.outputs[0].index))
            for weight, op in new
            if weight not in self.left and (place := chained.get(weight, weight)) in ops
        ]

    def start(self, images: Iterable[torch.Tensor]) -> None:
        """Take the images, each (1, C, H, W)."""
        for image in images:
            source = [{runner.graph.inputs[0].index: image} for runner in self.runners]
            self._store(self.images, source)
            self.images += 1

    def samples(self, layer: Layer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """For each image what the layer is given now and what it put out before. Layers must be asked for in order."""
        ops = layer.before, layer.now
        for number in range(self.images):
            values = self._load(number)
            for runner, op, of in zip(self.runners, ops, values):
                runner.run(of, op, through=runner is self.runners[0])
            x = next(value for value in layer.now.args if isinstance(value, Value) and value.index in values[1])
            yield values[1][x.index], values[0][layer.before.outputs[0].index]
            self._store(number, values)
        for runner, op in zip(self.runners, ops):
            runner.halt(op, through=runner is self.runners[0])

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.safetensors"

    def _store(self, number: int, values: Iterable[Values]) -> None:
        # Cloned: the format refuses tensors that share memory.
        tensors = {f"{side} {index}": tensor.clone() for side, of in enumerate(values) for index, tensor in of.items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self._path(number))

    def _load(self, number: int) -> tuple[Values, Values]:
        values: tuple[Values, Values] = {}, {}
        for name, tensor in load_file(self._path(number)).items():
            side, index = map(int, name.split())
            values[side][index] = tensor
        return values


class _Runner:
    """Runs the operations of a module, with its parameters as they are at that moment."""

    def __init__(self, module: nn.Module, shape: Shape) -> None:
        self.graph = trace(module, shape)
        self.tensors: Mapping[str, torch.Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        ops = self.graph.ops
        self.place = {id(op): place for place, op in enumerate(ops)}
        # A linear layer's weight is turned before it is read: looked up then, as it may change in between.
        self.turned = {op.outputs[0].index: op.args[0].param for op in ops if op.kind == "t" and op.args[0].param}
        self.last = {value.index: place for place, op in enumerate(ops) for value in op.inputs}
        self.last.update((value.index, len(ops)) for value in self.graph.outputs)
        self.done = 0

    def layers(self) -> list[tuple[str, Op]]:
        """The weights' names and the operations of convolutions and linear layers."""
        found = []
        for op in self.graph.ops:
            weights = [op.args[1].param] if op.is_conv else [self.turned.get(v.index) for v in op.inputs]
            if (op.is_conv or op.kind in LINEAR) and any(weights):
                found.append((next(name for name in weights if name), op))
        return found

    def norms(self) -> dict[int, Op]:
        """The batch norm that alone reads a value, by the value's index."""
        readers = Counter(value.index for op in self.graph.ops for value in op.inputs)
        readers.update(value.index for value in self.graph.outputs)
        norms = (op for op in self.graph.ops if op.kind in BATCH_NORMS and op.args[3] is not None)
        return {op.args[0].index: op for op in norms if readers[op.args[0].index] == 1}

    def halt(self, op: Op, through: bool) -> int:
        """Where to go on: at the operation, or behind it."""
        self.done = max(self.done, self.place[id(op)] + through)
        return self.done

    def run(self, values: Values, until: Op, through: bool) -> None:
        """Run on up to an operation, or through it, and drop what nothing behind reads."""
        end = self.place[id(until)] + through
        for op in self.graph.ops[self.done : end]:
            if op.outputs and op.outputs[0].index not in self.turned:
                result = op.func(*self._put(op.args, values), **self._put(op.kwargs, values))
                results = [result] if isinstance(result, torch.Tensor) else result
                values.update((value.index, tensor) for value, tensor in zip(op.outputs, results))
        kept = {index for index in values if self.last.get(index, -1) >= end}
        kept.update(value.index for value in until.outputs if through)
        for index in values.keys() - kept:
            del values[index]

    def _put(self, item: Any, values: Values) -> Any:
        if isinstance(item, Value):
            return self._value(item, values)
        if isinstance(item, tuple):
            return [self._put(part, values) for part in item]
        if isinstance(item, dict):
            return {key: self._put(part, values) for key, part in item.items()}
        # The trace ran on shapes alone.
        return torch.device("cpu") if item == torch.device("meta") else item

    def _value(self, value: Value, values: Values) -> torch.Tensor:
        if value.param is not None:
            return self.tensors[value.param]
        if value.index in self.turned:
            return self.tensors[self.turned[value.index]].t()
        if value.index not in values:
            raise BadInput('reconstruct: this network makes constants as it runs; write method = "udfc"')
        return values[value.index]
