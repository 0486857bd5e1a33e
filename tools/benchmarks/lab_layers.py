"""Each int8 layer of a file by itself, on what it is given natively: those that answer differently under emulation are
the ones whose sums overflowed, whatever the layers before them did."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.context import no_progress
from edgekit.engines.onnxruntime import optimised
from edgekit.lab.emulator import Emulated
from edgekit.lab.jobs import Task, work
from edgekit.lab.worker import answers, opened
from edgekit.quant.session import with_outputs
from edgekit.traffic.fused import INTERIM

OPERATORS = ("QLinearConv", "QLinearMatMul", "QGemm")


def saturating(name: str, content: bytes, inputs: np.ndarray, on: Emulated, folder: Path) -> tuple[list[str], int]:
    """The layers that answer differently as another processor, on inputs (N, C, H, W), and how many int8 layers there
    are."""
    whole = optimised(content)
    nodes = [node for node in whole.graph.node if node.op_type in OPERATORS]
    if not nodes:
        return [], 0
    given = list(dict.fromkeys(node.input[0] for node in nodes))
    session = opened(with_outputs(whole, given).SerializeToString())
    seen = [dict(zip(given, answers(session, x))) for x in inputs]
    kinds = {values.dtype for values in seen[0].values()}
    if kinds != {np.dtype(np.uint8)}:
        raise SystemExit(f"{name}: its int8 layers take {kinds}; only uint8 can be looked at")
    alone = apart(whole, nodes, seen[0]).SerializeToString()
    packed = np.stack([np.concatenate([values[key].ravel() for key in given]) for values in seen])
    task = Task(name, alone, packed, folder, tuple(map(str, range(len(packed)))))
    work(task, on, 1, None, no_progress)
    native, found = opened(alone), set[str]()
    for row, x in enumerate(packed):
        for node, here, there in zip(nodes, answers(native, x), task.answer(row), strict=True):
            if not np.array_equal(here, there):
                found.add(INTERIM.sub("", node.name))
    return sorted(found), len(nodes)


def apart(whole: onnx.ModelProto, nodes: list[onnx.NodeProto], seen: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A graph of those nodes alone; its one input (1, n) holds what each reads, one after another."""
    values = {"axis": np.array([1])}
    read = {name: f"read{index}" for index, name in enumerate(seen)}  # what one layer gives, another reads
    cut, at = [], 0
    for index, (name, value) in enumerate(seen.items()):
        ends = {f"start{index}": at, f"end{index}": at + value.size}
        values |= {key: np.array([end]) for key, end in ends.items()} | {f"shape{index}": np.array(value.shape)}
        cut.append(helper.make_node("Slice", ["x", *ends, "axis"], [f"flat{index}"]))
        cut.append(helper.make_node("Reshape", [f"flat{index}", f"shape{index}"], [read[name]]))
        at += value.size
    layers = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    for layer in layers:
        layer.input[0] = read[layer.input[0]]
    used = {name for layer in layers for name in layer.input}
    constants = [item for item in whole.graph.initializer if item.name in used]
    constants += [numpy_helper.from_array(value, key) for key, value in values.items()]
    taken = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", at])
    given = [onnx.ValueInfoProto(name=node.output[0]) for node in nodes]
    graph = helper.make_graph([*cut, *layers], "layers", [taken], given, constants)
    return helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)
