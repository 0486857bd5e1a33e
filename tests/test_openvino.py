"""OpenVINO as an engine: the answers of ONNX Runtime, int8 where the file says so, and clear refusals."""

import numpy as np
import onnx
import pytest

from edgekit import run
from edgekit.engines import engine, runner
from edgekit.errors import BadInput
from edgekit.parity import sqnr_db
from edgekit.targets import target

pytest.importorskip("openvino", reason="the extra openvino is not installed")
BATCH = np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32)


@pytest.mark.parametrize(("precision", "needed_db"), [("fp32", 80), ("int8", 25)])
def test_it_answers_as_onnx_runtime_does(bundle, precision, needed_db):
    path = bundle.model("onnxruntime", precision)
    answers = [engine(name).load(path, threads=1).run(BATCH) for name in ("onnxruntime", "openvino")]
    assert sqnr_db(*answers) > needed_db


def test_int8_convolutions_run_as_int8(bundle):
    found = engine("openvino")
    assert found.int8_convs(bundle.model("onnxruntime", "fp32")) == 0
    convolutions = sum(n.op_type == "Conv" for n in onnx.load(bundle.model("onnxruntime", "int8")).graph.node)
    assert found.int8_convs(bundle.model("onnxruntime", "int8")) == convolutions > 0
    assert found.executed_ops(bundle.model("onnxruntime", "fp32"))["Convolution f32"] == convolutions


def test_a_file_of_fixed_batch_is_run_piece_by_piece(bundle, tmp_path):
    model = onnx.load(bundle.model("onnxruntime", "fp32"))
    free = engine("openvino").load(bundle.model("onnxruntime", "fp32"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, tmp_path / "two.onnx")
    fixed = engine("openvino").load(tmp_path / "two.onnx")
    assert (free.batch, fixed.batch, fixed.shape) == (None, 2, (3, 16, 16))
    np.testing.assert_allclose(fixed.run(BATCH), free.run(BATCH), rtol=1e-4, atol=1e-5)


def test_what_it_cannot_load(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"this is no model")
    with pytest.raises(BadInput, match=r"no\.onnx"):
        engine("openvino").load(tmp_path / "no.onnx")
    with pytest.raises(BadInput, match="OpenVINO cannot load it"):
        engine("openvino").load(b"this is no model")


def test_without_it_onnx_runtime_stands_in(monkeypatch):
    assert runner(target("openvino")).name == "openvino"
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = runner(target("openvino"))
    assert found.name == "onnxruntime" and "pip install 'edgekit[openvino]'" in str(found)
    with pytest.raises(BadInput, match="not installed"):
        engine("openvino").load(b"")


def test_a_recipe_for_it(data, workspace, tmp_path):
    made = run.compress(
        "tests.nets:tiny", str(workspace / "recipe.toml"), data, tmp_path / "out", runs=8,
        overrides=['export.targets=["openvino"]'],
    )  # fmt: skip
    last = made.manifest["steps"][-1]
    assert last["engine"] == "openvino" and last["int8_convs"] > 0
    assert made.latest("profile")["settings"]["engines"]["openvino"]
