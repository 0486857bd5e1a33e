"""The low-rank pass: what it replaces, that budgets hold as measured, and errors that say what to do."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.context import PassContext
from edgekit.edits import layer_channels
from edgekit.errors import BadInput
from edgekit.factorise import Factorise
from edgekit.graph import trace
from edgekit.latency.model import LatencyModel, LayerCost
from edgekit.net import Net, edits_from_json, edits_to_json, state_sha256
from edgekit.passes import LowRank
from edgekit.passes.lowrank.candidates import candidates
from edgekit.passes.lowrank.choices import Choice, Problem, levels
from edgekit.passes.lowrank.timing import timed
from edgekit.schema import parse
from tests.nets import calibrate
from tests.test_factorise import ANY
from tests.test_prune import context, logged, net_of

SIZE = 16
SHAPE = (3, SIZE, SIZE)


class Plain(nn.Module):
    """3×3 and 1×1 convolutions and a linear layer, whose weights have falling singular values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.mix = nn.Conv2d(16, 32, 1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.deep = nn.Conv2d(32, 32, 3, padding=1, stride=2)
        self.linear = nn.Linear(32 * 64, 16)
        self.last = nn.Linear(16, 4)
        for layer in (self.mix, self.deep, self.linear):
            u, s, v = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
            layer.weight.data = (u * s * 0.9 ** torch.arange(len(s)) @ v).reshape(layer.weight.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.mix(self.stem(x).relu())).relu()
        return self.last(self.linear(self.deep(x).relu().flatten(1)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return net_of(calibrate(Plain(), SHAPE))


@pytest.fixture
def ctx(net) -> PassContext:
    return context(net, SIZE)


def outputs(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(3)))


def replaced(net: Net) -> dict[str, Factorise]:
    return {edit.layer: edit for edit in net.edits if isinstance(edit, Factorise)}


# Choices


def test_levels_take_the_block_that_holds_most():
    spectra = [torch.tensor([9.0, 3, 2, 1, 1]), torch.tensor([8.0, 4, 3, 1])]
    found = list(levels(spectra, 2))
    assert [ranks for ranks, _ in found] == [(2, 2), (2, 4), (4, 4)]
    assert [loss for _, loss in found] == pytest.approx([(4 + 4) / 16, 4 / 16, 1 / 16])
    assert not list(levels([torch.ones(3)], 4))


def random_menus(seed: int, units: int) -> list[list[Choice]]:
    rng = np.random.default_rng(seed)
    menus = []
    for layer in "abc":
        cost = {str(unit): 1.0 for unit in range(units)}
        smaller = [
            Choice(layer, "channel", (n,), float(rng.random()), {unit: float(rng.uniform(0.1, 0.9)) for unit in cost})
            for n in range(4)
        ]
        menus.append([Choice(layer, None, (), 0.0, cost), *smaller])
    return menus


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_near_the_best_of_all(seed):
    """Against every combination: within the loss of the one layer that the relaxation splits."""
    menus = random_menus(seed, 1)
    problem = Problem(menus, {"0": 4.0}, {"0": 2.6})
    taken = problem.solved()
    assert problem.met(taken)
    met = [each for each in itertools.product(*menus) if 1 + sum(choice.costs["0"] for choice in each) <= 2.6]
    best = min(sum(-np.log(1 - choice.loss) for choice in each) for each in met)
    found = sum(-np.log(1 - problem.choices[place].loss) for place in taken)
    assert best <= found <= best + max(-np.log(1 - choice.loss) for menu in menus for choice in menu)


def menu(layer: str, whole: float, cost: float, loss: float) -> list[Choice]:
    return [Choice(layer, None, (), 0.0, {"macs": whole}), Choice(layer, "channel", (8,), loss, {"macs": cost})]


def factorised(menus: list[list[Choice]], limit: float) -> list[str]:
    problem = Problem(menus, {"macs": sum(each[0].costs["macs"] for each in menus)}, {"macs": limit})
    return [problem.choices[place].layer for place in problem.solved() if problem.choices[place].form]


def test_what_counts_is_the_product_of_the_energies_that_stay():
    """Half of two layers leaves a quarter, more than a tenth of one: though 0.9 is less than 0.5 + 0.5."""
    assert factorised([menu("a", 20, 10, 0.9), menu("b", 10, 5, 0.5), menu("c", 10, 5, 0.5)], 30) == ["b", "c"]


def test_a_step_that_a_later_one_made_needless_is_given_back():
    """The first saves 5 at the better price, the second 9, which is enough alone."""
    assert factorised([menu("a", 10, 5, 0.1), menu("b", 10, 1, 0.5)], 12) == ["b"]


@pytest.mark.parametrize("seed", range(8))
def test_several_limits_hold_together(seed):
    problem = Problem(random_menus(seed, 2), {"0": 4.0, "1": 3.5}, {"0": 3.0, "1": 2.9})
    taken = problem.solved()
    assert problem.met(taken) or not any(
        problem.met(np.array(each)) for each in itertools.product(range(5), range(5, 10), range(10, 15))
    )


# The pass


@pytest.mark.parametrize("form", ["auto", *ANY])
def test_a_budget_holds_as_measured_and_the_net_replays(form, net, ctx):
    before = state_sha256(net.module)
    result = LowRank(form=form, budget={"macs": 0.7, "params": 0.8})(net, ctx)
    costs, whole = ctx.cost(result), ctx.cost(net)
    assert costs["macs"] <= 0.7 * whole["macs"] and costs["params"] <= 0.8 * whole["params"]
    assert state_sha256(net.module) == before
    again = Plain().eval()
    for edit in edits_from_json(edits_to_json(result.edits), "test"):
        edit.apply(again)
    again.load_state_dict(result.module.state_dict())
    assert torch.equal(outputs(again), outputs(result.module))
    for edit in replaced(result).values():
        assert all(rank % 8 == 0 for rank in edit.ranks)
        assert edit.form == ("channel" if edit.layer in ("mix", "linear", "last") else edit.form)
    assert any(line.startswith("lowrank: deep: ") for line in logged(ctx))


def test_every_replaced_layer_pays(net, ctx):
    result = LowRank(energy=0.7)(net, ctx)
    found, whole = trace(result.module, SHAPE), trace(net.module, SHAPE)
    for layer in replaced(result):
        macs = sum(op.macs for op in found.ops if op.layer.startswith(f"{layer}."))
        assert 0 < macs < sum(op.macs for op in whole.ops if op.layer == layer)
        params = sum(parameter.numel() for parameter in result.module.get_submodule(layer).parameters())
        assert params < sum(parameter.numel() for parameter in net.module.get_submodule(layer).parameters())


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95])
def test_the_share_of_energy_stays(energy, net, ctx):
    result = LowRank(form="channel", energy=energy, round_to=1)(net, ctx)
    assert replaced(result)
    for layer, edit in replaced(result).items():
        spectrum = torch.linalg.svdvals(net.module.get_submodule(layer).weight.detach().double().flatten(1)).square()
        held = spectrum.cumsum(0) / spectrum.sum()
        (rank,) = edit.ranks
        assert held[rank - 1] >= energy > (held[rank - 2] if rank > 1 else 0)


