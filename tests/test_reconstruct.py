"""Reconstruction: exact where the lost channels are copies of others, by hand on two channels, better on pictures."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.context import PassContext
from edgekit.data import Data
from edgekit.edits import DropBlock
from edgekit.errors import BadInput
from edgekit.net import Net, Source, build, state_sha256
from edgekit.nets.layers import ConvNorm
from edgekit.parity import sqnr_db
from edgekit.passes import Prune, Reconstruct
from edgekit.passes.reconstruct import METHODS, UDFC, LeastSquares, Merging
from edgekit.passes.reconstruct.responses import Responses
from edgekit.removal import edits, prunable
from edgekit.schema import parse
from tests.conftest import IO
from tests.nets import calibrate
from tests.test_prune import context, logged, net_of
from tests.test_run import Killed

SHAPE = (3, 16, 16)
TINY_RIDGE = {"udfc": UDFC(alpha2=1e-13), "merging": Merging(), "least_squares": LeastSquares(ridge=1e-9)}


class Every(nn.Module):
    """A residual sum around a depthwise triple, a concatenation and a linear head; filters are longer than many."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 8, 3, 2)
        self.expand = ConvNorm(8, 12)
        self.depthwise = ConvNorm(12, 12, 3, groups=12)
        self.project = ConvNorm(12, 8, act=None)
        self.branch = ConvNorm(8, 6, 3)
        self.head = ConvNorm(14, 10)
        self.linear = nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.project(self.depthwise(self.expand(x)))
        x = self.head(torch.cat([x, self.branch(x)], 1))
        return self.linear(x.mean((2, 3)))


def every(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return net_of(calibrate(Every(), SHAPE, seed))


def set_multiple(layer: ConvNorm, factor: float) -> None:
    """Channel 1 becomes that multiple of channel 0; a depthwise layer's, that is given such a multiple, twice that."""
    conv, norm = layer.conv, layer.norm
    with torch.no_grad():
        for tensor in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor[1] = tensor[0]
        if conv.groups > 1:
            conv.weight[1] *= 2
            norm.running_mean[1] *= 2 * factor
            norm.bias[1] *= 2 * factor
        else:
            norm.weight[1] *= factor
            norm.bias[1] *= factor


def without(net: Net, row: int, groups: Sequence[str] = ()) -> Net:
    """Without that channel of the groups of these names, or of all."""
    found = [group for group in prunable(net.module, SHAPE).groups if not groups or group.name in groups]
    return net.edited(*edits(net.module, found, [[row]] * len(found)))


def before(net: Net, ctx: PassContext | None = None) -> PassContext:
    return dataclasses.replace(ctx or context(net), before=net)


def pictures(net: Net) -> torch.Tensor:
    samples = context(net).data.role("calibrate")
    return torch.from_numpy(np.concatenate([batch for batch, _, _ in samples.batches(context(net).input, 8)]))


def answers(net: Net, images: torch.Tensor | None = None) -> np.ndarray:
    with torch.no_grad():
        return net.module.eval()(pictures(net) if images is None else images).numpy()


# Exact


@pytest.mark.parametrize("name", TINY_RIDGE)
def test_copies_and_multiples_are_made_up_for(name):
    net = every()
    for layer in (net.module.stem, net.module.project, net.module.expand, net.module.branch, net.module.head):
        set_multiple(layer, 1.7)
    set_multiple(net.module.depthwise, 1.7)
    pruned = without(net, 1)
    assert len(pruned.edits) == 17, "every layer lost a channel on each side"
    assert sqnr_db(answers(net), answers(pruned)) < 20
    found = Reconstruct(TINY_RIDGE[name])(pruned, before(net))
    # Least squares multiplies float32 activations.
    assert sqnr_db(answers(net), answers(found)) > (80 if name == "least_squares" else 120)


@pytest.mark.parametrize("method", [UDFC(alpha2=1e-15), Merging()])
def test_copies_are_made_up_for_to_the_precision_of_the_numbers(method):
    net = every()
    net.module.double()
    set_multiple(net.module.branch, 0.3)
    set_multiple(net.module.head, 2.5)
    images = torch.randn(4, *SHAPE, dtype=torch.float64)
    pruned = without(net, 1, ["branch.conv", "head.conv"])
    found = Reconstruct(method)(pruned, before(net))
    assert sqnr_db(answers(net, images), answers(found, images)) > 200


@pytest.mark.parametrize("name", METHODS)
def test_dead_channels_are_no_loss(name):
    net = every()
    for layer in (net.module.expand, net.module.branch, net.module.head):
        nn.init.zeros_(layer.norm.weight[1:2])
        nn.init.constant_(layer.norm.bias[1:2], -1.0)
    nn.init.constant_(net.module.depthwise.norm.bias[1:2], -1.0)
    nn.init.zeros_(net.module.depthwise.norm.weight[1:2])
    pruned = without(net, 1, ["expand.conv", "branch.conv", "head.conv"])
    assert sqnr_db(answers(net), answers(pruned)) > 100
    assert sqnr_db(answers(net), answers(Reconstruct(METHODS[name]())(pruned, before(net)))) > 80


def test_least_squares_puts_a_constant_into_the_norm_behind():
    net = every()
    nn.init.zeros_(net.module.branch.norm.weight[1:2])
    nn.init.constant_(net.module.branch.norm.bias[1:2], 2.0)
    pruned = without(net, 1, ["branch.conv"])
    assert sqnr_db(answers(net), answers(pruned)) < 40
    assert sqnr_db(answers(net), answers(Reconstruct(LeastSquares(ridge=1e-9))(pruned, before(net)))) > 80


@pytest.mark.parametrize(
    "kind",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (1, 5), "padding": (0, 2), "bias": False},
        {"kernel_size": 3, "dilation": 2, "groups": 2},
        {"kernel_size": 3, "groups": 4, "padding": 1},
    ],
)
def test_least_squares_finds_lost_weights(kind):
    torch.manual_seed(0)
    net = net_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, **kind), nn.Flatten()).eval())
    damaged = net.clone()
    nn.init.normal_(damaged.module[2].weight)
    found = Reconstruct(LeastSquares(ridge=1e-9))(damaged, before(net))
    assert torch.allclose(found.module[2].weight, net.module[2].weight, atol=1e-4)
    assert sqnr_db(answers(net), answers(found)) > 70


