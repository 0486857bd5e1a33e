"""Power-of-two codes fitted after training: exact where they can be, the best scale, and each bad input."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from edgekit.coded import coded_weights
from edgekit.context import RewriteContext
from edgekit.data import Data, Output
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.net import edits_from_json, edits_to_json, state_sha256
from edgekit.onnx_codes import coded_weights as stored_weights
from edgekit.onnx_codes import put_back, taken_out
from edgekit.parity import sqnr_db
from edgekit.passes import Finetune, Shift
from edgekit.passes.shift import whole_levels
from edgekit.quant.targets import quantised_convs, scheme, violations
from edgekit.rewrites import Fold, Int8
from edgekit.schema import parse
from edgekit.shift import METHODS
from edgekit.shift.base import least_squares
from edgekit.targets import target
from tests.onnx_models import run
from tests.test_prune import context
from tests.test_reconstruct import SHAPE, answers, every
from tests.test_train import context as training

FITTED = [(name, bits) for name in METHODS for bits in METHODS[name].LEVELS if whole_levels(METHODS[name].LEVELS[bits])]
SOME = [("denseshift", 2), ("denseshift", 3), ("denseshift", 4), ("s3", 3), ("deepshift_ps", 4), ("apot", 5)]


def test_levels_are_whole_and_fit_int8():
    assert {name: [bits for n, bits in FITTED if n == name] for name in METHODS} == {
        "denseshift": [2, 3, 4],
        "s3": [2, 3],
        "deepshift_q": [2, 3, 4],
        "deepshift_ps": [2, 3, 4],
        "apot": [2, 3, 4, 5],
    }
    assert whole_levels(METHODS["denseshift"].LEVELS[4]) == [1, 2, 4, 8, 16, 32, 64]
    assert whole_levels(METHODS["deepshift_q"].LEVELS[3]) == [1, 2, 4, 8]
    assert whole_levels(METHODS["deepshift_ps"].LEVELS[4]) == [0, 1, 2, 4, 8, 16, 32, 64]
    assert whole_levels(METHODS["apot"].LEVELS[4]) == METHODS["apot"].LEVELS[4]


@pytest.mark.parametrize(("name", "bits"), FITTED)
def test_weights_that_are_levels_stay_to_the_bit(name, bits):
    """Each channel holds every level times a factor of its own, a power of two so that the products are exact."""
    net = every()
    levels = whole_levels(METHODS[name].LEVELS[bits])
    book = torch.tensor([*levels, *(-level for level in levels)])
    layer = net.module.head.conv
    rows = torch.stack([torch.randint(len(book), (14,), generator=torch.Generator().manual_seed(i)) for i in range(10)])
    rows[:, 0] = len(levels) - 1
    factors = 2.0 ** -torch.arange(3.0, 13.0)
    layer.weight.data.copy_((book[rows] * factors[:, None])[..., None, None])
    before = layer.weight.detach().clone()
    coded = Shift(name, bits, fit="mse")(net, context(net))
    assert torch.equal(coded.module.head.conv.weight, before)


@pytest.mark.parametrize(("name", "bits"), SOME)
def test_no_scale_of_a_fine_grid_does_better(name, bits):
    levels = whole_levels(METHODS[name].LEVELS[bits])
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randn(8, 60, generator=generator).abs().double()
    importance = torch.rand(8, 60, generator=generator).double() ** 4

    def error(scale: torch.Tensor) -> torch.Tensor:
        grid = torch.tensor(levels, dtype=torch.float64) * scale[:, None]
        return ((sizes[:, :, None] - grid[:, None]).abs().amin(2).square() * importance).sum(1)

    tried = [sizes.amax(1) * 1.01**-step for step in range(800)]
    best = torch.stack([error(scale) for scale in tried]).amin(0)
    assert (error(least_squares(sizes, levels, importance)) <= best * (1 + 1e-9)).all()


@pytest.mark.parametrize(("name", "bits"), SOME)
def test_fitted_outputs_are_closer_than_rounded_weights(name, bits):
    net = every()
    wanted, ctx = answers(net), context(net)
    close = {fit: sqnr_db(wanted, answers(Shift(name, bits, fit=fit, images=24)(net, ctx))) for fit in ("mse", "gptq")}
    assert close["gptq"] > close["mse"] + 1


def test_the_input_stays_and_the_edits_replay():
    net = every()
    net.module.project.conv.weight.data[2] = 0  # a dead channel, and no level is 0
    before, lines = state_sha256(net.module), []
    ctx = dataclasses.replace(context(net), log=lines.append)
    coded = Shift("denseshift", 3, fit="gptq", images=8)(net, ctx)
    assert state_sha256(net.module) == before and lines[-1].startswith("shift: 5 layers, ")
    assert set(coded_weights(coded.module)) == {
        f"{name}.conv.weight" for name in ("expand", "depthwise", "project", "branch", "head")
    }
    for codes in coded_weights(coded.module).values():
        assert set(codes.codebook.abs().flatten().tolist()) <= {1, 2, 4, 8} and (codes.factor > 0).all()
    weight = coded.module.project.conv.weight
    assert weight[2].abs().max() < 0.01 * weight.abs().max()
    again = net.edited(*edits_from_json(edits_to_json(coded.edits), "test"))
    again.module.load_state_dict(coded.module.state_dict())
    assert np.array_equal(answers(again), answers(coded))


def test_training_behind_it_leaves_powers_of_two(images):
    net = every()
    coded = Shift("denseshift", 3, fit="mse")(net, context(net))
    before = copy.deepcopy(coded_weights(coded.module))
    done = Finetune(epochs=1, batch=32, lr=0.05, score=0)(coded, training(images, net))
    for name, codes in coded_weights(done.module).items():
        assert torch.equal(codes.codes, before[name].codes) and torch.equal(codes.codebook, before[name].codebook)
        assert not torch.equal(codes.factor, before[name].factor)


@pytest.mark.parametrize(
    ("name", "bits", "where"),
    [("denseshift", 4, "onnxruntime"), ("apot", 4, "onnxruntime-vnni"), ("denseshift", 3, "tensorrt")],
)  # fmt: skip
def test_the_int8_file_decodes_the_very_levels(name, bits, where):
    net, lines = every(), list[str]()
    ctx, wanted = context(net), target(where)
    rewrites = RewriteContext(wanted, ctx.input, Output(), ctx.data, 0, lines.append)
    coded = Shift(name, bits, fit="gptq", images=8, ends=True)(net, ctx)
    exact = Fold()(export(coded.module, ctx.input, Output(), wanted).model, rewrites)
    found, plain = (
        Int8(images=8, fit_images=8)(model, rewrites) for model in (exact, put_back(*taken_out(exact), decode=True))
    )
    assert violations(found, scheme(where)) == [] and quantised_convs(found) == quantised_convs(plain)
    x = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    answer = run(exact, x)
    assert sqnr_db(answer, run(found, x)) > sqnr_db(answer, run(plain, x)) - 3
    if wanted.decodes:
        levels = set(whole_levels(METHODS[name].LEVELS[bits]))
        forms = stored_weights(exact).values()
        assert len(forms) == 7 and "7 of 7 coded weights stay codes" in " ".join(lines)
        assert all(form.table.dtype == np.int8 and set(np.abs(form.table).ravel()) <= levels for form in forms)
        int8 = engine("onnxruntime").int8_convs
        assert int8(serialise(found)) == int8(serialise(plain)) == 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "denseshift", "bits": 5, "fit": "gptq"}, "bits; bits = 5"),
        ({"method": "deepshift_q", "bits": 5, "fit": "gptq"}, "too far apart for int8"),
        ({"method": "apot", "bits": 6, "fit": "mse"}, "too far apart for int8"),
        ({"start": "scratch", "fit": "mse"}, "is for training"),
        ({"fit": "kmeans"}, "fit"),
        ({"fit": "gptq", "images": 0}, "images"),
    ],
)
def test_settings_that_cannot_be(fields, words):
    with pytest.raises(BadInput, match=words):
        parse(Shift, fields, "recipe")


def test_no_calibration_images_and_layers_that_cannot_be_coded():
    net = every()
    ctx = context(net)
    with pytest.raises(BadInput, match="calibrate"):
        Shift(fit="gptq")(net, dataclasses.replace(ctx, data=Data({})))
    with pytest.raises(BadInput, match=r"expand\.conv is kept as codes already"):
        Shift(fit="mse")(Shift(fit="mse")(net, ctx), ctx)
    net.module.head.conv.weight.data[0, 0] = float("nan")
    with pytest.raises(BadInput, match=r"head\.conv is not finite"):
        Shift(fit="mse")(net, ctx)
