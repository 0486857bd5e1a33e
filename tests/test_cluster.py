"""Scalar clustering: the shares of bits by hand, levels where they are best, and each bad input."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.coded import CodeWeight, coded_weights
from edgekit.context import RewriteContext
from edgekit.data import Data, Output
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.net import edits_from_json, edits_to_json, state_sha256
from edgekit.onnx_codes import put_back, taken_out
from edgekit.parity import sqnr_db
from edgekit.passes import Cluster
from edgekit.passes.cluster import shared_steps
from edgekit.passes.coding import layers_to_code, sensitivities
from edgekit.quant.targets import quantised_convs, scheme, violations
from edgekit.rewrites import Fold, Int8
from edgekit.schema import parse
from edgekit.targets import target
from tests.onnx_models import run
from tests.test_prune import context, net_of
from tests.test_reconstruct import SHAPE, answers, every
from tests.test_vq import cifar


def test_bits_are_shared_out_by_what_errors_cost():
    """Two layers of one distribution, of which errors in the second cost 16 times as much: 2 bits a weight more."""
    values = np.random.default_rng(0).standard_normal((1, 4, 20_000))
    steps = shared_steps({"a": (values, np.full(4, 1.0)), "b": (values, np.full(4, 16.0))}, 3.5)
    assert np.allclose(steps["a"] / steps["b"], 4.0)
    entropies = {name: entropy(np.rint(values / step[..., None])) for name, step in steps.items()}
    assert entropies["b"] - entropies["a"] == pytest.approx(2.0, abs=0.05)
    assert np.mean(list(entropies.values())) == pytest.approx(3.5, abs=0.15)  # steps have few digits


def entropy(levels: np.ndarray) -> float:
    shares = np.unique(levels, return_counts=True)[1] / levels.size
    return float(-(shares * np.log2(shares)).sum())


def test_steps_have_few_digits_and_levels_fit_every_int8_kernel():
    weight = np.random.default_rng(0).standard_normal((2, 8, 100))
    steps = shared_steps({"a": (weight, np.logspace(-30, 30, 16))}, 7.9)["a"]
    mantissas = np.frexp(steps)[0] * 8
    assert np.array_equal(mantissas, np.rint(mantissas)) and (np.abs(weight).max(2) / steps <= 64).all()


@pytest.mark.parametrize("settings", [{"bits": 4.0}, {"levels": 16}, {"levels": 16, "grid": "kmeans"}])
def test_fitted_layers_answer_closer_than_rounded_weights(settings):
    net = every()
    wanted = answers(net)
    close = {}
    for reconstruct in ("none", "gptq"):
        coded = Cluster(**settings, images=32, reconstruct=reconstruct)(net, context(net))
        close[reconstruct] = sqnr_db(wanted, answers(coded))
    assert close["gptq"] > close["none"] + 2


@pytest.mark.parametrize("settings", [{"bits": 6.5}, {"levels": 255}])
def test_many_levels_change_little(settings):
    net = every()
    coded = Cluster(**settings, reconstruct="none")(net, context(net))
    assert sqnr_db(answers(net), answers(coded)) > 35


def test_the_input_stays_and_the_edits_replay():
    net = every()
    before = state_sha256(net.module)
    coded = Cluster(levels=5, images=8)(net, context(net))
    assert state_sha256(net.module) == before
    assert all(len(code.codebook) <= 5 and code.codes.max() < 5 for code in coded_weights(coded.module).values())
    again = net.edited(*edits_from_json(edits_to_json(coded.edits), "test"))
    again.module.load_state_dict(coded.module.state_dict())
    assert np.array_equal(answers(again), answers(coded))


def test_the_file_holds_the_codes_and_answers_alike():
    net = cifar(16)
    coded = Cluster(bits=3.0, images=8)(net, context(net))
    plain, small = (
        Fold()(export(each.module, context(net).input, Output(), target("onnxruntime")).model, None)
        for each in (net, coded)
    )
    assert small.ByteSize() < 0.45 * plain.ByteSize()
    x = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    assert sqnr_db(coded.module(torch.from_numpy(x)).detach().numpy(), run(small, x)) > 80


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("onnxruntime", {"levels": 16}),
        ("onnxruntime-vnni", {"levels": 16, "grid": "kmeans"}),
        ("tensorrt", {"levels": 16}),
    ],
)
def test_codes_run_as_int8(name, settings):
    net, lines = cifar(16), list[str]()
    ctx = context(net)
    wanted = target(name)
    rewrites = RewriteContext(wanted, ctx.input, Output(), ctx.data, 0, lines.append)
    coded = Cluster(**settings, images=8)(net, ctx)
    exact = Fold()(export(coded.module, ctx.input, Output(), wanted).model, rewrites)
    found, plain = (
        Int8(images=8, fit_images=8)(model, rewrites) for model in (exact, put_back(*taken_out(exact), decode=True))
    )
    assert violations(found, scheme(name)) == [] and quantised_convs(found) == quantised_convs(plain)
    x = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    assert sqnr_db(run(exact, x), run(found, x)) > 25
    if wanted.decodes:
        assert found.ByteSize() < 0.72 * plain.ByteSize() and "20 of 20 coded weights stay codes" in " ".join(lines)
        int8 = engine("onnxruntime").int8_convs
        assert int8(serialise(found)) == int8(serialise(plain)) == 19


def test_codes_refuse_what_changes_weights():
    net = cifar()
    ctx = context(net)
    model = export(
        Cluster(levels=4, reconstruct="none")(net, ctx).module, ctx.input, Output(), target("onnxruntime")
    ).model
    rewrites = RewriteContext(target("onnxruntime"), ctx.input, Output(), ctx.data, 0, lambda _line: None)
    with pytest.raises(BadInput, match="keeps them as codes"):
        Int8(equalise=True)(model, rewrites)


def test_sensitivities_are_the_squared_gradients_of_the_answer():
    """One layer z = W x: the gradient of −log p(c) is p − one-hot(c); a third class is as good as never drawn."""
    net = net_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)))
    net.module[1].weight.data.zero_()
    net.module[1].bias.data.copy_(torch.tensor([0.0, 0.0, -100.0]))
    ctx = context(net)
    images = np.concatenate([batch for batch, _, _ in ctx.data.role("calibrate").batches(ctx.input, 8)])
    fisher = np.array([0.25, 0.25, 0.0])
    found = sensitivities(net, ctx, len(images))["1"]
    assert found == pytest.approx((fisher + fisher.mean()) * np.square(images).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "bits, e.g. 4.0, or levels"),
        ({"bits": 4.0, "levels": 16}, "not both"),
        ({"bits": 4.0, "grid": "kmeans"}, "needs levels"),
        ({"bits": 0}, "bits"),
        ({"bits": 9}, "bits"),
        ({"levels": 1}, "levels"),
        ({"levels": 256}, "levels"),
    ],
)
def test_settings_that_cannot_be(fields, words):
    with pytest.raises(BadInput, match=words):
        parse(Cluster, fields, "recipe")


def test_a_glob_that_matches_nothing():
    net = every()
    with pytest.raises(BadInput, match="exclude = 'nowhere' matches no layer"):
        Cluster(levels=4, exclude=("nowhere",))(net, context(net))


def test_excluded_layers_stay_as_they_are():
    net = every()
    coded = Cluster(levels=4, exclude=("stem.*", "linear"), reconstruct="none")(net, context(net))
    names = {name.removesuffix(".weight") for name in coded_weights(coded.module)}
    assert names == {path for path in layers_to_code(net.module, (), "test") if path not in ("stem.conv", "linear")}


def test_layers_that_cannot_be_coded():
    net = every()
    coded = net.edited(CodeWeight("linear", 4))
    with pytest.raises(BadInput, match="linear is kept as codes already"):
        Cluster(levels=4)(coded, context(net))
    tied = every()
    tied.module.head.conv.weight.data[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"head\.conv is not finite"):
        Cluster(levels=4)(tied, context(net))


def test_no_calibration_images_and_no_classifier():
    net = every()
    ctx = context(net)
    with pytest.raises(BadInput, match="calibrate"):
        Cluster(levels=4)(net, dataclasses.replace(ctx, data=Data({})))
    with pytest.raises(BadInput, match="give levels instead"):
        Cluster(bits=4.0)(net, dataclasses.replace(ctx, output=Output(task="segment", classes=4)))
