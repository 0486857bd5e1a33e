"""Which channels are tied: removing a group gives exactly what zeroing it gives."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.cards import card, cards
from edgekit.channels import slots, ties
from edgekit.graph import tensors_in, trace
from edgekit.net import Net, Source, build, parse_spec
from edgekit.nets.layers import PadShortcut, SplitChannels
from edgekit.removal import BROKEN, FEWEST, edits, keep_count, layers_of, prunable
from tests.nets import Tiny, calibrate, ranking


def sqnr(reference: torch.Tensor, other: torch.Tensor) -> float:
    noise = (reference - other).square().sum()
    return math.inf if noise == 0 else float(10 * torch.log10(reference.square().sum() / noise))


def check_removal(module: nn.Module, shape: tuple[int, int, int], share: float = 0.5) -> int:
    """Zero the least important channels of every group, remove them, and compare in float64; returns the groups."""
    module = calibrate(module, shape).double()
    groups = prunable(module, shape).groups
    removed = [ranking(module, group)[max(keep_count(group.size, share, 1), FEWEST) :] for group in groups]
    smaller = Net(Source("zoo", "test"), (), module).edited(*edits(module, groups, removed)).module
    state = dict(module.named_parameters())
    transposed = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.ConvTranspose2d)}
    for group, rows in zip(groups, removed):
        for (name, dim), indices in slots(group, rows).items():
            makes = 1 if name in transposed else 0
            if name in state and (dim == makes or state[name].ndim == 1):
                state[name].data.index_fill_(dim, torch.tensor(indices, dtype=torch.int64), 0)
    x = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, found = module(x), smaller(x)
    assert expected.std() > 1e-3, "an output that hardly depends on the input proves nothing"
    assert sqnr(expected, found) >= 200
    assert not groups or trace(smaller, shape).params < trace(module, shape).params
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


class FixedSplit(Chunk):
    """The same by a number in the code, which no removal can follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.stem(x).relu().split([4, 4], 1)
        return self.out(torch.cat([left, right, self.work(right).relu()], 1)).mean((2, 3))


class Sliced(Chunk):
    """And by slices, where a removal would silently cut elsewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.out(torch.cat([x, self.work(x[:, :4]).relu()], 1)).mean((2, 3))


class Swapped(nn.Module):
    """Halves by fixed places, the other way round: a removal would run, and answer wrongly."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.out(torch.cat([x[:, 4:], x[:, :4]], 1)).mean((2, 3))


class HeldSplit(nn.Module):
    """A module that holds its sizes lets unequal parts shrink each on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split = nn.Conv2d(3, 10, 1), SplitChannels([4, 6])
        self.a, self.b = nn.Conv2d(4, 3, 1), nn.Conv2d(6, 3, 1)
        self.out = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.split(self.stem(x).relu())
        return self.out((self.a(left) + self.b(right)).relu()).mean((2, 3))


class Shuffle(nn.Module):
    """ShuffleNet: grouped convolution, channel shuffle, grouped convolution, depthwise with two outputs a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1, groups=2)
        self.second, self.twice = nn.Conv2d(16, 12, 3, groups=2, padding=1), nn.Conv2d(12, 24, 3, groups=12)
        self.out = nn.Conv2d(24, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.stem(x).relu()).relu()
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.out(self.twice(self.second(x).relu()).relu()).mean((2, 3))


class Upsampling(nn.Module):
    """U-Net's parts: transposed convolution, interpolation, pixel shuffle and unshuffle, PReLU, a skip by concat."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.act = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.PReLU(8)
        self.up, self.more = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(8, 16, 1)
        self.shuffle, self.unshuffle = nn.PixelShuffle(2), nn.PixelUnshuffle(2)
        self.out, self.small = nn.Conv2d(6 + 4 + 8, 2, 1), nn.Conv2d(24, 2, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.act(self.down(x))
        up = self.up(x)
        skip = [up, self.shuffle(self.more(x)), F.interpolate(x, scale_factor=2.0, mode="bilinear")]
        return torch.cat([self.out(torch.cat(skip, 1)).flatten(1), self.small(self.unshuffle(up)).flatten(1)], 1)


class OptionA(nn.Module):
    """A shortcut that pads channels, by a module that holds the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.short = nn.Conv2d(3, 6, 3, padding=1), PadShortcut(2, 2, 2)
        self.conv, self.norm, self.out = nn.Conv2d(6, 10, 3, 2, 1), nn.BatchNorm2d(10), nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        return self.out((self.norm(self.conv(x)) + self.short(x)).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("module", "groups"),
    [(lambda: Tiny(4), 3), (Concat, 3), (Shared, 1), (Gated, 2), (Chunk, 2), (HeldSplit, 3), (Shuffle, 3),
     (Upsampling, 3), (OptionA, 2)],
    ids=["tiny", "cat", "shared", "se", "chunk", "split", "shuffle", "unet", "option-a"],
)  # fmt: skip
def test_removing_is_zeroing(module, groups):
    torch.manual_seed(0)
    assert check_removal(module(), (3, 8, 8)) == groups


@pytest.mark.parametrize("module", [FixedSplit, Sliced])
def test_code_with_fixed_numbers_keeps_its_channels(module):
    found = prunable(module(), (3, 8, 8))
    free = {FixedSplit: ["work"], Sliced: ["stem", "work"]}[module]
    assert [group.name for group in found.groups] == free, "only what stands behind the cut can go"
    assert found.frozen["stem"] == BROKEN
    torch.manual_seed(0)
    assert check_removal(module(), (3, 8, 8)) == len(free)


