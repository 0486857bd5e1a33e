"""int8 after training: the arithmetic, each method's promise, the form of the file, and each bad input."""

import dataclasses
import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import data as datasets
from edgekit.context import RewriteContext
from edgekit.data import Input, Output
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.parity import sqnr_db
from edgekit.quant.calibrate import check_images
from edgekit.quant.gptq import descend, gptq, least_squares_target, quadratic, scarcity, to_integers
from edgekit.quant.graph import Graph, plan, prepared
from edgekit.quant.grid import activation_grid, bias_floor, fake_quantised, max_scales, mse_scales, rounded
from edgekit.quant.inputs import sampled_rows
from edgekit.quant.ranges import HALF, Histogram, find_range, squared_error
from edgekit.quant.targets import SCHEMES, scheme, violations
from edgekit.rewrites import Fold, Int8
from edgekit.rewrites.int8 import count_quantised
from edgekit.targets import Target
from tests.nets import tiny
from tests.onnx_models import run

INPUT, OUTPUT = Input(size=16, mean=(0.5,), std=(0.5,)), Output(classes=4)


def context(data: datasets.Data | None = None, name: str = "onnxruntime", log=lambda _line: None) -> RewriteContext:
    wanted = Target(name, "onnxruntime", opset=20, ir_version=10)
    return RewriteContext(wanted, INPUT, OUTPUT, data, 0, log)


@pytest.fixture(scope="module")
def batch(images) -> np.ndarray:
    return next(images.role("test").batches(INPUT, 32))[0]


@pytest.fixture(scope="module")
def folded() -> onnx.ModelProto:
    exported = export(tiny(), INPUT, OUTPUT, context().target).model
    return Fold()(exported, context())


@pytest.fixture(scope="module")
def files(folded, images) -> dict[str, onnx.ModelProto]:
    """The tiny network in every target's form."""
    return {name: Int8(images=16, fit_images=16)(folded, context(images, name)) for name in SCHEMES}


