"""Weights, activations at once, the arena and the resident set of a file."""

import json
import os
import signal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.devices.runner import noise
from edgekit.engines import engine
from edgekit.engines.arena import arena_bytes, most_in_use
from edgekit.errors import BadInput
from edgekit.memory import child, resident, sizes, with_memory
from edgekit.memory.live import peak_bytes
from edgekit.onnx_data import weight_bytes
from tests.onnx_models import array, graph, one

PLANE = 8 * 8
MAP = 4 * 4 * PLANE  # bytes of a float32 (1, 4, 8, 8)


def conv(x: str, y: str, weight: str = "w") -> onnx.NodeProto:
    return helper.make_node("Conv", [x, weight], [y], name=y)


def node(op: str, inputs: str, y: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [y], name=y, **attributes)


def chain(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """Nodes on `x` of (batch, 4, 8, 8), with a 1×1 convolution's weight `w` that keeps the 4 channels."""
    return graph(nodes, (4, 8, 8), {"w": array(4, 4, 1, 1), **constants})


def test_a_convolution_holds_its_input_and_its_output():
    wide = one("Conv", array(8, 4, 1, 1))
    assert peak_bytes(wide) == MAP + 2 * MAP
    assert peak_bytes(wide, batch=3) == 3 * 3 * MAP


@pytest.mark.parametrize(
    ("nodes", "maps"),
    [
        ([conv("x", "a"), node("Relu", "a", "y")], 2),  # in one kernel with the convolution
        ([conv("x", "a"), conv("a", "b"), conv("b", "y")], 2),  # x is gone when b is made
        ([conv("x", "a"), conv("a", "b"), node("Add", "a b", "y")], 2),  # the sum is made in the place of a
        ([conv("x", "a"), conv("a", "b"), node("Add", "b x", "y")], 3),  # the caller's x is not overwritten
        ([conv("x", "a"), conv("a", "b"), node("Concat", "a b", "y", axis=1)], 4),  # both parts and the whole
        ([conv("x", "a"), node("Flatten", "a", "y")], 2),  # a view
        ([conv("x", "a"), node("GlobalAveragePool", "a", "y")], 2),
        ([conv("x", "a"), node("Sigmoid", "a", "s"), node("Mul", "a s", "y")], 2),  # in the place of a
        ([node("MaxPool", "x", "y", kernel_shape=[8, 8])], 1 + 1 / PLANE),
    ],
)
def test_what_is_alive_at_once(nodes, maps):
    assert peak_bytes(chain(*nodes)) == maps * MAP


def test_int8_values_count_a_byte_each():
    """A convolution to 16 channels, then one that is added to it: no float map but the input, and the sum, in int8, in
    the place of what it is added to."""
    constants = {"s": np.float32(0.1), "z": np.uint8(0)}
    constants |= {"v": np.zeros((16, 4, 1, 1), np.int8), "u": np.zeros((16, 16, 1, 1), np.int8)}
    nodes = [
        node("QuantizeLinear", "x s z", "xq"),
        node("DequantizeLinear", "xq s z", "xd"),
        node("DequantizeLinear", "v s", "vd"),
        conv("xd", "a", "vd"),
        node("QuantizeLinear", "a s z", "aq"),
        node("DequantizeLinear", "aq s z", "ad"),
        node("DequantizeLinear", "u s", "ud"),
        conv("ad", "b", "ud"),
        node("QuantizeLinear", "b s z", "bq"),
        node("DequantizeLinear", "bq s z", "bd"),
        node("Add", "ad bd", "c"),
        node("QuantizeLinear", "c s z", "cq"),
        node("DequantizeLinear", "cq s z", "y"),
    ]
    made = chain(*nodes, **constants)
    assert peak_bytes(made) == MAP // 4 + 4 * MAP // 4  # the quantised input beside 16 int8 channels
    assert weight_bytes(made.graph) == 4 * 16 + 4 + 1 + 16 * 4 + 16 * 16


def test_half_precision_counts_two_bytes():
    half = array(4, 4, 1, 1).astype(np.float16)
    made = chain(node("Cast", "x", "h", to=TensorProto.FLOAT16), conv("h", "a", "v"), conv("a", "b", "v"), v=half)
    assert peak_bytes(made) == MAP + MAP // 2  # the caller's float32 beside its float16 form; then two of those
    assert weight_bytes(made.graph) == 6 * 16


def test_a_size_that_is_unknown_is_named():
    made = chain(conv("x", "a"), node("Reshape", "a n", "b"), conv("b", "y"))
    made.graph.input.append(helper.make_tensor_value_info("n", TensorProto.INT64, ["rank"]))
    with pytest.raises(BadInput, match=r"the size of '.' cannot be inferred; fold its shape arithmetic"):
        peak_bytes(made)


def test_codes_of_four_bits_take_half_a_byte():
    codes = helper.make_tensor("codes", TensorProto.UINT4, [5], [1, 2, 3, 4, 5])
    made = helper.make_graph([], "g", [], [], [codes, numpy_helper.from_array(array(7), "book")])
    assert weight_bytes(made) == 3 + 28


def test_the_arena_holds_what_is_alive_and_little_more(bundle, tmp_path):
    for path in (bundle.base, *bundle.models):
        session = engine("onnxruntime").load(path, 1, profile=tmp_path / "profile")
        for _ in range(2):
            session.run(noise(session, 1))
        model = onnx.load(path)
        own = peak_bytes(model) - 4 * 3 * 16 * 16  # the input is the caller's
        assert own <= arena_bytes(session) <= 3 * own + 100_000


def noted(in_use: int, gained: int, peak: int) -> dict[str, str]:
    return {"mem_bytes_in_use": str(in_use), "mem_in_use_delta": str(gained), "mem_in_use_peak": str(peak)}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], None),  # an older ONNX Runtime
        ([noted(150, 50, 150), noted(130, -20, 150)], 50),
        ([noted(150, 50, 150), noted(130, -20, 190)], 90),  # scratch memory within the second operator
        ([noted(150, 50, 400), noted(180, 30, 400)], 80),  # the peak is that of loading
    ],
)
def test_the_arena_above_what_loading_left(events, expected):
    assert most_in_use(events) == expected


