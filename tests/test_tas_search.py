"""The architecture search: what the supernet computes, and that what it finds is a network."""

import csv
import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.data import Output
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.net import Net, Source, build, edits_from_json, edits_to_json, parse_spec, state_sha256
from edgekit.parity import sqnr_db
from edgekit.passes import Tas
from edgekit.passes.tas import search
from edgekit.passes.tas.space import Macs, search_space, staying
from edgekit.passes.tas.supernet import Supernet
from edgekit.recipe import load
from edgekit.train.feed import Feed
from tests.conftest import IO
from tests.nets import calibrate, tiny
from tests.test_prune import context
from tests.test_tas import generator

SHAPE = (3, 16, 16)
RESNET = Source("zoo", "cifar_resnet_20", {"classes": 4, "width": 8})
QUICK = {"epochs": 3, "batch": 4, "lr": 0.01, "arch_lr": 0.3, "round_to": 1}


class Plain(nn.Sequential):
    """Convolutions with and without a norm, a hidden linear layer behind a flatten: rows of several indices."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 20, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(20, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(48, 10), nn.ReLU(),
            nn.Linear(10, 4),
        )  # fmt: skip


def plain() -> nn.Module:
    torch.manual_seed(0)
    return calibrate(Plain(), SHAPE)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return calibrate(build(RESNET), SHAPE)


NETS = {"plain": Net(parse_spec("tests.test_tas_search:plain"), (), plain()), "resnet": Net(RESNET, (), resnet())}


@pytest.fixture(params=NETS)
def net(request) -> Net:
    return NETS[request.param].clone()


# What the supernet computes


def one_hot(supernet: Supernet, widths: list[int], depths: list[int]) -> None:
    """Logits that leave no doubt."""
    for choices, places in ((supernet.widths, widths), (supernet.depths, depths)):
        choices.logits.data.zero_()
        for row, place in enumerate(places):
            choices.logits.data[row, place] = 1e4


def last(options) -> list[int]:
    return [len(each) - 1 for each in options]


def test_at_full_width_the_supernet_is_the_network(net):
    space = search_space(net.module, SHAPE, 1, ())
    supernet = Supernet(net.clone().module, space, generator()).eval()
    one_hot(supernet, last(space.widths), last(space.depths))
    x = torch.randn(4, *SHAPE, generator=generator())
    with torch.no_grad():
        supernet.draw(0.1, generator())
        assert sqnr_db(net.module(x).numpy(), supernet(x).numpy()) >= 100
        restored = supernet.settle(last(space.widths))
        assert torch.equal(net.module(x), restored(x)) and state_sha256(restored) == state_sha256(net.module)


def test_a_layer_mixes_its_two_options_by_the_papers_rule():
    """Conv at full width, slice, the option's own batch norm, CWI, sum: with PyTorch's own functions, one by one."""
    net = NETS["plain"].clone()
    space = search_space(net.module, SHAPE, 1, ())
    supernet = Supernet(net.clone().module, space, generator()).train()
    mixture = supernet.module[1]
    for norms in mixture.options:
        for norm in norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    supernet.draw(1.0, generator())
    (a, b), shares = supernet.drawn.places[0], supernet.drawn.shares[0]
    widest = max(space.widths[0][a], space.widths[0][b])
    x = torch.randn(4, *SHAPE)
    y, expected = net.module[0](x), torch.zeros(4, 16, 8, 8)
    own = mixture.options[0]
    own[a].momentum, before = 0.1, own[a].running_mean.clone()
    for place, share in zip((a, b), shares):
        count = space.widths[0][place]
        normed = F.batch_norm(y[:, :count], None, None, own[place].weight, own[place].bias, training=True)
        expected[:, :widest] += share * F.adaptive_avg_pool3d(normed[:, None], (widest, 8, 8))[:, 0]
    torch.testing.assert_close(mixture(y), expected, rtol=1e-4, atol=1e-5)
    mean = y.mean((0, 2, 3))[: len(before)]
    torch.testing.assert_close(own[a].running_mean, 0.9 * before + 0.1 * mean)
    assert [norm.tracked for norm in own] == [int(place in (a, b)) for place in range(len(own))]


def test_depths_are_mixed_by_their_shares():
    net = NETS["resnet"].clone()
    space = search_space(net.module, SHAPE, 1, ())
    assert space.stages[0] == ("layer1.0", "layer1.1", "layer1.2") and len(space.stages) == 3
    assert space.stages[1] == ("layer2.0", "layer2.1", "layer2.2"), "the first block cannot go, but counts"
    supernet = Supernet(net.clone().module, space, generator()).eval()
    one_hot(supernet, last(space.widths), last(space.depths))
    supernet.draw(0.1, generator())
    supernet.drawn.depths = torch.tensor([[0.2, 0.3, 0.5]] * 3)
    x = torch.rand(2, 8, 16, 16)
    with torch.no_grad():
        outputs = list(itertools.accumulate(net.module.layer1, lambda y, block: block(y), initial=x))[1:]
        expected = sum(share * y for share, y in zip((0.2, 0.3, 0.5), outputs))
        torch.testing.assert_close(supernet.module.layer1(x), expected, rtol=1e-3, atol=1e-4)


def test_expected_macs_are_the_formula():
    """Of one layer in a block by hand: 9 · H · W · E[C_in] · E[C_out] · P(depth ≥ position), in and out."""
    net = NETS["resnet"].clone()
    space, whole = search_space(net.module, SHAPE, 1, ()), trace(net.module, SHAPE).macs
    macs, names = Macs(space), [group.name for group in space.groups]
    stay = [staying(options, torch.tensor([0.2, 0.3, 0.5])) for options in space.depths]
    assert stay[0].tolist() == pytest.approx([1, 0.8, 0.5])
    kept = torch.tensor([group.size * 0.7 for group in space.groups], dtype=torch.float64)
    before = float(macs(kept, stay))
    kept[names.index("layer1.1.conv1")] += 1
    assert (float(macs(kept, stay)) - before) * whole == pytest.approx(2 * 9 * 256 * (8 * 0.7) * 0.8)


@pytest.mark.parametrize("depths", [[3, 3, 3], [1, 2, 3]])
def test_macs_at_one_hot_are_those_of_the_network(depths):
    net = NETS["resnet"].clone()
    space, whole = search_space(net.module, SHAPE, 1, ()), trace(net.module, SHAPE).macs
    kept = [options[number % len(options)] for number, options in enumerate(space.widths)]
    narrow = net.edited(*space.edits(net.module, kept, depths))
    assert Macs(space).of(kept, depths) * whole == pytest.approx(trace(narrow.module, SHAPE).macs, rel=1e-12)
    supernet = Supernet(net.clone().module, space, generator())
    one_hot(supernet, [options.index(k) for options, k in zip(space.widths, kept)], [d - 1 for d in depths])
    stay = [staying(options, found) for options, found in zip(space.depths, supernet.depths.log_probabilities().exp())]
    found = Macs(space)(supernet.widths.expected(), stay)
    assert found.item() * whole == pytest.approx(trace(narrow.module, SHAPE).macs, rel=1e-12)


# The pass


def rebuilt(net: Net) -> nn.Module:
    module = build(net.source, edits_from_json(edits_to_json(net.edits), "test"), trust=True)
    module.load_state_dict(net.module.state_dict())
    return module.eval()


def step(**changes) -> Tas:
    return Tas(**{"budget": {"macs": 0.5}, **QUICK, **changes})


def test_what_is_found_is_a_network_within_the_budget(net):
    """And its MACs are those computed, the edits alone give its structure, and the input stays as it was."""
    before, ctx = state_sha256(net.module), context(net)
    found = step()(net, ctx)
    share = ctx.cost(found)["macs"] / ctx.cost(net)["macs"]
    assert share <= 0.5 and f"macs {share:.3f} (asked 0.5)" in ctx.log.__self__[-1]
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        assert torch.equal(rebuilt(found)(x), found.module(x)) and found.module(x).std() > 0
    assert state_sha256(net.module) == before and not found.module.training
    again = step()(net, context(net))
    assert again.edits == found.edits and state_sha256(again.module) == state_sha256(found.module)
    other = step()(net, dataclasses.replace(context(net), seed=1))
    assert state_sha256(other.module) != state_sha256(found.module)


def test_the_first_channels_stay():
    net = NETS["plain"]
    space = search_space(net.module, SHAPE, 1, ())
    edits = space.edits(net.module, [options[2] for options in space.widths], [])
    assert {edit.layer: len(edit.keep) for edit in edits if edit.dim == "out"} == {"0": 8, "1": 8, "3": 10, "5": 6,
                                                                                    "6": 6, "9": 5}  # fmt: skip
    assert all(edit.keep == tuple(range(len(edit.keep))) for edit in edits)


def test_each_step_draws_anew_and_the_halves_share_no_picture(monkeypatch):
    drawn, halves = [], []

    class Watched(Supernet):
        def draw(self, *given):
            super().draw(*given)
            drawn.append(str(self.drawn.places))

    def feed(samples, *given):
        halves.append(samples)
        return Feed(samples, *given)

    monkeypatch.setattr(search, "Supernet", Watched)
    monkeypatch.setattr(search, "Feed", feed)
    step()(NETS["plain"].clone(), context(NETS["plain"]))
    assert len(set(drawn)) == len(drawn) == 3 * 3 * 2
    first, second = (set(half.ids) for half in halves)
    assert len(first) == len(second) == 12 and not first & second


def test_the_strongest_channels_come_first():
    net = NETS["plain"].clone()
    with torch.no_grad():
        net.module[0].weight[5::2] *= 100
    edits = step()(net, context(net)).edits
    kept = next(edit.keep for edit in edits if edit.layer == "0")
    strong = set(range(5, 16, 2))
    assert set(kept) <= strong or strong <= set(kept)


def test_the_first_channels_stay_with_the_norm_of_their_option():
    net = NETS["resnet"].clone()
    space = search_space(net.module, SHAPE, 1, ())
    supernet = Supernet(net.clone().module, space, generator())
    for mixture in supernet.mixtures:
        for part, options in zip(mixture.parts, mixture.options):
            for place, norm in enumerate(options):
                norm.weight.data.fill_(100.0 if part.group is None else place)
    settled = supernet.settle([2] * len(space.groups))
    width = space.widths[[group.name for group in space.groups].index("layer1.0.conv1")][2]
    assert settled.layer1[0].bn1.weight.tolist() == [2.0] * width + net.module.layer1[0].bn1.weight[width:].tolist()


def test_the_log_of_the_search(tmp_path):
    net = NETS["plain"].clone()
    ctx = dataclasses.replace(context(net), journal=tmp_path / "train.csv")
    found = step()(net, ctx)
    rows = list(csv.DictReader((tmp_path / "train.csv").open()))
    assert [row["epoch"] for row in rows] == ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    assert float(rows[0]["tau"]) == 5.0 and float(rows[-1]["tau"]) == pytest.approx(0.1)
    assert float(rows[0]["entropy_widths"]) == pytest.approx(math.log(8), rel=0.1) and rows[0]["entropy_depths"] == "0"
    assert rows[-1]["entropy_widths"] != rows[0]["entropy_widths"], "the logits learn"
    assert not torch.equal(found.module[11].bias, net.module[11].bias), "so do the weights"


def test_channel_counts_are_multiples_and_what_is_excluded_stays():
    net = NETS["resnet"].clone()
    found = step(round_to=4, exclude=("layer3.*",), budget={"macs": 0.7})(net, context(net))
    widths = {name: m.out_channels for name, m in found.module.named_modules() if isinstance(m, nn.Conv2d)}
    assert all(width % 4 == 0 for width in widths.values())
    assert widths["layer3.2.conv1"] == 32 and not any("layer3" in str(edit.layer) for edit in found.edits[-4:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"macs": 0.01}}, r"out of reach.*macs 0\.\d+ \(asked 0.01\)"),
        ({"exclude": ("blok*",)}, "matches no layer or block"),
        ({"round_to": 4096}, "nothing to search"),
        ({"batch": 16}, "half of 24 training images are fewer than a batch of 16"),
    ],
)
def test_what_it_cannot_do_is_explained(changes, message):
    with pytest.raises(BadInput, match=message):
        step(**changes)(NETS["plain"].clone(), context(NETS["plain"]))


def test_it_needs_class_labels():
    ctx = dataclasses.replace(context(NETS["plain"]), output=Output(task="segment"))
    with pytest.raises(BadInput, match="learns from class labels, and the task is segment"):
        step()(NETS["plain"].clone(), ctx)


class Odd(nn.Module):
    """A layer that is called twice, a norm that follows no convolution, and a norm over several channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1)
        self.groups, self.c, self.twice = nn.GroupNorm(4, 16), nn.Conv2d(16, 6, 1), nn.Conv2d(6, 6, 1)
        self.out = nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.c(self.groups(self.b(self.norm(self.a(x).relu()))))
        return self.out(self.twice(self.twice(x))).mean((2, 3))