def small(nodes, constants, shape=("n", 4, 6, 6), outputs=("y",), opset=17) -> onnx.ModelProto:
    """A graph from `x` through nodes given as (kind, inputs, output, attributes)."""
    made = [
        helper.make_node(kind, list(inputs), [output], name=f"{kind}_{output}", **attributes)
        for kind, inputs, output, attributes in nodes
    ]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def chain(activation: str = "Relu", seed: int = 0) -> onnx.ModelProto:
    """expand -> activation -> depthwise -> activation -> project, with channels of very different range."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(0.02, 1, 8)
    bounds = () if activation == "Relu" else ("zero", "six")
    constants = {
        "w1": rng.standard_normal((8, 4, 1, 1)) * spread[:, None, None, None],
        "b1": rng.standard_normal(8) * spread,
        "w2": rng.standard_normal((8, 1, 3, 3)),
        "b2": rng.standard_normal(8) * 0.1,
        "w3": rng.standard_normal((4, 8, 1, 1)),
        "b3": rng.standard_normal(4),
        **({} if activation == "Relu" else {"zero": 0.0, "six": 6.0}),
    }
    nodes = [
        ("Conv", ("x", "w1", "b1"), "a", {}),
        (activation, ("a", *bounds), "ar", {}),
        ("Conv", ("ar", "w2", "b2"), "b", {"group": 8, "pads": [1, 1, 1, 1]}),
        (activation, ("b", *bounds), "br", {}),
        ("Conv", ("br", "w3", "b3"), "y", {}),
    ]
    return small(nodes, constants)


# The arithmetic


def test_grids_are_the_closed_form():
    grid = activation_grid(-1.0, 3.0, False, (0, 255))
    assert grid.scale == (np.float32(4 / 255),) and grid.zero_point == 64  # 255 / 4 = 63.75
    grid = activation_grid(-1.0, 3.0, True, (-127, 127))
    assert grid.scale == (np.float32(3 / 127),) and grid.zero_point == 0
    assert activation_grid(2.0, 4.0, False, (0, 255)).scale == (np.float32(4 / 255),)  # 0 is always on the grid
    assert activation_grid(0.0, 0.0, False, (0, 255)).scale == (1.0,)


@pytest.mark.parametrize("symmetric, limits", [(False, (0, 255)), (True, (-127, 127))])
def test_fake_quantisation_is_within_half_a_step_and_keeps_zero(symmetric, limits):
    x = np.linspace(-1, 3, 1001, dtype=np.float32)
    grid = activation_grid(-1, 3, symmetric, limits)
    found = fake_quantised(x, grid, limits)
    assert np.abs(found - x).max() <= 1.01 * grid.scale[0] / 2 + (0 if symmetric else grid.scale[0] / 2)
    assert fake_quantised(np.zeros(1, np.float32), grid, limits)[0] == 0


def test_weights_are_within_half_a_step():
    weight = np.random.default_rng(0).standard_normal((2, 5, 40))
    scale = max_scales(weight, 64)
    error = np.abs(rounded(weight, scale, 64) * scale[..., None] - weight)
    assert (error <= scale[..., None] / 2 + 1e-12).all() and np.abs(rounded(weight, scale, 64)).max() == 64


def test_mse_scale_beats_max_on_an_outlier():
    weight = np.random.default_rng(0).standard_normal((1, 1, 1000))
    weight[0, 0, 0] = 8.0

    def error(values: np.ndarray, scale: np.ndarray) -> float:
        return float(np.square(rounded(values, scale, 7) * scale[..., None] - values).sum())

    assert error(weight, mse_scales(weight, 7)) < 0.8 * error(weight, max_scales(weight, 7))
    even = np.linspace(-1, 1, 101)[None, None]
    assert error(even, mse_scales(even, 7)) <= error(even, max_scales(even, 7))


def test_the_bias_floor_keeps_the_bias_within_int32():
    assert np.abs(3.0) / (0.01 * bias_floor(np.array([-3.0]), 0.01)[0]) == pytest.approx(2**26)


# Ranges


def test_a_histogram_does_not_depend_on_batches():
    values = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    values[4000] = 9.0  # comes late, and widens what was there
    whole, parts, joined = Histogram(), Histogram(), Histogram()
    whole.add(values)
    for part in np.split(values, 8):
        parts.add(part)
        single = Histogram()
        single.add(part)
        joined = joined.joined(single)
    for other in (parts, joined):
        assert np.array_equal(whole.counts, other.counts) and whole.radius == other.radius == 16
        assert (whole.low, whole.high) == (other.low, other.high)
    assert whole.outside(whole.low, whole.high) == 0 and whole.outside(-9, 8) == 1 / 4096


def test_a_histogram_grows_and_loses_nothing():
    found = Histogram()
    for power in range(8):
        found.add(np.linspace(-(2.0**power), 0.3, 10, dtype=np.float32))
    assert found.counts.sum() == 80 and found.low == -128 and len(found.counts) == 2 * HALF


@pytest.mark.parametrize("method", ["percentile", "mse", "kl"])
def test_ranges_clip_a_lone_outlier(method):
    values = np.random.default_rng(0).standard_normal(2_000_000).astype(np.float32)
    values[0] = 60.0
    found = Histogram()
    found.add(values)
    low, high = find_range(found, method, False)
    assert -6 < low < -2 and 2 < high < 30
    assert find_range(found, "minmax", False) == (values.min(), 60.0)


def test_the_mse_range_is_no_worse_than_any_other_method():
    values = np.random.default_rng(1).standard_t(3, 100_000).astype(np.float32)
    found = Histogram()
    found.add(values)
    x, counts = found.occupied()
    error = {m: squared_error(x, counts, find_range(found, m, True), True) for m in ("minmax", "mse", "kl")}
    assert error["mse"] == min(error.values()) and error["mse"] < 0.9 * error["minmax"]


# Reconstruction


def problem(rows: int = 400, size: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((2, size, rows)) * rng.uniform(0.1, 2, (2, size, 1))
    inputs = inputs + inputs.mean(axis=1, keepdims=True) * 3  # correlated, as activations are
    return rng.standard_normal((2, 6, size)), inputs @ inputs.transpose(0, 2, 1) / rows


@pytest.mark.parametrize("high", [3, 7, 64])
def test_gptq_is_never_worse_than_rounding(high):
    for seed in range(5):
        weight, hessian = problem(seed=seed)
        scale = max_scales(weight, high)
        found = gptq(weight, scale, hessian, to_integers(high))
        assert np.abs(found).max() <= high and np.array_equal(found, np.rint(found))
        ours = quadratic(found * scale[..., None], weight, hessian)
        nearest = quadratic(rounded(weight, scale, high) * scale[..., None], weight, hessian)
        assert ours.sum() < 0.8 * nearest.sum()
        damping = 0.05 * nearest + 1e-9  # the promise holds on H + λI
        assert (ours <= nearest + damping).all()


def test_coordinate_descent_ends_where_no_single_step_helps():
    weight, hessian = problem()
    scale = max_scales(weight, 7)
    found = descend(rounded(weight, scale, 7), weight, scale, hessian, to_integers(7), sweeps=100)
    least = quadratic(found * scale[..., None], weight, hessian)
    for j, step in itertools.product(range(weight.shape[2]), (-1, 1)):
        other = found.copy()
        other[:, :, j] = np.clip(other[:, :, j] + step, -7, 7)
        assert (quadratic(other * scale[..., None], weight, hessian) >= least - 1e-9).all()


def test_the_least_squares_target_undoes_a_linear_error_of_the_inputs():
    """If every input arrives halved, the target is twice the weights."""
    weight, hessian = problem()
    found = least_squares_target(weight, hessian / 4, hessian / 4, damp=0.0)  # x̂ = x / 2, x − x̂ = x̂
    assert found == pytest.approx(2 * weight)


def test_few_rows_are_not_believed_too_much():
    """16 rows of 64 columns: on rows that were not seen, the more so damped rounding is the better one."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1, 10, 64))
    seen, unseen = (rng.standard_normal((1, 64, n)) for n in (16, 4000))
    scale, hessian = max_scales(weight, 7), seen @ seen.transpose(0, 2, 1) / 16
    found = {few: gptq(weight, scale, hessian, to_integers(7), 0.01 * few) for few in (1.0, scarcity(16, 64))}
    errors = [np.square((integers * scale[..., None] - weight) @ unseen).sum() for integers in found.values()]
    assert scarcity(16, 64) == 32 and scarcity(10**6, 64) == 1 and errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    "attributes, shape",
    [
        ({"pads": [1, 1, 1, 1], "strides": [2, 2]}, (6, 4, 3, 3)),
        ({"pads": [0, 1, 2, 1], "dilations": [2, 1]}, (6, 4, 3, 3)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (6, 4, 3, 3)),
        ({"group": 4, "pads": [1, 1, 1, 1]}, (8, 1, 3, 3)),
        ({"group": 2}, (6, 2, 1, 1)),
    ],
)
def test_sampled_rows_are_what_a_convolution_sums_over(attributes, shape):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 4, 6, 7)).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    model = small([("Conv", ("x", "w"), "y", attributes)], {"w": weight}, ("n", 4, 6, 7))
    groups = attributes.get("group", 1)
    rows = sampled_rows(model.graph.node[0], shape, x, np.random.default_rng(1), 10**9)
    found = weight.reshape(groups, shape[0] // groups, -1) @ rows  # (G, O, n)
    expected = run(model, x)  # (B, C, H, W)
    found = np.sort(found.reshape(shape[0], 3, -1), axis=2)
    assert found == pytest.approx(np.sort(expected.reshape(3, shape[0], -1).transpose(1, 0, 2), axis=2), abs=1e-4)


# Bias correction


def test_bias_correction_removes_a_known_shift_exactly(images):
    """Weights of 0.4 steps are lost in rounding; the mean that they carried comes back through the bias."""
    weight = np.full((2, 3, 1, 1), 0.4 / 127)
    weight[:, 0] = 1.0
    model = small([("Conv", ("x", "w", "b"), "y", {})], {"w": weight, "b": [0.5, -0.5]}, ("n", 3, 16, 16))
    settings = Int8(images=8, fit_images=8, equalise=False, weight_scale="max", reconstruct="none")
    x = np.concatenate(list(context(images).calibration(8)))
    for corrected, limit in ((True, 2e-5), (False, None)):
        result = dataclasses.replace(settings, bias_correction=corrected)
        made = result(model, context(images, "tensorrt"))  # the output stays float there, so the mean is exact
        shift = np.abs((run(made, x, optimise=False) - run(model, x)).mean(axis=(0, 2, 3)))
        assert (shift < limit).all() if limit else (shift > 3e-4).all()


def test_products_of_tokens_and_shapes_that_are_computed(images):
    """(B, C, H, W) -> tokens (B, H · W, C) -> product -> back, by shape arithmetic on whole numbers."""
    rng = np.random.default_rng(0)
    nodes = [
        ("Conv", ("x", "w"), "a", {}),
        ("Shape", ("a",), "s", {"start": 0, "end": 2}),
        ("Concat", ("s", "rest"), "t", {"axis": 0}),
        ("Reshape", ("a", "t"), "b", {}),
        ("Transpose", ("b",), "c", {"perm": [0, 2, 1]}),
        ("MatMul", ("c", "m"), "d", {}),
        ("Add", ("d", "bias"), "y", {}),
    ]
    constants = {
        "w": rng.standard_normal((5, 3, 1, 1)),
        "m": rng.standard_normal((5, 6)),
        "bias": rng.standard_normal(6),
    }
    model = small(nodes, constants, ("n", 3, 16, 16))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "rest"))
    result = Int8(images=8)(model, context(images))
    x = next(images.role("test").batches(INPUT, 4))[0]
    assert count_quantised(result) == 2 and sqnr_db(run(model, x), run(result, x)) > 25
    assert violations(result, scheme("onnxruntime")) == []


