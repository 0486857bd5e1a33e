"""Layers in float: which cost what, the fewest that reach a fidelity, and the record of it all."""

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.errors import BadInput
from edgekit.files import read_json
from edgekit.parity import sqnr_db
from edgekit.quant.targets import scheme, violations
from edgekit.rewrites import Int8
from edgekit.rewrites.int8 import count_quantised
from tests.onnx_models import run
from tests.test_quant import batch, context, folded  # noqa: F401  # fixtures

SETTINGS = {"images": 16, "fit_images": 16, "reconstruct": "none", "bias_correction": False}


@pytest.fixture(scope="module")
def hard(folded):  # noqa: F811
    """The network with one input of a layer that is sixty times as loud as the others."""
    copy = onnx.ModelProto()
    copy.CopyFrom(folded)
    node = next(node for node in copy.graph.node if "expand" in node.name and node.op_type == "Conv")
    weights = {init.name: init for init in copy.graph.initializer}
    value = numpy_helper.to_array(weights[node.input[1]]).copy()
    value[:, 0] *= 60
    weights[node.input[1]].CopyFrom(numpy_helper.from_array(value, node.input[1]))
    return copy


def fitted(model, images, **settings):
    """The file and its record."""
    kept = {}
    ctx = dataclasses.replace(context(images), keep=lambda name, document: kept.update({name: document}))
    return Int8(**SETTINGS, **settings)(model, ctx), kept["quant.onnxruntime.json"]


def test_a_gain_is_that_of_the_file_with_the_layer_in_float(hard, images):
    plain, document = fitted(hard, images, least_db=1.0)
    gains = document["gain_db"]
    assert len(gains) == count_quantised(plain) and list(gains.values()) == sorted(gains.values(), reverse=True)
    pictures = np.concatenate(list(context(images).calibration(16)))
    exact = run(hard, pictures)
    whole = sqnr_db(exact, run(plain, pictures))
    for layer in (next(iter(gains)), list(gains)[-1]):
        without, _ = fitted(hard, images, in_float=(layer,))
        assert sqnr_db(exact, run(without, pictures)) - whole == pytest.approx(gains[layer], abs=0.01)


def test_the_fewest_layers_that_reach_the_fidelity_stay_in_float(hard, images):
    plain, document = fitted(hard, images, least_db=1.0)
    pictures = np.concatenate(list(context(images).calibration(16)))
    exact = run(hard, pictures)
    order = list(document["gain_db"])
    files = [plain] + [fitted(hard, images, in_float=tuple(order[:count]))[0] for count in (1, 2, 3)]
    reached = [sqnr_db(exact, run(file, pictures)) for file in files]
    wanted = (reached[0] + max(reached)) / 2  # far from each: layers are fitted anew once the choice is made
    kept = next(count for count, value in enumerate(reached) if value >= wanted)
    mixed, _ = fitted(hard, images, least_db=wanted)
    assert kept >= 1 and run(mixed, pictures).tolist() == run(files[kept], pictures).tolist()
    assert not set(order[:kept]) & set(_quantised(mixed))
    onnx.checker.check_model(mixed)


def test_what_stays_in_float_is_said(folded, images):  # noqa: F811
    lines: list[str] = []
    Int8(**SETTINGS, least_db=500.0)(folded, context(images, log=lines.append))
    assert any("layers in float: " in line for line in lines)
    assert any("least_db = 500.0 is out of reach" in line for line in lines)


def test_what_layers_in_float_cost_is_measured_and_said(hard, images):
    lines, asked = [], []

    def timed(models):
        asked.extend(models)
        times = [{"median": 4.0}, {"median": 5.0}]
        return [{"latency_ms": ms, "latency_ratio": {"median": 1.25, "low": 1.2, "high": 1.3}} for ms in times]

    ctx = dataclasses.replace(context(images, log=lines.append), timed=timed)
    Int8(**SETTINGS, least_db=500.0)(hard, ctx)
    assert "int8: layers in float take +1.00 ms, 4.00 to 5.00: 1.25 [1.20, 1.30] of the latency without" in lines
    without, mixed = map(count_quantised, asked)
    assert without > mixed >= 1
    lines.clear()
    Int8(**SETTINGS, least_db=500.0)(hard, context(images, log=lines.append))
    assert not any("layers in float take" in line for line in lines), "nothing is said that was not measured"


def _quantised(model: onnx.ModelProto) -> list[str]:
    dequantised = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] in dequantised]


def test_an_easy_network_keeps_nothing_in_float(folded, images):  # noqa: F811
    mixed = Int8(**SETTINGS, least_db=5.0)(folded, context(images))
    assert mixed == Int8(**SETTINGS)(folded, context(images))


@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt"])
def test_layers_are_kept_in_float_by_glob(folded, images, batch, name):  # noqa: F811
    model = Int8(**SETTINGS, in_float=("*depthwise*",))(folded, context(images, name))
    assert not any("depthwise" in layer for layer in _quantised(model)) and _quantised(model)
    unread = {name for node in model.graph.node for name in node.output}
    unread -= {name for node in model.graph.node for name in node.input} | {model.graph.output[0].name}
    assert not unread, "no pair of Q/DQ is left without a reader"
    assert sqnr_db(run(folded, batch), run(model, batch)) > 15
    assert all("depthwise" in line for line in violations(model, scheme(name)))


def test_a_glob_that_matches_nothing(folded, images):  # noqa: F811
    with pytest.raises(BadInput, match=r"in_float = 'blocks\.\*' matches no layer; there are .*stem"):
        Int8(**SETTINGS, in_float=("blocks.*",))(folded, context(images))


def test_the_bundle_keeps_how_each_tensor_is_quantised(bundle):
    document = read_json(bundle.path / "quant.onnxruntime.json", "edgekit/quant/1")
    assert "quant.onnxruntime.json" in bundle.manifest["files"]
    assert len(document["images"]["ids"]) == 8 and len(document["images"]["sha256"]) == 64
    model = onnx.load(bundle.model("onnxruntime", "int8"))
    values = {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    for node in pairs:
        entry = document["tensors"][node.input[1].removesuffix(".scale")]
        assert np.float32(entry["scale"][0]) == values[node.input[1]]
        assert entry["zero_point"] == values[node.input[2]] and not entry["symmetric"]
    assert pairs and len(document["tensors"]) > len(pairs), "weights too"


def test_one_layer_has_no_other_to_compare_with(images):
    from tests.test_quant import small

    model = small([("Conv", ("x", "w"), "y", {})], {"w": np.ones((2, 3, 1, 1))}, shape=("n", 3, 16, 16))
    with pytest.raises(BadInput, match="no convolution"):
        Int8(**SETTINGS, in_float=("Conv_y",))(model, context(images))
    made, document = fitted(model, images, least_db=60.0)
    assert count_quantised(made) == 1 and document["gain_db"] == {}, "what JSON can hold"
