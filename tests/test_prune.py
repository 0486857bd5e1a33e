"""What pruning decides: importances by hand, budgets met, and errors that say what to do."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.channels import Group
from edgekit.context import PassContext
from edgekit.costs import CostModel
from edgekit.data import Data, Input, Output, Sample, Samples
from edgekit.edits import layer_channels
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.latency.model import LatencyModel, LayerCost
from edgekit.net import Net, Source
from edgekit.passes import Prune
from edgekit.passes.allocation import ALLOCATIONS, Allocation, given_back
from edgekit.passes.importance import IMPORTANCES
from edgekit.passes.importance.bn_scale import BNScale
from edgekit.passes.importance.geometric_median import GeometricMedian
from edgekit.passes.importance.l1 import L1
from edgekit.passes.importance.l2 import L2
from edgekit.passes.importance.optin import Optin
from edgekit.passes.importance.random import Random
from edgekit.passes.importance.taylor import Taylor
from edgekit.removal import edits, prunable
from edgekit.schema import parse
from tests.nets import Tiny, calibrate, tiny
from tests.test_channels import Chunk, Concat, Gated

SHAPE = (3, 16, 16)


class Pair(nn.Module):
    """Two layers, one group of three channels."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Conv2d(width, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.norm(self.a(x)).relu()).mean((2, 3))


@pytest.fixture
def pair() -> Net:
    module = Pair().eval()
    state = module.state_dict()
    state["a.weight"].copy_(torch.tensor([[3, 0, 0], [0, 4, 0], [1, 0, -2]])[:, :, None, None])
    state["b.weight"].copy_(torch.tensor([[4, 0, 1], [0, -3, 1]])[:, :, None, None])
    state["a.bias"].copy_(torch.tensor([0.2, 0.3, 0.4]))
    state["b.bias"].zero_()
    state["norm.weight"].copy_(torch.tensor([0.5, -2.0, 1.0]))
    return net_of(module)


def net_of(module: nn.Module) -> Net:
    return Net(Source("zoo", "test"), (), module)


def samples(count: int, size: int, classes: int) -> Samples:
    def sample(index: int) -> Sample:
        pixels = np.random.default_rng(index).integers(0, 256, (size, size, 3), np.uint8)
        return Sample(str(index), index % classes, lambda: pixels, f"{index:064}")

    return Samples(tuple(sample(index) for index in range(count)))


def context(net: Net, size: int = 16, classes: int = 4) -> PassContext:
    lines: list[str] = []
    shape = (3, size, size)
    roles = {role: samples(24, size, classes) for role in ("train", "calibrate")}
    return PassContext(
        data=Data(roles),
        input=Input(size=size, mean=(0.5,) * 3, std=(0.5,) * 3),
        output=Output(),
        seed=0,
        base=net,
        cost=lambda candidate: trace(candidate.module, shape).cost(),
        score=lambda _net: {},
        network=lambda _spec: net.module,
        log=lines.append,
    )


def groups_of(net: Net, size: int = 16) -> tuple[Group, ...]:
    return prunable(net.module, (3, size, size)).groups


def logged(ctx: PassContext) -> list[str]:
    return ctx.log.__self__  # type: ignore[attr-defined]


# Importances by hand


def scores(importance, net: Net, classes: int = 4) -> list[np.ndarray]:
    return importance.scores(net, groups_of(net), context(net, classes=classes))


def test_magnitudes(pair):
    sums = np.array([3 + 4, 4 + 3, 3 + 2])
    assert np.allclose(scores(L1(), pair)[0], sums / sums.mean())
    norms = np.sqrt([9 + 16, 16 + 9, 1 + 4 + 1 + 1])
    assert np.allclose(scores(L2(), pair)[0], norms / norms.mean())


def test_a_layers_scale_does_not_count(pair):
    before = scores(L2(), pair)[0]
    with torch.no_grad():
        pair.module.a.weight *= 10
        pair.module.b.weight *= 10
    assert np.allclose(scores(L2(), pair)[0], before)


def test_batch_norm_scale(pair):
    assert np.allclose(scores(BNScale(), pair)[0], [0.5, 2.0, 1.0])
    with pytest.raises(BadInput, match=r"no norm with a scale follows a; write importance = \"l2\""):
        BNScale().scores(net_of(Concat()), prunable(Concat(), (3, 8, 8)).groups, context(pair))


def test_geometric_median(pair):
    a, b, c = np.array([3, 0, 0]), np.array([0, 4, 0]), np.array([1, 0, -2])
    ab, ac, bc = (np.linalg.norm(x - y) for x, y in ((a, b), (a, c), (b, c)))
    sums = np.array([ab + ac, ab + bc, ac + bc])
    assert np.allclose(scores(GeometricMedian(), pair)[0], sums / sums.mean())


