"""Latency tables: the fit, the cache and the bookkeeping on made-up times; no timing is asserted."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch

from edgekit import latency
from edgekit.data import Input
from edgekit.edits import KeepChannels, layer_channels
from edgekit.engines import onnxruntime
from edgekit.engines.onnxruntime import Operators
from edgekit.errors import BadInput
from edgekit.export import serialise
from edgekit.latency import build_table, layer_table, table_key
from edgekit.latency.measure import Timings, layer_times, time_variants
from edgekit.latency.model import fit
from edgekit.latency.table import load
from edgekit.latency.variants import Variant, family
from edgekit.net import Net, Source, build
from edgekit.profile.layers import owners
from tests.nets import calibrate

SOURCE = Source("factory", "tests.nets:Tiny", {"classes": 4})
INPUT = Input(size=16)


@pytest.fixture(scope="module")
def net() -> Net:
    from edgekit.net import _factory_hash

    torch.manual_seed(0)
    source = dataclasses.replace(SOURCE, sha256=_factory_hash(SOURCE.name))
    return Net(source, (), calibrate(build(source, trust=True), (3, 16, 16)))


@pytest.fixture(scope="module")
def made(net):
    return family(net.module, INPUT, 8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))


def true_ms(c_in: int, c_out: int) -> float:
    return 0.5 + 0.01 * c_in + 0.02 * c_out + 0.003 * c_in * c_out


def fake(noted, whole, _threads, rounds, _seed, _track) -> Timings:
    """A machine on which every layer takes `true_ms` and 2 ms are spent between them."""

    def layers(variant: Variant) -> dict[str, float]:
        return {name: true_ms(*sides) for name, sides in variant.channels.items()}

    return Timings(
        layers=[layers(v) for v in noted],
        sums=[sum(layers(v).values()) for v in noted],
        whole=[[2 + sum(layers(v).values())] * rounds for v in whole],
    )


@pytest.fixture(scope="module")
def table(net):
    return build_table(net, INPUT, timer=fake)


# The fit


def grid(law, sides=(8, 16, 24, 40, 64)):
    return [(x, y, law(x, y)) for x in sides for y in sides]


def test_a_bilinear_law_is_found_again_at_any_width():
    cost = fit({"layer": grid(true_ms)})["layer"]
    for x, y in ((32, 48), (4, 12), (128, 128)):
        assert cost(x, y) == pytest.approx(true_ms(x, y), rel=1e-6)


@pytest.mark.parametrize("block", [8, 16])
def test_the_block_in_which_the_kernel_works_is_found(block):
    def law(x, y):
        return true_ms(-(-x // block) * block, -(-y // block) * block)

    cost = fit({"layer": [(x, y, law(x, y)) for x in range(4, 68, 4) for y in (4, 12, 28, 64)]})["layer"]
    assert cost.block == block
    assert cost(20, 36) == pytest.approx(law(20, 36), rel=1e-6)


def test_no_coefficient_is_negative_where_times_fall_with_width():
    cost = fit({"layer": [(8, 8, 3.0), (16, 16, 2.0), (32, 32, 1.0)]})["layer"]
    assert min(cost.coefficients) >= 0
    assert 1.0 <= cost(64, 64) <= 3.0


def test_unaligned_inputs_cost_what_they_cost_in_that_layer_or_in_the_others():
    known = [*grid(true_ms), (22, 16, 3 * true_ms(22, 16)), (30, 40, 3 * true_ms(30, 40))]
    layers = fit({"known": known, "unknown": grid(true_ms), "picture": [(3, y, true_ms(3, y)) for y in (8, 16, 32)]})
    assert layers["known"](26, 8) == pytest.approx(3 * true_ms(26, 8), rel=1e-6)
    assert layers["unknown"](26, 8) == pytest.approx(3 * true_ms(26, 8), rel=1e-6)
    assert layers["picture"](3, 24) == pytest.approx(true_ms(3, 24), rel=1e-6)


# The table


def test_the_network_is_the_sum_of_its_layers_and_a_constant(table, net):
    channels = layer_channels(net.module)
    expected = 2 + sum(true_ms(*sides) for sides in channels.values())
    assert table.model.latency_ms(net.module) == pytest.approx(expected, rel=1e-6)
    assert table.constant_ms == pytest.approx(2)
    assert table.model.ratio(net.module) == pytest.approx(1)
    assert table.model.cost("head.conv", 8, 16) == pytest.approx(true_ms(8, 16), rel=1e-6)
    assert table.error["worst"] < 1e-6
    assert table.error["n"] == 1 + len(table.held) >= 6
    assert table.steady


def test_a_pruned_network_is_predicted_from_the_channels_it_has_left(table, net):
    keep = tuple(range(16))
    edits = [KeepChannels(f"head.{part}", "out", keep) for part in ("conv", "norm")]
    pruned = net.edited(*edits, KeepChannels("classifier.linear", "in", keep))
    gone = true_ms(16, 32) - true_ms(16, 16) + true_ms(32, 4) - true_ms(16, 4)
    assert table.model.latency_ms(pruned.module) == pytest.approx(table.model.full_ms - gone, rel=1e-6)


def test_the_error_is_that_of_the_ratio_on_networks_that_were_not_fitted(net):
    def uneven(*args) -> Timings:
        found = fake(*args)
        found.whole[2] = [1.25 * ms for ms in found.whole[2]]
        return found

    error = build_table(net, INPUT, timer=uneven).error
    assert error["worst"] == pytest.approx(0.2)
    assert error["median"] < 1e-6


def test_a_common_slowdown_of_whole_networks_is_no_error(net):
    def slow(*args) -> Timings:
        found = fake(*args)
        half = [[ms / 2 for ms in series] for series in found.whole]
        return dataclasses.replace(found, whole=[half[0], found.whole[1], *half[2:]])

    assert build_table(net, INPUT, timer=slow).error["worst"] < 1e-6


def test_a_busy_machine_is_told(net):
    def busy(*args) -> Timings:
        found = fake(*args)
        found.whole[0][::2] = [3 * ms for ms in found.whole[0][::2]]
        return found

    assert "busy" in str(build_table(net, INPUT, timer=busy))


def test_another_networks_layers_are_refused(table):
    with pytest.raises(BadInput, match=r"head\.convs.*did you mean 'head\.conv'"):
        table.model.cost("head.convs", 8, 8)
    with pytest.raises(BadInput, match="another network"):
        table.model.predict({"heads.conv": (8, 8)})


def test_a_layer_that_is_gone_takes_no_time(table):
    model = table.model
    left = {name: pair for name, pair in model.full.items() if name != "head.conv"}
    saved = model.cost("head.conv", *model.full["head.conv"])
    assert model.predict(left) == pytest.approx(model.full_ms - saved, rel=1e-9)


# The cache


def test_a_table_is_measured_once(net):
    calls = []

    def counting(*args) -> Timings:
        calls.append(1)
        return fake(*args)

    first, second = (layer_table(net, INPUT, timer=counting) for _ in range(2))
    assert len(calls) == 1
    assert first == second
    layer_table(net, INPUT, threads=2, timer=counting)
    assert len(calls) == 2
    assert not [path for path in first.key.path.parent.iterdir() if path.suffix != ".json"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: len(text) // 2], "no readable JSON"),
        (lambda text: text.replace("latency-table/1", "latency-table/2"), "newer edgekit"),
        (lambda text: text.replace("latency-table/1", "profile/1"), "schema"),
        (lambda text: text.replace('"constant_ms": 2', '"constant_ms": "two'), "no readable JSON"),
        (lambda text: json.dumps({**json.loads(text), "layers": {}}), "layer without a measured time"),
        (lambda text: json.dumps({**json.loads(text), "spread": -1}), "finite"),
        (lambda text: json.dumps({**json.loads(text), "spread": "wide"}), "spread"),
        (lambda text: json.dumps({**json.loads(text), "more": 1}), "more"),
        (lambda text: text + " " * 2**25, "larger than"),
    ],
)
def test_a_damaged_or_newer_file_is_refused_and_says_what_to_delete(net, table, spoil, message):
    table.save()
    path = table.key.path
    path.write_text(spoil(path.read_text()))
    with pytest.raises(BadInput, match=message) as caught:
        load(table_key(net, INPUT, 1))
    assert f"Delete {path}" in str(caught.value)


def test_a_file_from_another_machine_is_refused(table):
    table.save()
    text = table.key.path.read_text()
    other = dataclasses.replace(table.key, machine={**table.key.machine, "cpu": "another"})
    other.path.write_text(text)
    with pytest.raises(BadInput, match="another machine") as caught:
        load(other)
    assert str(other.path) in str(caught.value)
    assert load(dataclasses.replace(other, threads=7)) is None


def test_the_key_is_the_structure_and_not_the_weights(net):
    trained = dataclasses.replace(net, source=dataclasses.replace(net.source, weights={"file": "a", "sha256": "b"}))
    assert table_key(trained, INPUT, 1) == table_key(net, INPUT, 1)
    edited = net.edited(KeepChannels("head.conv", "out", (0,)))
    keys = {table_key(net, INPUT, 1).network, table_key(edited, INPUT, 1).network}
    assert len(keys | {table_key(net, Input(size=32), 1).network}) == 3


# Narrower networks and whose time is whose


def test_a_narrower_file_computes_what_its_channels_say(made, net):
    shares = [0.5] * len(made.groups)
    narrow = made.at(shares)
    assert narrow.channels["depthwise.conv"] == (24, 24)
    assert narrow.channels["stem.conv"] == (3, 8)
    session = onnxruntime.load(serialise(narrow.model), 1)
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16)).astype(np.float32)
    kept = made.at([1.0] * len(made.groups))
    with torch.no_grad():
        expected = net.module.eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(onnxruntime.load(serialise(kept.model), 1).run(x), expected, rtol=1e-3, atol=1e-4)
    assert session.run(x).shape == expected.shape
    sizes = {init.name: tuple(init.dims) for init in narrow.model.graph.initializer}
    assert sizes["depthwise.conv.weight"] == (24, 1, 3, 3)
    assert sizes["classifier.linear.weight"] == (4, 16)


def test_a_graph_that_a_cut_cannot_follow_is_exported_anew(made, monkeypatch):
    from edgekit.latency import variants

    def refuse(*_args):
        raise variants._Uncuttable("here")

    cut = made.at([0.5] * len(made.groups))
    monkeypatch.setattr(variants, "_cut", refuse)
    exported = made.at([0.5] * len(made.groups))
    assert exported.channels == cut.channels
    wanted = {init.name: tuple(init.dims) for init in exported.model.graph.initializer if init.name.endswith("weight")}
    assert wanted == {init.name: tuple(init.dims) for init in cut.model.graph.initializer if init.name in wanted}


def chain() -> Variant:
    """conv `a` -> batch norm -> clip `y`, a pooling, conv `b`, and a softmax at the end."""
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["x", "wa"], ["c"], name="a"),
        node("BatchNormalization", ["c", "s", "s", "s", "s"], ["n"], name="a.norm"),
        node("Clip", ["n", "lo", "hi"], ["y"], name="a.act"),
        node("MaxPool", ["y"], ["p"], name="pool"),
        node("Add", ["p", "y"], ["q"], name="add"),
        node("Conv", ["q", "wb"], ["z"], name="b"),
        node("Softmax", ["z"], ["out"], name="end"),
    ]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "chain", [value("x", 1, None)], [value("out", 1, None)])
    return Variant({"a": (3, 8), "b": (8, 8)}, onnx.helper.make_model(graph))


def test_a_fused_operator_belongs_to_its_convolution():
    known = owners(chain().model, ["a", "b"])
    assert [known.get(name) for name in ("a", "c", "y", "b", "z")] == ["a", "a", "a", "b", "b"]
    assert "q" not in known  # made from two values


def test_glue_goes_to_the_layer_whose_input_it_makes_and_the_fastest_round_counts():
    names = ["y_nchwc", "p_nchwc", "ReorderOutput", "fused b", "end"]
    kinds = ["Conv", "MaxPool", "ReorderOutput", "FusedConv", "Softmax"]
    ms = np.array([[0.1, 0.1, 0.1, 0.1, 0.1], [9.0, 2.0, 3.0, 4.0, 5.0], [1.0, 9.0, 9.0, 9.0, 9.0]])
    times = layer_times(Operators(names, kinds, ms), chain(), runs=2)  # the first round was the warm-up
    assert times == {"a": 1.0, "b": 2.0 + 3.0 + 4.0 + 5.0}


def test_an_account_that_names_no_layer_is_refused():
    with pytest.raises(BadInput, match="names no layer"):
        layer_times(Operators(["other"], ["Conv"], np.ones((2, 1))), chain(), runs=2)


def test_a_small_table_is_built_on_this_machine(net, made, monkeypatch):
    narrow = made.at([0.5] * len(made.groups))
    timings = time_variants([narrow], [narrow], 1, 3)
    assert timings.layers[0].keys() == narrow.channels.keys()
    assert all(ms >= 0 for ms in timings.layers[0].values())
    assert [len(series) for series in timings.whole] == [3]
    monkeypatch.setattr(latency, "SCATTERED", 2)
    monkeypatch.setattr(latency, "HELD_SCATTERED", 1)
    table = build_table(net, INPUT, rounds=3)
    assert table.layers.keys() == layer_channels(net.module).keys()
    assert len(table.layers["head.conv"]) == len(latency.SHARES) + 2
    table.save()
    assert load(table.key) == table
