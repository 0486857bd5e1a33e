"""The importer: each operator against ONNX Runtime, whole graphs, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.bundle import GRAPH_SCHEMA
from edgekit.channels import slots, ties
from edgekit.data import Input, Output
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.graph import trace
from edgekit.job import torch_predict
from edgekit.net import Net, Source, build, edits_from_json, edits_to_json
from edgekit.onnx_file import fix_input, read
from edgekit.onnx_torch import BUILDERS, graph_to_json, module_from_graph, to_module
from edgekit.onnx_torch.movement import regrouped
from edgekit.parity import sqnr_db
from edgekit.passes.prune import _editable, edits, ranking
from edgekit.rewrites.fold import for_torch
from edgekit.targets import target

SHARED = Path(__file__).parents[2] / "shared" / "data"
RNG = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def graph(nodes, shape, constants, outputs=("y",), opset=20, result=None) -> onnx.ModelProto:
    """A model with the input `x` of (batch, *shape), constants by name, and outputs of the shape `result`."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, result) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 15 else 10)


def one(op, *operands, shape=(4, 8, 8), outputs=("y",), opset=20, name="node", **attributes) -> onnx.ModelProto:
    """One operator on `x`; operands are arrays, None for one that is left out, and "x" for the input itself."""
    operands = operands if any(isinstance(item, str) for item in operands) else ("x", *operands)
    names = ["" if item is None else item if isinstance(item, str) else f"c{i}" for i, item in enumerate(operands)]
    constants = {name: item for name, item in zip(names, operands) if isinstance(item, np.ndarray)}
    node = helper.make_node(op, names, list(outputs), name=name, **attributes)
    return graph([node], shape, constants, outputs, opset)


def reference(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {model.graph.input[0].name: x})


def check(model: onnx.ModelProto, shape=(4, 8, 8), batch=3, db=100.0) -> torch.nn.Module:
    """Torch agrees with ONNX Runtime at another batch size than the shapes were inferred at, and so does the module
    that is rebuilt from the JSON with the weights loaded."""
    module = to_module(model)
    x = array(batch, *shape)
    expected = reference(model, x)
    rebuilt = module_from_graph(json.loads(json.dumps(graph_to_json(model), allow_nan=False)))
    assert all(not tensor.any() for tensor in rebuilt.state_dict().values())
    rebuilt.load_state_dict(module.state_dict())
    with torch.no_grad():
        found, again = module(torch.from_numpy(x)), rebuilt(torch.from_numpy(x))
    found, again = (value if isinstance(value, tuple) else (value,) for value in (found, again))
    assert len(found) == len(expected)
    for ours, other, theirs in zip(found, again, expected):
        assert tuple(ours.shape) == theirs.shape and theirs.std() > 0
        assert sqnr_db(theirs, ours.numpy()) >= db
        assert torch.equal(ours, other)
    return module


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


@pytest.mark.parametrize("name", ["reshape-fixed-batch", "reshape-flat-numbers", "flatten"])
def test_a_flatten_fixes_neither_batch_nor_channels(name):
    module = to_module(CASES[name])
    assert module(torch.zeros(5, 3, 2, 2)).shape == (5, 12)


@pytest.mark.parametrize(
    ("shape", "new", "free", "expected"),
    [
        ((1, 6, 2, 2), (1, 24), None, ((0, 1), (1, 4))),
        ((1, 6, 2, 2), (1, 6, 4), None, ((0, 1), (1, 2), (2, 4))),
        ((1, 6, 2, 2), (1, 2, 3, 2, 2), None, ((0, 1), 2, 3, (2, 3), (3, 4))),
        ((1, 6, 1, 1), (1, 6), None, ((0, 1), (1, 4))),
        ((1, 6), (1, 6, 1, 1), None, ((0, 1), (1, 2), 1, 1)),
        ((1, 6, 5), (6, 5), None, ((0, 2), (2, 3))),
        ((6, 5), (1, 6, 5), 0, (-1, 6, (1, 2))),
        ((1, 1, 6), (1, 6, 1), None, ((0, 1), (1, 3), 1)),
    ],
)
def test_sizes_are_products_wherever_no_axis_is_cut(shape, new, free, expected):
    assert regrouped(shape, new, free) == expected