def test_ranks_as_given(net, ctx):
    result = LowRank(form="channel", ranks={"deep": 5, "mi*": 0.3, "*": 0.5}, exclude=("linear",))(net, ctx)
    found = {layer: edit.ranks for layer, edit in replaced(result).items()}
    assert found == {"deep": (5,), "mix": (8,), "stem": (8,)}, "as it is, or a share of 16 in whole blocks"
    assert any("last at rank 4 costs no less" in line for line in logged(ctx))
    assert replaced(LowRank(form="tucker2", ranks={"deep": (8, 16)})(net, ctx))["deep"].ranks == (8, 16)


def test_at_full_rank_the_answer_is_the_same(net, ctx):
    """Of a weight whose rank is half its full one."""
    with torch.no_grad():
        u, s, v = torch.linalg.svd(net.module.deep.weight.flatten(1), full_matrices=False)
        net.module.deep.weight.copy_((u[:, :16] * s[:16] @ v[:16]).reshape(32, 32, 3, 3))
    result = LowRank(form="channel", ranks={"deep": 16})(net, ctx)
    assert torch.allclose(outputs(result.module), outputs(net.module), atol=1e-5)


@pytest.mark.parametrize("layer", ["mix", "deep", "linear"])
def test_weighted_is_better_on_what_the_layer_puts_out(layer, net, ctx):
    """Than the plain one on the same pictures. A layer with a bias keeps the mean, one without has none to give."""
    images = torch.from_numpy(next(ctx.data.role("calibrate").subset(24, 0).batches(ctx.input, 24))[0])

    def answer(module: nn.Module) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        module.get_submodule(layer).register_forward_hook(lambda _m, _x, y: kept.append(y))
        with torch.no_grad():
            module(images)
        return kept[0]

    settings = {"form": "channel", "ranks": {layer: 4}}
    wanted = answer(net.clone().module)
    errors = [
        float((answer(LowRank(**settings, weighted=weighted)(net, ctx).module) - wanted).square().sum())
        for weighted in (True, False)
    ]
    assert errors[0] < 0.9 * errors[1]
    held = float(logged(ctx)[-4].rpartition("energy ")[2])
    power = wanted - wanted.mean([axis for axis in range(wanted.ndim) if axis != 1], keepdim=True)
    power = power if layer != "mix" else wanted
    assert held == pytest.approx(1 - errors[0] / float(power.square().sum()), abs=2e-3)