def test_taylor_is_the_derivative_of_the_loss(pair):
    """Scale all that is tied to a channel by (1 + ε) and look at the loss."""
    found = scores(Taylor(batches=1, batch=24), pair, classes=2)[0]
    images, labels, _ = next(samples(24, 16, 2).batches(context(pair).input, 24))
    module, group = pair.module.double(), groups_of(pair)[0]

    def loss(row: int, factor: float) -> float:
        scaled = Net(pair.source, (), module).clone().module
        for (name, dim), rows in group.slots.items():
            parameter = dict(scaled.named_parameters()).get(name)
            if parameter is not None:
                parameter.data.index_copy_(
                    dim,
                    torch.from_numpy(rows[row]),
                    factor * parameter.data.index_select(dim, torch.from_numpy(rows[row])),
                )
        with torch.no_grad():
            logits = scaled(torch.from_numpy(images).double())
        return float(nn.functional.cross_entropy(logits, torch.from_numpy(labels)))

    slopes = [abs(loss(row, 1 + 1e-5) - loss(row, 1 - 1e-5)) / 2e-5 for row in range(3)]
    assert max(slopes) > 1e-2
    assert np.allclose(found, slopes, rtol=1e-3, atol=1e-6)


def test_taylor_without_labels_for_its_loss(pair):
    with pytest.raises(BadInput, match="no samples for 'train'"):
        Taylor().scores(pair, groups_of(pair), dataclasses.replace(context(pair), data=Data({})))


def test_optin_finds_the_channel_that_does_nothing():
    """A channel whose readers ignore it changes no later layer and no answer: its score is 0, and only its."""
    module = tiny()
    with torch.no_grad():
        module.project.conv.weight[:, 7] = 0
    net = net_of(module)
    found = dict(zip([group.name for group in groups_of(net)], scores(Optin(images=4, block=1), net)))
    inner = found["expand.conv"]
    assert inner[7] < 1e-12 * inner.max() and (np.delete(inner, 7) > 1e-9 * inner.max()).all()
    assert all(np.isfinite(each).all() and (each >= 0).all() for each in found.values())


def test_optin_by_hand_for_the_last_layer(pair):
    """One group: no later one, so its own distortion counts, and γ brings the divergence to a tenth of it."""
    importance = Optin(images=1, tokens=5, block=1)
    ctx = context(pair, classes=2)
    found = importance.scores(pair, groups_of(pair), ctx)[0]
    images = torch.from_numpy(next(ctx.data.role("calibrate").subset(1, 0).batches(ctx.input, 1))[0])
    places = np.random.default_rng(0).permutation(256)[:5]
    gammas: list[float] = []
    for row in np.argsort(scores(L2(), pair)[0], kind="stable"):
        masked = pair.clone().module
        with torch.no_grad():
            for name in ("a.weight", "a.bias", "norm.weight", "norm.bias"):
                masked.get_parameter(name)[row] = 0
            grams = []
            for module in (pair.module, masked):
                pixels = module.a(images)[0].flatten(1).T[places].double()
                unit = pixels / pixels.norm(dim=1, keepdim=True)
                grams.append(unit @ unit.T)
            p, q = (torch.softmax(module(images).double() / 4, 1) for module in (pair.module, masked))
        distortion = float((grams[0] - grams[1]).square().sum())
        divergence = 16 * float((p * (p / q).log()).sum())
        if distortion > divergence > 0:
            gammas.append(10.0 ** int(np.log10(distortion / divergence) - 1))
        gamma = gammas[-1] if distortion > divergence > 0 else np.mean(gammas) if gammas else 1.0
        assert found[row] == pytest.approx(distortion + gamma * divergence, rel=1e-2)  # float32 logits


def test_random_is_the_same_again_and_not_for_another_seed(pair):
    assert np.array_equal(scores(Random(), pair)[0], scores(Random(), pair)[0])
    assert not np.array_equal(scores(Random(), pair)[0], scores(Random(seed=1), pair)[0])


@pytest.mark.parametrize("name", sorted(IMPORTANCES))
def test_every_importance_prunes(name):
    net = net_of(tiny())
    before = {key: value.clone() for key, value in net.module.state_dict().items()}
    ctx = context(net)
    pruned = Prune(budget={"macs": 0.7}, importance=IMPORTANCES[name](), allocation="global")(net, ctx)
    assert ctx.cost(pruned)["macs"] <= 0.7 * ctx.cost(net)["macs"]
    assert all(torch.equal(value, before[key]) for key, value in net.module.state_dict().items())
    assert all(
        len(each) == g.size and each.dtype == np.float64
        for each, g in zip(scores(IMPORTANCES[name](), net), groups_of(net))
    )


