"""The low-rank pass among others: after pruning, before training, export and int8, in one recipe."""

import types

import numpy as np
import pytest
import torch

import edgekit
from edgekit.data import Output
from edgekit.edits import layer_channels
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.factorise import FORMS, Factorise
from edgekit.latency.model import LatencyModel, LayerCost
from edgekit.net import Net, Source, build, edits_from_json, edits_to_json
from edgekit.parity import sqnr_db
from edgekit.passes import LowRank, Prune, Reconstruct
from edgekit.passes.reconstruct.least_squares import LeastSquares
from edgekit.passes.reconstruct.udfc import UDFC
from edgekit.targets import target
from tests.conftest import IO
from tests.nets import calibrate
from tests.test_prune import context

SHAPE = (3, 16, 16)
MODEL = "tests.nets:tiny"
SOURCES = [
    Source("zoo", "cifar_resnet_20", {"classes": 4}),
    Source("zoo", "mobilenet_v2", {"width": 0.35, "classes": 4, "small_input": True}),
]
RECIPE = f"""{IO}
[[pass]]
name = "prune"
budget = {{ macs = 0.9 }}

[[pass]]
name = "lowrank"
budget = {{ latency = 0.75 }}

[[pass]]
name = "finetune"
epochs = 1
batch = 32

[[rewrite]]
name = "fold"

[[rewrite]]
name = "int8"
images = 8
"""


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_after_pruning_and_before_export(source):
    torch.manual_seed(0)
    net = Net(source, (), calibrate(build(source), SHAPE))
    ctx = context(net)
    pruned = Prune(budget={"macs": 0.8})(net, ctx)
    result = LowRank(budget={"macs": 0.6})(pruned, ctx)
    batch = np.random.default_rng(0).standard_normal((2, *SHAPE), np.float32)
    module = build(source, edits_from_json(edits_to_json(result.edits), "test")).eval()
    module.load_state_dict(result.module.state_dict())
    with torch.no_grad():
        expected, rebuilt = (each(torch.from_numpy(batch)).numpy() for each in (result.module, module))
    assert np.array_equal(expected, rebuilt)
    model = export(result.module, ctx.input, Output(), target("onnxruntime")).model
    assert sqnr_db(expected, engine("onnxruntime").load(serialise(model)).run(batch)) >= 60


def test_reconstruction_fits_the_last_layer_of_every_chain():
    """To the outputs of the layer in whose place it stands; other methods do not apply."""
    torch.manual_seed(0)
    net = Net(SOURCES[0], (), calibrate(build(SOURCES[0]), SHAPE))
    ctx = context(net)
    result = LowRank(budget={"macs": 0.6})(net, ctx)
    fitted = Reconstruct(LeastSquares(images=24))(result, ctx)
    batch = torch.from_numpy(next(ctx.data.role("calibrate").batches(ctx.input, 24))[0])
    with torch.no_grad():
        wanted, before, after = (each.module.eval()(batch) for each in (net, result, fitted))
    assert (after - wanted).square().sum() < 0.1 * (before - wanted).square().sum()
    state, fresh = result.module.state_dict(), fitted.module.state_dict()
    changed = {name for name in state if not torch.equal(state[name], fresh[name])}
    chains = {edit.layer: len(FORMS[edit.form]) for edit in result.edits if isinstance(edit, Factorise)}
    weights = {f"{layer}.{number}.weight" for layer, count in chains.items() for number in range(count)}
    assert changed & weights == {f"{layer}.{count - 1}.weight" for layer, count in chains.items()}
    with pytest.raises(BadInput, match='only method = "least_squares"'):
        Reconstruct(UDFC())(result, ctx)


def test_chains_are_pruned_like_any_layer():
    torch.manual_seed(0)
    net = Net(SOURCES[0], (), calibrate(build(SOURCES[0]), SHAPE))
    ctx = context(net)
    result = Prune(budget={"macs": 0.5})(LowRank(budget={"macs": 0.7})(net, ctx), ctx)
    assert ctx.cost(result)["macs"] <= 0.5 * ctx.cost(net)["macs"]
    ranks = [layer for layer in layer_channels(result.module) if layer.endswith("conv1.0")]
    assert any(edit.layer in ranks for edit in result.edits if edit.__class__.__name__ == "KeepChannels")


def test_one_recipe_prunes_factorises_trains_and_quantises(data, tmp_path, monkeypatch):
    """By latency: predicted is a share of the uncompressed network's, though chains have a table of their own."""

    def table(net: Net, *_args: object) -> types.SimpleNamespace:
        channels = layer_channels(net.module)
        costs = {name: LayerCost((0.0, 0.0, 0.0, 1e-3), 1.0, 1) for name in channels}
        return types.SimpleNamespace(model=LatencyModel(costs, 0.1, channels))

    monkeypatch.setattr("edgekit.job.layer_table", table)
    (tmp_path / "r.toml").write_text(RECIPE)
    made = edgekit.compress(MODEL, str(tmp_path / "r.toml"), data, tmp_path / "out", runs=8)
    edits = [edit["edit"] for edit in made.manifest["edits"]]
    assert edits.count("factorise") == len(edits) - edits.index("factorise") > 0 and "keep_channels" in edits
    predicted = {row["stage"]: row["latency_predicted"] for row in made.manifest["steps"] if "latency_predicted" in row}
    assert predicted["base"] == 1.0 and 0.6 < predicted["lowrank"] == predicted["finetune"] <= 0.75 < predicted["prune"]
    assert made.manifest["steps"][-1]["precision"] == "int8"
    assert any(name.endswith("conv.1") for name in layer_channels(edgekit.load(tmp_path / "out", trust=True)))
