"""Layer by layer in the order of the graph: every layer is fitted to the inputs that the layers before it, quantised
already, will give it, with the float network's output as target. The two streams of activations run side by side, and a
tensor is dropped after its last reader.

Bias correction (Nagel et al. 2019, arXiv 1906.04721, section 4.2, by calibration): with ŷ the output of the quantised
layer on quantised inputs, b ← b + E[y] − E[ŷ] per channel makes the means equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgekit.onnx_codes import Stored
from edgekit.quant.gptq import DAMP, TRUST, gptq, least_squares_target, scarcity, to_integers
from edgekit.quant.graph import Graph, Plan, channel_axis, layer_matrix, layer_weight
from edgekit.quant.grid import Grid, bias_floor, fake_quantised, max_scales, mse_scales, rounded
from edgekit.quant.inputs import sampled_rows
from edgekit.quant.pairs import MOST, best_scales, layer_pairs, pair_bounds
from edgekit.quant.session import NodeRunner

if TYPE_CHECKING:
    import onnx

ROW_VALUES = 12_000_000
"""Most numbers of a layer's sampled inputs that are held at once."""
MOST_ROWS = 24576
NO_PAIRS = np.empty((0, 2), np.int64)
Batches = list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Weights:
    """How weights are found: the fields of the rewrite that concern them.

    Attributes:
        high: integers lie within ±high.
        paired: those that the kernels add in 16 bits lie within the bounds of `edgekit.quant.pairs`, too.
    """

    high: int
    paired: bool
    scale: Literal["max", "mse"]
    reconstruct: Literal["none", "gptq"]
    bias_correction: bool
    floor: bool


@dataclasses.dataclass(frozen=True)
class FittedLayer:
    """A quantised layer: integers of the weight's shape, scales (C_out,), and the float bias, None without one.

    `bounds` (2, *shape): the least and the greatest integer that each may be.
    """

    integers: np.ndarray
    bounds: np.ndarray
    scales: np.ndarray
    bias: np.ndarray | None
    raised: tuple[int, ...]
    """Channels whose scale the bias raised: near-dead ones."""
    sqnr_db: float | None = None
    """Of the layer's output, with all that was quantised before it, on the images that it was fitted to."""
    coded: Stored | None = None
    """What the integers are decoded from, where the weight came as codes."""