def test_latency_is_that_of_the_measured_chains(net, ctx):
    """The times of each network that is asked for are told apart by its own constants."""
    asked: list[Net] = []

    def latency(wanted: Net) -> LatencyModel:
        asked.append(wanted)
        channels = layer_channels(wanted.module)
        costs = {name: LayerCost((0.05, 0.0, 0.0, 1e-4), 1.0, 1) for name in channels}
        return LatencyModel(costs, 0.5, channels)

    timed = dataclasses.replace(ctx, latency=latency)
    result = LowRank(budget={"latency": 0.9})(net, timed)
    assert latency(result).latency_ms(result.module) <= 0.9 * latency(net).full_ms
    wide = [each for each in asked if each.edits and each is not result]
    assert {edit.form for each in wide for edit in each.edits} == {"channel", "spatial", "tucker2"}
    assert all(set(replaced(each)) <= {"mix", "deep", "linear", "stem"} for each in wide)
    with pytest.raises(BadInput, match="no latency is measured here"):
        LowRank(budget={"latency": 0.9})(net, ctx)


def test_the_times_of_a_chain_are_those_of_its_layers(net, ctx):
    """1 ms for a chain's first layer, 10 for its second, 100 for its third; where the whole layer takes 5, it stays."""
    ms = {"0": 1.0, "1": 10.0, "2": 100.0, "deep": 1000.0}

    def latency(wanted: Net) -> LatencyModel:
        channels = layer_channels(wanted.module)
        costs = {name: LayerCost((ms.get(name.rpartition(".")[2], 5.0), 0.0, 0.0, 0.0), 1.0, 1) for name in channels}
        return LatencyModel(costs, 0.0, channels)

    found, _ = candidates(net.module, SHAPE)
    menus = [found[name].menu(["channel", "tucker2"], 8, ["macs"]) for name in ("deep", "mix")]
    deep, mix = timed(menus, net, dataclasses.replace(ctx, latency=latency))
    assert {(choice.form, choice.costs["latency"]) for choice in deep} == {
        (None, 1000.0), ("channel", 11.0), ("tucker2", 111.0)
    }  # fmt: skip
    assert len(menus[1]) > 1 and [choice.costs["latency"] for choice in mix] == [5.0]


