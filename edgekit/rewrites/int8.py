"""Static int8 after training, in the form that the target's kernels take; needs calibration images, no labels.

The steps, each of which can be switched off: channels are equalised across layers, the range of every tensor is found,
weights are rounded layer by layer so that each layer's output stays closest to the float network's, given the errors
made before it, and biases take up what shift is left. See `edgekit.quant` for the methods and their sources.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt
from pydantic import ConfigDict

from edgekit.context import RewriteContext
from edgekit.data import Samples
from edgekit.errors import BadInput, NothingChanged
from edgekit.onnx_codes import Stored, put_back, taken_out
from edgekit.quant.calibrate import Seen, batch_size, check_images, observed, whole
from edgekit.quant.equalise import absorbed, equalised
from edgekit.quant.graph import Graph, Plan, is_layer, plan, prepared
from edgekit.quant.grid import Grid, activation_grid, grid_ends
from edgekit.quant.ranges import Method, find_range
from edgekit.quant.sensitivity import Sensitivity
from edgekit.quant.targets import Scheme, scheme, violations
from edgekit.quant.walk import FittedLayer, Walk, Weights
from edgekit.quant.write import quantised_model
from edgekit.rewrites.fold import QUANTISED

if TYPE_CHECKING:
    import onnx


SENSITIVITY_IMAGES = 16
CUT = 0.005
"""The share of a tensor's values that may be cut off without a word."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A network that is quantised but not yet written.

    Attributes:
        model: the prepared float model that the rest belongs to.
        spread: of each tensor's range over three draws of the images, see `Seen.spread`.
        gains: by how many dB the outputs gain from each layer in float, where that was asked for.
        samples: the pictures that ranges and weights were found on.
    """

    model: onnx.ModelProto
    plan: Plan
    grids: dict[str, Grid]
    layers: dict[str, FittedLayer]
    scheme: Scheme
    spread: dict[str, float]
    gains: dict[str, float]
    samples: Samples | None

    @property
    def tensors(self) -> dict[str, Grid]:
        """The grid of every quantised tensor, and of every layer's weight under the layer's name."""
        return self.grids | _weight_grids(self.layers)


def written(fitted: Fitted, ctx: RewriteContext) -> onnx.ModelProto:
    """The file in the target's form; keeps `quant.json`, which says how each tensor is quantised, beside it.

    Raises:
        BadInput: a bias does not fit int32.
        NothingChanged: no layer carries int8 weights.
    """
    result = quantised_model(fitted.model, fitted.plan, fitted.grids, fitted.layers, fitted.scheme)
    _check(result, fitted.scheme, ctx)
    samples = fitted.samples
    document = {
        "schema": "edgekit/quant/1",
        "target": ctx.target.name,
        "images": {"ids": list(samples.ids), "sha256": samples.sha256} if samples else None,
        "tensors": {name: grid.to_json() for name, grid in fitted.tensors.items()},
        "range_spread": fitted.spread,
        "gain_db": fitted.gains,
    }
    ctx.keep(f"quant.{ctx.target.name}.json", document)
    return result


@dataclasses.dataclass(frozen=True)
class Int8:
    """Quantise convolutions, linear layers and what lies between them.

    Attributes:
        images: how many calibration images.
        ranges: how the range of an activation is found.
        equalise: scale channels between layers so that they share a range well.
        absorb: move the constant part of channels that are always positive behind the next layer.
        weight_scale: the scale of a weight's channel by its largest value, or by the least squared error.
        pairs: where kernels add two products in 16 bits, what may not be too large is the sum of two neighbouring
            weights, each channel on the scale that costs its output least; else every weight is within half the range.
        reconstruct: round weights to nearest, or for the closest output of each layer.
        bias_correction: remove the shift of each layer's mean.
        fit_images: how many of the images the last two work on.
        in_float: globs over layers that stay in float.
        least_db: more layers stay in float, those first by which the outputs gain most, until the outputs on 16
            calibration images are as close to the float network's as this SQNR says; 0 keeps none.
    """

    images: Annotated[int, Gt(0)] = 200
    ranges: Method = "mse"
    equalise: bool = False
    absorb: bool = False
    weight_scale: Literal["max", "mse"] = "max"
    pairs: bool = True
    reconstruct: Literal["none", "gptq"] = "gptq"
    bias_correction: bool = True
    fit_images: Annotated[int, Gt(0)] = 64
    in_float: tuple[str, ...] = ()
    least_db: Annotated[float, Ge(0)] = 0.0
    precision: ClassVar[str | None] = "int8"
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def __call__(self, model: onnx.ModelProto, ctx: RewriteContext) -> onnx.ModelProto:
        """Raises BadInput where the graph is quantised already, nothing in it can be, or there are no usable images."""
        return self.quantise(model, ctx)[0]

    def quantise(self, model: onnx.ModelProto, ctx: RewriteContext) -> tuple[onnx.ModelProto, dict[str, Grid]]:
        """The quantised model and its table: for each tensor how it is quantised. Raises as `__call__`."""
        fitted = self.fitted(model, ctx)
        return written(fitted, ctx), fitted.tensors

    def fitted(self, model: onnx.ModelProto, ctx: RewriteContext) -> Fitted:
        """Everything that the file is written from. Raises as `__call__`."""
        import onnx

        if any(node.op_type in QUANTISED for node in model.graph.node):
            raise BadInput("int8: the graph is quantised already; give the float file")
        bare, coded = taken_out(model)
        if any(init.data_type == onnx.TensorProto.FLOAT16 for init in bare.graph.initializer):
            raise BadInput("int8: the graph has float16 weights; give the float32 file")
        if coded and (self.equalise or self.absorb):
            raise BadInput("int8: equalise and absorb change weights, and this network keeps them as codes; switch off")
        wanted, model = scheme(ctx.target.name), prepared(put_back(bare, coded, decode=True))
        graph = Graph(model)
        kept = _matching(self.in_float, graph)
        planned = plan(graph, wanted, kept)
        model, found = self._calibrated(model, planned, ctx)
        grids = _grids(found, planned, self.ranges, wanted)
        spread = {name: seen.spread(self.ranges, wanted.symmetric) for name, seen in found.items()}
        _log_ranges(found, grids, spread, wanted, ctx)
        layers = self._fitted(model, planned, grids, wanted, ctx, coded)
        gains: dict[str, float] = {}
        if self.least_db:
            gains, more = self._sensitive(model, grids, layers, wanted, ctx)
            planned = plan(graph, wanted, kept | set(more))
            grids = {name: grids[name] for name in planned.tensors}
            layers = self._fitted(model, planned, grids, wanted, ctx, coded) if more else layers
        samples = ctx.data.role("calibrate").subset(self.images, ctx.seed) if ctx.data else None
        return Fitted(model, planned, grids, layers, wanted, spread, gains, samples)

    def _sensitive(
        self, model: onnx.ModelProto, grids: dict[str, Grid], layers: dict[str, FittedLayer], wanted: Scheme,
        ctx: RewriteContext,
    ) -> tuple[dict[str, float], list[str]]:  # fmt: skip
        """By how much the outputs gain from each layer in float, and the layers that have to stay there."""
        size = batch_size(model)
        batches = list(whole(ctx.calibration(SENSITIVITY_IMAGES, size), size))
        looked = Sensitivity(model, grids, layers, wanted, batches)
        gains = looked.gains(ctx.track)
        chosen = looked.worst(self.least_db, gains)
        before, after = looked.sqnr_db(), looked.sqnr_db(chosen)
        named = ", ".join(f"{name} ({gains[name]:+.2f} dB)" for name in chosen) or "none"
        ctx.log(f"int8: outputs {before:.1f} dB; layers in float: {named}; then {after:.1f} dB")
        if chosen and (records := ctx.timed([looked.file(()), looked.file(chosen)])):
            first, second = (record["latency_ms"]["median"] for record in records)
            ratio = records[1]["latency_ratio"]
            ctx.log(
                f"int8: layers in float take {second - first:+.2f} ms, {first:.2f} to {second:.2f}: "
                f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] of the latency without"
            )
        if after < self.least_db:
            ctx.log(f"int8: least_db = {self.least_db} is out of reach: no other layer gains anything in float")
        return gains, chosen

    def _calibrated(
        self, model: onnx.ModelProto, planned: Plan, ctx: RewriteContext
    ) -> tuple[onnx.ModelProto, dict[str, Seen]]:
        """The model, changed where asked for, and what the tensors to quantise held."""
        bins = self.ranges != "minmax"
        found = observed(model, planned.tensors, self._batches(model, ctx, "calibrating"), bins)
        first = found.get(model.graph.input[0].name)
        if first is not None:
            check_images(first.all.low, first.all.high)
        ctx.log(f"int8: ranges of {len(found)} tensors by {self.ranges} over {_named_images(ctx, self.images)}")
        steps = ((self.equalise, equalised, "pairs of layers equalised"), (self.absorb, absorbed, "biases absorbed"))
        for asked, step, what in steps:
            if asked:
                model, count = step(model, found)
                ctx.log(f"int8: {count} {what}")
                found = observed(model, planned.tensors, self._batches(model, ctx, "calibrating again"), bins)
        return model, found

    def _batches(self, model: onnx.ModelProto, ctx: RewriteContext, label: str) -> Iterable[np.ndarray]:
        size = batch_size(model)
        return ctx.track(whole(ctx.calibration(self.images, size), size), label, -(-self.images // size))

    def _fitted(
        self, model: onnx.ModelProto, planned: Plan, grids: dict[str, Grid], wanted: Scheme, ctx: RewriteContext,
        coded: dict[str, Stored],
    ) -> dict[str, FittedLayer]:  # fmt: skip
        needs_images = self.bias_correction or self.reconstruct != "none"
        images = min(self.images, self.fit_images) if needs_images else 0
        size = batch_size(model)
        batches = list(whole(ctx.calibration(images, size), size)) if images else []
        paired = wanted.paired and self.pairs
        weights = Weights(
            wanted.weight_max if paired else wanted.alone_max, paired,
            self.weight_scale, self.reconstruct, self.bias_correction, not wanted.float_bias,
        )  # fmt: skip
        walk = Walk(model, Graph(model), planned, grids, wanted.activation_range, weights, ctx.seed, coded)
        layers = walk.run(batches, ctx.track)
        _log_layers(layers, self, images, ctx, coded)
        return layers


def _matching(globs: Iterable[str], graph: Graph) -> set[str]:
    """The layers that globs name. Raises BadInput for a glob that names none."""
    layers = [node.name for node in graph.nodes if is_layer(graph, node)]
    found: set[str] = set()
    for pattern in globs:
        if not (named := fnmatch.filter(layers, pattern)):
            raise BadInput(f"int8: in_float = {pattern!r} matches no layer; there are {', '.join(layers[:6])}, …")
        found.update(named)
    return found


def count_quantised(model: onnx.ModelProto) -> int:
    """How many convolutions and linear layers read their weight through DequantizeLinear."""
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return sum(node.input[1] in dequantised for node in layers)


def _named_images(ctx: RewriteContext, images: int) -> str:
    """How many images, and the hash of their ids, by which a run can be told from another."""
    if ctx.data is None:
        return "no images"
    samples = ctx.data.role("calibrate").subset(images, ctx.seed)
    return f"{len(samples)} images (ids {samples.sha256[:12]})"


def _grids(found: dict[str, Seen], planned: Plan, method: Method, wanted: Scheme) -> dict[str, Grid]:
    """A grid for each tensor; those of a group get one that holds all their ranges."""
    grids: dict[str, Grid] = {}
    for group in planned.groups:
        ends = [find_range(found[name].all, method, wanted.symmetric) for name in group]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        grid = activation_grid(low, high, wanted.symmetric, wanted.activation_range)
        grids |= dict.fromkeys(group, grid)
    return grids


def _log_ranges(
    found: dict[str, Seen], grids: dict[str, Grid], spread: dict[str, float], wanted: Scheme, ctx: RewriteContext
) -> None:
    """Say how sure the ranges are, where they cut values off, and which channels are never used."""
    if spread:
        worst = max(spread, key=lambda name: spread[name])
        ctx.log(
            f"int8: over three draws of the images ranges differ by {np.median(list(spread.values())):.1%} (median), "
            f"at most {spread[worst]:.1%} ({worst})"
        )
    for name, seen in found.items():
        low, high = grid_ends(grids[name], wanted.activation_range)
        if (cut := seen.all.outside(low, high)) > CUT:
            ctx.log(f"int8: {name}: {cut:.1%} of its values lie outside [{low:.3g}, {high:.3g}] and are cut off")
        if seen.channels and (dead := np.flatnonzero(seen.channels.top == 0)).size:
            ctx.log(f"int8: {name}: channels {_listed(dead.tolist())} are 0 on every image; pruning would remove them")


def _listed(channels: Sequence[int]) -> str:
    return ", ".join(map(str, channels[:8])) + (", …" if len(channels) > 8 else "")


def _weight_grids(layers: dict[str, FittedLayer]) -> dict[str, Grid]:
    return {name: Grid(tuple(layer.scales.tolist()), 0, 0, True) for name, layer in layers.items()}


def _log_layers(
    layers: dict[str, FittedLayer], settings: Int8, images: int, ctx: RewriteContext, coded: Collection[str]
) -> None:
    corrected = "biases corrected" if settings.bias_correction else "biases as they were"
    ctx.log(
        f"int8: {len(layers)} layers, scales by {settings.weight_scale}, reconstruction {settings.reconstruct}, "
        f"{corrected}, on {images} images"
    )
    measured = {name: layer.sqnr_db for name, layer in layers.items() if layer.sqnr_db is not None}
    if measured:
        worst = sorted(measured, key=lambda name: measured[name])[:3]
        last = list(measured)[-1]
        ctx.log(
            "int8: worst layers "
            + ", ".join(f"{name} {measured[name]:.1f} dB" for name in worst)
            + f"; the last, {last}, {measured[last]:.1f} dB"
        )
    if coded:
        kept = sum(layer.coded is not None for layer in layers.values())
        ctx.log(f"int8: {kept} of {len(coded)} coded weights stay codes of int8; the others are quantised anew")
    for name, layer in layers.items():
        if layer.raised:
            channels = _listed(layer.raised)
            ctx.log(f"int8: {name}: near-dead channels {channels}: their scale is raised so that the bias fits int32")


def _check(model: onnx.ModelProto, wanted: Scheme, ctx: RewriteContext) -> None:
    """Say what of the target's rules could not be kept; no int8 layer at all is an error."""
    if count_quantised(model) == 0:
        raise NothingChanged("int8: no layer carries int8 weights")
    for line in violations(model, wanted):
        ctx.log(f"int8: {line}")