def test_parts_of_a_split_are_followed(images):
    rng = np.random.default_rng(0)
    model = small(
        [("Conv", ("x", "w"), "a", {}), ("Conv", ("right", "v"), "y", {})],
        {"w": rng.standard_normal((6, 3, 1, 1)), "v": rng.standard_normal((4, 3, 1, 1))},
        ("n", 3, 16, 16),
    )
    model.graph.node.insert(1, helper.make_node("Split", ["a"], ["left", "right"], name="split", axis=1))
    model.graph.output.append(helper.make_tensor_value_info("left", TensorProto.FLOAT, None))
    result = Int8(images=8)(model, context(images))
    x = next(images.role("test").batches(INPUT, 4))[0]
    assert count_quantised(result) == 2 and sqnr_db(run(model, x), run(result, x)) > 25


def test_a_file_of_fixed_batch(images):
    model = small([("Conv", ("x", "w"), "y", {})], {"w": np.ones((2, 3, 1, 1))}, (3, 3, 16, 16))
    assert count_quantised(Int8(images=8)(model, context(images))) == 1


# The file


@pytest.mark.parametrize("name", SCHEMES)
def test_a_file_obeys_its_target(files, name):
    assert violations(files[name], scheme(name)) == []
    onnx.checker.check_model(files[name], full_check=True)
    assert count_quantised(files[name]) == 6