# By hand


def test_udfc_by_hand():
    left, lost = np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 4.0]])
    shift = np.array([[0.5], [1.0], [2.0]])
    whole = np.concatenate([left, lost])
    given = Responses(np.array([True, True, False]), left @ left.T, left @ whole.T, (whole**2).sum(1), shift)
    # alpha1 = 0: the filters are orthogonal, so each s is <v_i, v_j> / (1.1 |v_i|^2)
    assert np.allclose(UDFC(alpha1=0.0, alpha2=0.1).mix(given), [[1, 0, 3 / 1.1], [0, 1, 8 / 4.4]])
    square = [[1.1 + 0.2 * 0.25, 0.2 * 0.5], [0.2 * 0.5, 4.4 + 0.2]]
    wanted = [3 + 0.2 * 0.5 * 2, 8 + 0.2 * 1.0 * 2]
    assert np.allclose(UDFC(alpha1=0.2, alpha2=0.1).mix(given)[:, 2], np.linalg.solve(square, wanted))


def test_udfc_scales_what_reads_a_quantised_channel():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.Flatten()).eval()
    conv, norm, reader = module[0], module[1], module[3]
    conv.weight.data = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.1, 0.0]])[:, :, None, None]
    conv.bias.data = torch.tensor([0.3, 0.7])
    norm.running_mean, norm.running_var = torch.tensor([0.1, 0.2]), torch.tensor([4.0, 1.0]) - norm.eps
    norm.weight.data, norm.bias.data = torch.tensor([3.0, 1.0]), torch.tensor([0.5, 0.0])
    net = net_of(module)
    rounded = net.clone()
    rounded.module[0].weight.data[0] = torch.tensor([1.0, 2.0, 2.0])[:, None, None]
    found = Reconstruct(UDFC(alpha1=0.01, alpha2=0.008))(rounded, before(net)).module
    gain, shift = 3.0 / 2.0, 0.5 + (0.3 - 0.1) * 1.5  # gamma / sigma, and t
    scale = (gain**2 * (1 + 4 + 6) + 0.01 * shift**2) / (1.008 * gain**2 * (1 + 4 + 4) + 0.01 * shift**2)
    assert torch.allclose(found[3].weight[:, 0], scale * reader.weight[:, 0], rtol=1e-6)
    assert torch.equal(found[3].weight[:, 1], reader.weight[:, 1]), "the other channel is as it was"


