"""The lab with an emulator: kernels saturate exactly where `edgekit.quant.pairs` says. Needs qemu (skipped without)."""

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.context import no_progress
from edgekit.devices.cpus import cpus
from edgekit.errors import BadInput
from edgekit.export import export, finish, serialise
from edgekit.isa import is_safe
from edgekit.lab import emulator, entries, root
from edgekit.lab.emulator import host_python
from edgekit.lab.jobs import Task, work
from edgekit.lab.run import Plan, run
from edgekit.quant.pairs import conv_pairs
from edgekit.rewrites import Fold, Int8
from tests.nets import tiny
from tests.test_quant import INPUT, OUTPUT, context

x86 = pytest.mark.skipif(emulator.missing("x86_64") is not None, reason=str(emulator.missing("x86_64")))
arm = pytest.mark.skipif(root.state() != "ready", reason=root.state())
# input channels, window, groups, outputs a pair of weights and group
KERNELS = [(8, (1, 1), 1), (7, (1, 1), 1), (3, (3, 3), 1), (5, (2, 2), 1), (6, (3, 3), 2), (4, (3, 3), 4)]
EXACT, SATURATED = 65, 33  # 255 · (127 + 127) and 2^15 - 1 in steps of 1000


def all_pairs(inputs: int, window: tuple[int, int], groups: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """A weight with an output for each pair of columns, and the pairs."""
    columns = inputs // groups * window[0] * window[1]
    pairs = list(itertools.combinations(range(columns), 2))
    weight = np.zeros((groups, len(pairs), columns), np.int8)
    for row, pair in enumerate(pairs):
        weight[:, row, pair] = 127
    return weight.reshape(groups * len(pairs), inputs // groups, *window), pairs


def kernels() -> bytes:
    """All KERNELS in one graph, each on the first channels of x, and a depthwise one with full weights."""
    values = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "signed": np.int8(0),
        "thousand": np.float32(1000),
        "start": np.array([0]),
    }
    values["axis"] = np.array([1])
    nodes, outputs = [], []
    weights = [(inputs, groups, all_pairs(inputs, window, groups)[0]) for inputs, window, groups in KERNELS]
    for index, (inputs, groups, weight) in enumerate([*weights, (8, 8, np.full((8, 1, 3, 2), 127, np.int8))]):
        values |= {f"w{index}": weight, f"end{index}": np.array([inputs])}
        nodes.append(helper.make_node("Slice", ["x", "start", f"end{index}", "axis"], [f"x{index}"]))
        reads = [f"x{index}", "one", "zero", f"w{index}", "one", "signed", "thousand", "zero"]
        nodes.append(helper.make_node("QLinearConv", reads, [f"y{index}"], group=groups))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.UINT8, None))
    graph = helper.make_graph(
        nodes,
        "kernels",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 8, 6, 6])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


@x86
def test_kernels_for_avx2_saturate_in_exactly_the_pairs_that_are_foretold(tmp_path):
    on = host_python(cpus()["haswell"], tmp_path)
    task = Task("kernels.onnx", kernels(), np.full((1, 8, 6, 6), 255, np.uint8), tmp_path / "kept", ("full",))
    work(task, on, 1, None, no_progress)
    *found, depthwise = task.answer(0)
    assert (depthwise == round(6 * 127 * 255 / 1000)).all()
    for (inputs, window, groups), values in zip(KERNELS, found):
        weight, pairs = all_pairs(inputs, window, groups)
        foretold = {tuple(sorted(pair)) for pair in conv_pairs(weight.shape, groups).tolist()}
        wanted = np.array([SATURATED if pair in foretold else EXACT for pair in pairs] * groups)
        assert (values[0] == wanted[:, None, None]).all(), (inputs, window, groups)


def int8_file(images, name: str, path) -> bytes:
    target = context().target
    folded = Fold()(export(tiny(), INPUT, OUTPUT, target).model, context())
    content = serialise(
        finish(
            Int8(images=16, reconstruct="none", bias_correction=False)(folded, context(images, name)),
            target,
            INPUT,
            OUTPUT,
        )
    )
    path.write_bytes(content)
    return content


@x86
def test_the_portable_file_answers_the_same_without_vnni(images, data, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "net.onnx"
    assert is_safe(int8_file(images, "onnxruntime", path))
    here, there = run([path], "haswell", [data], Plan(samples=2, processes=1))["rows"]
    assert (there["sqnr_db"], there["agreement"], there["n"]) == (300.0, 100.0, 2)
    assert there["metrics"] == here["metrics"] and there["cpu"] == "haswell"


@arm
@pytest.mark.parametrize("way", list(entries.ENTRIES))
def test_arm_answers_the_same(images, data, tmp_path, monkeypatch, way):
    monkeypatch.setattr(entries, "ENTRIES", {way: entries.ENTRIES[way]})
    entries.entry.cache_clear()
    monkeypatch.setattr("edgekit.lab.run.cache_folder", lambda: tmp_path)
    try:
        entries.entry()
    except BadInput:
        pytest.skip(f"{way} is no way into a root here")
    path = tmp_path / "net.onnx"
    int8_file(images, "onnxruntime", path)
    _, there = run([path], "cortex-a53", [data], Plan(samples=1))["rows"]
    entries.entry.cache_clear()
    assert there["sqnr_db"] == 300.0 and there["n"] == 1