def test_an_importance_by_name_or_as_a_table():
    assert parse(Prune, {"budget": {"macs": 0.5}, "importance": "l1"}, "r").importance == L1()
    table = {"budget": {"macs": 0.5}, "importance": {"name": "taylor", "batches": 2}}
    assert parse(Prune, table, "r").importance == Taylor(batches=2)
    with pytest.raises(BadInput, match=r"importance.*unknown name 'l3'; did you mean"):
        parse(Prune, {"budget": {"macs": 0.5}, "importance": "l3"}, "r")


# Allocation


def problem(module: nn.Module, limits: dict[str, float], steps: int = 2, seed: int = 0, size: int = 16) -> Allocation:
    found = prunable(module, (3, size, size))
    model = CostModel(found, found.groups)
    generator = np.random.default_rng(seed)
    draws = [generator.random(group.size) * generator.random() for group in found.groups]
    sizes = np.array([group.size for group in found.groups])
    floors = np.minimum(steps, sizes)
    full = model.costs(sizes)
    absolute = {name: share * full[name] for name, share in limits.items()}
    return Allocation(model, draws, np.full(len(sizes), steps), floors, absolute)


BUDGETS = [{"macs": 0.6}, {"params": 0.5}, {"cio": 0.8}, {"size_bytes": 0.6}, {"peak_bytes": 0.8},
           {"macs": 0.7, "params": 0.5, "peak_bytes": 0.9}]  # fmt: skip


@pytest.mark.parametrize("allocation", sorted(ALLOCATIONS))
@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: "+".join(budget))
@pytest.mark.parametrize("make", [lambda: Tiny(4), lambda: Chunk(), lambda: Gated()], ids=["tiny", "chunk", "se"])
def test_an_allocation_meets_every_budget_in_whole_blocks(make, budget, allocation):
    asked = problem(make(), budget)
    if not asked.met(asked.floors):
        pytest.skip("out of this network's reach")
    kept = given_back(asked, ALLOCATIONS[allocation](asked))
    assert asked.met(kept)
    assert (kept >= asked.floors).all() and ((kept % asked.steps == 0) | (kept == asked.sizes)).all()
    for group in range(len(kept)):
        more = kept.copy()
        more[group] = min(asked.sizes[group], kept[group] + asked.steps[group])
        assert more[group] == kept[group] or not asked.met(more), "one block more would fit"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
def test_greedy_loses_no_more_importance_than_uniform(share, seed):
    asked = problem(Tiny(4), {"macs": share}, seed=seed)
    lost = {name: asked.lost(given_back(asked, allocate(asked))) for name, allocate in ALLOCATIONS.items()}
    assert lost["greedy"] <= lost["uniform"]


def test_greedy_takes_what_is_cheapest_for_what_it_saves():
    """Two groups: the same importance a block, one on four times the pixels."""
    module = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), nn.AvgPool2d(2), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
    )
    asked = problem(module, {"macs": 0.9})
    names = [group.name for group in prunable(module, SHAPE).groups]
    worth = {"0": 1.0, "1": 1000.0, "3": 1.0}
    asked = dataclasses.replace(asked, scores=[np.full(s, worth[n]) for n, s in zip(names, asked.sizes)])
    kept = dict(zip(names, ALLOCATIONS["greedy"](asked)))
    assert kept["0"] < 8 and kept["3"] == 8
    worth["0"] = 100.0
    asked = dataclasses.replace(asked, scores=[np.full(s, worth[n]) for n, s in zip(names, asked.sizes)])
    kept = dict(zip(names, ALLOCATIONS["greedy"](asked)))
    assert kept["3"] < 8, "what matters a hundred times as much stays"


def test_global_takes_the_least_important_wherever_it_is():
    asked = problem(Tiny(4), {"macs": 0.7}, steps=1)
    kept = ALLOCATIONS["global"](asked)
    gone = [np.sort(each)[: len(each) - k] for each, k in zip(asked.scores, kept)]
    stay = [np.sort(each)[len(each) - k :] for each, k in zip(asked.scores, kept)]
    worst_left = min(each.min() for each, k, floor in zip(stay, kept, asked.floors) if k > floor)
    assert max(each.max() for each in gone if len(each)) <= worst_left


# The pass


@pytest.mark.parametrize("allocation", sorted(ALLOCATIONS))
def test_several_budgets_hold_as_measured(allocation):
    net = net_of(tiny())
    ctx = context(net)
    budget = {"macs": 0.7, "params": 0.75, "cio": 0.8, "peak_bytes": 0.9, "size_bytes": 0.8}
    pruned = Prune(budget=budget, allocation=allocation, round_to=4)(net, ctx)  # type: ignore[arg-type]
    before, after = ctx.cost(net), ctx.cost(pruned)
    assert all(after[name] <= share * before[name] for name, share in budget.items())
    widths = [layer.out_channels for layer in pruned.module.modules() if isinstance(layer, nn.Conv2d)]
    assert all(width % 4 == 0 for width in widths)


