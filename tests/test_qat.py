"""int8 by training: gradients by hand, the simulation is the file, training brings it closer to the float network."""

import dataclasses
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from edgekit.context import TrainingContext
from edgekit.errors import BadInput
from edgekit.export import serialise
from edgekit.isa import is_safe
from edgekit.parity import sqnr_db
from edgekit.quant.grid import Grid, fake_quantised
from edgekit.quant.simulate import Quantiser, Simulated
from edgekit.quant.targets import SCHEMES
from edgekit.rewrites import QAT, Int8
from edgekit.run import compress
from tests.conftest import IO
from tests.onnx_models import run
from tests.test_quant import INPUT, OUTPUT, batch, context, folded, small  # noqa: F401  # fixtures

START = Int8(images=16, fit_images=16, reconstruct="none", bias_correction=False)


def training(images, name="onnxruntime", log=lambda _line: None):
    own = TrainingContext(data=images, input=INPUT, output=OUTPUT, seed=0, score=lambda _net: {}, log=log)
    return dataclasses.replace(context(images, name, log), training=own)


def simulated(model, images, name="onnxruntime"):
    fitted = START.fitted(model, context(images, name))
    return Simulated(fitted.model, fitted.plan, fitted.grids, fitted.layers, fitted.scheme), fitted


def test_a_quantiser_is_the_grid_s_arithmetic():
    x = np.random.default_rng(0).normal(size=(4, 3, 5, 5)).astype(np.float32) * 3
    grid = Grid((0.05,), 37, None, False)
    found = Quantiser(torch.tensor([0.05]), 37, (0, 255), 1)(torch.from_numpy(x))
    np.testing.assert_array_equal(found.detach().numpy(), fake_quantised(x, grid, (0, 255)))


def test_gradients_are_the_paper_s():
    """Equation 3 of LSQ: −v + ⌊v⌉ inside the range, its ends outside; times 1 / sqrt(N · high)."""
    x = torch.tensor([[0.26, -0.9, 5.0, -5.0]], requires_grad=True)
    quantiser = Quantiser(torch.tensor([0.5]), 0, (-2, 3), 4)
    quantiser(x).sum().backward()
    inside = [(-0.52 + 1), (1.8 - 2)]
    expected = (sum(inside) + 3 - 2) / math.sqrt(4 * 3)
    assert quantiser.scale.grad.item() == pytest.approx(expected, rel=1e-5)
    assert x.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_one_scale_a_channel():
    weight = torch.tensor([[[[1.0]]], [[[1.0]]]])
    found = Quantiser(torch.tensor([0.4, 0.7]), 0, (-64, 64), 1)(weight)
    torch.testing.assert_close(found.flatten(), torch.tensor([0.8, 0.7]))


@pytest.mark.parametrize("name", SCHEMES)
def test_the_simulation_is_the_file(folded, images, batch, name):  # noqa: F811
    """Without graph optimisation ONNX Runtime computes Q/DQ in float, as the module does."""
    made, _ = simulated(folded, images, name)
    file = START(folded, context(images, name))
    with torch.no_grad():
        answers = made.module(torch.from_numpy(batch)).numpy()
    assert sqnr_db(run(file, batch, optimise=False), answers) > 45, "biases are rounded in the file alone"