@pytest.mark.parametrize("name", SCHEMES)
def test_weights_keep_within_the_targets_range(files, name):
    values = [numpy_helper.to_array(i) for i in files[name].graph.initializer if i.data_type == TensorProto.INT8]
    top = max(int(np.abs(value.astype(int)).max()) for value in values if value.ndim > 1)
    assert top <= SCHEMES[name].weight_max and (top > 64) == (SCHEMES[name].weight_max > 64)


@pytest.mark.parametrize("name", SCHEMES)
def test_every_form_is_close_to_the_float_network(files, folded, batch, name):
    assert sqnr_db(run(folded, batch), run(files[name], batch, optimise=False)) > 25


def test_onnx_runtime_fuses_everything(files, folded, batch):
    ops = engine("onnxruntime").executed_ops(serialise(files["onnxruntime"]))
    convolutions = sum(node.op_type == "Conv" for node in folded.graph.node)
    assert ops["QLinearConv"] == convolutions and ops["QLinearAdd"] == 1 and ops["QGemm"] == 1
    assert ops["QLinearGlobalAveragePool"] == 1 and not {"Conv", "Relu", "Clip", "Add", "Gemm"} & set(ops)
    fused, plain = (run(files["onnxruntime"], batch, optimise=flag) for flag in (True, False))
    assert sqnr_db(plain, fused) > 30


