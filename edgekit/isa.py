"""Can the int8 sums of a file saturate on x86 without VNNI? Answered from the file, without such a processor.

What is looked at is the graph that ONNX Runtime runs: there Q/DQ is fused, codes are decoded, and on x86 activations of
Q/DQ in int8 have become uint8. A layer is unsafe where some activations could overflow 16 bits, whether or not any
picture makes them: `edgekit.quant.pairs` says which products are added. Weights in uint8, and activations that are
still int8, have kernels that add in 32 bits. On other hosts than x86 int8 activations count as uint8, which they would
become there.
"""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.engines.onnxruntime import optimised
from edgekit.onnx_file import read
from edgekit.quant.graph import SAME_SCALE, Graph, attributes
from edgekit.quant.pairs import conv_pairs, one_sign_sums, product_pairs
from edgekit.targets import Target
from edgekit.traffic.fused import INTERIM

if TYPE_CHECKING:
    import onnx

# operator -> which inputs are the activations, their zero point and the weights
KERNELS = {
    "QLinearConv": (0, 2, 3),
    "QLinearMatMul": (0, 2, 3),
    "QGemm": (0, 2, 3),
    "MatMulInteger": (0, 2, 1),
    "MatMulIntegerToFloat": (0, 4, 1),
    "DynamicQuantizeMatMul": (0, None, 1),
}
UNJUDGED = ("QAttention", "DynamicQuantizeLSTM")
"""Whose products are added in pairs too, in an order that is not known here."""
HIGHEST, OVERFLOW = 255, 2**15 - 1
ENDS = {"Sigmoid": 1.0, "HardSigmoid": 1.0, "Softmax": 1.0}
"""The greatest value that an operator can give."""
WIDE = 2.0**40
"""What stands for no end."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One int8 layer.

    Attributes:
        kind: the operator that ONNX Runtime runs.
        largest: the greatest sum of a pair, activations at their most; OVERFLOW is the most that 16 bits hold.
        beyond, pairs: how many pairs of weights can overflow, of how many.
        where: the worst pair; where nothing is known of the weights, why.
    """

    layer: str
    kind: str
    largest: int
    beyond: int
    pairs: int
    where: str

    @property
    def safe(self) -> bool:
        return self.largest <= OVERFLOW

    @property
    def remedy(self) -> str:
        """What to do about an unsafe layer."""
        if self.safe:
            return ""
        if not self.pairs:
            return "keep it in float"
        return f"round down {self.beyond:,} of {self.pairs:,} pairs (the target onnxruntime does), or halve the range"


def layers(model: Path | bytes) -> list[Layer]:
    """Every convolution and matrix product that runs in int8, in order. Raises whatever ONNX Runtime raises where it
    cannot load the model."""
    graph = Graph(optimised(model))
    return [_judged(graph, node) for node in graph.nodes if node.op_type in KERNELS or node.op_type in UNJUDGED]


def is_safe(model: Path | bytes) -> bool:
    """Whether no int8 sum can overflow; so of a float file."""
    return all(layer.safe for layer in layers(model))


def row(path: Path, wanted: Target) -> dict[str, int]:
    """For a bundle's rows and gates, whether a file of ONNX Runtime's answers the same on x86 without VNNI: 1 or 0."""
    return {"isa_safe": int(is_safe(path))} if wanted.engine == "onnxruntime" else {}


def warning(model: Path | bytes) -> str:
    """What to know before a file ships; empty where it is safe."""
    unsafe = [layer for layer in layers(model) if not layer.safe]
    if not unsafe:
        return ""
    return (
        f"answers wrongly on x86 without VNNI: the sums of {len(unsafe)} layers can overflow, those of "
        f"{unsafe[0].layer} at {unsafe[0].where}; edgekit lab check lists them"
    )


def check(path: Path) -> dict[str, Any]:
    """What `edgekit lab check` prints. Raises BadInput as `read`."""
    read(path)
    rows = [{**dataclasses.asdict(layer), "safe": layer.safe, "remedy": layer.remedy} for layer in layers(path)]
    return {"schema": "edgekit/isa/1", "file": path.name, "safe": all(row["safe"] for row in rows), "rows": rows}