class Walk:
    """Fits every layer of a prepared model."""

    def __init__(
        self,
        model: onnx.ModelProto,
        graph: Graph,
        planned: Plan,
        grids: dict[str, Grid],
        limits: tuple[int, int],
        weights: Weights,
        seed: int,
        coded: Mapping[str, Stored],
    ) -> None:
        self.graph, self.plan, self.grids, self.limits, self.weights = graph, planned, grids, limits, weights
        self.runner = NodeRunner(model, graph)
        self.rng, self.coded = np.random.default_rng(seed), coded
        self.streams: dict[str, tuple[Batches, Batches]] = {}  # tensor -> (float, quantised before its Q/DQ)

    def run(self, images: Batches, track: Callable[[Iterable, str, int], Iterable]) -> dict[str, FittedLayer]:
        """The fitted layers by node name. Without images each is fitted to its weights alone."""
        layers = set(self.plan.layers)
        if not images:
            nodes = [node for node in self.graph.nodes if node.name in layers]
            return {node.name: self._fit(node, [], []) for node in nodes}
        self.streams[self.graph.inputs[0]] = (images, images)
        left = {name: len(readers) for name, readers in self.graph.readers.items()}
        fitted = {}
        for node in track(self.graph.nodes, "fitting layers", len(self.graph.nodes)):
            if node.name in layers:
                fitted[node.name] = self._layer(node)
            else:
                self._forward(node, len(images))
            self._drop(node, left)
        return fitted

    def _drop(self, node: onnx.NodeProto, left: dict[str, int]) -> None:
        for name in dict.fromkeys(node.input):
            left[name] -= 1
            if left[name] == 0:
                self.streams.pop(name, None)

    def _read(self, node: onnx.NodeProto, index: int, batch: int, quantised: bool) -> np.ndarray:
        """An input of a node in one of the streams, through its Q/DQ where the node reads it so."""
        name = node.input[index]
        value = self.streams[name][quantised][batch]
        if quantised and (node.name, index) in self.plan.edges:
            return fake_quantised(value, self.grids[name], self.limits)
        return value

    def _forward(self, node: onnx.NodeProto, count: int) -> None:
        """Run a node that is no layer in both streams."""
        computed = [i for i, name in enumerate(node.input) if name in self.streams]
        session = self.runner.open(node, {node.input[i]: self.streams[node.input[i]][0][0].dtype for i in computed})
        names = [name for name in node.output if name]
        both: list[list[Batches]] = [[[] for _ in names] for _ in range(2)]
        for quantised, outputs in enumerate(both):
            for batch in range(count):
                feed = {node.input[i]: self._read(node, i, batch, bool(quantised)) for i in computed}
                for stream, value in zip(outputs, session.run(names, feed)):
                    stream.append(value)
        self.streams |= {name: (both[0][i], both[1][i]) for i, name in enumerate(names)}

    def _layer(self, node: onnx.NodeProto) -> FittedLayer:
        name = node.input[0]
        floats = self.streams[name][0]
        quants = [self._read(node, 0, batch, quantised=True) for batch in range(len(floats))]
        fitted = self._fit(node, floats, quants)
        exact = self.runner.open(node, {name: floats[0].dtype})
        wanted = [exact.run(None, {name: batch})[0] for batch in floats]
        session = self.runner.open(node, {name: floats[0].dtype}, {node.input[1]: _dequantised(node, fitted)})
        found = [session.run(None, {name: batch})[0] for batch in quants]
        axis = 1 if node.op_type == "Conv" else -1
        if self.weights.bias_correction and fitted.bias is not None:
            fitted = dataclasses.replace(fitted, bias=fitted.bias + _remove_shift(wanted, found, axis))
        self.streams[node.output[0]] = (wanted, found)
        return dataclasses.replace(fitted, sqnr_db=_sqnr_db(wanted, found))

    def _fit(self, node: onnx.NodeProto, floats: Batches, quants: Batches) -> FittedLayer:
        """Scales and integers; by the weights alone, or with the inputs' second moments where reconstruction is on."""
        if (fixed := self._decoded(node)) is not None:
            return fixed
        shape = self.graph.constants[node.input[1]].shape
        target = layer_matrix(node, self.graph.constants[node.input[1]]).astype(np.float64)
        kept = target != 0  # a sparse network stays as sparse
        hessian, few = None, 1.0
        if self.weights.reconstruct == "gptq" and floats and (node.op_type != "Conv" or len(shape) == 4):
            hessian, cross, rows = self._moments(node, shape, floats, quants)
            few = scarcity(rows, target.shape[2])
            target = least_squares_target(target, hessian, cross, TRUST * few)
        pairs = layer_pairs(node, shape, target.shape[2]) if self.weights.paired else NO_PAIRS
        scales = self._scales(target * kept, hessian, pairs)
        bias = self._bias(node, target.shape[0] * target.shape[1])
        floor = self._floor(node, bias, scales.size).reshape(scales.shape)
        raised = np.flatnonzero(floor > scales)
        scales = np.maximum(scales, floor).astype(np.float32).astype(np.float64)
        high = self.weights.high
        bounds = pair_bounds(target / scales[..., None], pairs).clip(-high, high) * kept
        if hessian is None:
            integers = np.clip(rounded(target, scales, high), *bounds)
        else:
            integers = gptq(target, scales, hessian, to_integers(high), DAMP * few, bounds=bounds)
        stored, *ends = (layer_weight(node, array.astype(np.int8), shape) for array in (integers, *bounds))
        return FittedLayer(stored, np.stack(ends), scales.ravel().astype(np.float32), bias, tuple(raised.tolist()))

    def _decoded(self, node: onnx.NodeProto) -> FittedLayer | None:
        """The layer with the codes that its weight has; None where it has none or they do not fit the target."""
        form = self.coded.get(node.input[1])
        high = MOST // 2 if self.weights.paired else self.weights.high
        form = form.in_int8(high) if form is not None and channel_axis(node) == 0 else None
        if form is None or form.factor is None:
            return None
        bias = self._bias(node, form.shape[0])
        if (self._floor(node, bias, form.shape[0]) > form.factor).any():
            return None
        integers = form.table[form.codes].reshape(form.shape)
        bounds = np.stack([np.full(form.shape, end, np.int8) for end in (-high, high)])
        return FittedLayer(integers, bounds, form.factor, bias, (), coded=form)

    def _floor(self, node: onnx.NodeProto, bias: np.ndarray | None, channels: int) -> np.ndarray:
        """The least scale of each channel's weights (C_out,)."""
        if not self.weights.floor or bias is None:
            return np.zeros(channels)
        return bias_floor(bias, self.grids[node.input[0]].scale[0])

    def _scales(self, target: np.ndarray, hessian: np.ndarray | None, pairs: np.ndarray) -> np.ndarray:
        """The scale of each channel (G, O); where pairs are bounded, that on which the layer's output loses least."""
        importance = None if hessian is None else np.diagonal(hessian, axis1=1, axis2=2)[:, None]

        def of(high: int) -> np.ndarray:
            return max_scales(target, high) if self.weights.scale == "max" else mse_scales(target, high, importance)

        return best_scales(target, hessian, pairs, of) if len(pairs) else of(self.weights.high)

    def _bias(self, node: onnx.NodeProto, channels: int) -> np.ndarray | None:
        if len(node.input) > 2 and node.input[2]:
            return np.broadcast_to(self.graph.constants[node.input[2]].astype(np.float64).ravel(), channels).copy()
        if node.op_type == "MatMul" or not self.weights.bias_correction:
            return None
        return np.zeros(channels)

    def _moments(
        self, node: onnx.NodeProto, shape: tuple[int, ...], floats: Batches, quants: Batches
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """E[x̂ x̂ᵀ] and E[(x − x̂) x̂ᵀ] of centred inputs, (G, K, K), and from how many rows."""
        groups, columns = layer_matrix(node, self.graph.constants[node.input[1]]).shape[::2]
        rows = min(MOST_ROWS, max(512, ROW_VALUES // (groups * columns)))
        per_image = max(1, rows // sum(len(batch) for batch in floats))
        both = []
        seed = int(self.rng.integers(2**31))
        for stream in (floats, quants):
            rng = np.random.default_rng(seed)  # the same positions in both
            parts = [sampled_rows(node, shape, batch, rng, per_image) for batch in stream]
            joined = np.concatenate(parts, axis=2)  # (G, K, n)
            both.append(joined - joined.mean(axis=2, keepdims=True))
        exact, quantised = both
        n = exact.shape[2]
        moved = quantised.transpose(0, 2, 1)
        return (quantised @ moved).astype(np.float64) / n, ((exact - quantised) @ moved).astype(np.float64) / n, n


def _dequantised(node: onnx.NodeProto, fitted: FittedLayer) -> np.ndarray:
    """The weight as the runtime sees it."""
    matrix = layer_matrix(node, fitted.integers.astype(np.float32))
    matrix = matrix * fitted.scales.reshape(*matrix.shape[:2], 1)
    return np.ascontiguousarray(layer_weight(node, matrix, fitted.integers.shape))


def _remove_shift(wanted: Batches, found: Batches, axis: int) -> np.ndarray:
    """E[wanted] − E[found] per channel (C,), added to `found` in place."""
    shift = _mean(wanted, axis) - _mean(found, axis)
    shape = [1] * found[0].ndim
    shape[axis] = -1
    for batch in found:
        batch += shift.astype(np.float32).reshape(shape)
    return shift


def _mean(batches: Batches, axis: int) -> np.ndarray:
    """The mean of each channel over everything else, in float64."""
    others = tuple(i for i in range(batches[0].ndim) if i != axis % batches[0].ndim)
    total = sum(batch.sum(axis=others, dtype=np.float64) for batch in batches)
    return total / sum(batch.size // batch.shape[axis] for batch in batches)


def _sqnr_db(wanted: Batches, found: Batches) -> float:
    signal = sum(float(np.vdot(batch, batch)) for batch in wanted)
    noise = sum(float(np.vdot(error, error)) for error in (a - b for a, b in zip(wanted, found)))
    return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)))
