"""Weights held at 0: which, by hand; that they stay so in training, codes, int8 and the packed file; each bad input."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from edgekit.coded import CodeWeight, coded_weights
from edgekit.context import RewriteContext
from edgekit.data import Data, Output
from edgekit.edits import KeepChannels
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.masked import kept_of
from edgekit.net import edits_from_json, edits_to_json, state_sha256
from edgekit.parity import sqnr_db
from edgekit.passes import VQ, Cluster, Finetune, Reconstruct, Shift, Sparsify
from edgekit.passes.sparsify import best_of, largest
from edgekit.quant.gptq import damped, gptq, held
from edgekit.rewrites import Fold, Int8
from edgekit.schema import parse
from edgekit.targets import target
from edgekit.transport.pack import pack
from tests.onnx_models import run
from tests.test_prune import context, logged, net_of
from tests.test_reconstruct import SHAPE, answers, every
from tests.test_train import context as training


def zeros(net, name: str) -> torch.Tensor:
    return net.module.get_submodule(name).weight.detach() == 0


# Which weights


def test_the_smallest_go_by_hand():
    weight = torch.tensor([[3.0, -1.0, 0.5], [-4.0, 2.0, 0.1]])
    assert largest(weight, 0.5).tolist() == [[True, False, False], [True, True, False]]


def test_two_of_four_run_along_the_input_channels():
    """For each filter and each place of the kernel, every 4 input channels hold 2 zeros, as TensorRT asks."""
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    kept = best_of(weight, 2, 4)
    for o in range(6):
        for y in range(3):
            for x in range(3):
                for c in range(0, 8, 4):
                    wanted = weight[o, c : c + 4, y, x].abs().topk(2).indices.tolist()
                    assert kept[o, c : c + 4, y, x].nonzero().flatten().tolist() == sorted(wanted)
    assert best_of(torch.tensor([[1.0, 3.0, -2.0, 0.0]]), 1, 2).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_share_is_met(scope):
    net = every()
    net.module.head.conv.weight.data *= 100
    done = Sparsify(share=0.6, scope=scope, reconstruct="none")(net, context(net))
    found = {name: zeros(done, name) for name, layer in net.module.named_modules() if hasattr(layer, "weight")
             and not isinstance(layer, nn.BatchNorm2d)}  # fmt: skip
    count = sum(mask.numel() for mask in found.values())
    assert sum(int(mask.sum()) for mask in found.values()) == pytest.approx(0.6 * count, abs=len(found))
    shares = {name: mask.double().mean().item() for name, mask in found.items()}
    if scope == "layer":
        assert all(share == pytest.approx(0.6, abs=0.02) for share in shares.values())
    else:
        assert shares["head.conv"] < 0.2 and max(shares.values()) > 0.7
    for name, mask in found.items():
        before = net.module.get_submodule(name).weight
        assert torch.equal(done.module.get_submodule(name).weight, before.masked_fill(mask, 0))


# What is left makes up for it


def test_compensation_is_the_least_squares_of_the_kept_columns():
    """With columns that are known to stay, coordinate descent ends at the solution of their normal equations."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6)) @ rng.standard_normal((6, 6))
    hessian, weight, kept = (x.T @ x / 200)[None], rng.standard_normal((1, 3, 6)), rng.random((1, 3, 6)) > 0.5
    found = gptq(weight, np.ones((1, 3)), hessian, lambda values: values, sweeps=500, bounds=held(kept))
    smooth = damped(hessian)[0]
    for row in range(3):
        at = kept[0, row]
        wanted = np.zeros(6)
        wanted[at] = np.linalg.solve(smooth[np.ix_(at, at)], smooth[at] @ weight[0, row])
        assert found[0, row] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("settings", [{"share": 0.5}, {"n": 1, "m": 2, "exclude": ("stem.*", "depthwise.*")}])
def test_fitted_outputs_are_closer(settings):
    net = every()
    wanted, close, ctx = answers(net), {}, context(net)
    for how in ("none", "gptq"):
        done = Sparsify(**settings, reconstruct=how, images=24)(net, ctx)
        close[how] = sqnr_db(wanted, answers(done))
        masks = {path: kept_of(layer) for path, layer in done.module.named_modules() if kept_of(layer) is not None}
        assert masks and all(torch.equal(zeros(done, path), ~mask) for path, mask in masks.items())
    assert close["gptq"] > close["none"] + 2


# Zeros stay


def test_the_input_stays_and_the_edits_replay():
    net = every()
    before, ctx = state_sha256(net.module), context(net)
    done = Sparsify(share=0.5, images=8)(net, ctx)
    assert state_sha256(net.module) == before and "weights of 7 layers are 0 (50." in logged(ctx)[-1]
    again = net.edited(*edits_from_json(edits_to_json(done.edits), "test"))
    again.module.load_state_dict(done.module.state_dict())
    assert np.array_equal(answers(again), answers(done)) and torch.equal(
        zeros(again, "head.conv"), zeros(done, "head.conv")
    )


def test_training_leaves_zeros_and_more_may_follow(images):
    net = every()
    ctx = training(images, net)
    half = Sparsify(share=0.5, reconstruct="none")(net, ctx)
    trained = Finetune(epochs=1, batch=32, lr=0.05, weight_decay=0.01, score=0)(half, ctx)
    assert torch.equal(zeros(trained, "branch.conv"), zeros(half, "branch.conv"))
    assert not torch.equal(trained.module.branch.conv.weight, half.module.branch.conv.weight)
    more = Sparsify(share=0.8, images=8)(trained, ctx)
    assert (zeros(more, "branch.conv") >= zeros(half, "branch.conv")).all()
    assert zeros(more, "branch.conv").double().mean().item() == pytest.approx(0.8, abs=0.01)
    again = net.edited(*more.edits)
    again.module.load_state_dict(more.module.state_dict())
    assert np.array_equal(answers(again), answers(more))


