"""What each target wants of an int8 file, and whether a file obeys.

Sources: ONNX Runtime's QDQ transformer fuses uint8 asymmetric activations with int8 weights per channel and an int32
bias; its AVX2 kernels add pairs of products in saturating int16 (see `edgekit.quant.pairs`). TensorRT takes symmetric
int8 only, the bias in float, and fuses Conv + Add where the *other* input of Add is quantised.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import unknown
from edgekit.onnx_codes import DECODE
from edgekit.quant.graph import LAYERS, Graph, layer_matrix, residual_input
from edgekit.quant.pairs import MOST, layer_pairs, one_sign_sums

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The int8 form of a target.

    Attributes:
        symmetric: activations are int8 with zero point 0; else uint8 with any zero point.
        weight_max: int8 weights lie within ±weight_max.
        paired: so do sums of neighbouring weights of one sign, as `edgekit.quant.pairs` says.
        int8_ops: operators whose inputs and outputs carry Q/DQ. Layers alone where `residual_only` is set.
        residual_only: of an Add only the input that is not fused with a convolution carries Q/DQ.
        float_bias: the bias stays float; else it is int32 on the scale s_x · s_w.
        channel_multiple: int8 kernels are fast where channels divide by this.
    """

    name: str
    symmetric: bool
    weight_max: int
    paired: bool
    int8_ops: frozenset[str]
    residual_only: bool
    float_bias: bool
    channel_multiple: int

    @property
    def alone_max(self) -> int:
        """Within ± of which int8 weights are right whatever their neighbours."""
        return MOST // 2 if self.paired else self.weight_max

    @property
    def activation_type(self) -> type[np.generic]:
        return np.int8 if self.symmetric else np.uint8

    @property
    def activation_range(self) -> tuple[int, int]:
        return (-127, 127) if self.symmetric else (0, 255)


_RUNTIME = frozenset(
    "Conv Gemm MatMul Add Mul Sigmoid GlobalAveragePool AveragePool MaxPool Concat Flatten Reshape Squeeze "
    "Unsqueeze Transpose".split()
)
SCHEMES = {
    "onnxruntime": Scheme("onnxruntime", False, 127, True, _RUNTIME, False, False, 4),
    "onnxruntime-vnni": Scheme("onnxruntime-vnni", False, 127, False, _RUNTIME, False, False, 4),
    "openvino": Scheme(
        "openvino", False, 64, False, _RUNTIME, False, False, 4
    ),  # its kernels without VNNI saturate as well
    "tensorrt": Scheme("tensorrt", True, 127, False, LAYERS, True, True, 32),
    "tensorrt-rtx": Scheme("tensorrt-rtx", True, 127, False, LAYERS, True, True, 32),
}


def scheme(name: str) -> Scheme:
    """Raises BadInput for a target that has no int8 form."""
    if name not in SCHEMES:
        raise unknown("int8 target", name, SCHEMES)
    return SCHEMES[name]


def violations(model: onnx.ModelProto, wanted: Scheme) -> list[str]:
    """One line for every node of a Q/DQ file that breaks the target's rules; empty where all is well."""
    graph = Graph(model)
    found = [line for node in graph.nodes if node.op_type in LAYERS for line in _layer_faults(graph, node, wanted)]
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _pair_faults(graph, node, wanted)
        elif node.op_type == "Add" and wanted.residual_only:
            found += _add_faults(graph, node)
        elif not wanted.residual_only and node.op_type not in LAYERS and node.op_type in wanted.int8_ops:
            found += _mixed_faults(graph, node)
    return found


