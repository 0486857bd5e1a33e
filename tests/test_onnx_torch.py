"""The importer, operator by operator against ONNX Runtime, and what it refuses."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgekit.errors import BadInput
from edgekit.onnx_file import fix_input
from edgekit.onnx_torch import BUILDERS, to_module
from edgekit.onnx_torch.movement import regrouped
from tests.onnx_models import array, check, graph, ints, one, scalar

W, B = array(6, 4, 3, 3), array(6)
WINDOW = {"kernel_shape": [3, 3], "strides": [2, 2]}

CASES = {
    "conv": one("Conv", W, B, pads=[1, 1, 1, 1]),
    "conv-no-bias": one("Conv", W, strides=[2, 1], dilations=[1, 2]),
    "conv-uneven-pads": one("Conv", W, B, pads=[0, 0, 1, 1], strides=[2, 2]),
    "conv-depthwise": one("Conv", array(8, 1, 3, 3), array(8), group=4, pads=[1, 1, 1, 1]),
    "conv-same-upper": one("Conv", W, B, auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv-same-lower": one("Conv", W, B, auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv-valid": one("Conv", W, B, auto_pad="VALID"),
    "convtranspose": one(
        "ConvTranspose", array(4, 6, 3, 3), B, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    ),
    "convtranspose-groups": one("ConvTranspose", array(4, 3, 2, 2), array(6), strides=[2, 2], group=2),
    "batchnorm": one("BatchNormalization", array(4), array(4), array(4), np.abs(array(4)), epsilon=1e-3),
    "batchnorm-flat": one(
        "BatchNormalization", array(4), array(4), array(4), np.abs(array(4)) + 1, shape=(4,), momentum=0.5
    ),
    "instancenorm": one("InstanceNormalization", array(4), array(4)),
    "groupnorm-by-group": one("GroupNormalization", array(2), array(2), num_groups=2, opset=18),
    "groupnorm-by-channel": one("GroupNormalization", array(4), array(4), num_groups=2, opset=21),
    "layernorm": one("LayerNormalization", array(8), array(8), axis=-1),
    "layernorm-two-axes": one("LayerNormalization", array(8, 8), None, axis=2),
    "gemm": one("Gemm", array(5, 4), array(5), shape=(4,), transB=1),
    "gemm-scaled": one("Gemm", array(4, 5), array(1, 5), shape=(4,), alpha=0.5, beta=2.0),
    "gemm-one-bias": one("Gemm", array(4, 5), scalar(0.7), shape=(4,)),
    "gemm-no-bias": one("Gemm", array(5, 4), shape=(4,), transB=1),
    "matmul": one("MatMul", array(8, 5)),
    "matmul-left": one("MatMul", array(5, 8), "x"),
    "matmul-itself": one("MatMul", "x", "x"),
    "relu": one("Relu"),
    "relu6": one("Clip", scalar(0), scalar(6)),
    "clip": one("Clip", scalar(-0.5), scalar(0.25)),
    "clip-min": one("Clip", scalar(0.1)),
    "clip-max": one("Clip", None, scalar(0.1)),
    "clip-relu": one("Clip", scalar(0), scalar(3.4028234663852886e38)),
    "clip-inf": one("Clip", scalar(-0.3), scalar(np.inf)),
    "clip-at-nought": one("Clip", scalar(0), scalar(0.5)),
    "clip-old": one("Clip", opset=9, min=-0.5, max=0.5),
    "leakyrelu": one("LeakyRelu", alpha=0.2),
    "prelu": one("PRelu", array(4, 1, 1)),
    "prelu-one": one("PRelu", array(1)),
    "sigmoid": one("Sigmoid"),
    "hardsigmoid": one("HardSigmoid"),
    "hardsigmoid-torch": one("HardSigmoid", alpha=1 / 6),
    "hardswish": one("HardSwish"),
    "tanh": one("Tanh"),
    "softmax": one("Softmax", axis=1),
    "softmax-old": one("Softmax", shape=(5,), opset=11),
    "softmax-old-axis": one("Softmax", shape=(5, 1, 1), opset=11),
    "softplus": one("Softplus"),
    "mish": one("Mish"),
    "gelu": one("Gelu"),
    "gelu-tanh": one("Gelu", approximate="tanh"),
    "erf": one("Erf"),
    "exp": one("Exp"),
    "abs": one("Abs"),
    "neg": one("Neg"),
    "softsign": one("Softsign"),
    "add": one("Add", "x", "x"),
    "add-number": one("Add", scalar(3.0)),
    "add-channels": one("Add", array(1, 4, 1, 1)),
    "sub": one("Sub", array(4, 1, 1)),
    "sub-left": one("Sub", scalar(1.0), "x"),
    "mul": one("Mul", array(4, 1, 1), "x"),
    "mul-number": one("Mul", np.full((1,), 0.3, np.float32)),
    "mul-more-axes": one("Mul", np.full((1, 1, 1), 0.3, np.float32), shape=(4,)),
    "div": one("Div", scalar(6.0)),
    "div-left": one("Div", scalar(6.0), "x"),
    "pow": one("Pow", scalar(2.0)),
    "concat": one("Concat", "x", "x", axis=1),
    "concat-from-the-end": one("Concat", "x", "x", axis=-1),
    "split": one("Split", ints(1, 3), outputs=("y", "z"), axis=1),
    "split-evenly": one("Split", outputs=("y", "z"), axis=-1, num_outputs=2),
    "split-unevenly": one("Split", outputs=("y", "z", "w"), axis=2, num_outputs=3),
    "split-old": one("Split", outputs=("y", "z"), axis=1, split=[3, 1], opset=11),
    "slice": one("Slice", ints(1, 0), ints(2**63 - 1, -1), ints(2, 3), ints(2, 3)),
    "slice-channels": one("Slice", ints(-3), ints(-1), ints(1)),
    "slice-whole-batch": one("Slice", ints(0, 1), ints(2**31 - 1, 3), ints(0, 1)),
    "slice-old": one("Slice", starts=[1], ends=[3], axes=[2], opset=9),
    "pad": one("Pad", ints(0, 0, 0, 0, 0, 0, 1, 1)),
    "pad-value": one("Pad", ints(0, 0, 1, 2, 0, 0, 3, 4), scalar(-1.5)),
    "pad-channels": one("Pad", ints(0, 2, 0, 0, 0, 1, 0, 0)),
    "pad-axes": one("Pad", ints(1, 2), None, ints(-1)),
    "pad-crops": one("Pad", ints(0, 0, -1, 0, 0, 0, 0, -2)),
    "pad-edge": one("Pad", ints(0, 0, 1, 2, 0, 0, 3, 0), mode="edge"),
    "pad-reflect": one("Pad", ints(0, 0, 0, 2, 0, 0, 0, 1), mode="reflect"),
    "pad-nothing": one("Pad", ints(0, 0, 0, 0, 0, 0, 0, 0)),
    "pad-old": one("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5, opset=9),
    "maxpool": one("MaxPool", **WINDOW, pads=[1, 1, 1, 1]),
    "maxpool-ceil": one("MaxPool", **WINDOW, ceil_mode=1),
    "maxpool-uneven": one("MaxPool", **WINDOW, pads=[0, 0, 1, 1]),
    "maxpool-uneven-ceil": one("MaxPool", kernel_shape=[3, 3], strides=[3, 3], pads=[1, 0, 0, 0], ceil_mode=1),
    "maxpool-wide-pads": one("MaxPool", kernel_shape=[2, 2], pads=[1, 1, 1, 1], dilations=[2, 2]),
    "maxpool-same": one("MaxPool", **WINDOW, auto_pad="SAME_UPPER"),
    "averagepool": one("AveragePool", **WINDOW, pads=[1, 1, 1, 1]),
    "averagepool-outside": one("AveragePool", **WINDOW, pads=[1, 1, 1, 1], count_include_pad=1),
    "averagepool-uneven": one("AveragePool", **WINDOW, pads=[0, 1, 1, 2]),
    "averagepool-uneven-outside": one("AveragePool", **WINDOW, pads=[0, 0, 1, 1], count_include_pad=1),
    "averagepool-same": one("AveragePool", **WINDOW, auto_pad="SAME_LOWER"),
    "averagepool-ceil": one("AveragePool", kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1),
    "globalaveragepool": one("GlobalAveragePool"),
    "globalmaxpool": one("GlobalMaxPool"),
    "reducemean": one("ReduceMean", ints(2, 3), keepdims=0),
    "reducemean-old": one("ReduceMean", axes=[-1, 2], keepdims=0, opset=13),
    "reducesum": one("ReduceSum", ints(1)),
    "reducemax": one("ReduceMax", ints(-1), keepdims=0),
    "flatten": one("Flatten"),
    "flatten-late": one("Flatten", axis=2),
    "reshape-flat": one("Reshape", ints(0, -1)),
    "reshape-flat-numbers": one("Reshape", ints(-1, 256)),
    "reshape-fixed-batch": one("Reshape", ints(1, 256)),
    "reshape-allowing-zero": one("Reshape", ints(-1, 4, 64), allowzero=1),
    "reshape-groups": one("Reshape", ints(0, 2, 2, 8, 8)),
    "reshape-tokens": one("Reshape", ints(0, 4, -1)),
    "reshape-batch-and-channels": one("Reshape", ints(-1, 64)),
    "reshape-ones": one("Reshape", ints(0, 1, 4, 1, 64, 1)),
    "transpose": one("Transpose", perm=[0, 2, 3, 1]),
    "squeeze": one("Squeeze", ints(2, -1), shape=(4, 1, 1)),
    "squeeze-old": one("Squeeze", axes=[3], shape=(4, 2, 1), opset=11),
    "unsqueeze": one("Unsqueeze", ints(1, -1)),
    "resize-nearest": one("Resize", None, np.array([1, 1, 2, 2], np.float32)),
    "resize-nearest-asymmetric": one(
        "Resize",
        None,
        np.array([1, 1, 2, 3], np.float32),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "resize-nearest-down": one("Resize", None, np.array([1, 1, 0.5, 0.5], np.float32)),
    "resize-nearest-ceil": one("Resize", None, np.array([1, 1, 1.5, 2], np.float32), nearest_mode="ceil"),
    "resize-linear": one("Resize", None, np.array([1, 1, 2, 2], np.float32), mode="linear"),
    "resize-linear-sizes": one("Resize", None, None, ints(1, 4, 11, 5), mode="linear", shape=(4, 8, 8)),
    "resize-linear-pytorch": one(
        "Resize", None, None, ints(1, 4, 1, 5), mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    "resize-linear-corners": one(
        "Resize",
        None,
        np.array([1, 1, 2, 1.5], np.float32),
        mode="linear",
        coordinate_transformation_mode="align_corners",
    ),
    "resize-linear-asymmetric": one(
        "Resize", None, np.array([1, 1, 2, 2], np.float32), mode="linear", coordinate_transformation_mode="asymmetric"
    ),
    "resize-linear-odd-scale": one("Resize", None, np.array([1, 1, 1.3, 2], np.float32), mode="linear"),
    "resize-axes": one("Resize", None, np.array([2, 2], np.float32), axes=[2, 3]),
    "resize-old": one("Resize", np.array([1, 1, 2, 2], np.float32), opset=10),
    "upsample": one("Upsample", np.array([1, 1, 2, 2], np.float32), opset=9),
    "depthtospace": one("DepthToSpace", blocksize=2, mode="DCR", shape=(8, 4, 4)),
    "depthtospace-crd": one("DepthToSpace", blocksize=2, mode="CRD", shape=(8, 4, 4)),
    "spacetodepth": one("SpaceToDepth", blocksize=2),
    "identity": one("Identity"),
    "dropout": one("Dropout", scalar(0.3)),
    "dropout-old": one("Dropout", ratio=0.3, opset=10),
    "cast": one("Cast", to=TensorProto.FLOAT),
}
# ONNX's own inference is at batch 1, and a file that fixes the batch is for that batch alone.
BATCH_OF_ONE = ("reshape-fixed-batch", "resize-linear-sizes", "resize-linear-pytorch")


def input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])


@pytest.mark.parametrize("name", CASES)
def test_an_operator_computes_the_same(name):
    check(CASES[name], input_shape(CASES[name]), batch=1 if name in BATCH_OF_ONE else 3)


def test_every_operator_has_a_case():
    used = {node.op_type for model in CASES.values() for node in model.graph.node}
    assert BUILDERS.keys() - used == {"Sqrt"}, "which needs an input that is positive and has a test of its own"


def test_square_root():
    model = graph([helper.make_node("Abs", ["x"], ["a"]), helper.make_node("Sqrt", ["a"], ["y"])], (4, 8, 8), {})
    check(model)


def test_only_six_is_relu6():
    model = one("Clip", scalar(0), scalar(8))
    assert to_module(model)(torch.full((1, 4, 8, 8), 9.0)).max() == 8


@pytest.mark.parametrize("name", ["reshape-fixed-batch", "reshape-flat-numbers", "flatten"])
def test_a_flatten_fixes_neither_batch_nor_channels(name):
    module = to_module(CASES[name])
    assert module(torch.zeros(5, 3, 2, 2)).shape == (5, 12)


@pytest.mark.parametrize(
    ("shape", "new", "free", "expected"),
    [
        ((1, 6, 2, 2), (1, 24), None, ((0, 1), (1, 4))),
        ((1, 6, 2, 2), (1, 6, 4), None, ((0, 1), (1, 2), (2, 4))),
        ((1, 6, 2, 2), (1, 2, 3, 2, 2), None, ((0, 1), 2, -1, (2, 3), (3, 4))),
        ((1, 6, 4, 2), (1, 6, 2, 2, 2), None, ((0, 1), (1, 2), 2, 2, (3, 4))),
        ((1, 6, 1, 1), (1, 6), None, ((0, 1), (1, 4))),
        ((1, 6), (1, 6, 1, 1), None, ((0, 1), (1, 2), 1, 1)),
        ((1, 6, 5), (6, 5), None, ((0, 2), (2, 3))),
        ((6, 5), (1, 6, 5), 0, (-1, 6, (1, 2))),
        ((1, 1, 6), (1, 6, 1), None, ((0, 1), (1, 3), 1)),
    ],
)
def test_sizes_are_products_wherever_no_axis_is_cut(shape, new, free, expected):
    assert regrouped(shape, new, free) == expected


# Refusals

REFUSED = {
    "an operator": (one("CumSum", ints(1), name="sum"), r"sum: the operator CumSum cannot be .*Known: .*Conv"),
    "a weight that is computed": (one("Conv", "x", "x"), r"node \(Conv\): input 1 is computed"),
    "one dimension": (one("Conv", array(6, 4, 3), shape=(4, 8)), r"node \(Conv\).*two-dimensional"),
    "an attribute": (one("Relu", alpha=1.0), r"node \(Relu\): the attribute alpha cannot"),
    "a wrong kernel": (one("Conv", W, kernel_shape=[5, 5]), r"kernel_shape"),
    "a wrong bias": (one("Conv", W, array(5)), r"\(5,\); \(6,\) would fit"),
    "uneven transposed": (one("ConvTranspose", array(4, 6, 3, 3), pads=[0, 0, 1, 1]), "uneven pads"),
    "transposed matrix": (one("Gemm", array(4, 5), shape=(4,), transA=1), "transA = 1"),
    "training": (one("BatchNormalization", *[array(4)] * 4, training_mode=1), "training_mode = 1"),
    "cubic": (one("Resize", None, np.array([1, 1, 2, 2], np.float32), mode="cubic"), "'cubic'"),
    "antialias": (one("Resize", None, np.array([1, 1, 2, 2], np.float32), mode="linear", antialias=1), "antialias = 1"),
    "resized channels": (one("Resize", None, np.array([1, 2, 2, 2], np.float32)), "the channels"),
    "a reduced batch": (one("ReduceMean", ints(0)), "over the batch"),
    "a squeezed batch": (one("Squeeze"), "might drop the batch"),
    "a cut batch": (one("Slice", ints(0), ints(1), ints(0)), "cuts the batch"),
    "a backward slice": (one("Slice", ints(-1), ints(0), ints(2), ints(-1)), "positive step"),
    "wrapping": (one("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="wrap"), "'wrap'"),
    "another type": (one("Cast", to=TensorProto.FLOAT16), "to = 10"),
    "half weights": (one("Conv", W.astype(np.float16)), "c1: is float16.*convert"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_taken_over_is_named(what):
    model, message = REFUSED[what]
    with pytest.raises(BadInput, match=message):
        to_module(model)


def test_nothing_is_built_where_the_last_node_cannot_be(monkeypatch):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Resize", ["a", "", "scales"], ["y"], name="last", mode="cubic"),
    ]
    model = graph(nodes, (4, 8, 8), {"w": W, "scales": np.array([1, 1, 2, 2], np.float32)})
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_: pytest.fail("a layer was built"))
    with pytest.raises(BadInput, match=r"last \(Resize\)"):
        to_module(model)


def test_an_output_that_only_onnx_has_is_refused():
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a", "where"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Unsqueeze", ["where", "axis"], ["y"], name="next"),
    ]
    with pytest.raises(BadInput, match=r"reads 'where'.*of pool \(MaxPool\) the first output alone"):
        to_module(graph(nodes, (4, 8, 8), {"axis": ints(1)}))


def test_several_inputs_are_refused():
    model = one("Relu")
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    with pytest.raises(BadInput, match="2 inputs"):
        to_module(model)


def test_an_input_of_another_size_is_refused_and_a_free_one_is_fixed():
    with pytest.raises(BadInput, match=r"'x' is \[None, 4, 8, 8\]; \[input\] makes \(batch, 3, 16, 16\)"):
        fix_input(one("Relu"), (3, 16, 16), "a.onnx")
    model = one("Relu", shape=("c", "h", "w"))
    assert input_shape(fix_input(model, (3, 16, 16), "a.onnx")) == (3, 16, 16)
    assert input_shape(model) == (0, 0, 0), "the file's own model is left alone"