@pytest.mark.parametrize("settings", [{"bits": 2.0}, {"levels": 8}, {"levels": 8, "grid": "kmeans"}])
@pytest.mark.parametrize("reconstruct", ["none", "gptq"])
def test_codes_leave_zeros(settings, reconstruct):
    net = every()
    ctx = context(net)
    sparse = Sparsify(share=0.5, images=8)(net, ctx)
    coded = Cluster(**settings, reconstruct=reconstruct, images=8, exclude=("branch.*",))(sparse, ctx)
    for name, codes in coded_weights(coded.module).items():
        was = zeros(sparse, name.removesuffix(".weight"))
        assert (codes.decode()[was] == 0).all() and len(codes.codebook) <= settings.get("levels", 129)
    assert torch.equal(zeros(coded, "branch.conv"), zeros(sparse, "branch.conv"))
    again = net.edited(*coded.edits)
    again.module.load_state_dict(coded.module.state_dict())
    assert np.array_equal(answers(again), answers(coded))


class Plain(nn.Sequential):
    """Three convolutions, of which 4 divides the channels of two, and most weights are there."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 32, 3, 2), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.Flatten(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).mean(2)


@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt"])
def test_int8_leaves_zeros_and_the_packed_file_shrinks(name):
    net, wanted = net_of(Plain().eval()), target(name)
    ctx = context(net)
    rewrites = RewriteContext(wanted, ctx.input, Output(), ctx.data, 0, lambda _line: None)
    sparse = Sparsify(n=2, m=4, exclude=("0",), images=8)(net, ctx)
    x = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    packed = []
    for each in (net, sparse):
        exact = Fold()(export(each.module, ctx.input, Output(), wanted).model, rewrites)
        found = Int8(images=8, fit_images=8)(exact, rewrites)
        packed.append([len(pack(serialise(model)).content) for model in (exact, found)])
    assert sqnr_db(run(exact, x), run(found, x)) > 25
    weights = [numpy_helper.to_array(init) for init in found.graph.initializer if init.data_type == TensorProto.INT8]
    weights = [weight for weight in weights if weight.ndim == 4 and weight.shape[1] > 3]
    assert len(weights) == 2
    for weight in weights:
        runs = weight.reshape(len(weight), -1, 4, *weight.shape[2:])
        assert ((runs == 0).sum(2) >= 2).all() and (runs != 0).mean() > 0.45
    (plain, plain_int8), (small, small_int8) = packed
    assert small < 0.7 * plain and small_int8 < 0.75 * plain_int8


# Bad input


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "give share, e.g. 0.5, or n and m"),
        ({"share": 0.5, "n": 2, "m": 4}, "not both"),
        ({"n": 2}, "give share"),
        ({"m": 4}, "give share"),
        ({"share": 0.5, "m": 4}, "not both"),
        ({"n": 4, "m": 4}, "n must be below m"),
        ({"n": 5, "m": 4}, "n must be below m"),
        ({"n": 0, "m": 4}, "n"),
        ({"n": 2, "m": 4, "scope": "global"}, "needs share"),
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"share": -0.5}, "share"),
        ({"share": 0.5, "scope": "all"}, "scope"),
    ],
)
def test_settings_that_cannot_be(fields, words):
    with pytest.raises(BadInput, match=words):
        parse(Sparsify, fields, "recipe")


def test_layers_that_cannot_be_sparse():
    net = every()
    ctx = context(net)
    with pytest.raises(BadInput, match=r"m = 4 does not divide the 3 channels .* stem\.conv reads; exclude = \['stem"):
        Sparsify(n=2, m=4)(net, ctx)
    with pytest.raises(BadInput, match="exclude = 'nowhere' matches no layer"):
        Sparsify(share=0.5, exclude=("nowhere",))(net, ctx)
    with pytest.raises(BadInput, match="linear is kept as codes already"):
        Sparsify(share=0.5)(net.edited(CodeWeight("linear", 4)), ctx)
    small = copy.deepcopy(net)
    small.module.branch.conv.weight.data *= 1e-9
    with pytest.raises(BadInput, match=r"leaves nothing of branch\.conv; exclude them"):
        Sparsify(share=0.6, scope="global", reconstruct="none")(small, ctx)
    with pytest.raises(BadInput, match=r"share = 0\.99 leaves nothing of linear; exclude them, or take less"):
        Sparsify(share=0.99)(net, ctx)
    with pytest.raises(BadInput, match="calibrate"):
        Sparsify(share=0.5)(net, dataclasses.replace(ctx, data=Data({})))


def test_layers_that_share_a_weight():
    module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    module[1].weight = module[0].weight
    net = net_of(module)
    with pytest.raises(BadInput, match="0 and 1 share one weight; exclude them"):
        Sparsify(share=0.5)(net, context(net))


@pytest.mark.parametrize("step", [Shift(), Shift(fit="mse"), VQ(k=4), Reconstruct()], ids=["shift", "fit", "vq", "fit"])
def test_passes_that_would_lose_zeros_refuse(step):
    net = every()
    ctx = context(net)
    sparse = Sparsify(share=0.5, reconstruct="none")(net, ctx)
    with pytest.raises(BadInput, match="another form"):
        step(sparse, dataclasses.replace(ctx, before=net))


def test_channels_go_before():
    net = every()
    sparse = Sparsify(share=0.5, reconstruct="none")(net, context(net))
    with pytest.raises(BadInput, match="remove channels before that"):
        sparse.edited(KeepChannels("head.conv", "out", (0, 1)))
