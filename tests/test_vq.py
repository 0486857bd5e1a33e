"""Vector-quantised weights: the papers' sizes, order of channels, low rank, and each bad input."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from edgekit.channels import ties
from edgekit.coded import CodeWeight, coded_weights
from edgekit.context import RewriteContext
from edgekit.data import Data, Samples
from edgekit.errors import BadInput
from edgekit.export import export
from edgekit.graph import trace
from edgekit.net import Net, Source, build, edits_from_json, edits_to_json, state_sha256
from edgekit.nets.resnet import resnet_18, resnet_50
from edgekit.parity import sqnr_db
from edgekit.passes import Finetune
from edgekit.passes.vq import VQ, Project, convention_bytes
from edgekit.passes.vq.kmeans import kmeans
from edgekit.passes.vq.permute import Reader, best_order, permuted
from edgekit.passes.vq.project import estimate
from edgekit.passes.vq.subvectors import weight_of
from edgekit.passes.vq.weighted import EM, lost
from edgekit.projected import ProjectWeight, principal
from edgekit.rewrites import Fold
from edgekit.schema import parse
from edgekit.targets import target
from tests.nets import calibrate, tiny
from tests.onnx_models import run
from tests.test_kmeans import normal
from tests.test_prune import context, logged, net_of
from tests.test_reconstruct import SHAPE, answers, every

MIB = 2**20


def cifar(width: int = 4) -> Net:
    torch.manual_seed(0)
    source = Source("zoo", "cifar_resnet_20", {"classes": 4, "width": width})
    return Net(source, (), calibrate(build(source), SHAPE))


# The papers' figures


@pytest.mark.parametrize(
    ("make", "k", "m", "mib"),
    [
        (resnet_18, 2048, {}, "1.541"),
        (resnet_18, 2048, {"conv": 18}, "1.029"),
        (resnet_50, 1024, {}, "5.092"),  # published as 5.09 and 3.19
        (resnet_50, 1024, {"conv": 18, "pointwise": 8}, "3.185"),
    ],
)
def test_sizes_are_the_published_ones(make, k, m, mib):
    net = net_of(make().eval())
    layers = VQ(k={"linear": k}, m=m).layers(net, context(net, 64), "vq")
    coded = net.edited(*(CodeWeight(layer.name, layer.k, layer.m) for layer in layers))
    assert f"{convention_bytes(coded.module) / MIB:.3f}" == mib


def test_rules_by_kind_of_layer():
    net = net_of(tiny())
    found = {layer.name: (layer.kind, layer.k, layer.m) for layer in VQ().layers(net, context(net), "vq")}
    assert found == {
        "expand.conv": ("pointwise", 32, 4),  # 16 · 48 / 4 = 192 chunks, a quarter is 48
        "depthwise.conv": ("depthwise", 8, 9),
        "project.conv": ("pointwise", 32, 4),
        "head.conv": ("pointwise", 32, 4),
        "classifier.linear": ("linear", 8, 4),
    }
    asked = VQ(k={"pointwise": 16}, m={"pointwise": 8, "depthwise": 3}, exclude=("classifier*",))
    found = {layer.name: (layer.k, layer.m) for layer in asked.layers(net, context(net), "vq")}
    assert found["expand.conv"] == (16, 8) and found["depthwise.conv"] == (32, 3) and "stem.conv" in found


# What holds for any network


METHODS = {
    "kmeans": {},
    "em": {"method": EM(images=8)},
    "permuted": {"permute": True},
    "low rank": {"d": {"pointwise": 1, "conv": 5}, "method": EM(images=8)},
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("make", "m"), [(cifar, {"conv": 18}), (every, {"pointwise": 2, "linear": 2})])
def test_codes_are_the_weights_and_the_network_can_be_built_again(name, make, m):
    method = VQ(**METHODS[name], m=m)
    net = make()
    ctx, before = context(net), state_sha256(net.module)
    made = method(net, ctx)
    assert state_sha256(net.module) == before
    for weight, codes in coded_weights(made.module).items():
        assert codes.codes.min() >= 0 and codes.codes.max() < len(codes.codebook)
        layer = weight.removesuffix(".weight")
        assert torch.equal(codes.decode(), made.module.get_submodule(layer).weight)
        if name == "kmeans":
            assert sqnr_db(net.module.get_submodule(layer).weight.detach().numpy(), codes.decode().numpy()) > 1
    assert (
        len(made.edits)
        == len(coded_weights(made.module))
        == len([line for line in logged(ctx) if " bits a weight, " in line])
    )
    edits = edits_from_json(edits_to_json(made.edits), "edits")
    again = make().edited(*edits).module
    again.load_state_dict(made.module.state_dict())
    assert np.array_equal(answers(made), answers(dataclasses.replace(made, module=again)))
    assert state_sha256(method(net, ctx).module) == state_sha256(made.module), "the same each time"


def test_training_moves_codebooks_and_no_code():
    net = net_of(tiny())
    made = VQ()(net, context(net))
    tuned = Finetune(epochs=1, batch=8, lr=0.05, score=0)(made, context(made))
    for name, codes in coded_weights(tuned.module).items():
        before = coded_weights(made.module)[name]
        assert torch.equal(codes.codes, before.codes) and not torch.equal(codes.codebook, before.codebook)


def test_the_file_holds_bytes_and_answers_alike():
    net = net_of(tiny())
    made, ctx = VQ(k=16)(net, context(net)), context(net)
    model = export(made.module, ctx.input, ctx.output, target("onnxruntime")).model
    stored = {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}
    codes = stored["expand.conv.weight.codes"]
    assert codes.dtype == np.uint8 and len(codes) == 16 * 48 / 4
    assert "expand.conv.weight" not in stored
    x = np.random.default_rng(0).standard_normal((4, *SHAPE), np.float32)
    with torch.no_grad():
        wanted = made.module(torch.from_numpy(x)).numpy()
    folded = Fold()(model, RewriteContext(target("onnxruntime"), ctx.input, ctx.output, None, 0, lambda _line: None))
    for file in (model, folded):
        onnx.checker.check_model(file)
        assert sqnr_db(wanted, run(file, x)) > 60


# Weighted with activations


def test_em_is_never_worse_on_the_outputs():
    layer = dataclasses.replace(VQ().layers(net_of(tiny()), context(net_of(tiny())), "vq")[0], k=16)
    shares = []
    for seed in range(8):
        mixed = normal(24, 2 if seed % 2 else 24, seed=seed + 9)  # with 2, places are given much the same
        inputs, points = normal(3, 500, mixed.shape[1], seed=seed) @ mixed.T, normal(3 * 16 * 6, 4, seed=seed)
        square = inputs.mT @ inputs / 500
        plain = kmeans(points, 16, 25, seed)
        rest = (points - plain[0][plain[1]]).reshape(3, -1, 24)
        before = lost(rest, square)
        assert np.isclose(before, float((inputs @ rest.mT).square().sum() / 500), rtol=1e-4)
        shares.append(
            lost(points.reshape(3, -1, 24) - EM()._fit(points, square, layer, seed).decode(), square) / before
        )
    assert max(shares) <= 1 and sum(shares) / len(shares) < 0.95


def test_em_in_the_plain_metric_is_k_means():
    points, layer = normal(400, 4), VQ().layers(net_of(tiny()), context(net_of(tiny())), "vq")[0]
    found = EM(iterations=100)._fit(points, torch.eye(8)[None], dataclasses.replace(layer, k=16), 0)
    assert torch.allclose(found.codebook, kmeans(points, 16, 100, 0)[0], atol=1e-5)
    silent = EM()._fit(points, torch.zeros(1, 8, 8), dataclasses.replace(layer, k=16), 0)
    assert torch.isfinite(silent.codebook).all(), "a layer that is given nothing"


def test_em_keeps_more_of_the_networks_answer():
    net = cifar(8)
    plain, weighed = (answers(VQ(method=method)(net, context(net))) for method in (VQ().method, EM(images=24)))
    assert sqnr_db(answers(net), weighed) > sqnr_db(answers(net), plain) + 3


def test_em_keeps_the_mean_of_what_a_norm_is_given():
    net = cifar(8)
    images = torch.cat([torch.from_numpy(x) for x, *_ in images_of(net).batches(context(net).input, 8)])

    def means(module: nn.Module) -> torch.Tensor:
        norm, given = module.layer1[0].bn1, list[torch.Tensor]()
        hook = norm.register_forward_hook(lambda _layer, _x, output: given.append(output))
        with torch.no_grad():
            module(images)
        hook.remove()
        return given[0].mean((0, 2, 3))

    plain, weighed = (VQ(method=method)(net, context(net)).module for method in (VQ().method, EM(images=8)))
    assert torch.allclose(means(weighed), means(net.module), atol=1e-4)
    assert not torch.allclose(means(plain), means(net.module), atol=1e-2)


def images_of(net: Net) -> Samples:
    return context(net).data.role("calibrate").subset(8, 0)


# The order of channels


@pytest.mark.parametrize(("make", "m"), [(lambda: cifar(8), {"conv": 18}), (every, {"pointwise": 2, "linear": 2})])
def test_an_order_of_channels_changes_nothing_that_is_computed(make, m):
    net = make()
    ctx = context(net)
    layers = VQ(m=m).layers(net, ctx, "vq")
    moved = permuted(net, layers, ctx, "vq")
    assert sqnr_db(answers(net), answers(moved)) > 100
    before, after = (sum(determinant(weight_of(n.module, layer), layer.m) for layer in layers) for n in (net, moved))
    assert after < 0.999 * before


def determinant(weight: torch.Tensor, m: int) -> float:
    points = weight.reshape(-1, m).double().numpy()
    return len(points) * m * np.linalg.det(np.cov(points.T, bias=True)) ** (1 / m)


@pytest.mark.parametrize(("kernel", "m"), [(1, 4), (3, 18)])
def test_the_bound_is_that_of_the_covariance_and_never_rises(kernel, m):
    weight = normal(32, 16, kernel, kernel) * normal(16, 1, 1).exp()
    slots = np.arange(16).reshape(2, 8).T  # two channels a row
    order, before, after = best_order([Reader(weight, m, slots)], 8, np.random.default_rng(0))
    assert np.isclose(before, determinant(weight, m), rtol=1e-4)
    moved = weight.clone()
    moved[:, slots.ravel()] = weight[:, slots[order].ravel()]
    assert np.isclose(after, determinant(moved, m), rtol=1e-4) and after < before


def test_channels_that_are_alike_stand_at_the_same_place_of_a_chunk():
    """Half the channels are large: at the same place of all chunks one variance is small, and so is the product."""
    weight = normal(64, 8, 1, 1) * torch.tensor([1.0, 1, 1, 1, 9, 9, 9, 9])[:, None, None]
    order, _, _ = best_order([Reader(weight, 2, np.arange(8)[:, None])], 8, np.random.default_rng(0))
    large = (order >= 4).reshape(4, 2)
    assert (large == large[0]).all() and large[0].sum() == 1


def test_channels_get_the_order_that_was_found():
    torch.manual_seed(0)
    net = net_of(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.Flatten()).eval())
    net.module[2].weight.data *= normal(16, 1, 1).exp()
    ctx = context(net)
    moved = permuted(net, VQ().layers(net, ctx, "vq"), ctx, "vq")
    before, after = (determinant(n.module[2].weight.detach(), 4) for n in (net, moved))
    said = float(logged(ctx)[-1].rpartition("falls by ")[2].rstrip("%"))
    assert abs(said - 100 * (1 - after / before)) < 0.1


def test_code_that_takes_channels_by_number_is_noticed():
    class ByNumber(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y * torch.arange(8.0, device=y.device)[:, None, None]).mean((2, 3))

    torch.manual_seed(0)
    net = net_of(ByNumber().eval())
    assert ties(trace(net.module, SHAPE)).groups
    with pytest.raises(BadInput, match="takes channels by their numbers"):
        VQ(permute=True)(net, context(net))


# Low rank


def test_all_dimensions_are_no_projection():
    net = net_of(tiny())
    kept = Project(d={"pointwise": 4})(net, context(net))
    assert sqnr_db(answers(net), answers(kept)) > 100
    assert kept.module.expand.conv.parametrizations.weight[0].basis.shape == (4, 4)
    plain, whole = (coded_weights(VQ(d=d)(net, context(net)).module) for d in (None, {"pointwise": 4}))
    assert all(torch.equal(codes.decode(), whole[name].decode()) for name, codes in plain.items())


def test_fewer_dimensions_train_and_give_a_codebook_of_that_rank():
    net = net_of(tiny())
    ctx = context(net)
    project = Project(d={"pointwise": 2}, exclude=("stem*", "classifier*"))
    before = project(net, ctx)
    made = Finetune(epochs=1, batch=8, lr=0.05, score=0)(before, ctx)
    for one, other in zip(*(n.module.expand.conv.parametrizations.weight.parameters() for n in (before, made))):
        assert not torch.equal(one, other), "L and B are both trained"
    again = net.edited(*edits_from_json(edits_to_json(made.edits), "edits")).module
    again.load_state_dict(made.module.state_dict())
    assert np.array_equal(answers(made), answers(dataclasses.replace(made, module=again)))
    after = [VQ(method=method, exclude=project.exclude)(made, ctx) for method in (VQ().method, EM(images=8))]
    for coded in (*after, VQ(d={"pointwise": 2})(net, ctx)):
        codebook = coded_weights(coded.module)["expand.conv.weight"].codebook
        assert codebook.shape == (32, 4) and torch.linalg.matrix_rank(codebook, rtol=2e-3) == 2


def test_the_estimate_of_the_dimensions():
    flat = normal(4096, 2) @ normal(2, 6)
    assert estimate(flat + 1e-4 * normal(4096, 6, seed=1), 16, 0) == 2
    # One bit for n normal numbers leaves n − 2/π of their squares: 4 − d first falls below that at d = 3.
    assert estimate(normal(4096, 4), 2, 0) == 3
    directions, squares = principal(flat)
    assert torch.allclose(directions @ directions.T, torch.eye(6), atol=1e-5) and squares[2:].max() < 1e-3 * squares[0]


# Errors and recipes


class Twice(nn.Module):
    """A layer with two callers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shared = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shared(self.shared(self.a(x)).relu()).mean((2, 3))


