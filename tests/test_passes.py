"""Passes: what they decide, that they keep the invariant, and that they leave their input alone."""

import pytest
import torch

from edgekit import data as datasets
from edgekit.context import PassContext
from edgekit.data import Input, Output
from edgekit.edits import KeepChannels
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.net import Net, Source, build, edits_from_json, edits_to_json, state_sha256
from edgekit.passes import Distil, Finetune, Prune
from edgekit.removal import prunable
from edgekit.train.settings import Training
from tests.nets import calibrate

SOURCE = Source("zoo", "mobilenet_v2", {"width": 0.35, "classes": 4, "small_input": True})


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net(SOURCE, (), calibrate(build(SOURCE), (3, 16, 16)))


@pytest.fixture(scope="module")
def ctx(net, data) -> PassContext:
    lines: list[str] = []
    return PassContext(
        data=datasets.load([data]),
        input=Input(size=16),
        output=Output(),
        seed=0,
        base=net,
        cost=lambda candidate: trace(candidate.module, (3, 16, 16)).cost(),
        score=lambda _net: {},
        network=lambda _spec: net.module,
        log=lines.append,
    )


def outputs(module: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)))


def rebuilt(net: Net) -> torch.nn.Module:
    """From the source and edits alone, through JSON, as a reader of a bundle would."""
    module = build(net.source, edits_from_json(edits_to_json(net.edits), "test"))
    module.load_state_dict(net.module.state_dict())
    return module


@pytest.mark.parametrize(
    ("metric", "share"), [("macs", 0.6), ("params", 0.5), pytest.param("cio", 0.7, marks=pytest.mark.slow)]
)
def test_prune_meets_the_budget_and_keeps_the_invariant(net, ctx, metric, share):
    before = state_sha256(net.module)
    pruned = Prune(budget={metric: share})(net, ctx)
    kept = ctx.cost(pruned)[metric] / ctx.cost(net)[metric]
    assert 0.8 * share < kept <= share, "the budget is met and not far undercut"
    assert torch.equal(outputs(rebuilt(pruned)), outputs(pruned.module))
    assert state_sha256(net.module) == before
    widths = {layer.out_channels for layer in pruned.module.modules() if isinstance(layer, torch.nn.Conv2d)}
    assert all(width % 8 == 0 for width in widths)


def test_prune_again_continues_from_the_edits(net, ctx):
    once = Prune(budget={"macs": 0.8})(net, ctx)
    twice = Prune(budget={"macs": 0.6})(once, ctx)
    assert len(twice.edits) > len(once.edits) and twice.edits[: len(once.edits)] == once.edits
    assert torch.equal(outputs(rebuilt(twice)), outputs(twice.module))
    assert 0.5 < ctx.cost(twice)["macs"] / ctx.cost(net)["macs"] <= 0.6, (
        "a budget is a share of the uncompressed network"
    )
    with pytest.raises(BadInput, match=r"meets its budget already, macs 0\.[78]\d+ \(asked 0.9\)"):
        Prune(budget={"macs": 0.9})(once, ctx)


def test_prune_removes_the_weakest(net, ctx):
    marked = net.clone()
    with torch.no_grad():
        marked.module.blocks[1].expand.conv.weight[:8] *= 100
    kept = next(e.keep for e in Prune(budget={"macs": 0.7})(marked, ctx).edits if e.layer == "blocks.1.expand.conv")
    assert set(range(8)) <= set(kept)


def test_prune_excludes_by_glob(net, ctx):
    pruned = Prune(budget={"macs": 0.85}, exclude=("blocks.1.*", "stem*"))(net, ctx)
    made = {edit.layer for edit in pruned.edits if edit.dim == "out"}
    assert not any(name.startswith(("blocks.1.", "stem")) for name in made) and made


def test_a_layer_is_excluded_without_those_that_it_reads(net, ctx):
    """The narrow streams of a MobileNetV2 stay, what is expanded between them does not."""
    pruned = Prune(budget={"macs": 0.8}, exclude=("stem*", "*.project.*", "head*"))(net, ctx)
    made = {edit.layer for edit in pruned.edits if edit.dim == "out"}
    read = {edit.layer for edit in pruned.edits if edit.dim == "in"}
    assert made and all(".expand." in name or ".depthwise." in name for name in made)
    assert read and all(".project." in name for name in read)


def test_prune_explains_what_it_cannot_do(net, ctx):
    with pytest.raises(BadInput, match=r"out of reach.*macs 0\.\d+ \(asked 0.001\)"):
        Prune(budget={"macs": 0.001})(net, ctx)
    with pytest.raises(BadInput, match="matches no layer"):
        Prune(budget={"macs": 0.5}, exclude=("blok*",))(net, ctx)
    with pytest.raises(BadInput, match="no channels of this network"):
        Prune(budget={"macs": 0.5}, round_to=4096)(net, ctx)


@pytest.mark.parametrize("step", [Finetune(epochs=1, batch=64), Distil(epochs=1, batch=64)])
def test_training_passes_are_deterministic_and_leave_their_input_alone(net, ctx, step):
    before = state_sha256(net.module)
    torch.manual_seed(7)
    first = step(net, ctx)
    torch.manual_seed(7)
    assert state_sha256(first.module) == state_sha256(step(net, ctx).module) != before
    assert state_sha256(net.module) == before and not first.module.training


def test_too_few_images_for_a_batch(net, ctx):
    with pytest.raises(BadInput, match="fewer than a batch"):
        Finetune(epochs=1, batch=4096)(net, ctx)


def test_the_learning_rate_rises_and_falls_to_zero():
    factor = Training().rate(100)
    values = [factor(step) for step in range(100)]
    assert values[0] == 0.2 and max(values) == 1.0 and values[-1] < 0.001
    assert values[5:] == sorted(values[5:], reverse=True)


@pytest.mark.parametrize(
    ("layer", "dim", "keep"),
    [(torch.nn.Conv2d(4, 6, 3), "out", (0, 2)), (torch.nn.Conv2d(4, 6, 3), "in", (1, 3)),
     (torch.nn.Linear(4, 6), "in", (0, 1)), (torch.nn.Linear(4, 6), "out", (5,))],
)  # fmt: skip
def test_an_edit_slices_the_layer(layer, dim, keep):
    holder = torch.nn.Sequential(layer)
    weight = layer.weight.detach().clone()
    KeepChannels("0", dim, keep).apply(holder)
    assert torch.equal(layer.weight, weight[list(keep)] if dim == "out" else weight[:, list(keep)])
    assert torch.isfinite(holder(torch.ones(1, len(keep) if dim == "in" else 4, 5, 5) if layer.weight.ndim == 4
                                 else torch.ones(1, layer.in_features))).all()  # fmt: skip


def test_groups_that_are_no_layers_are_left_alone():
    """A learned scale outside any layer carries channels, and no edit can cut it."""

    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Conv2d(3, 16, 1), torch.nn.Conv2d(16, 16, 1)
            self.c, self.out = torch.nn.Conv2d(16, 16, 1), torch.nn.Linear(16, 4)
            self.scale = torch.nn.Parameter(torch.ones(1, 16, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.c(self.b(self.a(x) * self.scale).relu()).relu().mean((2, 3)))

    net = Scaled()
    groups = prunable(net, (3, 16, 16)).groups
    assert [group.name for group in groups] == ["b", "c"]