# Bad input


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "give one of energy, budget and ranks"),
        ({"energy": 0.9, "budget": {"macs": 0.5}}, "give one of energy, budget and ranks"),
        ({"energy": 1.0}, "energy.*less than 1"),
        ({"budget": {"macs": 0}}, "budget.macs.*greater than 0"),
        ({"budget": {"watts": 0.5}}, "watts"),
        ({"form": "channel", "ranks": {"deep": 0}}, "ranks.deep.*greater than 0"),
        ({"ranks": {"deep": 4}}, 'write for example form = "channel"'),
        ({"energy": 0.9, "weighted": True}, 'write form = "channel"'),
        ({"energy": 0.9, "form": "svd"}, "'channel', 'spatial', 'tucker2', 'cp' or 'tt'"),
    ],
)
def test_a_recipe_that_cannot_be(table, message):
    with pytest.raises(BadInput, match=message):
        parse(LowRank, table, "recipe")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (LowRank(form="channel", ranks={"deep": 33}), "deep in the form 'channel' takes 1 rank.*at most 32.*not 33"),
        (LowRank(form="tucker2", ranks={"deep": (8,)}), "deep in the form 'tucker2' takes 2 rank.*not 8"),
        (LowRank(form="channel", ranks={"deep": 0}), "deep .* at least 1.*not 0"),
        (LowRank(form="channel", ranks={"deep": 30}), "deep at rank 30 costs no less in macs and params than whole"),
        (LowRank(form="channel", ranks={"dep": 4}), "ranks = 'dep' matches no convolution or linear layer"),
        (LowRank(energy=0.9, exclude=("norm",)), "exclude = 'norm' matches no convolution or linear layer"),
        (LowRank(energy=0.9, exclude=("*",)), "no layer is left that could be replaced"),
        (LowRank(energy=0.9999), "in none of the 5 layers.*macs and params.*ask for less energy"),
        (LowRank(budget={"macs": 0.01}), r"out of reach; at ranks of 8.*it comes to macs 0\.\d+ \(asked 0.01\)"),
        (LowRank(budget={"cio": 0.9}), r"out of reach; .*costs less in cio it comes to cio 1.000 \(asked 0.9\)"),
    ],
)
def test_what_cannot_be_done_is_explained(step, message, net, ctx):
    with pytest.raises(BadInput, match=message):
        step(net, ctx)


def test_a_budget_that_is_met_already(net, ctx):
    half = LowRank(budget={"macs": 0.6})(net, ctx)
    with pytest.raises(BadInput, match=r"meets its budget already, macs 0\.[56]\d+ \(asked 0.8\)"):
        LowRank(budget={"macs": 0.8})(half, ctx)


def test_weights_that_are_not_finite(net, ctx):
    with torch.no_grad():
        net.module.deep.weight[0] = torch.nan
    with pytest.raises(BadInput, match="the weight of deep is not finite"):
        LowRank(energy=0.9)(net, ctx)


def test_a_layer_of_zeros_loses_nothing(net, ctx):
    with torch.no_grad():
        net.module.deep.weight.zero_()
    for settings in ({"form": "tucker2"}, {"form": "channel", "weighted": True}):
        result = LowRank(**settings, energy=0.9)(net, ctx)
        assert "deep" in replaced(result) and torch.equal(outputs(result.module), outputs(net.module))


def test_outputs_that_are_not_finite(net, ctx):
    with torch.no_grad():
        net.module.norm.weight[0] = torch.inf
    with pytest.raises(BadInput, match="what deep puts out on the calibration images is not finite"):
        LowRank(form="channel", weighted=True, energy=0.9)(net, ctx)


class Asks(Plain):
    """Its code asks a layer for what a chain does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[..., :: self.mix.stride[0]])


def test_code_that_asks_a_layer_is_named():
    net = net_of(calibrate(Asks(), SHAPE))
    with pytest.raises(BadInput, match=r"code asks a layer for .*; exclude it: .*'Sequential' object has no attribute"):
        LowRank(energy=0.5)(net, context(net, SIZE))


class Shared(Plain):
    """A layer that is called twice, two of one weight, and one whose weight other code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(32, 32, 3, padding=1)
        self.tied, self.read = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.tied_too = nn.Conv2d(32, 32, 3, padding=1)
        self.tied_too.weight = self.tied.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.mix(self.stem(x).relu())).relu()
        x = self.tied_too(self.tied(self.twice(self.twice(x))))
        x = self.read(nn.functional.conv2d(x, self.read.weight, padding=1))
        return self.last(self.linear(self.deep(x).flatten(1)))


def test_a_layer_shared_by_two_callers():
    net = net_of(calibrate(Shared(), SHAPE))
    ctx = context(net, SIZE)
    shared = {
        "twice": "is called 2 times",
        "tied": "shares its weight with tied_too",
        "read": "is not only called as a layer; other code reads its weight",
    }
    result = LowRank(energy=0.5)(net, ctx)
    assert not replaced(result).keys() & {*shared, "tied_too"}
    for layer, reason in shared.items():
        assert any(line == f"lowrank: {layer} stays: {reason}" for line in logged(ctx))
        with pytest.raises(BadInput, match=f"{layer} cannot be replaced, as it {reason}; take it out of ranks"):
            LowRank(form="channel", ranks={layer: 4})(net, ctx)
