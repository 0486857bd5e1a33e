"""Cross-layer equalisation (Nagel et al. 2019, "Data-Free Quantization", arXiv 1906.04721, section 4.1).

For neighbouring layers y = W2 f(W1 x + b1) with f(s a) = s f(a) for s > 0, the channels between them may be scaled:

    W1 ← S W1,   b1 ← S b1,   W2 ← W2 S⁻¹,   s_i = sqrt(r2_i / r1_i)

leaves y as it is and brings the ranges r1 of what the first layer puts out and r2 of the second's columns together.
Here r1 is the calibrated range of the activation, since that is what shares one scale; weights have one per channel. A
depthwise second layer has a scale of its own for each column, so there all channels can be raised to the widest one:
s_i = max r1 / r1_i. In a triple expand → depthwise → project both gaps are treated, one after the other.

Clip(0, 6) is no such f. It is one for the channels that stay below the bound before and after, with room to spare: only
those are scaled.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from edgekit.quant.graph import ACTIVATIONS, Graph, attributes, clip_bounds, is_layer

if TYPE_CHECKING:
    import onnx

LIMIT = 8.0
ROOM = 0.7
"""The share of a Clip's bound that a scaled channel may reach on the calibration images."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two layers and the tensor that carries the scaled channels; `bound` is the Clip's, or infinity."""

    first: onnx.NodeProto
    second: onnx.NodeProto
    between: str
    bound: float


def pairs(graph: Graph) -> list[Pair]:
    """Every two layers between which only an activation lies that the second layer alone reads."""
    found = []
    for second in graph.nodes:
        if second.op_type != "Conv" or not is_layer(graph, second) or not _by_channel(graph, second):
            continue
        between, bound = second.input[0], float("inf")
        before = graph.producer.get(between)
        if before is None or not graph.reads_alone(second, between):
            continue
        if before.op_type in ACTIVATIONS:
            bounds = clip_bounds(graph, before)
            if bounds is None or bounds[0] != 0 or not graph.reads_alone(before, before.input[0]):
                continue
            bound, before = bounds[1], graph.producer.get(before.input[0])
        if before is not None and before.op_type == "Conv" and is_layer(graph, before) and _owns(graph, before, second):
            found.append(Pair(before, second, between, bound))
    return found


def _by_channel(graph: Graph, node: onnx.NodeProto) -> bool:
    return attributes(node).get("group", 1) == 1 or _is_depthwise(graph, node)


def _is_depthwise(graph: Graph, node: onnx.NodeProto) -> bool:
    """One input channel and one output channel a group, so that a column is a row."""
    shape = graph.constants[node.input[1]].shape
    return shape[1] == 1 and attributes(node).get("group", 1) == shape[0] > 1


def _owns(graph: Graph, *layers: onnx.NodeProto) -> bool:
    """No other layer reads their weights or biases, so these may be changed."""
    return all(len(graph.readers[name]) == 1 for layer in layers for name in layer.input[1:] if name)


def factors(top: np.ndarray, columns: np.ndarray, depthwise: bool, bound: float) -> np.ndarray:
    """s (C,) for channels that reach `top` (C,) in magnitude and are read by weights that reach `columns` (C,)."""
    alive = (top > 0) & (columns > 0)
    safe = np.where(alive, top, 1.0)
    scale = top.max() / safe if depthwise else np.sqrt(np.where(alive, columns, 1.0) / safe)
    if not depthwise:
        scale = scale * top.max() / (safe * scale)[alive].max(initial=1e-30)
    scale = np.clip(scale, 1 / LIMIT, LIMIT)
    if np.isfinite(bound):
        scale = np.where(top < ROOM * bound, np.minimum(scale, ROOM * bound / safe), 1.0)
    return np.where(alive, scale, 1.0)


def equalised(model: onnx.ModelProto, channels: dict[str, np.ndarray]) -> tuple[onnx.ModelProto, int]:
    """A copy of the model with every pair equalised, and how many there were.

    Args:
        channels: the largest magnitude of each channel (C,) of the tensors between layers, from calibration.
    """
    import onnx
    from onnx import numpy_helper

    graph = Graph(model)
    values = {name: value.astype(np.float64) for name, value in graph.constants.items() if value.dtype == np.float32}
    found = [pair for pair in pairs(graph) if pair.between in channels]
    for pair in found:
        depthwise = _is_depthwise(graph, pair.second)
        weight = values[pair.second.input[1]]  # (C_out, C, kh, kw), or (C, 1, kh, kw)
        columns = np.abs(weight).max(axis=(1, 2, 3) if depthwise else (0, 2, 3))
        scale = factors(channels[pair.between].astype(np.float64), columns, depthwise, pair.bound)
        values[pair.second.input[1]] = weight / scale.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1))
        values[pair.first.input[1]] = values[pair.first.input[1]] * scale.reshape(-1, 1, 1, 1)
        if len(pair.first.input) > 2:
            values[pair.first.input[2]] = values[pair.first.input[2]] * scale
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for init in copy.graph.initializer:
        if init.name in values:
            init.CopyFrom(numpy_helper.from_array(values[init.name].astype(np.float32), init.name))
    return copy, len(found)
