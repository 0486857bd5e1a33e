"""ONNX Runtime's format for phones, and the static table of what their accelerators would take."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.data import Output
from edgekit.deploy import export_file
from edgekit.engines import engine
from edgekit.errors import BadInput, ParityError
from edgekit.phones import _check_answers, accelerators, to_ort
from edgekit.rewrites.camera import camera_ready
from tests.onnx_models import array, graph
from tests.test_camera import CAMERA, TARGET, classifier
from tests.test_cli import run
from tests.test_export import INPUT


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_ort_format_gives_the_same_answers(bundle, images, precision):
    content = bundle.model("onnxruntime", precision).read_bytes()
    made, operators = to_ort(content)
    assert made[4:8] == b"ORTM", "the identifier of ONNX Runtime's flatbuffers"
    x = next(images.role("test").batches(INPUT, 16))[0]
    plain, converted = (engine("onnxruntime").load(one).run(x) for one in (content, made))
    np.testing.assert_allclose(converted, plain, rtol=1e-4, atol=1e-5)
    lines = operators.decode().splitlines()
    assert all(len(line.split(";")) == 3 for line in lines) and "tmp" not in operators.decode()
    listed = {name for line in lines for name in line.split(";")[2].split(",")}
    assert ("QLinearConv" in listed) == (precision == "int8") and "GlobalAveragePool" in " ".join(listed)


def test_camera_ready_files_convert_too():
    content = camera_ready(classifier(), TARGET, CAMERA, Output(form="topk", k=2)).SerializeToString()
    made, operators = to_ort(content)
    assert engine("onnxruntime").load(made).dtype == np.uint8 and b"TopK" in operators


def test_export_writes_the_file_and_its_operators(bundle, tmp_path):
    out = tmp_path / "m.ort"
    arguments = ("export", bundle.path, "--target", "onnxruntime", "--format", "ort", "--out", out)
    said = run(*arguments)[1]
    config = tmp_path / "m.required_operators.config"
    assert "m.ort: int8 for onnxruntime" in said and f"{config.name}: the operators" in said
    assert engine("onnxruntime").load(out).shape == (3, 16, 16) and b"QLinearConv" in config.read_bytes()
    out.unlink()
    assert "m.required_operators.config: exists" in run(*arguments, code=2)[1]


def test_a_file_that_would_answer_otherwise_is_refused():
    with pytest.raises(ParityError, match="ORT format answers differently"):
        _check_answers(classifier().SerializeToString(), classifier().SerializeToString())


def test_what_cannot_be_converted(bundle, tmp_path):
    with pytest.raises(BadInput, match="cannot convert it to ORT format"):
        to_ort(b"junk")
    with pytest.raises(BadInput, match="tensorrt is run by tensorrt; give --format onnx"):
        export_file(bundle.path, "tensorrt", "fp32", tmp_path / "m.ort", [], None, False, ort_format=True)
    assert not list(tmp_path.iterdir())


# What accelerators would take


def taken(model: onnx.ModelProto, tmp_path) -> dict[str, tuple[int, int, int, list[str]]]:
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    rows = accelerators(path)["rows"]
    return {row["accelerator"]: (row["taken"], row["nodes"], row["parts"], row["left"]) for row in rows}


def test_by_hand(tmp_path):
    """Two convolutions, one with an activation that goes with it, parted by a sum and a sine."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["b", "x"], ["c"]),
        helper.make_node("Sin", ["c"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "w"], ["y"]),
    ]
    found = taken(graph(nodes, (3, 8, 8), {"w": array(3, 3, 1, 1)}, result=["n", 3, 8, 8]), tmp_path)
    assert found == {
        "XNNPACK": (3, 6, 2, ["Add", "Relu", "Sin"]),
        "NNAPI": (6, 6, 1, []),
        "CoreML, ML Program": (6, 6, 1, []),
        "CoreML, NeuralNetwork": (5, 6, 2, ["Sin"]),
    }


def test_a_weight_that_is_computed_is_not_for_xnnpack(tmp_path):
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("MatMul", ["x", "s"], ["y"])]
    computed = graph(nodes, (3, 8, 8), {}, result=["n", 3, 8, 8])
    assert taken(computed, tmp_path)["XNNPACK"] == (0, 2, 0, ["MatMul", "Sigmoid"])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    product = graph(nodes, (3, 4, 8), {"w": array(8, 5)}, result=["n", 3, 4, 5])
    assert taken(product, tmp_path)["XNNPACK"][:2] == (1, 1)
    stacked = graph(nodes, (3, 4, 8), {"w": array(3, 8, 5)}, result=["n", 3, 4, 5])
    assert taken(stacked, tmp_path)["XNNPACK"][:2] == (0, 1)


def test_quantised_convolutions_count_with_their_pairs(bundle, tmp_path):
    model = onnx.load(bundle.model("onnxruntime", "int8"))
    found = taken(model, tmp_path)
    pairs = sum(node.op_type.endswith("tizeLinear") for node in model.graph.node)
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    assert 4 * convolutions <= found["XNNPACK"][0] <= convolutions + pairs + 1, "each with its input, weight and bias"
    assert found["NNAPI"][0] > found["XNNPACK"][0]
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(found["CoreML, NeuralNetwork"][3])


def test_inspect_says_what_it_is(bundle):
    out, _ = run("inspect", bundle.base, "--phones")
    assert "XNNPACK" in out and "a static estimate" in out and "nothing was run on a phone" in " ".join(out.split())
    document = json.loads(run("inspect", bundle.base, "--phones", "--json")[0])
    assert len(document["phones"]["rows"]) == 4 and "static" in document["phones"]["what"]
    assert "phones" not in json.loads(run("inspect", bundle.base, "--json")[0])
    assert "export it, and give the ONNX file" in run("inspect", "mobilenet_v2", "--phones", code=2)[1]


def test_free_sizes_cannot_be_told(tmp_path):
    path = tmp_path / "m.onnx"
    model = graph([helper.make_node("Relu", ["x"], ["y"])], (3, "h", "w"), {}, result=["n", 3, "h", "w"])
    onnx.save(model, path)
    with pytest.raises(BadInput, match="sizes of its input are not fixed"):
        accelerators(path)
    model = graph([helper.make_node("Relu", ["x"], ["y"])], (3, 8, 8), {}, result=["n", 3, 8, 8])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.BOOL
    onnx.save(model, path)
    with pytest.raises(BadInput, match=r"m.onnx: ONNX Runtime cannot load it at batch 1"):
        accelerators(path)