def test_concat_and_pooling_share_scales(images):
    rng = np.random.default_rng(0)
    constants = {"w1": rng.standard_normal((4, 3, 1, 1)), "w2": 9 * rng.standard_normal((4, 3, 1, 1))}
    nodes = [
        ("Conv", ("x", "w1"), "a", {}),
        ("Conv", ("x", "w2"), "b", {}),
        ("Concat", ("a", "b"), "c", {"axis": 1}),
        ("MaxPool", ("c",), "d", {"kernel_shape": [2, 2]}),
        ("GlobalAveragePool", ("d",), "y", {}),
    ]
    model, table = Int8(images=4).quantise(small(nodes, constants, ("n", 3, 16, 16)), context(images))
    assert len({table[name] for name in "abcd"}) == 1 and table["a"].to_json()["bits"] == 8
    ops = engine("onnxruntime").executed_ops(serialise(model))
    assert ops["QLinearConv"] == 2 and "Concat" not in ops and ops["QuantizeLinear"] == 1


def test_the_residual_input_alone_is_quantised_for_tensorrt(folded):
    planned = plan(Graph(prepared(folded)), scheme("tensorrt"))
    (add,) = [node for node in folded.graph.node if node.op_type == "Add"]
    (index,) = [index for name, index in planned.edges if name == add.name]
    producer = Graph(folded).producer[add.input[index]]
    assert producer.name != "project.conv"


def test_the_same_seed_gives_the_same_bytes(files, folded, images):
    again = Int8(images=16, fit_images=16)(folded, context(images))
    assert serialise(again) == serialise(files["onnxruntime"])


def test_the_log_names_images_steps_and_dead_channels(images):
    lines: list[str] = []
    model = chain()
    for init in model.graph.initializer:
        if init.name == "w1":
            weight = numpy_helper.to_array(init)[:, :3].copy()
            weight[2] = 1e-12
            init.CopyFrom(numpy_helper.from_array(weight, "w1"))
    for axis, size in enumerate((3, 16, 16), 1):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    result = Int8(images=8, equalise=False)(model, context(images, log=lines.append))
    text = "\n".join(lines)
    assert "8 images (ids " in text and "reconstruction gptq" in text and "Conv_a: near-dead channels 2" in text
    biases = [numpy_helper.to_array(i) for i in result.graph.initializer if i.data_type == TensorProto.INT32]
    assert biases and max(int(np.abs(bias.astype(np.int64)).max()) for bias in biases) <= 2**26 + 1