def test_floors_by_share_and_by_glob():
    net = net_of(tiny())
    ctx = context(net)
    pruned = Prune(budget={"macs": 0.7}, floor={"stem*": 1.0, "expand.*": 0.5}, allocation="greedy")(net, ctx).module
    assert pruned.stem.conv.out_channels == 16 and 24 <= pruned.expand.conv.out_channels < 48
    pruned = Prune(budget={"macs": 0.75}, floor=0.5, allocation="greedy")(net, ctx).module
    assert pruned.expand.conv.out_channels >= 24 and pruned.head.conv.out_channels >= 16
    with pytest.raises(BadInput, match=r"floor = 'steem\*' matches no layer"):
        Prune(budget={"macs": 0.7}, floor={"steem*": 0.5})(net, ctx)


def test_a_latency_budget_asks_the_model_of_latency():
    net = net_of(tiny())
    ctx = context(net)
    with pytest.raises(BadInput, match="no latency is measured here"):
        Prune(budget={"latency": 0.8})(net, ctx)
    full = layer_channels(net.module)
    costs = {name: LayerCost((0.1, 0.0, 0.0, 0.001 * (n + 1)), 1.0, 1) for n, name in enumerate(full)}
    model = LatencyModel(costs, 2.0, full)
    for allocation in ("uniform", "global", "greedy"):
        step = Prune(budget={"latency": 0.8}, allocation=allocation, round_to=4)
        pruned = step(net, dataclasses.replace(ctx, latency=lambda _net: model))
        assert 0.7 < model.ratio(pruned.module) <= 0.8, "as the model itself predicts the pruned module"


def test_a_budget_out_of_reach_says_how_far_it_goes_and_what_holds_it_back():
    net = net_of(tiny())
    with pytest.raises(
        BadInput, match=r"out of reach.*macs 0\.\d+ \(asked 0.05\).*What is left of macs: .*stem.conv \d+%, excluded"
    ):
        Prune(budget={"macs": 0.05}, exclude=("stem.conv",))(net, context(net))
    with pytest.raises(
        BadInput, match=r"What is left of params: .*classifier.linear \d+%, it is an output of the network"
    ):
        many = net_of(tiny(100))
        Prune(budget={"params": 0.01, "macs": 0.9})(many, context(many))
    with pytest.raises(BadInput, match=r"expand.conv \d+%, at its floor"):
        Prune(budget={"macs": 0.3}, floor=0.6)(net, context(net))


class Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        return self.b(x if x.sum() > 0 else -x)


def test_control_flow_by_values_is_named():
    net = net_of(Decides())
    with pytest.raises(BadInput, match="decides by the values of a tensor"):
        Prune(budget={"macs": 0.5})(net, context(net))


def test_nothing_to_prune():
    net = net_of(nn.Sequential(nn.Conv2d(3, 4, 1)))
    with pytest.raises(BadInput, match="no channels of this network can be removed"):
        Prune(budget={"macs": 0.5})(net, context(net))
    net = net_of(tiny())
    with pytest.raises(BadInput, match=r"can be removed in blocks of 8, without \*"):
        Prune(budget={"macs": 0.5}, exclude=("*",))(net, context(net))


def test_a_whole_layer_is_never_removed():
    """Even where its importance is 0; and the edit itself refuses."""
    module = tiny()
    with torch.no_grad():
        for layer in (module.expand, module.depthwise, module.project):
            layer.conv.weight.zero_()
    net = net_of(module)
    pruned = Prune(budget={"macs": 0.6}, allocation="global", round_to=1)(net, context(net)).module
    assert pruned.expand.conv.out_channels >= 1
    group = groups_of(net)[0]
    with pytest.raises(BadInput, match=r"cannot keep \(\)"):
        net.edited(*edits(module, [group], [range(group.size)]))


def test_scores_that_are_not_finite():
    module = tiny()
    with torch.no_grad():
        module.expand.conv.weight[0] = torch.nan
    with pytest.raises(BadInput, match=r"l2 of \S+ is not finite"):
        Prune(budget={"macs": 0.6})(net_of(module), context(net_of(module)))


def test_widths_of_tied_rows_reach_the_multiple():
    """A row of three channels (group norm) comes in blocks of eight rows where counts are multiples of 8."""

    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, 72, 1), nn.GroupNorm(24, 72), nn.Conv2d(72, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.norm(self.a(x)).relu()).mean((2, 3))

    net = net_of(calibrate(Grouped(), SHAPE))
    pruned = Prune(budget={"macs": 0.7})(net, context(net))
    assert pruned.module.a.out_channels == 48