def test_weights_that_are_0_stay_0(folded, images, batch):  # noqa: F811
    sparse = onnx.ModelProto()
    sparse.CopyFrom(folded)
    for init in sparse.graph.initializer:
        values = numpy_helper.to_array(init).copy()
        if values.ndim == 4:
            values[:, ::2] = 0
            init.CopyFrom(numpy_helper.from_array(values, init.name))
    made, fitted = simulated(sparse, images)
    optimiser = torch.optim.SGD(made.module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimiser.zero_grad()
        made.module(torch.from_numpy(batch)).square().mean().backward()
        optimiser.step()
    changed = 0
    for name, layer in made.trained()[1].items():
        before = fitted.layers[name].integers
        if before.ndim == 4:
            assert not layer.integers[:, ::2].any()
            changed += int((layer.integers != before).sum())
    assert changed > 0


@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt"])
def test_untrained_it_gives_back_what_it_was_given(folded, images, name):  # noqa: F811
    made, fitted = simulated(folded, images, name)
    grids, layers = made.trained()
    assert grids == fitted.grids
    for layer, old in fitted.layers.items():
        np.testing.assert_array_equal(layers[layer].integers, old.integers)
        np.testing.assert_array_equal(layers[layer].scales, old.scales)


def test_training_brings_the_file_closer_to_the_float_network(folded, images, batch):  # noqa: F811
    lines: list[str] = []
    ctx = training(images, log=lines.append)

    def fidelity(model) -> float:
        """Of logits up to what softmax, and so the loss, does not see."""
        answers = [run(one, batch) for one in (folded, model)]
        return sqnr_db(*[one - one.mean(1, keepdims=True) for one in answers])

    before = fidelity(START(folded, ctx))
    trained = QAT(epochs=8, batch=32, lr=2e-4, optimiser="adamw", start=START)(folded, ctx)
    assert fidelity(trained) > before + 1
    assert any("of the integers moved" in line for line in lines)
    assert is_safe(serialise(trained)), "neighbouring weights stay within their bounds"


def test_the_integers_in_the_file_are_those_that_were_trained(folded, images, monkeypatch):  # noqa: F811
    seen = []
    plain = Simulated.trained
    monkeypatch.setattr(Simulated, "trained", lambda self: seen.append(plain(self)) or seen[-1])
    trained = QAT(epochs=1, batch=32, lr=1e-2, start=START)(folded, training(images))
    values = {init.name: numpy_helper.to_array(init) for init in trained.graph.initializer}
    producers = {node.output[0]: node for node in trained.graph.node}
    for node in trained.graph.node:
        if node.op_type == "Conv":
            stored = values[producers[node.input[1]].input[0]]
            np.testing.assert_array_equal(stored, seen[0][1][node.name].integers)


def test_it_needs_training_pictures_and_weights_of_its_own(folded, images):  # noqa: F811
    with pytest.raises(BadInput, match="needs training pictures"):
        QAT(start=START)(folded, context(images))
    shared = small(
        [("Conv", ("x", "w"), "a", {}), ("Relu", ("a",), "r", {}), ("Conv", ("r", "w"), "y", {})],
        {"w": np.random.default_rng(0).normal(size=(3, 3, 1, 1))}, shape=("n", 3, 16, 16),
    )  # fmt: skip
    with pytest.raises(BadInput, match="shares its weight"):
        simulated(shared, images)


def test_a_bias_that_does_not_fit_int32(images):
    model = small(
        [("Conv", ("x", "w", "b"), "a", {}), ("Relu", ("a",), "r", {}), ("Conv", ("r", "v"), "y", {})],
        {"w": np.full((2, 3, 1, 1), 0.1), "b": [0.1, 0.1], "v": np.ones((2, 2, 1, 1))}, shape=("n", 3, 16, 16),
    )  # fmt: skip
    fitted = START.fitted(model, context(images))
    layer = fitted.layers["Conv_a"]
    fitted.layers["Conv_a"] = dataclasses.replace(layer, bias=np.array([1e9, 0.0]))
    from edgekit.rewrites.int8 import written

    with pytest.raises(BadInput, match="bias of Conv_a does not fit int32"):
        written(fitted, context(images))


def test_a_recipe_with_qat(data, tmp_path):
    recipe = tmp_path / "qat.toml"
    recipe.write_text(
        IO + '[[rewrite]]\nname = "fold"\n'
        '[[rewrite]]\nname = "qat"\nepochs = 1\nbatch = 32\nstart = { images = 8, fit_images = 8 }\n'
    )
    made = compress("tests.nets:tiny", str(recipe), data, tmp_path / "out", runs=8)
    assert {"train.onnxruntime.csv", "quant.onnxruntime.json"} <= set(made.manifest["files"])
    assert made.manifest["steps"][-1]["stage"] == "qat" and made.manifest["steps"][-1]["int8_convs"] > 0
    onnx.checker.check_model(onnx.load(made.model("onnxruntime", "int8")))
    recipe.write_text(recipe.read_text().replace("start = { images = 8", "start = { pictures = 8"))
    with pytest.raises(BadInput, match="pictures"):
        compress("tests.nets:tiny", str(recipe), data, tmp_path / "other")
