"""Residual blocks: found on the graph, dropped exactly, and named where they cannot be."""

import dataclasses

import pytest
import torch
from torch import nn

from edgekit.blocks import BROKEN, ELSEWHERE, droppable
from edgekit.edits import DropBlock, layer_channels
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.latency.model import LatencyModel, LayerCost
from edgekit.net import Net, Source, build, edits_from_json, edits_to_json, parse_spec
from edgekit.passes import Depth, Prune
from tests.nets import Tiny, calibrate
from tests.test_prune import context, net_of

RESNET = Source("zoo", "cifar_resnet_20", {"classes": 4})


class Block(nn.Module):
    """x + f(x), then an activation or none."""

    def __init__(self, width: int = 8, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(width, width, 3, padding=1), act or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.conv(x))


class Stack(nn.Module):
    def __init__(self, *blocks: nn.Module, first: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 1), first or nn.Identity()
        self.blocks, self.out = nn.Sequential(*blocks), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.blocks(self.first(self.stem(x)))).mean((2, 3))


class Twice(nn.Module):
    """One block called twice: to drop it would drop both."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(self.block(x))


class Peeks(Stack):
    """Looks into its block, which then must not go."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * self.blocks[0].conv.out_channels


class Subtracts(Block):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sub(x, self.conv(x))


SHAPE = (3, 16, 16)


@pytest.mark.parametrize(
    ("module", "blocks"),
    [
        (lambda: Stack(Block(), Block()), ["blocks.0", "blocks.1"]),
        (lambda: Stack(Block(act=nn.ReLU()), Block(act=nn.ReLU())), ["blocks.1"]),
        (lambda: Stack(Block(act=nn.ReLU()), first=nn.ReLU()), ["blocks.0"]),
        (lambda: Stack(Block(act=nn.ReLU()), first=nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))), ["blocks.0"]),
        (lambda: Stack(Block(act=nn.ReLU()), first=nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))), []),
        (lambda: Stack(Block(act=nn.ReLU6()), first=nn.ReLU()), []),
        (lambda: Stack(Block(act=nn.Hardswish()), first=nn.Hardswish()), []),
        (lambda: Stack(Subtracts()), []),
        (lambda: Stack(Twice()), []),
        (lambda: Peeks(Block()), []),
    ],
    ids=["plain", "relu", "after-relu", "pooled", "averaged", "relu6", "hardswish", "minus", "twice", "peeks"],
)  # fmt: skip
def test_blocks_are_found_on_the_graph(module, blocks):
    assert list(droppable(module(), SHAPE).layers) == blocks


def test_what_is_left_is_named():
    assert "has not been through the relu" in droppable(Stack(Block(act=nn.ReLU())), SHAPE).left["blocks.0"]
    assert "hardswish stands between" in droppable(Stack(Block(act=nn.Hardswish())), SHAPE).left["blocks.0"]
    assert "called more than once" in droppable(Stack(Twice()), SHAPE).left["blocks.0.block"]
    assert droppable(Peeks(Block()), SHAPE).left == {"blocks.0": BROKEN}
    assert droppable(Tiny(4), SHAPE).left == {"top": ELSEWHERE}


def test_a_block_without_its_branch_is_the_identity():
    """Set the branch to 0 and look; then drop the block: the same, bit by bit."""
    torch.manual_seed(0)
    net = Net(RESNET, (), calibrate(build(RESNET), SHAPE))
    blocks = droppable(net.module, SHAPE).layers
    assert len(blocks) == 7
    silent = net.clone()
    with torch.no_grad():
        for name in blocks:
            *_, norm = (m for m in silent.module.get_submodule(name).modules() if isinstance(m, nn.BatchNorm2d))
            norm.weight.zero_()
            norm.bias.zero_()
    dropped = silent.edited(*(DropBlock(name) for name in blocks))
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = silent.module(x)
        assert expected.std() > 1e-3 and torch.equal(expected, dropped.module(x))
    gone = {key for key in net.module.state_dict() if key not in dropped.module.state_dict()}
    assert gone == {key for key in net.module.state_dict() if key.startswith(tuple(f"{name}." for name in blocks))}


@pytest.fixture(scope="module")
def resnet() -> Net:
    torch.manual_seed(0)
    return Net(RESNET, (), calibrate(build(RESNET), SHAPE))


