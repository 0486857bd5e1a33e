"""The groups of operators that ONNX Runtime runs a file as: its optimised graph, with the shapes that one run had."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.devices.runner import noise
from edgekit.engines import onnxruntime
from edgekit.graph_onnx import LAYERS, layer_macs, node_name
from edgekit.onnx_file import read

if TYPE_CHECKING:
    import onnx

FUSED_CONVS = ("Conv", "FusedConv", "QLinearConv", "ConvTranspose", "NhwcFusedConv")
PRODUCTS = ("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "MatMulIntegerToFloat", "QLinearMatMul")
INTERIM = re.compile(r"(_nchwc|_token_\d+|_nhwc)$")
"""What ONNX Runtime adds to the name of a node that it rewrites."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the graph. `constant` ones are weights, as the runtime holds them after loading: decoded, padded.

    `planned` says that the runtime knew the shape when it laid out its memory. It does not of results of its own
    operators; such a tensor shares no memory.
    """

    name: str
    shape: tuple[int, ...]
    item_bytes: int
    constant: bool
    planned: bool = True

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.item_bytes


@dataclasses.dataclass(frozen=True)
class Group:
    """One fused group: what the runtime runs as one kernel.

    Attributes:
        layer: of the file, whose work it does; its own name where it does no layer's.
        domain: of the kernel, e.g. `com.microsoft.nchwc`.
        inputs: the activations it reads, in order.
        weights: the constants it reads, largest first.
        macs: at batch 1, those of the layer; 0 where it is none.
    """

    layer: str
    kind: str
    domain: str
    attributes: dict[str, Any]
    inputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    macs: int

    @property
    def is_conv(self) -> bool:
        return self.kind in FUSED_CONVS

    @property
    def kernel(self) -> int:
        """Elements of its window."""
        shape = self.attributes.get("kernel_shape") or (self.weights[0].shape[2:] if self.is_conv else ())
        return int(np.prod(shape, dtype=np.int64))

    @property
    def strided(self) -> bool:
        return max(self.attributes.get("strides", [1])) > 1

    @property
    def groups(self) -> int:
        return self.attributes.get("group", 1)

    @property
    def is_depthwise(self) -> bool:
        return self.is_conv and self.groups > 1 and self.weights[0].shape[1] == 1

    @property
    def op_class(self) -> str:
        """dense, pointwise, depthwise or elementwise: what is left when the convolutions and products are gone."""
        if self.is_depthwise:
            return "depthwise"
        if self.is_conv:
            return "pointwise" if self.kernel == 1 else "dense"
        return "dense" if self.kind in PRODUCTS else "elementwise"


def fused(path: Path) -> list[Group]:
    """The groups of a file at batch 1, in the order in which they run.

    Raises:
        BadInput: no such file, or ONNX Runtime cannot load it.
    """
    source = read(path)
    optimised = onnxruntime.optimised(path)
    tensors = {tensor.name: tensor for tensor in (*_constants(optimised), *_activations(optimised))}
    layers, macs = _Layers(source), layer_macs(source)
    return [_group(node, tensors, layers, macs) for node in optimised.graph.node]


def _group(node: onnx.NodeProto, tensors: dict[str, Tensor], layers: _Layers, macs: dict[str, int]) -> Group:
    from onnx import helper

    read_by = [tensors[name] for name in node.input if name in tensors]
    weights = sorted((tensor for tensor in read_by if tensor.constant), key=lambda tensor: -tensor.size_bytes)
    is_layer = node.op_type in (*FUSED_CONVS, *PRODUCTS)
    layer = layers.of(node, is_layer)
    return Group(
        layer,
        node.op_type,
        node.domain,
        {item.name: helper.get_attribute_value(item) for item in node.attribute},
        tuple(tensor for tensor in read_by if not tensor.constant),
        tuple(weights),
        tuple(tensors[name] for name in node.output if name in tensors),
        macs.get(layer, 0) if is_layer else 0,
    )


def _constants(model: onnx.ModelProto) -> list[Tensor]:
    from onnx import helper

    kinds = helper.tensor_dtype_to_np_dtype
    return [Tensor(i.name, tuple(i.dims), kinds(i.data_type).itemsize, True) for i in model.graph.initializer]


def _activations(model: onnx.ModelProto) -> list[Tensor]:
    """What the inputs and all results of a run were; shape inference does not know the runtime's own operators."""
    import onnx

    seen = onnx.ModelProto()
    seen.CopyFrom(model)
    del seen.graph.output[:]
    names = [name for node in model.graph.node for name in node.output if name]
    seen.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.load(seen.SerializeToString(), threads=1, optimise=False)
    given = noise(session, 1)
    values = session.raw.run(names, {session.name: given})
    planned = {value.name for value in model.graph.value_info if value.type.tensor_type.HasField("shape")}
    results = [Tensor(name, value.shape, value.itemsize, False, name in planned) for name, value in zip(names, values)]
    return [Tensor(session.name, given.shape, given.itemsize, False), *results]


class _Layers:
    """Which layer of the file a node of the optimised graph does the work of."""

    def __init__(self, source: onnx.ModelProto) -> None:
        self._named = {node.name: node for node in source.graph.node}
        self._making = {name: node for node in source.graph.node for name in node.output}
        self._done: set[str] = set()

    def of(self, node: onnx.NodeProto, is_layer: bool) -> str:
        """A fused node is called by its last part's result; its layer is the nearest one before that which has no node
        yet: a sum's other side has run already."""
        name = INTERIM.sub("", node.name.removeprefix("fused "))
        ends = [self._making.get(name) or self._named.get(name), *(self._making.get(output) for output in node.output)]
        found = [end for end in ends if end is not None][:1]
        if not is_layer:
            return node_name(found[0] if found else node)
        for before in found:  # which grows
            if before.op_type in LAYERS and node_name(before) not in self._done:
                self._done.add(node_name(before))
                return node_name(before)
            makers = (self._making.get(name) for name in before.input)
            found += [maker for maker in makers if maker is not None and maker not in found]
        return node_name(node)
