"""Which channels are tied: removing a group gives exactly what zeroing it gives."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.cards import card, cards
from edgekit.channels import slots, ties
from edgekit.graph import trace
from edgekit.net import Net, Source, build, parse_spec
from edgekit.passes.prune import _editable, edits, layers_of, ranking
from tests.nets import Tiny, calibrate


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    noise = (reference - other).square().sum()
    return math.inf if noise == 0 else float(10 * torch.log10(reference.square().sum() / noise))


def check_removal(module: nn.Module, shape: tuple[int, int, int], share: float = 0.5) -> int:
    """Zero the least important channels of every group, remove them, and compare in float64; returns the groups."""
    module = calibrate(module, shape).double()
    groups = [group for group in ties(trace(module, shape)).groups if _editable(module, group)]
    order = [ranking(module, group) for group in groups]
    removed = Net(Source("zoo", "test"), (), module).edited(*edits(module, groups, order, share, 1)).module
    state = dict(module.named_parameters())
    for group, ranked in zip(groups, order):
        for (name, dim), indices in slots(group, ranked[max(1, math.ceil(share * group.size)) :]).items():
            if dim == 0 and name in state:
                state[name].data[list(indices)] = 0
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = module(x), removed(x)
    assert expected.std() > 1e-3, "an output that hardly depends on the input proves nothing"
    assert sqnr(expected, found) >= 200
    return len(groups)


class Concat(nn.Module):
    """Nested concatenation into a convolution and a flatten into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(13, 5, 1)
        self.out = nn.Linear(5 * 16, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x).relu()
        both = torch.cat([a, torch.cat([self.b(a), x], 1)], 1)
        return self.out(F.avg_pool2d(self.c(both).relu(), 2).flatten(1))


class Shared(nn.Module):
    """One convolution called twice ties its input to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.twice(self.twice(self.stem(x).relu()).relu()).relu()).mean((2, 3))


class Chunk(nn.Module):
    """C2f: split in half, work on one half, concatenate again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.work, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(12, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.stem(x).relu().chunk(2, 1)
        return self.out(torch.cat([left, right, self.work(right).relu()], 1)).mean((2, 3))


class Gated(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.out = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.out(x.amax((2, 3)))


@pytest.mark.parametrize(
    ("module", "groups"),
    [(lambda: Tiny(4), 3), (Concat, 3), (Shared, 1), (Gated, 2)],
    ids=["tiny", "cat", "shared", "se"],
)
def test_removing_is_zeroing(module, groups):
    torch.manual_seed(0)
    assert check_removal(module(), (3, 8, 8)) == groups


def test_channels_cut_at_fixed_places_stay():
    found = ties(trace(Chunk(), (3, 8, 8)))
    assert [group.name for group in found.groups] == ["work"], (
        "what the half convolution makes can go, the halves cannot"
    )
    assert "cuts channels" in found.frozen["stem.weight"]


def test_outputs_and_inputs_stay():
    module = Tiny(4)
    found = ties(trace(module, (3, 16, 16)))
    assert "classifier.linear.weight" in found.frozen
    assert not any(axis == ("stem.conv.weight", 1) for group in found.groups for axis in group.slots)


def test_an_operation_without_a_rule_freezes_and_is_named():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.cumsum(self.a(x), 1))

    found = ties(trace(Odd(), (3, 4, 4)))
    assert not found.groups and "cumsum" in found.frozen["a.weight"]


def test_fixed_channel_padding_freezes_both_sides():
    net = build(parse_spec("cifar_resnet_20"))
    found = ties(trace(net, (3, 32, 32)))
    assert all(name.startswith("layer") and "conv1" in name for name in (group.name for group in found.groups))
    assert "padded" in found.frozen["layer2.0.conv2.weight"]


def test_permuting_a_groups_channels_changes_nothing():
    torch.manual_seed(0)
    module = calibrate(Tiny(4), (3, 16, 16)).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = module(x)
    state = module.state_dict()
    for group in ties(trace(module, (3, 16, 16))).groups:
        order = torch.randperm(group.size)
        for (name, dim), rows in group.slots.items():
            flat = torch.tensor([index for row in rows for index in row])
            moved = torch.tensor([index for row in order for index in rows[row]])
            state[name].index_copy_(dim, flat, state[name].index_select(dim, moved).clone())
    with torch.no_grad():
        assert sqnr(expected, module(x)) > 200


FAST = ["mobilenet_v2?width=0.35&small_input=true&classes=10"]
NAMES = sorted(name for name in cards() if "weights" not in card(name) and card(name).get("task") == "classify")


@pytest.mark.parametrize("spec", FAST)
def test_zoo_networks_lose_channels_exactly(spec):
    torch.manual_seed(0)
    assert check_removal(build(parse_spec(spec)), (3, 32, 32)) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_zoo_network_loses_channels_exactly(name):
    torch.manual_seed(0)
    size = 32 if card(name)["input_size"] == 32 else 64
    assert check_removal(build(parse_spec(name)), (3, size, size)) > 0


def test_group_names_and_layers():
    found = ties(trace(Tiny(4), (3, 16, 16)))
    stem = next(group for group in found.groups if group.name == "stem.conv")
    assert {"stem.conv", "stem.norm", "expand.conv", "project.conv", "head.conv"} <= set(layers_of(stem))