def test_what_the_supernet_has_no_form_for_is_named():
    with pytest.raises(BadInput, match="nothing to search") as error:
        search_space(Odd(), SHAPE, 1, ())
    for reason in ("twice is called 2 times", "norm does not follow a convolution", "groups is a GroupNorm"):
        assert reason in str(error.value)
    space = search_space(tiny(), SHAPE, 1, ())
    assert {"expand.conv", "depthwise.conv"} <= {name[:-7] for group in space.groups for name, _ in group.slots}


def test_channels_that_do_not_stay_zero_are_named():
    module = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sigmoid(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = Net(Source("zoo", "test"), (), module)
    with pytest.raises(BadInput, match=r'2 reads something.*exclude = \["0"\]'):
        step()(net, context(net))


def test_a_recipe_names_it(tmp_path):
    (tmp_path / "r.toml").write_text(f'{IO}[[pass]]\nname = "tas"\nbudget = {{ macs = 0.5 }}\ntau = [4.0, 0.2]\n')
    found = load(str(tmp_path / "r.toml")).passes[0].run
    assert found == Tas(budget={"macs": 0.5}, tau=(4.0, 0.2))
    (tmp_path / "r.toml").write_text(f'{IO}[[pass]]\nname = "tas"\nbudget = {{}}\n')
    with pytest.raises(BadInput, match="the budget names no cost"):
        load(str(tmp_path / "r.toml"))