@pytest.mark.parametrize(
    "fault, line",
    [
        ("range", "beyond 128"),
        ("float weight", "its weight is not int8"),
        ("float input", "its input carries no Q/DQ"),
        ("float bias", "wants the bias int32"),
        ("output", "its output carries no Q/DQ"),
    ],
)
def test_violations_name_planted_faults(files, fault, line):
    model = onnx.ModelProto()
    model.CopyFrom(files["onnxruntime"])
    conv = next(node for node in model.graph.node if node.name == "project.conv")
    weight = next(init for init in model.graph.initializer if init.name == "project.conv.weight.int8")
    values = numpy_helper.to_array(weight).copy()
    if fault == "range":
        values.flat[:2] = -100
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    elif fault in ("float weight", "float bias"):
        index = 1 if fault == "float weight" else 2
        shape = values.shape if index == 1 else (values.shape[0],)
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), "plain"))
        conv.input[index] = "plain"
    elif fault == "float input":
        conv.input[0] = conv.input[0].replace(".dequantised", "")
    else:
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear" and node.input[0] == conv.output[0]:
                node.input[0] = "x"
    found = violations(model, scheme("onnxruntime"))
    assert any(line in item for item in found) and any("project.conv" in item for item in found)


def test_a_file_for_one_target_breaks_the_rules_of_another(files):
    found = "\n".join(violations(files["onnxruntime-vnni"], scheme("tensorrt")))
    assert "activations must be int8" in found and "wants the bias float" in found
    assert any("beyond 128" in line for line in violations(files["onnxruntime-vnni"], scheme("onnxruntime")))
    assert any("carries no Q/DQ" in line for line in violations(files["tensorrt"], scheme("onnxruntime")))


# Bad input


def test_what_cannot_be_quantised_is_refused(files, folded, images):
    with pytest.raises(BadInput, match="quantised already"):
        Int8()(files["onnxruntime"], context(images))
    with pytest.raises(BadInput, match="no convolution or linear layer"):
        Int8()(small([("Relu", ("x",), "y", {})], {}, ("n", 3, 16, 16)), context(images))
    with pytest.raises(BadInput, match="calibration images"):
        Int8()(folded, context())
    with pytest.raises(BadInput, match="did you mean 'tensorrt'"):
        Int8()(folded, context(images, "tensort"))


@pytest.mark.parametrize("low, high, line", [(-120.0, 130.0, "on the scale 0 to 1"), (0.0, 0.001, "almost one colour")])
def test_images_far_off_any_preprocessing_are_called_out(low, high, line):
    with pytest.raises(BadInput, match=line):
        check_images(low, high)
    check_images(-2.2, 2.7)


def test_raw_pixels_are_called_out(folded, images):
    raw = dataclasses.replace(context(images), input=Input(size=16, mean=(0.0,), std=(1 / 255,)))
    with pytest.raises(BadInput, match="check mean and std"):
        Int8(images=2)(folded, raw)


def test_values_that_are_not_finite_are_named(images):
    model = small([("Conv", ("x", "w"), "y", {})], {"w": np.full((2, 3, 1, 1), 3e38)}, ("n", 3, 16, 16))
    with pytest.raises(BadInput, match="'y' holds values that are not finite"):
        Int8(images=2)(model, context(images))


def test_a_graph_within_a_node_is_refused(images):
    model = small([("Conv", ("x", "w"), "y", {})], {"w": np.ones((2, 3, 1, 1))}, ("n", 3, 16, 16))
    branch = helper.make_graph([], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["y"], ["z"], name="choose", then_branch=branch, else_branch=branch))
    with pytest.raises(BadInput, match=r"choose \(If\) holds a graph"):
        Int8(images=2)(model, context(images))


def test_an_old_opset_is_converted(images):
    model = small([("Conv", ("x", "w"), "y", {})], {"w": np.ones((2, 3, 1, 1))}, ("n", 3, 16, 16), opset=11)
    assert Int8(images=2)(model, context(images)).opset_import[0].version == 13