def test_merging_by_hand():
    gamma, beta = np.array([2.0, 0.5, 3.0]), np.array([0.1, -0.2, 0.4])
    mean, sigma = np.array([0.3, 0.6, -0.5]), np.array([1.5, 0.8, 2.0])
    filters = np.array([[1.0, 2.0], [-2.0, 1.0], [2.0, 4.0]])  # the last is twice the first
    folded, shift = filters * (gamma / sigma)[:, None], beta - gamma * mean / sigma
    given = Responses(
        np.array([True, True, False]),
        folded[:2] @ folded[:2].T,
        folded[:2] @ folded.T,
        (folded**2).sum(1),
        shift[:, None],
    )
    scale = 2 * (gamma[2] / sigma[2]) * (sigma[0] / gamma[0])
    assert np.allclose(Merging(lam=1.0).mix(given), [[1, 0, scale], [0, 1, 0]])
    assert np.allclose(Merging(lam=1.0, threshold=1.0).mix(given)[:, 2].max(), scale), "cosine 1 is not below 1"
    # lam = 0: by |B| / S alone, B as written with the norms' statistics
    rest = []
    for i, s in enumerate([2.0, 2.0]):  # |w_2| / |w_i|
        ratio = s * (gamma[2] / sigma[2]) * (sigma[i] / gamma[i])
        b = gamma[2] / sigma[2] * (s * (mean[i] - sigma[i] * beta[i] / gamma[i]) - mean[2]) + beta[2]
        assert np.isclose(b, shift[2] - ratio * shift[i])
        rest.append(abs(b) / ratio)
    chosen = int(np.argmin(rest))
    mix = Merging(lam=0.0, threshold=-1.0).mix(given)
    assert np.flatnonzero(mix[:, 2]).tolist() == [chosen]
    given = dataclasses.replace(given, cross=-given.cross)
    assert not Merging(lam=1.0).mix(given)[:, 2].any(), "no filter looks alike: the channel is given up"


# What holds for any network


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_on_the_images_is_better_than_nothing(seed):
    net = every(seed)
    ctx = before(net)
    pruned = Prune(budget={"macs": 0.7}, round_to=2)(net, ctx)
    lost, left = (sqnr_db(answers(net), answers(n)) for n in (pruned, Reconstruct()(pruned, ctx)))
    assert left > lost + 5


@pytest.mark.parametrize("name", METHODS)
def test_a_real_network_keeps_its_structure_and_the_input_is_left_alone(name):
    source = Source("zoo", "cifar_resnet_20", {"classes": 4, "width": 4})
    net = Net(source, (), calibrate(build(source), SHAPE))
    ctx = before(net)
    pruned = Prune(budget={"macs": 0.6}, round_to=1)(net, ctx)
    hashes = state_sha256(net.module), state_sha256(pruned.module)
    method = LeastSquares(images=2) if name == "least_squares" else METHODS[name]()
    found = Reconstruct(method)(pruned, ctx)
    assert (state_sha256(net.module), state_sha256(pruned.module)) == hashes != state_sha256(found.module)
    assert found.edits == pruned.edits and not found.module.training
    again = build(source, found.edits).eval()
    again.load_state_dict(found.module.state_dict())
    assert np.array_equal(answers(found), answers(dataclasses.replace(found, module=again)))
    assert np.array_equal(answers(found), answers(Reconstruct(method)(pruned, ctx))), "the same each time"


def test_dropped_blocks_are_made_up_for_by_the_layers_behind():
    source = Source("zoo", "cifar_resnet_20", {"classes": 4, "width": 4})
    net = Net(source, (), calibrate(build(source), SHAPE))
    shorter = net.edited(DropBlock("layer2.1"))
    found = Reconstruct(LeastSquares(images=8))(shorter, before(net))
    assert sqnr_db(answers(net), answers(found)) > sqnr_db(answers(net), answers(shorter)) + 5


