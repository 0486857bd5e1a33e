"""The same network with fewer channels, as ONNX: what a table of layer latencies is measured on.

An export takes PyTorch's exporter ten seconds, and a table wants twenty of them. So the network is exported once, and
every narrower twin is that file with its tensors cut to the shapes that the channel edits give. Where a graph holds
channel counts that a cut cannot reach, ONNX's shape inference refuses it and the twin is exported itself.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.data import Input, Output
from edgekit.edits import layer_channels
from edgekit.export import Exported, export, serialise
from edgekit.removal import edits, keep_count, prunable
from edgekit.targets import target

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from edgekit.channels import Group

Channels = dict[str, tuple[int, int]]
"""(channels in, channels out) of every layer, by its name."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network of certain widths: the channels of its layers and its ONNX file."""

    channels: Channels
    model: onnx.ModelProto

    def bytes(self) -> bytes:
        return serialise(self.model)


@dataclasses.dataclass(frozen=True)
class Family:
    """A network that can be made narrower: `at(shares)` keeps a share of every group's channels."""

    module: nn.Module
    input: Input
    round_to: int
    groups: tuple[Group, ...]
    exported: Exported

    def at(self, shares: Sequence[float]) -> Variant:
        """The network whose groups keep these shares, rounded up to multiples of `round_to`."""
        narrow = copy.deepcopy(self.module)
        for edit in edits(self.module, self.groups, [list(self._gone(*pair)) for pair in zip(self.groups, shares)]):
            edit.apply(narrow)
        channels = layer_channels(narrow)
        try:
            return Variant(channels, _cut(self.exported.model, narrow))
        except _Uncuttable:
            return Variant(channels, _export(narrow, self.input).model)

    def _gone(self, group: Group, share: float) -> range:
        return range(keep_count(group.size, share, max(1, self.round_to // group.width)), group.size)


def family(module: nn.Module, input: Input, round_to: int) -> Family:
    """Raises BadInput where the network can be neither traced nor exported."""
    groups = tuple(prunable(module, input.shape).groups)
    return Family(module, input, round_to, groups, _export(module, input))


def _export(module: nn.Module, input: Input) -> Exported:
    return export(module, input, Output(), target("onnxruntime"), batch=1)


class _Uncuttable(Exception):
    """The graph holds channel counts elsewhere than in its weights."""


def _cut(model: onnx.ModelProto, narrow: nn.Module) -> onnx.ModelProto:
    """The file of the wide network with the shapes of the narrow one."""
    import onnx

    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    del cut.graph.value_info[:]
    state = narrow.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for init in cut.graph.initializer:
        if init.name in shapes and tuple(init.dims) != shapes[init.name]:
            _shrink(init, shapes[init.name])
    _follow(cut.graph, narrow, shapes)
    try:
        onnx.shape_inference.infer_shapes(cut, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise _Uncuttable(str(error)) from None
    return cut


def _shrink(init: onnx.TensorProto, shape: tuple[int, ...]) -> None:
    from onnx import numpy_helper

    values = numpy_helper.to_array(init)[tuple(slice(0, size) for size in shape)]
    if values.shape != shape:
        raise _Uncuttable(f"{init.name} is stored in another layout")
    init.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), init.name))


def _follow(graph: onnx.GraphProto, narrow: nn.Module, shapes: dict[str, tuple[int, ...]]) -> None:
    """What else holds channel counts: groups of depthwise convolutions, the exporter's zero biases, flattening."""
    from onnx import numpy_helper

    modules = dict(narrow.named_modules())
    constants = {init.name: init for init in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            layer = modules.get(node.input[1].rpartition(".")[0])
            for attribute in node.attribute:
                if attribute.name == "group" and layer is not None:
                    attribute.i = int(layer.groups)
            if len(node.input) == 3 and node.input[2] not in shapes and not _values(constants, node.input[2]).any():
                del node.input[2:]
        if node.op_type == "Reshape" and len(values := _values(constants, node.input[1])) == 2:
            constants[node.input[1]].CopyFrom(numpy_helper.from_array(np.array([values[0], -1]), node.input[1]))


def _values(constants: dict[str, onnx.TensorProto], name: str) -> np.ndarray:
    from onnx import numpy_helper

    return numpy_helper.to_array(constants[name]) if name in constants else np.array([])


def uniform(family: Family, shares: Sequence[float]) -> Iterator[Variant]:
    for share in shares:
        yield family.at([share] * len(family.groups))


def scattered(family: Family, count: int, rng: np.random.Generator, spread: float = 0.3) -> Iterator[Variant]:
    """Networks as a pruner makes them: each group has a width of its own around the network's."""
    for middle in rng.permutation(np.linspace(0.25, 0.85, count)):
        yield family.at(np.clip(middle + rng.uniform(-spread, spread, len(family.groups)), 0.05, 1.0).tolist())