def _judged(graph: Graph, node: onnx.NodeProto) -> Layer:
    name = INTERIM.sub("", node.name or node.output[0])
    if node.op_type in UNJUDGED:
        return Layer(name, node.op_type, 2 * OVERFLOW, 0, 0, "the order in which it adds is not known")
    at, zero_at, weight_at = KERNELS[node.op_type]
    weight = graph.constants.get(node.input[weight_at])
    zero = graph.constants.get(node.input[zero_at]) if zero_at is not None and zero_at < len(node.input) else None
    if _exact(zero, weight):
        return Layer(name, node.op_type, 0, 0, 0, "adds in 32 bits")
    if weight is None:
        return Layer(name, node.op_type, 2 * OVERFLOW, 0, 0, "both factors are computed")
    matrix, pairs = _matrix(node, weight)
    sums = one_sign_sums(matrix, pairs) * _highest(graph, node.input[at])
    if not sums.size:
        return Layer(name, node.op_type, 0, 0, 0, "adds no pairs")
    worst = np.unravel_index(sums.argmax(), sums.shape)
    beyond = int((sums > OVERFLOW).sum())
    return Layer(name, node.op_type, int(sums[worst]), beyond, sums.size, _where(matrix, weight, pairs, worst))


def _exact(zero: np.ndarray | None, weight: np.ndarray | None) -> bool:
    """Whether the kernel for these types adds in 32 bits."""
    signed = zero is not None and zero.dtype == np.int8 and platform.machine().lower() in ("x86_64", "amd64")
    return signed or (weight is not None and weight.dtype != np.int8)


def _matrix(node: onnx.NodeProto, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weight as (..., K), a row for each output, and its pairs of columns."""
    if node.op_type == "QLinearConv":
        return weight.reshape(len(weight), -1), conv_pairs(weight.shape, attributes(node).get("group", 1))
    matrix = weight if attributes(node).get("transB") else weight.swapaxes(-1, -2)
    return matrix, product_pairs(matrix.shape[-1])


def _where(matrix: np.ndarray, weight: np.ndarray, pairs: np.ndarray, worst: tuple[Any, ...]) -> str:
    """The output channel, and the input and the weight of each of the two."""
    window = weight.shape[2:] if matrix.shape != weight.shape and matrix.ndim == 2 else ()
    named = []
    for column in pairs[worst[-1]]:
        channel, *at = map(int, np.unravel_index(column, (matrix.shape[-1], *window)))
        position = f" at {tuple(at)}" if np.prod(window) > 1 else ""
        named.append(f"input {channel}{position} × {matrix[(*worst[:-1], column)]}")
    return f"output {worst[-2]}: " + ", ".join(named)


def _highest(graph: Graph, name: str) -> int:
    """The greatest integer that an activation can be."""
    node = graph.producer.get(name)
    if node is None:
        return HIGHEST
    if node.op_type in SAME_SCALE and node.op_type != "Concat":
        return _highest(graph, node.input[0])
    if node.op_type == "QLinearSigmoid":
        return _steps(graph, node.input[3], node.input[4], 1.0)
    if node.op_type == "QuantizeLinear" and len(node.input) > 2:
        return _steps(graph, node.input[1], node.input[2], _end(graph, node.input[0]))
    return HIGHEST


def _steps(graph: Graph, scale: str, zero: str, end: float) -> int:
    if scale not in graph.constants or zero not in graph.constants:
        return HIGHEST
    return min(HIGHEST, int(graph.constants[zero]) + int(np.ceil(end / float(graph.constants[scale]))))


def _end(graph: Graph, name: str) -> float:
    """The greatest value that a float tensor can have."""
    node = graph.producer.get(name)
    if node is None:
        return WIDE
    if node.op_type == "Clip" and len(node.input) > 2 and node.input[2] in graph.constants:
        return float(graph.constants[node.input[2]])
    return ENDS.get(node.op_type, WIDE)