# Layers and names


def test_layers_that_pruning_can_edit_and_names_that_say_where_they_stand():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="blocks.1.conv", pads=[0, 0, 1, 1]),
        helper.make_node("Clip", ["a", "low", "high"], ["b"], name="blocks.1/Clip"),
        helper.make_node("Conv", ["b", "stem.0.weight"], ["c"], name="/stem/stem.0/Conv"),
        helper.make_node("Relu", ["c"], ["d"], name="forward"),
        helper.make_node("Relu", ["d"], ["y"], name="blocks.1.conv.inner"),
    ]
    constants = {"w": array(6, 4, 3, 3), "stem.0.weight": array(5, 6, 1, 1), "low": scalar(0), "high": scalar(6)}
    module = check(graph(nodes, (4, 8, 8), constants))
    found = {name: type(layer) for name, layer in module.named_modules() if not list(layer.children())}
    assert found == {
        "blocks.1.conv": torch.nn.Conv2d,
        "blocks.1.conv_pad": torch.nn.ZeroPad2d,
        "blocks_1_Clip": torch.nn.ReLU6,
        "stem.0": torch.nn.Conv2d,
        "forward_1": torch.nn.ReLU,
        "blocks_1_conv_inner": torch.nn.ReLU,
    }
    assert set(module.state_dict()) == {"blocks.1.conv.weight", "stem.0.weight"}


def test_nodes_of_one_name_and_of_none_get_names_of_their_own():
    nodes = [helper.make_node("Relu", ["x"], ["a"], name="act"), helper.make_node("Neg", ["a"], ["b"], name="act")]
    module = to_module(graph([*nodes, helper.make_node("Relu", ["b"], ["y"])], (4, 8, 8), {}))
    assert [name for name, _ in module.named_children()] == ["act", "act_1", "Relu_2"]


def test_a_layer_used_twice_is_one_layer():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="twice", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="act"),
        helper.make_node("Conv", ["b", "w"], ["y"], name="again", pads=[1, 1, 1, 1]),
    ]
    module = check(graph(nodes, (4, 8, 8), {"w": array(4, 4, 3, 3)}))
    assert list(module.state_dict()) == ["twice.weight"]


def test_building_draws_no_random_numbers():
    before = torch.get_rng_state()
    to_module(CASES["conv"])
    assert torch.equal(torch.get_rng_state(), before)


# Whole graphs


def network() -> onnx.ModelProto:
    """Batch norm, a residual, a concatenation, a gate, a flatten: with the untidiness of real files."""
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="stem", strides=[2, 2], pads=[0, 0, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "g", "b", "m", "v"], ["an"], name="norm"),
        helper.make_node("Clip", ["an", "zero", "six"], ["r"], name="act"),
        helper.make_node("Conv", ["r", "w2", "b2"], ["c"], name="body", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c", "r"], ["s"], name="sum"),
        helper.make_node("GlobalAveragePool", ["s"], ["p"], name="squeeze"),
        helper.make_node("Conv", ["p", "w3", "b3"], ["q"], name="gate"),
        helper.make_node("Sigmoid", ["q"], ["t"], name="sigmoid"),
        helper.make_node("Mul", ["s", "t"], ["u"], name="scale"),
        helper.make_node("Concat", ["u", "r"], ["k"], name="join", axis=1),
        helper.make_node("Shape", ["k"], ["shape"], name="shape"),
        helper.make_node("Gather", ["shape", "first"], ["n"], name="batch"),
        helper.make_node("Concat", ["n", "rest"], ["target"], name="target", axis=0),
        helper.make_node("Reshape", ["k", "target"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w4", "b4"], ["y"], name="head", transB=1),
    ]
    weights = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 1, 1), "w4": (5, 256)}
    vectors = {"g": 8, "b": 8, "m": 8, "b2": 8, "b3": 8, "b4": 5}
    constants = {name: array(*shape) / 4 for name, shape in weights.items()}
    constants |= {name: array(size) for name, size in vectors.items()}
    constants |= {"v": array(8) ** 2 + 1, "zero": scalar(0), "six": scalar(6), "first": ints(0), "rest": ints(-1)}
    return graph(nodes, (3, 8, 8), constants, result=["n", 5])


