"""Pairs of products that x86 without VNNI adds in 16 bits: which they are, weights that fit, files that are safe."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import isa
from edgekit.cli import main
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.quant.gptq import gptq, quadratic, to_integers
from edgekit.quant.grid import max_scales, rounded
from edgekit.quant.pairs import MOST, best_scales, conv_pairs, one_sign_sums, pair_bounds, product_pairs
from edgekit.rewrites import Fold, Int8
from tests.nets import tiny
from tests.test_quant import INPUT, OUTPUT, context


def layer(weight: np.ndarray, *, groups: int = 1, signed: bool = False, before: str | None = None) -> bytes:
    """A QLinearConv whose activations come from the input, or from an operator before it, on the scale 1/127."""
    kind = np.int8 if signed else np.uint8
    values = {
        "one": np.float32(1),
        "fine": np.float32(1 / 127),
        "zero": np.array(0, kind),
        "w": weight,
        "wz": np.array(0, weight.dtype),
    }
    nodes, channels = [], weight.shape[1] * groups
    if before:
        nodes = [
            helper.make_node(before, ["x"], ["a"]),
            helper.make_node("QuantizeLinear", ["a", "fine", "zero"], ["q"]),
        ]
    reads = ["q", "fine", "zero"] if before else ["x", "one", "zero"]
    conv = helper.make_node("QLinearConv", [*reads, "w", "one", "wz", "one", "zero"], ["y"], name="conv", group=groups)
    of_input = TensorProto.FLOAT if before else TensorProto.INT8 if signed else TensorProto.UINT8
    graph = helper.make_graph(
        [*nodes, conv],
        "g",
        [helper.make_tensor_value_info("x", of_input, [1, channels, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.INT8 if signed else TensorProto.UINT8, list("nchw"))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def weight_of(shape: tuple[int, ...], **at: int) -> np.ndarray:
    """Zeros but for two neighbouring input channels of output 1 at the last position."""
    weight = np.zeros(shape, np.int8)
    weight[(1, 0, *[-1] * (len(shape) - 2))] = at["first"]
    weight[(1, 1, *[-1] * (len(shape) - 2))] = at["second"]
    return weight


# Which weights are added


def test_neighbours_are_channels_of_one_position_then_the_next_position():
    assert conv_pairs((5, 4, 1, 1), 1).tolist() == [[0, 1], [2, 3]]
    assert conv_pairs((5, 2, 1, 3), 1).tolist() == [[0, 3], [1, 4], [2, 5]]
    # Three channels: red and green of a position, then its blue with the next one's red.
    assert conv_pairs((5, 3, 1, 2), 1).tolist() == [[0, 2], [4, 1], [3, 5]]
    assert product_pairs(5).tolist() == [[0, 1], [2, 3]]


def test_depthwise_convolutions_add_no_pairs_but_those_with_two_outputs_a_channel_do():
    assert len(conv_pairs((8, 1, 3, 3), 8)) == 0
    assert len(conv_pairs((16, 1, 3, 3), 8)) == 4


# Weights that fit


@pytest.mark.parametrize("spread", [20.0, 60.0, 200.0])
def test_whatever_lies_within_the_bounds_fits(spread):
    rng = np.random.default_rng(0)
    target, pairs = rng.standard_normal((1, 50, 12)) * spread, conv_pairs((50, 3, 2, 2), 1)
    low, high = pair_bounds(target, pairs)
    for corner in (low, high, np.where(rng.random(low.shape) > 0.5, low, high)):
        assert one_sign_sums(corner, pairs).max() <= MOST and np.abs(corner).max() <= 127


def test_targets_that_fit_are_left_alone():
    rng = np.random.default_rng(1)
    target, pairs = rng.integers(-127, 128, (1, 400, 8)).astype(float), product_pairs(8)
    fits = (one_sign_sums(target, pairs) <= MOST - 1)[..., None].repeat(2, -1).reshape(target.shape)
    low, high = pair_bounds(target, pairs)
    assert fits.mean() > 0.5 and ((low <= target) & (target <= high))[fits].all()


def test_what_does_not_fit_loses_the_same_on_both_sides():
    _, high = pair_bounds(np.array([[[100.0, 60.0]]]), product_pairs(2))
    assert high.tolist() == [[[84.0, 44.0]]]


def test_the_scale_is_never_worse_than_that_of_half_the_range():
    rng = np.random.default_rng(2)
    weight, x = rng.standard_normal((1, 20, 24)), rng.standard_normal((300, 24))
    hessian, pairs = (x.T @ x / 300)[None], product_pairs(24)
    scale = best_scales(weight, hessian, pairs, lambda top: max_scales(weight, top))
    levels = np.clip(rounded(weight, scale, 127), *pair_bounds(weight / scale[..., None], pairs))
    half = max_scales(weight, 64)
    cost = quadratic(levels * scale[..., None], weight, hessian)
    usual = quadratic(rounded(weight, half, 64) * half[..., None], weight, hessian)
    assert (cost <= usual).all() and cost.sum() < 0.6 * usual.sum()


def test_gptq_keeps_within_bounds():
    rng = np.random.default_rng(3)
    weight, x = rng.standard_normal((1, 6, 16)), rng.standard_normal((400, 16)) @ rng.standard_normal((16, 16))
    hessian, pairs, scale = (x.T @ x / 400)[None], product_pairs(16), max_scales(weight, 127)
    bounds = pair_bounds(weight / scale[..., None], pairs)
    found = gptq(weight, scale, hessian, to_integers(127), bounds=bounds)
    assert one_sign_sums(found, pairs).max() <= MOST
    assert one_sign_sums(gptq(weight, scale, hessian, to_integers(127)), pairs).max() > MOST


# Files


@pytest.fixture(scope="module")
def folded() -> onnx.ModelProto:
    return Fold()(export(tiny(), INPUT, OUTPUT, context().target).model, context())


@pytest.mark.parametrize("first, second, safe", [(64, 64, True), (65, 64, False), (127, -127, True), (-65, -64, False)])
def test_only_sums_of_one_sign_count(first, second, safe):
    (found,) = isa.layers(layer(weight_of((2, 4, 3, 3), first=first, second=second)))
    assert found.safe == safe and found.largest == 255 * max(abs(first + second), *map(abs, (first, second)))


def test_an_unsafe_layer_is_named_with_its_worst_pair_and_a_remedy():
    (found,) = isa.layers(layer(weight_of((2, 4, 3, 3), first=100, second=90)))
    assert (found.layer, found.kind, found.beyond, found.pairs) == ("conv", "QLinearConv", 1, 36)
    assert found.where == "output 1: input 0 at (2, 2) × 100, input 1 at (2, 2) × 90"
    assert "round down 1 of 36 pairs" in found.remedy and "halve the range" in found.remedy


def test_kernels_that_add_in_32_bits_are_safe():
    full = np.full((4, 4, 3, 3), 127, np.int8)
    assert isa.is_safe(layer(full, signed=True))
    assert isa.is_safe(layer(full.astype(np.uint8)))
    assert isa.is_safe(layer(np.full((4, 1, 3, 3), 127, np.int8), groups=4))
    assert not isa.is_safe(layer(full))


def test_activations_that_stay_small_leave_room():
    full = np.full((4, 4, 1, 1), 127, np.int8)
    assert isa.is_safe(layer(full, before="Sigmoid"))  # in 0…127
    assert not isa.is_safe(layer(full, before="Relu"))


@pytest.mark.parametrize("name, safe", [("onnxruntime", True), ("onnxruntime-vnni", False)])
def test_the_targets_keep_their_promise(folded, images, name, safe):
    found = isa.layers(serialise(Int8(images=16, fit_images=16)(folded, context(images, name))))
    assert len(found) == 6 and all(one.safe for one in found) == safe


@pytest.mark.parametrize("reconstruct", ["none", "gptq"])
def test_the_portable_target_uses_more_than_half_the_range_unless_told_not_to(folded, images, reconstruct):
    def top(pairs: bool) -> int:
        rewrite = Int8(images=16, fit_images=16, pairs=pairs, reconstruct=reconstruct)
        made = rewrite(folded, context(images))
        assert isa.is_safe(serialise(made))
        weights = [numpy_helper.to_array(init) for init in made.graph.initializer if init.name.endswith("weight.int8")]
        return max(int(np.abs(weight.astype(int)).max()) for weight in weights)

    assert top(pairs=False) == 64 and top(pairs=True) > 100


@pytest.mark.parametrize(("second", "code"), [(10, 0), (90, 1)])
def test_the_command_names_what_is_unsafe(tmp_path, second, code):
    path = tmp_path / "net.onnx"
    path.write_bytes(layer(weight_of((2, 4, 3, 3), first=100, second=second)))
    with pytest.raises(SystemExit) as ended:
        main(["lab", "check", str(path), "--json"])
    assert ended.value.code == code
    assert isa.check(path)["rows"][0]["safe"] == (code == 0)
    assert ("sums of 1 layers can overflow" in isa.warning(path)) == bool(code)


def test_no_onnx_file_is_named(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    with pytest.raises(BadInput, match=r"net\.onnx: is no ONNX file"):
        isa.check(tmp_path / "net.onnx")


def test_a_float_file_is_safe(folded):
    assert isa.layers(serialise(folded)) == [] and isa.is_safe(serialise(folded))
