"""edgekit.bisect: the layer that was spoiled is the one that is named, as the deployed runtime computes it."""

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit import cli
from edgekit.bisect import bisect
from edgekit.errors import BadInput
from edgekit.parity import sqnr_db


@pytest.fixture(scope="module")
def files(bundle):
    return bundle.model("onnxruntime", "fp32"), bundle.model("onnxruntime", "int8")


def spoiled(path, out, layer: str, noise: float):
    """A copy in which one layer's weight is wrong."""
    model = onnx.load(path)
    weights = {init.name: init for init in model.graph.initializer}
    node = next(node for node in model.graph.node if node.op_type == "Conv" and layer in node.name)
    value = numpy_helper.to_array(weights[node.input[1]])
    wrong = value + noise * np.random.default_rng(0).standard_normal(value.shape).astype(np.float32)
    weights[node.input[1]].CopyFrom(numpy_helper.from_array(wrong.astype(np.float32), node.input[1]))
    onnx.save(model, out)
    return out


def test_a_file_against_itself(files, data):
    found = bisect(files[0], files[0], [data], images=4)
    assert found["diverging"] == [] and {row["sqnr_db"] for row in found["rows"]} == {300.0} and found["as_deployed"]


@pytest.mark.parametrize("layer", ["expand", "project", "head"])
def test_the_spoiled_layer_is_named_first(files, data, tmp_path, layer):
    found = bisect(files[0], spoiled(files[0], tmp_path / "bad.onnx", layer, 0.3), [data], images=4)
    assert layer in found["diverging"][0]
    before = [row for row in found["rows"] if row["sqnr_db"] == 300.0]
    assert len(before) < len(found["rows"])


def test_int8_is_compared_as_it_is_deployed(files, data):
    """The last row is the SQNR of the outputs, computed by hand on the same pictures."""
    from edgekit import data as datasets
    from edgekit.data import Input
    from edgekit.engines import engine

    found = bisect(*files, [data], images=8)
    samples = datasets.load([data]).role("calibrate").subset(8, 0)
    batch, _, _ = next(samples.batches(Input(size=16, mean=(0.5,), std=(0.5,)), 8))
    outputs = [engine("onnxruntime").load(path).run(batch) for path in files]
    assert found["rows"][-1]["sqnr_db"] == pytest.approx(sqnr_db(*outputs), abs=0.05)
    assert found["as_deployed"] and found["images"] == 8
    values = [row["sqnr_db"] for row in found["rows"]]
    assert len(values) > 5 and all(8 < value < 300 for value in values)


def test_the_command(files, data, capsys):
    arguments = ["bisect", *map(str, files), "--data", data, "--images", "2"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and document["schema"] == "edgekit/bisection/1"
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert document["rows"][-1]["layer"] in capsys.readouterr().out


def test_files_that_share_no_tensor(files, data, tmp_path):
    model = onnx.load(files[0])
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if (
                    name
                    and name not in ("input", "output")
                    and not any(i.name == name for i in model.graph.initializer)
                ):
                    names[index] = f"other.{name}"
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(BadInput, match="shares no tensor"):
        bisect(files[0], tmp_path / "other.onnx", [data], images=2)