class Odd(nn.Module):
    """A layer that is run twice and one that is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.twice = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.up, self.b = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.up(self.twice(self.twice(self.a(x).relu())).relu()).relu()).mean((2, 3))


@pytest.mark.parametrize("name", METHODS)
def test_layers_that_cannot_be_fitted_are_left_and_named(name):
    torch.manual_seed(0)
    net = net_of(Odd().eval())
    ctx = before(net)
    pruned = without(net, 1)
    method = Merging(threshold=-1.0) if name == "merging" else METHODS[name]()
    found = Reconstruct(method)(pruned, ctx)
    if name == "least_squares":
        assert any("twice.weight is left as it is, it is run several times" in line for line in logged(ctx))
        assert any("up.weight is left as it is, it is transposed" in line for line in logged(ctx))
        assert torch.equal(found.module.twice.weight, pruned.module.twice.weight)
    assert not torch.equal(found.module.b.weight, pruned.module.b.weight)


# Errors and recipes


def test_nothing_to_make_up_for():
    net = every()
    for method in METHODS.values():
        with pytest.raises(BadInput, match=r"nothing was removed or changed.*after the \[\[pass\]\] that prunes"):
            Reconstruct(method())(net.clone(), before(net))
    changed = net.clone()
    nn.init.zeros_(changed.module.stem.conv.weight)
    with pytest.raises(BadInput, match=r'no channel was removed since.*"udfc"'):
        Reconstruct(Merging())(changed, before(net))
    with pytest.raises(BadInput, match="no earlier form"):
        Reconstruct()(net, before(without(net, 0)))


def test_least_squares_needs_calibration_images():
    net = every()
    ctx = context(net)
    ctx = before(net, dataclasses.replace(ctx, data=Data({"train": ctx.data.roles["train"]})))
    with pytest.raises(BadInput, match="no samples for 'calibrate'"):
        Reconstruct()(without(net, 0), ctx)


def test_recipe_fields():
    assert parse(Reconstruct, {}, "r").method == LeastSquares()
    assert parse(Reconstruct, {"method": "merging"}, "r").method == Merging()
    assert parse(Reconstruct, {"method": {"name": "udfc", "alpha1": 0.5}}, "r").method == UDFC(alpha1=0.5)
    with pytest.raises(BadInput, match="did you mean 'merging'"):
        parse(Reconstruct, {"method": "merge"}, "r")
    with pytest.raises(BadInput, match="ridge"):
        parse(Reconstruct, {"method": {"name": "least_squares", "ridge": -1}}, "r")


RUN = f"""{IO}
[[pass]]
name = "reestimate"
images = 64
batch = 32

[[pass]]
name = "prune"
budget = {{ macs = 0.7 }}

[[pass]]
name = "reestimate"
images = 64

[[pass]]
name = "reconstruct"
method = {{ name = "least_squares", images = 8 }}

[[pass]]
name = "reconstruct"
method = "udfc"
"""


def test_a_run_gives_the_network_before_pruning_also_when_resumed(tmp_path, data, monkeypatch):
    (tmp_path / "recipe.toml").write_text(RUN)
    given, seen = Reconstruct.__call__, []

    def spy(self, net, ctx):
        seen.append((len(ctx.before.edits), state_sha256(ctx.before.module) == state_sha256(ctx.base.module)))
        if len(seen) == 2:
            raise Killed
        return given(self, net, ctx)

    monkeypatch.setattr(Reconstruct, "__call__", spy)
    model, out, recipe = "tests.nets:Tiny?classes=4", tmp_path / "out", str(tmp_path / "recipe.toml")
    with pytest.raises(Killed):
        edgekit.compress(model, recipe, data, out, runs=8)
    made = edgekit.compress(model, recipe, data, out, runs=8, resume=True)
    assert seen == [(0, False)] * 3, "not the base, and whole: for both passes and after resuming"
    assert [step["stage"] for step in made.manifest["steps"]][-2:] == ["reconstruct"] * 2