def test_weights_are_resident_once_loaded(tmp_path):
    """The gain of 8 MB of weights is at least theirs; that of a few kB stays far below."""
    for name, width in (("small", 16), ("large", 1024)):
        nodes = [node("Flatten", "x", "f"), node("Gemm", "f w", "h"), node("Gemm", "h v", "y")]
        constants = {"w": array(256, width), "v": array(width, 1792)}
        onnx.save(graph(nodes, (4, 8, 8), constants), tmp_path / f"{name}.onnx")
    small, large = resident.measure([tmp_path / "small.onnx", tmp_path / "large.onnx"], "onnxruntime", 1)
    weights = 4 * 1024 * (256 + 1792)
    assert large["resident_load_bytes"] - small["resident_load_bytes"] > 0.8 * weights
    assert small["resident_run_bytes"] < 0.5 * weights
    assert large["resident_run_bytes"] > large["resident_load_bytes"] - 1e6 and large["arena_bytes"] >= 4 * 1792


def profile_document(**rows) -> dict:
    engines = {"onnxruntime": "1"}
    return {"rows": [{"file": name} for name in rows], "settings": {"engines": engines, "threads": 1, "batch": 1}}


def test_a_file_that_cannot_be_loaded_is_named(tmp_path, bundle):
    free = graph([conv("x", "y")], (4, "h", "w"), {"w": array(4, 4, 1, 1)}, result=["n", 4, "h", "w"])
    onnx.save(free, tmp_path / "free.onnx")
    files = [tmp_path / "free.onnx", bundle.base]
    document = profile_document(**{path.name: 0 for path in files})
    found = with_memory(document, {"onnxruntime": {path.name: path for path in files}})
    assert "must be fixed numbers" in found["memory"]["unmeasured"]["free.onnx"]
    assert "resident_run_bytes" not in found["rows"][0] and found["rows"][0]["peak_bytes"] is None
    assert found["rows"][0]["peak_unknown"].startswith("the size of 'x' cannot be inferred")
    assert found["rows"][1]["resident_run_bytes"] >= 0
    assert "memory" not in document


def test_host_memory_says_nothing_of_a_card(bundle):
    document = profile_document(**{bundle.base.name: 0})
    document["settings"]["engines"] = {"tensorrt": "11"}
    found = with_memory(document, {"tensorrt": {bundle.base.name: bundle.base}})
    assert "graphics card" in found["memory"]["unmeasured"][bundle.base.name]
    assert found["rows"][0]["peak_bytes"] > 0


def test_a_process_that_dies_is_told():
    assert child.forked(lambda: {"answer": 42}) == {"answer": 42}
    assert child.forked(lambda: {}["x"]) == {"error": "'x'"}
    killed = child.forked(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert killed == {"error": "the process that ran it was ended by Killed"}


def test_an_engine_that_is_not_there_is_an_error_not_a_crash(bundle):
    (found,) = resident.measure([bundle.base], "nonesuch", 1)
    assert "nonesuch" in found["error"]


def test_without_proc_the_reason_is_told(tmp_path, monkeypatch, bundle):
    why = resident.missing(tmp_path)
    assert "smaps_rollup" in why and resident.missing() is None
    monkeypatch.setattr(resident, "missing", lambda: why)
    assert resident.measure([bundle.base], "onnxruntime", 1) == [{"error": why}]


def test_sizes_of_a_file_and_of_none(tmp_path, bundle):
    assert sizes(bundle.base)["weight_bytes"] < bundle.base.stat().st_size
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(BadInput, match="is no ONNX file"):
        sizes(tmp_path / "text.onnx")


def test_what_the_process_asks_and_answers_is_json(bundle):
    asked = {"engine": "onnxruntime", "files": [str(bundle.base)], "threads": 1, "batch": 1, "arena": False}
    (record,) = resident._ask(json.loads(json.dumps(asked)))
    assert set(record) == {"resident_load_bytes", "resident_run_bytes"}
