"""Cross-layer equalisation, and absorption of high biases (Nagel et al. 2019, "Data-Free Quantization", arXiv
1906.04721, sections 4.1 and 4.1.3).

For neighbouring layers y = W2 f(W1 x + b1) with f(s a) = s f(a) for s > 0, the channels between them may be scaled:

    W1 ← S W1,   b1 ← S b1,   W2 ← W2 S⁻¹,   s_i = sqrt(r2_i / r1_i)

leaves y as it is and brings the ranges r1 of what the first layer puts out and r2 of the second's columns together.
Here r1 is the calibrated range of the activation, since that is what shares one scale; weights have one per channel. A
depthwise second layer has a scale of its own for each column, so there all channels can be raised to the widest one:
s_i = max r1 / r1_i. In a triple expand → depthwise → project both gaps are treated, one after the other.

Clip(0, 6) is no such f. It is one for the channels that stay below the bound before and after, with room to spare: only
those are scaled.

Absorption: a channel that never falls below c_i > 0 carries that constant through an activation as it is. It may as
well be added behind the second layer, and the range between gets smaller by it:

    b1 ← b1 − c,   b2 ← b2 + W2 c

Here c is the least value of the channel on the calibration images, where the paper takes beta − 3 gamma of a batch
norm. A second layer that pads reads 0 instead of the constant at the border, so there nothing is absorbed.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from edgekit.quant.graph import ACTIVATIONS, Graph, attributes, clip_bounds, is_layer

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.calibrate import Channels, Seen

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


def equalised(model: onnx.ModelProto, seen: dict[str, Seen]) -> tuple[onnx.ModelProto, int]:
    """A copy of the model with every pair equalised, and how many there were.

    Args:
        seen: what the tensors between layers held in calibration.
    """
    graph = Graph(model)
    values, found = _values(graph), _pairs_seen(graph, seen)
    for pair, held in found:
        depthwise = _is_depthwise(graph, pair.second)
        weight = values[pair.second.input[1]]  # (C_out, C, kh, kw), or (C, 1, kh, kw)
        columns = np.abs(weight).max(axis=(1, 2, 3) if depthwise else (0, 2, 3))
        scale = factors(held.top.astype(np.float64), columns, depthwise, pair.bound)
        values[pair.second.input[1]] = weight / scale.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1))
        values[pair.first.input[1]] = values[pair.first.input[1]] * scale.reshape(-1, 1, 1, 1)
        if len(pair.first.input) > 2:
            values[pair.first.input[2]] = values[pair.first.input[2]] * scale
    return _with(model, values), len(found)


def absorbed(model: onnx.ModelProto, seen: dict[str, Seen]) -> tuple[onnx.ModelProto, int]:
    """A copy of the model with high biases moved behind the next layer, and how many channels had one.

    Args:
        seen: what the tensors between layers held in calibration.
    """
    graph = Graph(model)
    values, channels = _values(graph), 0
    for pair, held in _pairs_seen(graph, seen):
        if _pads(pair.second) or any(len(layer.input) < 3 for layer in (pair.first, pair.second)):
            continue
        constant = np.where(held.highs < pair.bound, np.maximum(held.lows, 0.0), 0.0)  # (C,)
        taps = values[pair.second.input[1]].sum(axis=(2, 3))  # (C_out, C), or (C, 1)
        moved = taps[:, 0] * constant if _is_depthwise(graph, pair.second) else taps @ constant
        values[pair.first.input[2]] = values[pair.first.input[2]] - constant
        values[pair.second.input[2]] = values[pair.second.input[2]] + moved
        channels += int(np.count_nonzero(constant))
    return _with(model, values), channels


def _pairs_seen(graph: Graph, seen: dict[str, Seen]) -> list[tuple[Pair, Channels]]:
    """The pairs whose tensor between has channels that were looked at."""
    found = [(pair, seen[pair.between].channels) for pair in pairs(graph) if pair.between in seen]
    return [(pair, channels) for pair, channels in found if channels is not None]


def _pads(node: onnx.NodeProto) -> bool:
    settings = attributes(node)
    return any(settings.get("pads", ())) or settings.get("auto_pad", b"NOTSET").startswith(b"SAME")


def _values(graph: Graph) -> dict[str, np.ndarray]:
    """The float constants, in float64."""
    return {name: value.astype(np.float64) for name, value in graph.constants.items() if value.dtype == np.float32}


def _with(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of the model with these constants."""
    import onnx
    from onnx import numpy_helper

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for init in copy.graph.initializer:
        if init.name in values:
            init.CopyFrom(numpy_helper.from_array(values[init.name].astype(np.float32), init.name))
    return copy
