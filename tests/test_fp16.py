"""float16: parity, what stays float32 and why, where casts stand, and each bad input."""

import importlib.util

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.context import RewriteContext
from edgekit.data import Input, Output
from edgekit.engines.tensorrt import TENSORRT
from edgekit.errors import BadInput, NothingChanged
from edgekit.export import export, serialise
from edgekit.parity import sqnr_db
from edgekit.rewrites import Fold, Fp16, Int8
from edgekit.rewrites.fp16 import LARGEST
from edgekit.targets import target
from tests.nets import tiny, tiny_segment
from tests.onnx_models import run

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def context(data=None, log=lambda _line: None, size: int = 16) -> RewriteContext:
    return RewriteContext(target("onnxruntime"), Input(size=size), Output(classes=4), data, 0, log)


@pytest.fixture(scope="module")
def folded() -> onnx.ModelProto:
    ctx = context()
    return Fold()(export(tiny(), ctx.input, ctx.output, ctx.target).model, ctx)


def small(nodes, constants, outputs=("y",), shape=("n", 4, 6, 6)) -> onnx.ModelProto:
    """A graph from `x` through nodes (operator, inputs, output, attributes), each named by its output."""
    made = [helper.make_node(op, inputs, [out], name=out, **settings) for op, inputs, out, settings in nodes]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, ["n", 4, None, None]) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def kernel(scale: float = 0.3, seed: int = 0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((4, 4, 1, 1))).astype(np.float32)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor; the checker is strict about mixed ones."""
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    return found | {init.name: init.data_type for init in inferred.initializer}


def casts(model: onnx.ModelProto) -> list[str]:
    return [node.output[0] for node in model.graph.node if node.op_type == "Cast"]


def test_a_calibrated_network_answers_as_before_at_half_the_size(folded, images):
    made = Fp16()(folded, context(images))
    x = next(images.role("test").batches(Input(size=16), 32))[0]
    expected = run(folded, x)
    for optimise in (True, False):
        found = run(made, x, optimise=optimise)
        assert found.dtype == np.float32 and 40 < sqnr_db(expected, found) < 90
    assert len(serialise(made)) < 0.6 * len(serialise(folded))


def test_only_the_borders_are_float32(folded, images):
    made = Fp16()(folded, context(images))
    kinds = types(made)
    floats = {name for name, kind in kinds.items() if kind == FLOAT}
    assert floats == {"output"} and casts(made) == ["input.fp16", "output"]
    assert made.graph.input[0].type.tensor_type.elem_type == FLOAT
    before = [node.name for node in folded.graph.node]
    assert [node.name for node in made.graph.node if node.op_type != "Cast"] == before


def test_its_input_is_left_alone_and_bytes_repeat(folded, images):
    before = serialise(folded)
    first = serialise(Fp16()(folded, context(images)))
    assert serialise(folded) == before and first == serialise(Fp16()(folded, context(images)))


def test_kept_layers_stay_float32(folded, images):
    made = Fp16(keep=("head.*", "Add"))(folded, context(images))
    kinds = types(made)
    assert kinds["head.conv.weight"] == FLOAT and kinds["stem.conv.weight"] == HALF
    nodes = {node.name: node for node in made.graph.node}
    assert {kinds[nodes[name].output[0]] for name in ("Add", "head.conv", "head.act")} == {FLOAT}
    # Add, head.conv and head.act follow each other: no cast between them.
    assert len(casts(made)) == 5
    x = noise(4, 3, 16, 16)
    assert sqnr_db(run(folded, x), run(made, x)) > sqnr_db(run(folded, x), run(Fp16()(folded, context(images)), x))


def test_a_pattern_that_names_no_layer_is_a_mistake(folded):
    with pytest.raises(BadInput, match=r"fp16: keep: unknown layer 'head.cnov'; did you mean 'head.conv'"):
        Fp16(keep=("head.cnov",))(folded, context())


def test_all_kept_is_no_change(folded):
    with pytest.raises(NothingChanged, match="every layer with weights stays float32"):
        Fp16(keep=("*",))(folded, context())


def test_a_weight_beyond_float16_is_not_clipped():
    big = kernel()
    big[0, 0] = 70000.0
    nodes = [("Conv", ["x", "w"], "large", {}), ("Conv", ["x", "v"], "y", {})]
    lines: list[str] = []
    model = small(nodes, {"w": big, "v": kernel(seed=1)}, ("large", "y"))
    made = Fp16()(model, context(log=lines.append))
    kinds = types(made)
    assert kinds["w"] == FLOAT and kinds["v"] == HALF
    assert any(line == "fp16: large has a weight of 7e+04: it stays float32" for line in lines)
    assert any("activations were not checked" in line for line in lines)


def test_activations_beyond_float16_are_found_on_calibration_images(images):
    """A convolution's output of 1e5 and more, brought back by the next one: in float16 it would be infinite."""
    nodes = [
        ("Conv", ["x", "up"], "loud", {}),
        ("Conv", ["loud", "down"], "quiet", {}),
        ("Conv", ["quiet", "last"], "y", {}),
    ]
    up = np.full((4, 3, 1, 1), 6e4, np.float32)
    model = small(nodes, {"up": up, "down": kernel(1e-5), "last": kernel(seed=2)}, shape=("n", 3, 16, 16))
    lines: list[str] = []
    made = Fp16()(model, context(images, lines.append))
    kinds = types(made)
    assert (kinds["up"], kinds["down"], kinds["last"]) == (FLOAT, FLOAT, HALF)
    assert any("loud reaches" in line and line.endswith("float32 stay loud, quiet") for line in lines)
    x = next(images.role("test").batches(Input(size=16), 8))[0]
    assert sqnr_db(run(model, x), run(made, x)) > 40
    # Without images nobody could know: ONNX Runtime on x86 keeps float32 between float16 operators.
    assert types(Fp16()(model, context()))["loud"] == HALF


