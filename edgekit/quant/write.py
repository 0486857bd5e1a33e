"""The Q/DQ file: int8 weights behind DequantizeLinear, and a pair around every tensor that a target wants quantised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import BadInput
from edgekit.onnx_codes import decoding
from edgekit.quant.graph import Graph, Plan, channel_axis
from edgekit.quant.grid import Grid
from edgekit.quant.walk import FittedLayer

INT32 = 2**31 - 1

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.targets import Scheme


def quantised_model(
    model: onnx.ModelProto, planned: Plan, grids: dict[str, Grid], layers: dict[str, FittedLayer], wanted: Scheme
) -> onnx.ModelProto:
    """A Q/DQ copy of a prepared float model in the target's form."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _Writer(copy, planned, grids, layers, wanted).write()
    return copy


class _Writer:
    def __init__(
        self,
        model: onnx.ModelProto,
        planned: Plan,
        grids: dict[str, Grid],
        layers: dict[str, FittedLayer],
        wanted: Scheme,
    ) -> None:
        self.proto, self.plan, self.grids, self.layers, self.wanted = model.graph, planned, grids, layers, wanted
        self.graph = Graph(model)
        self.nodes: list[onnx.NodeProto] = []
        self.raw: dict[str, str] = {}  # tensor -> its name before Q/DQ, where that had to change
        self.taken = set(self.graph.constants) | set(self.graph.producer) | set(self.graph.inputs)

    def write(self) -> None:
        for name in self.graph.inputs:
            if name in self.grids:
                self._pair(name, name)
        for node in self.graph.nodes:
            if node.name not in self.plan.absorbed:
                self._node(node)
        del self.proto.node[:]
        self.proto.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        kept = [init for init in self.proto.initializer if init.name in used]
        del self.proto.initializer[:]
        self.proto.initializer.extend(kept)
        del self.proto.value_info[:]  # absorbed activations left types behind that no longer hold

    def _node(self, node: onnx.NodeProto) -> None:
        import onnx

        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        for index, name in enumerate(node.input):
            if (node.name, index) in self.plan.edges:
                changed.input[index] = f"{name}.dequantised" if name not in self.graph.outputs else name
            else:
                changed.input[index] = self.raw.get(name, name)
        if node.name in self.layers:
            self._weights(changed, node)
        self.nodes.append(changed)
        for index, name in enumerate(node.output):
            self._output(changed, index, name)

    def _output(self, node: onnx.NodeProto, index: int, name: str) -> None:
        reader = self.graph.only_reader(name)
        if reader is not None and reader.name in self.plan.absorbed:
            name = reader.output[0]
            node.output[index] = name
        if name not in self.grids:
            return
        if name in self.graph.outputs:  # the pair's output takes the name that callers know
            self.raw[name] = node.output[index] = f"{name}.raw"
        self._pair(name, node.output[index])

    def _pair(self, name: str, raw: str) -> None:
        from onnx import helper

        grid = self.grids[name]
        scale = self._constant(f"{name}.scale", np.float32(grid.scale[0]))
        zero = self._constant(f"{name}.zero_point", np.array(grid.zero_point, self.wanted.activation_type))
        integer, result = f"{name}.quantised", name if name in self.graph.outputs else f"{name}.dequantised"
        pair = (("QuantizeLinear", raw, integer), ("DequantizeLinear", integer, result))
        for kind, source, sink in pair:
            self.nodes.append(helper.make_node(kind, [source, scale, zero], [sink], name=f"{name}.{kind}"))

    def _weights(self, changed: onnx.NodeProto, node: onnx.NodeProto) -> None:
        from onnx import helper

        fitted, name = self.layers[node.name], self._free(node.input[1])
        axis = channel_axis(node)
        scale = self._constant(f"{name}.scale", fitted.scales)
        integers = self._integers(name, fitted)
        zero = self._constant(f"{name}.zero_point", np.zeros(len(fitted.scales), np.int8))
        changed.input[1] = f"{name}.dequantised"
        self._dequantise(helper, [integers, scale, zero], changed.input[1], axis)
        if fitted.bias is not None:
            del changed.input[2:]
            changed.input.append(self._bias(helper, node, name, fitted))

    def _integers(self, name: str, fitted: FittedLayer) -> str:
        """The name of a layer's int8 weight: a constant, or decoded from codes."""
        if fitted.coded is None:
            return self._constant(f"{name}.int8", fitted.integers)
        nodes = decoding(self.proto, name, fitted.coded)
        self.nodes += nodes
        self.taken.add(f"{name}.int8")
        return nodes[-1].output[0]

    def _bias(self, helper: Any, node: onnx.NodeProto, weight: str, fitted: FittedLayer) -> str:
        """The name of the bias, in float or as int32 steps of s_x · s_w."""
        name = f"{weight}.bias"
        if self.wanted.float_bias:
            return self._constant(name, np.asarray(fitted.bias, np.float32))
        step = (np.float32(self.grids[node.input[0]].scale[0]) * fitted.scales).astype(np.float32)
        steps = np.rint(np.asarray(fitted.bias) / step.astype(np.float64))
        if np.abs(steps).max(initial=0) > INT32:
            raise BadInput(f"int8: the bias of {node.name} does not fit int32; keep the layer in float with in_float")
        values = steps.astype(np.int32)
        parts = [self._constant(f"{name}.int32", values), self._constant(f"{name}.scale", step)]
        self._dequantise(helper, parts, f"{name}.dequantised", 0)
        return f"{name}.dequantised"

    def _dequantise(self, helper: Any, inputs: list[str], output: str, axis: int) -> None:
        name = f"{output}.DequantizeLinear"
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [output], name=name, axis=axis))

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        from onnx import numpy_helper

        self.proto.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        self.taken.add(name)
        return name

    def _free(self, name: str) -> str:
        """A name whose constants are not written yet: two layers may share one weight."""
        count = 0
        while (candidate := name if not count else f"{name}.{count}") + ".int8" in self.taken:
            count += 1
        return candidate