def quantised_convs(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions whose input and weight both come from DequantizeLinear: those that a runtime of the
    file's target can run as int8."""
    graph = Graph(model)
    return [
        node.name
        for node in graph.nodes
        if node.op_type == "Conv" and all(_dequantised(graph, name) for name in node.input[:2])
    ]


def _dequantised(graph: Graph, name: str) -> bool:
    return name in graph.producer and graph.producer[name].op_type == "DequantizeLinear"


def _layer_faults(graph: Graph, node: onnx.NodeProto, wanted: Scheme) -> list[str]:
    if node.op_type == "MatMul" and not _dequantised(graph, node.input[1]) and node.input[1] not in graph.constants:
        return []  # a product of two activations is no layer
    faults = []
    if not _dequantised(graph, node.input[0]):
        faults.append(f"{node.name}: its input carries no Q/DQ")
    if not _dequantised(graph, node.input[1]):
        faults.append(f"{node.name}: its weight is not int8")
    if len(node.input) > 2 and _dequantised(graph, node.input[2]) == wanted.float_bias:
        form = "float" if wanted.float_bias else "int32 with DequantizeLinear"
        faults.append(f"{node.name}: {wanted.name} wants the bias {form}")
    if wanted.paired:
        faults += _pair_sum_faults(graph, node)
    readers = graph.readers.get(node.output[0], [])
    to_float = node.op_type == "Conv" and not any(reader.op_type == "QuantizeLinear" for reader in readers)
    if not wanted.residual_only and to_float:
        faults.append(f"{node.name}: its output carries no Q/DQ, so it runs in float")
    return faults


def _pair_sum_faults(graph: Graph, node: onnx.NodeProto) -> list[str]:
    reader = graph.producer.get(node.input[1])
    values = graph.constants.get(reader.input[0]) if reader is not None else None
    if values is None:
        return []  # decoded weights fit alone, see `_pair_faults`
    matrix = layer_matrix(node, values)
    worst = one_sign_sums(matrix, layer_pairs(node, values.shape, matrix.shape[2])).max(initial=0)
    return [f"{node.name}: neighbouring weights add up to {worst}, beyond {MOST}"] if worst > MOST else []


def _pair_faults(graph: Graph, node: onnx.NodeProto, wanted: Scheme) -> list[str]:
    """Types, zero points and weight ranges of one QuantizeLinear or DequantizeLinear."""
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    values = _weights(graph, node.input[0])
    if node.op_type == "DequantizeLinear" and values is not None:
        most = wanted.alone_max if DECODE in node.input[0] else wanted.weight_max
        if values.dtype == np.int8 and (top := np.abs(values.astype(np.int16)).max(initial=0)) > most:
            return [f"{node.name}: weights reach {top}, beyond ±{most}"]
        return [f"{node.name}: weights have a zero point"] if zero is not None and zero.any() else []
    if zero is None or zero.dtype != wanted.activation_type:
        kind = np.dtype(wanted.activation_type).name
        return [f"{node.name}: activations must be {kind}, they are {'uint8' if zero is None else zero.dtype.name}"]
    if wanted.symmetric and zero.any():
        return [f"{node.name}: zero point {int(zero)}; {wanted.name} takes 0 only"]
    return []


def _weights(graph: Graph, name: str) -> np.ndarray | None:
    """The values of a constant weight, or those that a coded one is made of; None for what is computed."""
    if name in graph.constants or DECODE not in name:
        return graph.constants.get(name)
    rows = graph.producer[graph.producer[name].input[0]]
    return graph.constants.get(rows.input[0])


def _add_faults(graph: Graph, node: onnx.NodeProto) -> list[str]:
    index = residual_input(graph, node)
    if index is None or _dequantised(graph, node.input[index]):
        return []
    return [f"{node.name}: its residual input carries no Q/DQ, so the convolution before it is not fused"]


def _mixed_faults(graph: Graph, node: onnx.NodeProto) -> list[str]:
    """An operator that has some inputs dequantised and some float, or whose output is left float, is not fused."""
    inputs = graph.activations(node)
    with_constant = node.op_type in ("Add", "Mul") and len(inputs) < len(node.input)
    if not inputs or with_constant:
        return []
    carried = [_dequantised(graph, name) for name in inputs]
    readers = graph.readers.get(node.output[0], [])
    if all(carried) and readers and not any(reader.op_type == "QuantizeLinear" for reader in readers):
        return [f"{node.name}: its output carries no Q/DQ, so it runs in float"]
    return [] if all(carried) else [f"{node.name}: input {inputs[carried.index(False)]!r} carries no Q/DQ"]
