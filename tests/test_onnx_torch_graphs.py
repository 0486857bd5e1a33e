"""The importer on whole graphs: names, channels that can go, documents of strangers, real files."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from edgekit.bundle import GRAPH_SCHEMA
from edgekit.data import Input, Output
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.job import torch_predict
from edgekit.net import Net, Source, build, edits_from_json, edits_to_json
from edgekit.onnx_file import read
from edgekit.onnx_torch import graph_to_json, module_from_graph, to_module
from edgekit.parity import sqnr_db
from edgekit.removal import edits, keep_count, prunable
from edgekit.rewrites.fold import for_torch
from edgekit.targets import target
from tests.nets import ranking
from tests.onnx_models import array, check, graph, ints, one, reference, scalar
from tests.test_channels import check_removal

SHARED = Path(__file__).parents[2] / "shared" / "data"


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
    to_module(one("Conv", array(6, 4, 3, 3)))
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


def test_channels_of_an_imported_network_go_and_the_rest_stays():
    model = for_torch(network(), (3, 8, 8), "test")
    module = to_module(model)
    assert check_removal(module, (3, 8, 8)) == 1, "the residual and the gate tie stem, body and gate together"
    groups = prunable(module, (3, 8, 8)).groups
    removed = [ranking(module, group)[keep_count(group.size, 0.5, 1) :] for group in groups]
    net = Net(Source("onnx", "test.onnx"), (), module).edited(*edits(module, groups, removed))
    assert net.module.get_submodule("head").in_features == 4 * 2 * 16
    written = json.loads(json.dumps([graph_to_json(model), edits_to_json(net.edits)]))
    again = build(net.source, edits_from_json(written[1], "test"), graph=written[0]).double()
    again.load_state_dict(net.module.state_dict())
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(again(x), net.module(x))


def between(*nodes: onnx.NodeProto, c_in: int, **constants: np.ndarray) -> torch.nn.Module:
    """The nodes, from `a` to `z`, between two convolutions: 3 -> 6 channels, and c_in -> 2."""
    first = helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1])
    last = helper.make_node("Conv", ["z", "w2"], ["y"], name="last")
    weights = {"w1": array(6, 3, 3, 3), "w2": array(2, c_in, 1, 1)}
    return to_module(graph([first, *nodes, last], (3, 8, 8), {**weights, **constants}))


def test_channels_go_through_a_learned_scale():
    scale = helper.make_node("Mul", ["a", "scale"], ["z"], name="scale")
    assert check_removal(between(scale, c_in=6, scale=array(1, 6, 1, 1)), (3, 8, 8)) == 1


def test_channels_go_through_a_split_and_through_padding_with_zeros():
    split = helper.make_node("Split", ["a", "sizes"], ["b", "c"], name="split", axis=1)
    join = helper.make_node("Concat", ["c", "b"], ["z"], name="join", axis=1)
    assert check_removal(between(split, join, c_in=6, sizes=ints(2, 4)), (3, 8, 8)) >= 1
    pad = helper.make_node("Pad", ["a", "pads"], ["z"], name="pad")
    assert check_removal(between(pad, c_in=9, pads=ints(0, 1, 0, 0, 0, 2, 0, 0)), (3, 8, 8)) >= 1


def test_channels_go_through_a_shuffle():
    nodes = [
        helper.make_node("Reshape", ["a", "cut"], ["b"], name="cut"),
        helper.make_node("Transpose", ["b"], ["c"], name="turn", perm=[0, 2, 1, 3, 4]),
        helper.make_node("Reshape", ["c", "join"], ["z"], name="join"),
    ]
    module = between(*nodes, c_in=6, cut=ints(-1, 2, 3, 8, 8), join=ints(-1, 6, 8, 8))
    assert check_removal(module, (3, 8, 8)) == 1


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


@settings(max_examples=15, derandomize=True, database=None)
@given(dags())
def test_random_graphs_compute_the_same(model):
    module, x = to_module(model), array(2, 4, 6, 6)
    with torch.no_grad():
        assert sqnr_db(reference(model, x)[0], module(torch.from_numpy(x)).numpy()) >= 100
    assert set(module_from_graph(graph_to_json(model)).state_dict()) == set(module.state_dict())


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


@pytest.mark.parametrize("what", DAMAGE)
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
    assert check_removal(module, (3, 64, 64)) >= 20
