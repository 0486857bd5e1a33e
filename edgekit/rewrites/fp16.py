"""Half precision: weights and activations in float16, the file's inputs and outputs in float32 as before.

float16 (IEEE 754 binary16) holds magnitudes up to 65504 and, below 6.1e-5, loses digits until 6e-8 is left of nothing.
What does not fit is never clipped: a layer with such a weight, or next to a tensor that grew so large on the
calibration images, stays float32 and is named in the log.

ONNX Runtime has few float16 kernels for x86: it computes in float32 between casts that it moves and merges, so its
answers show the rounding of weights and not that of activations. Only the target shows all of it.

Why no library does this: onnxconverter-common's converter and its copy in ONNX Runtime clip such weights in silence,
and neither looks at activations.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from annotated_types import Gt

from edgekit.context import RewriteContext
from edgekit.errors import BadInput, NothingChanged, unknown
from edgekit.quant.calibrate import batch_size, observed, whole
from edgekit.quant.graph import Graph, attributes, prepared
from edgekit.rewrites.fold import QUANTISED

if TYPE_CHECKING:
    import onnx

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
BOUNDS = {"Clip": (1, 2)}
"""Constants that only limit a range: beyond float16's, they limit nothing, and are written as its largest value."""
FLOAT_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that ONNX wants in float32 whatever the data are."""
SOURCES = frozenset("ConstantOfShape RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range".split())
"""Operators that say by themselves which type they make: they stay float32."""


@dataclasses.dataclass(frozen=True)
class Fp16:
    """Convert to float16.

    Attributes:
        keep: layers that stay float32, by name or pattern, e.g. "classifier.*".
        images: how many calibration images activations are checked on for overflow.
    """

    keep: tuple[str, ...] = ()
    images: Annotated[int, Gt(0)] = 32
    precision: ClassVar[str | None] = "fp16"

    def __call__(self, model: onnx.ModelProto, ctx: RewriteContext) -> onnx.ModelProto:
        """Raises BadInput where the graph is quantised or float16 already or `keep` names no layer, NothingChanged
        where every layer stays float32."""
        if any(node.op_type in QUANTISED for node in model.graph.node):
            raise BadInput("fp16: the graph is quantised already; give the float file")
        model = prepared(model, "fp16")
        graph = Graph(model)
        if any(value.dtype == np.float16 for value in graph.constants.values()):
            raise BadInput("fp16: the graph has float16 weights already; give the float32 file")
        kept = self._named(graph) | _sources(graph) | _overflowing_weights(graph, ctx)
        kept |= self._overflowing_activations(model, graph, ctx)
        weighted = {node.name for node in graph.nodes if any(name in graph.constants for name in node.input)}
        if not weighted - kept:
            raise NothingChanged("fp16: every layer with weights stays float32")
        _Writer(model, graph, kept).write()
        ctx.log(f"fp16: {len(graph.nodes) - len(kept)} of {len(graph.nodes)} operators{_underflow(graph, kept)}")
        return model

    def _named(self, graph: Graph) -> set[str]:
        names = [node.name for node in graph.nodes]
        for pattern in self.keep:
            if not fnmatch.filter(names, pattern):
                raise unknown("layer", pattern, names, "fp16: keep")
        return {name for pattern in self.keep for name in fnmatch.filter(names, pattern)}

    def _overflowing_activations(self, model: onnx.ModelProto, graph: Graph, ctx: RewriteContext) -> set[str]:
        """Names of the operators that make or read a tensor beyond float16 on a calibration image."""
        if ctx.data is None:
            ctx.log("fp16: no calibration images: activations were not checked for overflow")
            return set()
        tensors = sorted(_floats(graph), key=lambda name: graph.order.get(name, -1))
        size = batch_size(model)
        batches = ctx.track(whole(ctx.calibration(self.images, size), size), "checking range", -(-self.images // size))
        found = observed(model, tensors, batches, bins=False)
        kept: set[str] = set()
        for name, seen in found.items():
            if (top := max(seen.all.high, -seen.all.low)) > LARGEST:
                near = [*filter(None, [graph.producer.get(name)]), *graph.readers.get(name, [])]
                kept |= {node.name for node in near}
                ctx.log(f"fp16: {name} reaches {top:.3g}: float32 stay {', '.join(node.name for node in near)}")
        return kept


def _floats(graph: Graph) -> set[str]:
    """Computed tensors that are float32."""
    return {name for name in graph.floats if name in graph.producer or name in graph.inputs}


def _sources(graph: Graph) -> set[str]:
    return {node.name for node in graph.nodes if node.op_type in SOURCES}


def _weights(graph: Graph, node: onnx.NodeProto) -> Iterable[np.ndarray]:
    """A node's float constants, but for those whose value may be cut to the range of float16 or is never converted."""
    skipped = (*BOUNDS.get(node.op_type, ()), *FLOAT_INPUTS.get(node.op_type, ()))
    for index, name in enumerate(node.input):
        value = graph.constants.get(name)
        if value is not None and value.dtype == np.float32 and index not in skipped:
            yield value