def test_bounds_beyond_float16_are_its_largest_value():
    nodes = [("Conv", ["x", "w"], "c", {}), ("Clip", ["c", "low", "high"], "y", {})]
    low, high = np.float32(0), np.float32(3.4e38)
    made = Fp16()(small(nodes, {"w": kernel(), "low": low, "high": high}), context())
    assert float(numpy_helper.to_array(next(i for i in made.graph.initializer if i.name == "high"))) == LARGEST
    assert types(made)["c"] == HALF


def test_weights_that_vanish_are_counted():
    tiny_weights = kernel()
    tiny_weights[1:] = 1e-9
    lines: list[str] = []
    Fp16()(small([("Conv", ["x", "w"], "y", {})], {"w": tiny_weights}), context(log=lines.append))
    assert lines[-1] == "fp16: 1 of 1 operators; 12 weights are too small and become 0"


def test_sizes_of_resize_stay_float32():
    """ONNX has no float16 scales; what else is computed around them stays whole numbers."""
    ctx = context(size=64)
    model = Fold()(export(tiny_segment(), ctx.input, ctx.output, ctx.target).model, ctx)
    made = Fp16()(model, ctx)
    types(made)
    assert any(node.op_type == "Resize" for node in made.graph.node)
    x = noise(2, 3, 64, 64)
    assert sqnr_db(run(model, x), run(made, x)) > 40


def test_one_constant_for_readers_of_both_types():
    nodes = [
        ("Conv", ["x", "w"], "a", {}),
        ("Conv", ["a", "w"], "b", {}),
        ("Resize", ["b", "", "scales"], "c", {"mode": "nearest"}),
        ("Mul", ["c", "scales4"], "y", {}),
    ]
    scales = np.array([1, 1, 2, 2], np.float32)
    constants = {"w": kernel(), "scales": scales, "scales4": scales.reshape(1, 4, 1, 1)}
    model = small(nodes, constants)
    made = Fp16(keep=("b",))(model, context())
    kinds = types(made)
    assert (kinds["w"], kinds["w.fp16"], kinds["scales"], kinds["scales4"]) == (FLOAT, HALF, FLOAT, HALF)
    x = noise(2, 4, 6, 6)
    assert sqnr_db(run(model, x), run(made, x)) > 40


def test_a_result_that_is_read_inside_too_keeps_its_name_and_type():
    nodes = [("Conv", ["x", "w"], "y", {}), ("Conv", ["y", "v"], "z", {}), ("Relu", ["y"], "r", {})]
    model = small(nodes, {"w": kernel(), "v": kernel(seed=1)}, ("y", "z", "r"))
    made = Fp16(keep=("r",))(model, context())
    kinds = types(made)
    assert kinds["y"] == kinds["z"] == kinds["r"] == FLOAT and kinds["y.fp16"] == HALF
    inputs = {node.name: node.input[0] for node in made.graph.node}
    assert inputs["z"] == "y.fp16" and inputs["r"] == "y"


def test_what_is_made_from_whole_numbers_becomes_half():
    nodes = [
        ("Conv", ["x", "w"], "c", {}),
        ("Cast", ["count"], "f", {"to": FLOAT}),
        ("Range", ["zero", "four", "step"], "range", {}),
        ("Reshape", ["range", "shape"], "ramp", {}),
        ("Mul", ["c", "f"], "m", {}),
        ("Add", ["m", "ramp"], "y", {}),
    ]
    constants = {
        "w": kernel(), "count": np.array([3]), "shape": np.array([1, 4, 1, 1]),
        "zero": np.float32(0), "four": np.float32(4), "step": np.float32(1),
    }  # fmt: skip
    model = small(nodes, constants)
    made = Fp16()(model, context())
    kinds = types(made)
    assert kinds["f"] == HALF and kinds["range"] == FLOAT and kinds["ramp"] == HALF
    x = noise(2, 4, 6, 6)
    assert sqnr_db(run(model, x), run(made, x)) > 40


def test_converted_graphs_are_refused(folded, images):
    ctx = context(images)
    with pytest.raises(BadInput, match="fp16: the graph is quantised already"):
        Fp16()(Int8(images=4, fit_images=4, reconstruct="none")(folded, ctx), ctx)
    half = Fp16()(folded, ctx)
    with pytest.raises(BadInput, match="fp16: the graph has float16 weights already"):
        Fp16()(half, ctx)
    with pytest.raises(BadInput, match="int8: the graph has float16 weights"):
        Int8()(half, ctx)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")
def test_mixed_graphs_build_in_tensorrt_rtx(folded, images):
    for keep in ((), ("head.*", "Add"), ("stem.conv",)):
        assert TENSORRT["tensorrt-rtx"].build(serialise(Fp16(keep=keep)(folded, context(images))), capability="SM86")
