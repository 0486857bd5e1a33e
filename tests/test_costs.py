"""The cost model: equal to what a trace of the pruned network counts, on every kind of tie."""

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.channels import Group, Ties
from edgekit.costs import CostModel
from edgekit.graph import Op, trace
from edgekit.net import Net, Source, build, parse_spec
from edgekit.removal import edits, prunable
from tests.nets import Tiny, TinySegment
from tests.test_channels import (
    Chunk,
    Concat,
    FixedSplit,
    Gated,
    HeldSplit,
    Normed,
    OptionA,
    Shared,
    Shuffle,
    Sliced,
    Swapped,
    Upsampling,
)

SMALL = [lambda: Tiny(4), lambda: TinySegment(3), Concat, Shared, Gated, Chunk, HeldSplit, Shuffle, Upsampling, OptionA,
         FixedSplit, Sliced, Swapped, Normed]  # fmt: skip
ZOO = ["mobilenet_v2?width=0.35&small_input=true&classes=10", "cifar_resnet_20", "hardnet_39ds"]
LARGE = ["mobilenet_v3_small", "vovnet_v2_19_slim", "csp_mobilenet_v2", "densenet_121", "skipblocknet_large",
         "resnet_50", "pp_lcnet", "squeezenet_1_1", "fc_hardnet_70"]  # fmt: skip


def pruned(module: nn.Module, groups: tuple[Group, ...], kept: np.ndarray) -> nn.Module:
    removed = [range(count, group.size) for group, count in zip(groups, kept)]
    return Net(Source("zoo", "test"), (), module).edited(*edits(module, groups, removed)).module


def check(module: nn.Module, shape: tuple[int, int, int], draws: int) -> tuple[Ties, CostModel]:
    found = prunable(module.eval(), shape)
    model = CostModel(found, found.groups)
    sizes = np.array([group.size for group in found.groups])
    assert model.costs(sizes) == trace(module, shape).cost()
    generator = np.random.default_rng(0)
    for _ in range(draws):
        kept = generator.integers(np.minimum(2, sizes), sizes + 1)
        costs = model.costs(kept)
        assert costs == trace(pruned(module, found.groups, kept), shape).cost()
        steps = generator.integers(0, kept)
        for name, metric in model.metrics.items():
            fewer = [metric.total(kept - np.eye(len(kept), dtype=int)[g] * steps[g]) for g in range(len(kept))]
            saved = metric.saved(kept, steps, limit=0.0)
            if name != "peak_bytes":
                assert saved.tolist() == [costs[name] - cost for cost in fewer]
    return found, model


@pytest.mark.parametrize("make", SMALL)
def test_the_model_is_the_trace(make):
    torch.manual_seed(0)
    check(make(), (3, 16, 16) if make is SMALL[1] else (3, 8, 8), draws=3)


@pytest.mark.parametrize("spec", ZOO)
def test_the_model_is_the_trace_of_zoo_networks(spec):
    check(build(parse_spec(spec)), (3, 32, 32), draws=1)


@pytest.mark.slow
@pytest.mark.parametrize("spec", LARGE)
def test_the_model_is_the_trace_of_large_zoo_networks(spec):
    check(build(parse_spec(spec)), (3, 64, 64), draws=1)


def test_a_cost_of_layers_can_be_added():
    """MACs of the pointwise convolutions again, by the hook: it sees operations and the shapes after pruning."""
    module = Tiny(4)
    found, model = check(module, (3, 16, 16), draws=0)
    asked = []

    def cost(op: Op, x: tuple[int, ...], y: tuple[int, ...]) -> float:
        asked.append(op.layer)
        return float(np.prod(y) * x[1]) if op.is_conv and op.args[1].shape[2] == 1 else 0.0

    model.add("latency", cost)
    kept = np.array([8, 16, 24])
    smaller = trace(pruned(module, found.groups, kept), (3, 16, 16))
    expected = sum(op.macs for op in smaller.ops if op.is_conv and op.args[1].shape[2] == 1)
    assert model.costs(kept)["latency"] == expected
    count = len(asked)
    assert model.costs(kept)["latency"] == expected and len(asked) == count, "each pair of shapes is asked for once"
    steps = np.array([4, 8, 8])
    saved = model.metrics["latency"].saved(kept, steps, 0.0)
    for group in range(3):
        fewer = kept - np.eye(3, dtype=int)[group] * steps
        assert saved[group] == expected - model.costs(fewer)["latency"]
    assert model.metrics["latency"].by_layer(kept)["stem.conv"] == 0


def test_what_a_layer_costs():
    module = Tiny(4)
    found, model = check(module, (3, 16, 16), draws=0)
    sizes = np.array([group.size for group in found.groups])
    ops = {op.layer: op for op in found.graph.ops if op.macs}
    by_layer = model.metrics["macs"].by_layer(sizes)
    assert by_layer == {layer: op.macs for layer, op in ops.items()}
    assert sum(model.metrics["params"].by_layer(sizes).values()) == found.graph.params
    assert max(model.metrics["peak_bytes"].by_layer(sizes).values()) == 4 * found.graph.peak_elements


def test_the_peak_counts_what_exceeds_the_limit():
    """Two places as high as each other: taking rows from one lowers no maximum, but it is on the way."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1), nn.Conv2d(3, 16, 1)
            self.d = nn.Conv2d(16, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.d(self.c(self.b(self.a(x))))

    found, model = check(Twice(), (3, 4, 4), draws=1)
    peak, sizes = model.metrics["peak_bytes"], np.array([16, 3, 16])
    assert [group.size for group in found.groups] == sizes.tolist()
    assert peak.total(sizes) == 4 * 16 * 19 == peak.total(sizes - [8, 0, 0])
    # before the limit of 15 rows' worth (float32, 4×4 pixels): 19 at two operations for each of the wide layers
    assert peak.saved(sizes, np.array([8, 0, 8]), 4 * 16 * 15.0).tolist() == [2 * 4 * 16 * 4, 0, 2 * 4 * 16 * 4]