def _overflowing_weights(graph: Graph, ctx: RewriteContext) -> set[str]:
    kept = set()
    for node in graph.nodes:
        top = max((float(np.abs(value).max(initial=0)) for value in _weights(graph, node)), default=0.0)
        if LARGEST < top < np.inf:
            kept.add(node.name)
            ctx.log(f"fp16: {node.name} has a weight of {top:.3g}: it stays float32")
    return kept


def _underflow(graph: Graph, kept: set[str]) -> str:
    """How many weights that were not zero become zero; nothing where there are none."""
    values = [value for node in graph.nodes if node.name not in kept for value in _weights(graph, node)]
    lost = sum(int(np.count_nonzero((value != 0) & (np.abs(value) <= SMALLEST / 2))) for value in values)
    return f"; {lost} weights are too small and become 0" if lost else ""


class _Writer:
    """Rewrites the graph in place: each float tensor keeps its name in the type that its producer makes, and is cast
    once for all readers that want the other."""

    def __init__(self, model: onnx.ModelProto, graph: Graph, kept: set[str]) -> None:
        self.proto, self.graph, self.kept = model.graph, graph, kept
        self.floats = _floats(graph)
        self.halves: set[str] = set()  # names that are float16 now
        self.renamed: dict[str, str] = {}  # a result of the graph -> its name as float16
        self.cast: dict[tuple[str, bool], str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def write(self) -> None:
        import onnx
        from onnx import numpy_helper

        for node in self.graph.nodes:
            changed = onnx.NodeProto()
            changed.CopyFrom(node)
            self._node(changed, half=node.name not in self.kept)
        del self.proto.node[:]
        self.proto.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [init for init in self.proto.initializer if init.name in used and init.name not in self.constants]
        del self.proto.initializer[:]
        self.proto.initializer.extend(kept)
        self.proto.initializer.extend(numpy_helper.from_array(value, name) for name, value in self.constants.items())
        del self.proto.value_info[:]

    def _node(self, node: onnx.NodeProto, half: bool) -> None:
        for index, name in enumerate(node.input):
            wanted = half and index not in FLOAT_INPUTS.get(node.op_type, ())
            if name in self.graph.constants:
                node.input[index] = self._constant(node, index, name, wanted)
            elif name in self.floats:
                node.input[index] = self._typed(name, wanted)
        makes_float = [name in self.floats for name in node.output]
        if half and node.op_type == "Cast" and any(makes_float):
            self._retarget(node)
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            if half and makes_float[index]:
                self._half_output(node, index, name)

    def _half_output(self, node: onnx.NodeProto, index: int, name: str) -> None:
        """Callers know the results of a graph by name and as float32: those get the cast's name."""
        if name not in self.graph.outputs:
            self.halves.add(name)
            return
        node.output[index] = self.renamed[name] = f"{name}.fp16"
        self._cast(f"{name}.fp16", name, half=False)

    def _typed(self, name: str, half: bool) -> str:
        """The tensor's name in the wanted type; a cast is written where it is first wanted."""
        if half and name in self.renamed:
            return self.renamed[name]
        if (name in self.halves) == half:
            return name
        if (name, half) not in self.cast:
            self.cast[name, half] = self._cast(name, f"{name}.{'fp16' if half else 'fp32'}", half)
        return self.cast[name, half]

    def _cast(self, source: str, result: str, half: bool) -> str:
        import onnx

        kind = onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT
        self.nodes.append(onnx.helper.make_node("Cast", [source], [result], name=f"{result}.Cast", to=kind))
        return result

    def _retarget(self, node: onnx.NodeProto) -> None:
        import onnx

        if attributes(node)["to"] == onnx.TensorProto.FLOAT:
            next(item for item in node.attribute if item.name == "to").i = onnx.TensorProto.FLOAT16

    def _constant(self, node: onnx.NodeProto, index: int, name: str, half: bool) -> str:
        value = self.graph.constants[name]
        if not half or value.dtype != np.float32:
            return name
        if index in BOUNDS.get(node.op_type, ()):
            value = np.clip(value, -LARGEST, LARGEST)
        result = f"{name}.fp16" if self._read_as_float(name) else name
        with np.errstate(over="ignore", under="ignore"):
            self.constants[result] = value.astype(np.float16)
        return result

    def _read_as_float(self, name: str) -> bool:
        """Whether some reader wants the float32 constant too."""
        return any(
            reader.name in self.kept or index in FLOAT_INPUTS.get(reader.op_type, ())
            for reader in self.graph.readers[name]
            for index, read in enumerate(reader.input)
            if read == name
        )