def rebuilt(net: Net) -> nn.Module:
    module = build(net.source, edits_from_json(edits_to_json(net.edits), "test")).eval()
    module.load_state_dict(net.module.state_dict())
    return module


def test_depth_meets_its_budgets_and_composes_with_pruning(resnet):
    ctx = context(resnet)
    x = torch.randn(2, *SHAPE)
    before = ctx.cost(resnet)
    shallow = Depth(budget={"macs": 0.8, "params": 0.95})(resnet, ctx)
    assert ctx.cost(shallow)["macs"] <= 0.8 * before["macs"] and ctx.cost(shallow)["params"] <= 0.95 * before["params"]
    assert all(isinstance(edit, DropBlock) for edit in shallow.edits)
    narrow = Prune(budget={"macs": 0.6})(shallow, ctx)
    again = Depth(budget={"macs": 0.55})(Prune(budget={"macs": 0.6})(resnet, ctx), ctx)
    with pytest.raises(BadInput, match=r"meets its budget already, macs 0\.\d+ \(asked 0.9\)"):
        Depth(budget={"macs": 0.9})(narrow, ctx)
    for net in (shallow, narrow, again):
        with torch.no_grad():
            assert torch.equal(rebuilt(net)(x), net.module(x))


def test_depth_drops_what_changes_least_for_what_it_saves(resnet):
    """A branch that gives nothing goes first; and no block goes that the budget does not need."""
    quiet = resnet.clone()
    with torch.no_grad():
        *_, norm = (m for m in quiet.module.get_submodule("layer2.1").modules() if isinstance(m, nn.BatchNorm2d))
        norm.weight.zero_()
        norm.bias.zero_()
    edits = Depth(budget={"macs": 0.95})(quiet, context(quiet)).edits
    assert edits == (DropBlock("layer2.1"),)
    kept = Depth(budget={"macs": 0.95}, exclude=("layer2.*",))(quiet, context(quiet)).edits
    assert len(kept) == 1 and not kept[0].layer.startswith("layer2")


def test_depth_by_latency(resnet):
    ctx = context(resnet)
    with pytest.raises(BadInput, match="no latency is measured here"):
        Depth(budget={"latency": 0.8})(resnet, ctx)
    full = layer_channels(resnet.module)
    model = LatencyModel({name: LayerCost((0.1, 0.0, 0.0, 0.001), 1.0, 1) for name in full}, 0.5, full)
    timed = dataclasses.replace(ctx, latency=lambda _net: model)
    assert Depth(budget={"latency": 0.9})(resnet, timed).edits


def test_depth_explains_what_it_cannot_do(resnet):
    ctx = context(resnet)
    with pytest.raises(BadInput, match=r"out of reach; without layer1.0, .*macs 0\.\d+ \(asked 0.1\)"):
        Depth(budget={"macs": 0.1})(resnet, ctx)
    with pytest.raises(BadInput, match=r"exclude = 'stage\*' matches no block.*these are: layer1.0"):
        Depth(budget={"macs": 0.9}, exclude=("stage*",))(resnet, ctx)
    plain = net_of(Tiny(4))
    with pytest.raises(BadInput, match="no residual block that can be dropped"):
        Depth(budget={"macs": 0.9})(plain, context(plain))
    with pytest.raises(BadInput, match="has no layer 'layer9'"):
        resnet.edited(DropBlock("layer9"))
    with pytest.raises(BadInput, match="no block that can be dropped"):
        resnet.edited(DropBlock("layer1.0"), DropBlock("layer1.0"))
    with pytest.raises(ValueError, match="names no cost"):
        Depth(budget={})


@pytest.mark.parametrize("spec", ["mobilenet_v2?width=0.35&small_input=true&classes=10"])
def test_zoo_blocks_cost_what_their_layers_cost(spec):
    module = build(parse_spec(spec))
    graph = trace(module, SHAPE)
    for block in droppable(module, SHAPE).layers:
        within = sum(op.macs for op in graph.ops if op.layer.startswith(f"{block}."))
        smaller = net_of(module).edited(DropBlock(block)).module
        assert trace(smaller, SHAPE).macs == graph.macs - within > 0