def test_an_untidy_graph_after_cleaning_and_back_out_to_onnx():
    foreign = network()
    folded = for_torch(foreign, (3, 8, 8), "test")
    assert not {"BatchNormalization", "Shape"} & {node.op_type for node in folded.graph.node}
    module = check(folded, (3, 8, 8), batch=1)  # which is what the cleaned file is fixed at
    x = array(3, 3, 8, 8)
    exported = export(module, Input(8), Output(), target("onnxruntime"))
    assert {"stem", "body", "gate", "head"} <= {node.name for node in exported.model.graph.node}
    assert set(exported.tensors) == set(module.state_dict())
    assert sqnr_db(reference(foreign, x)[0], engine("onnxruntime").load(serialise(exported.model)).run(x)) > 100


def removal(module: torch.nn.Module, shape: tuple[int, int, int], share: float = 0.5) -> tuple[int, Net]:
    """Removing the least important channels of every group is zeroing them. The number of groups, and the pruned net.

    Batch norm being folded, zeroing a channel takes its weights and its bias.
    """
    module = module.double()
    groups = [group for group in ties(trace(module, shape)).groups if _editable(module, group)]
    order = [ranking(module, group) for group in groups]
    net = Net(Source("onnx", "test.onnx"), (), module).edited(*edits(module, groups, order, share, 1))
    state = dict(module.named_parameters())
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for group, ranked in zip(groups, order):
            for (name, dim), indices in slots(group, ranked[max(1, -(-group.size // 2)) :]).items():
                if dim == 0:
                    state[name][list(indices)] = 0
        expected, found = module(x), net.module(x)
    assert expected.std() > 1e-3 and sqnr_db(expected.numpy(), found.numpy()) >= 200
    return len(groups), net


def test_channels_of_an_imported_network_go_and_the_rest_stays():
    model = for_torch(network(), (3, 8, 8), "test")
    groups, net = removal(to_module(model), (3, 8, 8))
    assert groups == 1, "the residual ties stem, body and gate together, the gate's sigmoid does the rest"
    assert net.module.get_submodule("head").in_features == 4 * 2 * 16
    graph_only = json.loads(json.dumps(graph_to_json(model)))
    again = build(
        net.source, edits_from_json(json.loads(json.dumps(edits_to_json(net.edits))), "test"), graph=graph_only
    )
    again.double().load_state_dict(net.module.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(again(x), net.module(x))


def test_without_its_graph_an_onnx_source_cannot_be_built():
    with pytest.raises(BadInput, match="its graph is not here"):
        build(Source("onnx", "some.onnx"))


OPERATIONS = ["conv", "depthwise", "relu", "clip", "pool", "add", "mul", "concat", "gate", "pad", "split", "resize"]


@st.composite
def dags(draw) -> onnx.ModelProto:
    """Up to eight operators, each reading earlier values of (batch, 4, H, W)."""
    values, nodes, constants = ["x"], [], {"zero": scalar(0), "six": scalar(6)}
    weights = np.random.default_rng(draw(st.integers(0, 2**16)))

    def add(op, *inputs, outputs=1, **attributes) -> list[str]:
        made = [f"v{len(nodes)}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(op, list(inputs), made, name=f"n{len(nodes)}", **attributes))
        return made

    def constant(*shape: int) -> str:
        constants[name := f"w{len(constants)}"] = (weights.standard_normal(shape) / 2).astype(np.float32)
        return name

    for kind in draw(st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=8)):
        x, other = (draw(st.sampled_from(values)) for _ in range(2))
        pads = draw(st.sampled_from([[1, 1, 1, 1], [0, 0, 2, 2], [2, 1, 0, 1]]))
        if kind == "conv":
            values += add("Conv", x, constant(4, 4, 3, 3), constant(4), pads=pads)
        elif kind == "depthwise":
            values += add("Conv", x, constant(4, 1, 3, 3), pads=pads, group=4)
        elif kind == "pool":
            op = draw(st.sampled_from(["MaxPool", "AveragePool"]))
            values += add(op, x, kernel_shape=[3, 3], pads=pads)
        elif kind == "concat":
            values += add("Conv", add("Concat", x, other, axis=1)[0], constant(4, 8, 1, 1))
        elif kind == "gate":
            values += add("Mul", x, add("Sigmoid", add("GlobalAveragePool", other)[0])[0])
        elif kind == "pad":
            padded = add(
                "Pad", x, "pads" if constants.setdefault("pads", ints(0, 0, 1, 0, 0, 0, 0, 1)) is not None else ""
            )
            values += add("Conv", padded[0], constant(4, 4, 2, 2))
        elif kind == "split":
            halves = add("Split", x, outputs=2, axis=1, num_outputs=2)
            values += add("Concat", halves[1], halves[0], axis=1)
        elif kind == "resize":
            constants["scales"] = np.array([1, 1, 2, 2], np.float32)
            values += add("AveragePool", add("Resize", x, "", "scales")[0], kernel_shape=[2, 2], strides=[2, 2])
        else:
            op = {"relu": "Relu", "clip": "Clip", "add": "Add", "mul": "Mul"}[kind]
            values += add(op, *{"Relu": [x], "Clip": [x, "zero", "six"]}.get(op, [x, other]))
    return graph(nodes, (4, 6, 6), constants, outputs=(values[-1],))


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(dags())
def test_random_graphs_compute_the_same(model):
    module, x = to_module(model), array(2, 4, 6, 6)
    with torch.no_grad():
        assert sqnr_db(reference(model, x)[0], module(torch.from_numpy(x)).numpy()) >= 100
    assert set(module_from_graph(graph_to_json(model)).state_dict()) == set(module.state_dict())


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


# Documents that strangers wrote


def document() -> dict:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["a", "low", "high"], ["y"], name="second"),
    ]
    constants = {"w": array(4, 4, 3, 3), "low": scalar(0), "high": scalar(6)}
    return graph_to_json(graph(nodes, (4, 8, 8), constants))


def test_the_document_holds_no_weights():
    found = document()
    assert found["schema"] == "edgekit/graph/1" == GRAPH_SCHEMA
    by_name = {tensor["name"]: tensor for tensor in found["initialisers"]}
    assert by_name["w"] == {"name": "w", "shape": [4, 4, 3, 3], "dtype": "float32"}
    assert by_name["high"]["values"] == [6.0]


def put(*path, value):
    def change(found: dict) -> None:
        place = found
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


DAMAGE = {
    "another schema": (put("schema", value="edgekit/graph/2"), "edgekit/graph/2"),
    "no nodes": (lambda found: found.pop("nodes"), "nodes is missing"),
    "a name that is a number": (put("nodes", 0, "name", value=7), "nodes.0.name"),
    "an odd name": (put("nodes", 0, "name", value="a\nb"), "printable"),
    "an endless name": (put("nodes", 0, "name", value="a" * 5000), "1024"),
    "a huge weight": (put("initialisers", 0, "shape", value=[2**20, 2**20, 1, 1]), "elements at most"),
    "many weights": (lambda found: found["nodes"][0].update(inputs=["x", *["w"] * 10**8]), "elements; the limit"),
    "a negative size": (put("initialisers", 0, "shape", value=[4, -4, 3, 3]), "must be positive"),
    "more values than shape": (put("initialisers", 1, "values", value=[1.0, 2.0]), "2 values"),
    "a value that is no number": (put("initialisers", 1, "values", value=["zero"]), "cannot be taken"),
    "an operator": (put("nodes", 0, "op", value="Exec"), "first: the operator Exec"),
    "a type": (put("nodes", 0, "attributes", "pads", value="all"), "pads = 'all' is of the wrong type"),
    "a loop": (put("nodes", 0, "inputs", 0, value="y"), "reads 'y', which nothing before it makes"),
    "the same name twice": (put("nodes", 1, "outputs", value=["a"]), "'a' is made twice"),
    "no such output": (put("outputs", value=["z"]), "not all made"),
    "huge pads": (put("nodes", 0, "attributes", "pads", value=[2**40] * 4), "four pads"),
    "zero groups": (put("nodes", 0, "attributes", "group", value=0), r"first \(Conv\)"),
    "groups that do not divide": (put("nodes", 0, "attributes", "group", value=3), r"first \(Conv\)"),
    "a stride of zero": (put("nodes", 0, "attributes", "strides", value=[0, 0]), "positive"),
}  # fmt: skip


@pytest.mark.parametrize("what", [name for name in DAMAGE if name != "many weights"])
def test_a_damaged_document_is_refused(what):
    change, message = DAMAGE[what]
    change(found := document())
    with pytest.raises(BadInput, match=message):
        module_from_graph(found)


def test_weights_are_counted_once_for_each_reader():
    found = document()
    found["initialisers"][0]["shape"] = [2**15, 2**15, 1, 1]
    found["nodes"][0]["inputs"] = ["x", "w", "w", "w"]
    with pytest.raises(BadInput, match="elements; the limit"):
        module_from_graph(found)


# Real files

NETWORKS = {
    "mobilenetv2_tf": (
        Input(224, mean=(0.5,), std=(0.5,)),
        Output(classes=1000, class_offset=1),
    ),
    "squeezenet1_1": (
        Input(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Output(classes=1000),
    ),
}


def real(name: str) -> tuple[onnx.ModelProto, Input, Output]:
    path = SHARED / "models" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here: this test wants the shared data beside the repository")
    return read(path), *NETWORKS[name]


def pictures():
    from edgekit import data

    if not (SHARED / "nips17" / "labels.csv").is_file():
        pytest.skip("nips17 is not here: this test wants the shared data beside the repository")
    return data.load([f"test=csv:{SHARED / 'nips17' / 'labels.csv'}"]).role("test")


def there_and_back(name: str, images: int | None) -> None:
    """The file, the module it becomes, and the file that is exported from the module, on photographs."""
    model, input, output = real(name)
    samples = pictures()
    samples = samples.subset(images, 0) if images else samples
    module = to_module(for_torch(model, input.shape, name))
    original = engine("onnxruntime").load(serialise(model))
    exported = engine("onnxruntime").load(serialise(export(module, input, output, target("onnxruntime")).model))
    runs = {"torch": torch_predict(module), "exported": exported.run}
    logits: dict[str, list[np.ndarray]] = {"file": [], "torch": [], "exported": []}
    truth: list[int] = []
    for x, labels, _ in samples.batches(input, 25):
        logits["file"].append(np.concatenate([original.run(image[None]) for image in x]))  # a file may fix batch 1
        for key, run in runs.items():
            logits[key].append(run(x))
        truth += [int(label) for label in labels]
    found = {key: output.scores(np.concatenate(parts)) for key, parts in logits.items()}
    top1 = {key: float(100 * (scores.argmax(1) == truth).mean()) for key, scores in found.items()}
    print(name, len(truth), top1, {key: sqnr_db(found["file"], found[key]) for key in runs})
    for key in runs:
        assert sqnr_db(found["file"], found[key]) >= 80
        assert np.array_equal(found["file"].argmax(1), found[key].argmax(1))
    assert top1["file"] == top1["torch"] == top1["exported"] > 50


@pytest.mark.parametrize("name", NETWORKS)
def test_a_real_network_goes_through_torch_and_back(name):
    there_and_back(name, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_real_network_answers_the_same_on_every_picture(name):
    there_and_back(name, None)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_real_network_loses_channels_exactly(name):
    model = real(name)[0]
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 64  # a smaller picture is quicker to trace, and the ties are the same
    module = to_module(for_torch(model, (3, 64, 64), name))
    groups, _ = removal(module, (3, 64, 64))
    assert groups >= 20