def test_a_removal_that_would_answer_wrongly_is_not_offered():
    found = prunable(Swapped(), (3, 8, 8))
    (group,) = found.groups
    assert group.slots["stem.weight", 0].ravel().tolist() == [4, 5, 6, 7], "only behind the fixed place can any go"
    assert found.frozen["stem"] == BROKEN
    torch.manual_seed(0)
    assert check_removal(Swapped(), (3, 8, 8)) == 1


class Normed(nn.Module):
    """Group norm and layer norm: their statistics change with the channels, so the oracle is a network cut by hand."""

    def __init__(self, width: int = 12, groups: int = 3, hidden: int = 8) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 1), nn.GroupNorm(groups, width)
        self.hidden, self.layer, self.out = nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(self.hidden(self.norm(self.stem(x)).relu().flatten(2).transpose(1, 2))).relu())


def test_norms_over_channels_are_cut_as_by_hand():
    torch.manual_seed(0)
    module = Normed().double()
    by_name = {group.name: group for group in prunable(module, (3, 4, 4)).groups}
    assert by_name["stem"].size == 3 and by_name["stem"].width == 4, "group norm loses whole groups"
    cut = Net(Source("zoo", "test"), (), module).edited(*edits(module, list(by_name.values()), [[1], [0, 5]])).module
    hand = Normed(8, 2, 6).double()
    wide, narrow = [i for i in range(12) if i // 4 != 1], [1, 2, 3, 4, 6, 7]
    taken = {"stem": (wide, None), "norm": (wide, None), "hidden": (narrow, wide), "layer": (narrow, None)}
    for name, value in module.state_dict().items():
        rows, columns = taken.get(name.partition(".")[0], (None, narrow))
        value = value if rows is None else value[rows]
        value = value if columns is None or value.ndim < 2 else value[:, columns]
        hand.state_dict()[name].copy_(value)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        assert sqnr(hand(x), cut(x)) > 200


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


def test_functional_padding_of_channels_freezes_both_sides():
    class Padded(OptionA):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
            return self.out((self.norm(self.conv(x)) + short).relu().mean((2, 3)))

    found = prunable(Padded(), (3, 8, 8))
    assert not found.groups and "padded" in found.frozen["conv.weight"] and "padded" in found.frozen["stem.weight"]


def test_channels_that_meet_the_input_stay():
    class Meets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.out = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out((x + self.a(x)).relu())

    assert "meets the network's input" in prunable(Meets(), (3, 4, 4)).frozen["a.weight"]


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


FAST = ["mobilenet_v2?width=0.35&small_input=true&classes=10", "cifar_resnet_20"]
NAMES = sorted(name for name in cards() if "weights" not in card(name) and card(name).get("task") == "classify")


@pytest.mark.parametrize("spec", FAST)
def test_zoo_networks_lose_channels_exactly(spec):
    torch.manual_seed(0)
    assert check_removal(build(parse_spec(spec)), (3, 32, 32)) >= 12


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


class Heads(nn.Module):
    """Several outputs, as a list, a tuple or a dictionary."""

    def __init__(self, make: type) -> None:
        super().__init__()
        self.make = make
        self.stem, self.neck = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.boxes, self.classes = nn.Conv2d(6, 4, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> object:
        x = self.stem(x).relu()
        outputs = [self.boxes(self.neck(x).relu()), self.classes(x)]
        return dict(zip(("boxes", "classes"), outputs)) if self.make is dict else self.make(outputs)


@pytest.mark.parametrize("make", [list, tuple, dict])
def test_several_outputs(make):
    torch.manual_seed(0)

    class Flat(Heads):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([output.flatten(1) for output in tensors_in(super().forward(x))], 1)

    found = prunable(Heads(make), (3, 8, 8))
    assert {group.name: group.size for group in found.groups} == {"stem": 8, "neck": 6}
    assert "output" in found.frozen["boxes.weight"] and "output" in found.frozen["classes.weight"]
    assert check_removal(Flat(make), (3, 8, 8)) == 2


class Attention(nn.Module):
    """Two heads over pixels, by hand or by PyTorch's module; a convolution before, another behind."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own
        self.stem, self.out, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 2, 1)
        if own:
            self.qkv, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        else:
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        b, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        if self.own:
            q, k, v = self.qkv(tokens).reshape(b, h * w, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
            weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
            tokens = self.project((weights @ v).transpose(1, 2).reshape(b, h * w, c))
        else:
            tokens = self.attention(tokens, tokens, tokens)[0]
        return self.last(self.out(tokens.transpose(1, 2).reshape(b, c, h, w)).relu()).mean((2, 3))


@pytest.mark.parametrize("own", [True, False], ids=["by-hand", "nn.MultiheadAttention"])
def test_attention_is_left_alone_and_named_and_the_rest_is_cut(own):
    torch.manual_seed(0)
    found = prunable(Attention(own).eval(), (3, 4, 4))
    assert [group.name for group in found.groups] == ["out"]
    layer = "qkv" if own else "attention"
    assert any(name.startswith(layer) for name in found.frozen), found.frozen
    assert check_removal(Attention(own), (3, 4, 4)) == 1