def not_finite() -> Net:
    net = net_of(tiny())
    net.module.head.conv.weight.data[0] = float("nan")
    return net


BAD = {
    "k": (lambda: net_of(tiny()), VQ(k=256, clamp=False), "expand.conv has 192 subvectors of 4, too few for k = 256"),
    "m": (lambda: net_of(tiny()), VQ(m={"pointwise": 5}), "expand.conv .pointwise. has 16 weights.*m = 5 does not"),
    "d": (lambda: net_of(tiny()), VQ(d=6), r"d = 6 is above m = 4 of expand.conv .*d = \{ pointwise = … \}"),
    "project d": (lambda: net_of(tiny()), Project(d=6), "project: d = 6 is above m = 4 of expand.conv"),
    "shared": (lambda: net_of(Twice().eval()), VQ(), "shared is run 2 times, by several callers; exclude it"),
    "glob": (lambda: net_of(tiny()), VQ(exclude=("heads*",)), r"exclude = 'heads\*' matches no convolution"),
    "nothing": (lambda: net_of(tiny()), VQ(exclude=("*",)), "no convolution or linear layer is left"),
    "not finite": (not_finite, VQ(), "the weight of head.conv is not finite"),
    "coded": (lambda: net_of(tiny()).edited(CodeWeight("head.conv", 2)), VQ(), "head.conv is kept as codes already"),
    "projected": (lambda: net_of(tiny()).edited(ProjectWeight("head.conv", 4, 2)), Project(), "another form already"),
    "other m": (
        lambda: net_of(tiny()).edited(ProjectWeight("head.conv", 8, 2)),
        VQ(),
        "head.conv was projected to d = 2 of m = 8",
    ),
    "other d": (
        lambda: net_of(tiny()).edited(ProjectWeight("head.conv", 4, 2)),
        VQ(d="auto"),
        "write that m, and no d",
    ),
    "permute": (cifar, VQ(permute=True, exclude=("linear",)), "no subvector spans several channels"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    make, method, message = BAD[name]
    net = make()
    with pytest.raises(BadInput, match=message):
        method(net, context(net))


@pytest.mark.parametrize(("m", "d"), [(5, 2), (4, 5), (4, 0)])
def test_a_projection_that_does_not_fit(m, d):
    with pytest.raises(BadInput, match=r"does not divide|d = \d must be"):
        net_of(tiny()).edited(ProjectWeight("head.conv", m, d))


def test_em_needs_calibration_images():
    net = net_of(tiny())
    ctx = dataclasses.replace(context(net), data=Data({"train": context(net).data.roles["train"]}))
    with pytest.raises(BadInput, match="no samples for 'calibrate'"):
        VQ(method=EM())(net, ctx)


def test_recipe_fields():
    found = parse(
        VQ, {"k": {"linear": 2048}, "m": {"conv": 18}, "method": {"name": "em", "images": 9}, "d": "auto"}, "r"
    )
    assert found == VQ(k={"linear": 2048}, m={"conv": 18}, method=EM(images=9), d="auto")
    for wrong in ({"method": "emm"}, {"k": 0}, {"m": {"convs": 9}}, {"d": "some"}):
        with pytest.raises(BadInput):
            parse(VQ, wrong, "r")
