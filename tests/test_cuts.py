"""Legal cuts of modules and graphs, files cut in two, and what `edgekit inspect --cuts` says."""

import functools
import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

from edgekit.cli import main
from edgekit.cut_table import bits_per_second, cut_table
from edgekit.cuts import Cuts, net_cuts, onnx_cuts, separators
from edgekit.data import Input, Output
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.graph import trace
from edgekit.net import build, parse_spec
from edgekit.onnx_split import LATENT, grid, halves, has_latent, latent_of, with_latent
from edgekit.rewrites.fold import fold_model
from edgekit.targets import target
from tests.nets import tiny
from tests.onnx_models import array, graph, run

RESNET = "cifar_resnet_20"


@functools.cache
def folded() -> onnx.ModelProto:
    exported = export(tiny(), Input(size=16), Output(), target("onnxruntime")).model
    return fold_model(exported)


@functools.cache
def resnet_cuts() -> Cuts:
    return net_cuts(trace(build(parse_spec(RESNET)), (3, 32, 32)))


def test_separators_of_a_diamond():
    steps = [("a", "b"), ("b", "c"), ("b", "d"), ("cd", "e"), ("e", "f")]
    assert separators(steps, "a", ["f"]) == [(0, "b"), (3, "e"), (4, "f")]


def test_what_does_not_depend_on_the_input_separates_nothing():
    steps = [("k", "l"), ("a", "b"), ("bl", "c")]
    assert separators(steps, "a", ["c"]) == [(1, "b"), (2, "c")]


def test_resnet_can_be_cut_between_its_blocks_only():
    cuts = resnet_cuts()
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1)]
    assert {cut.layer for cut in cuts.listed} == {"relu", "layer1", "layer2", "layer3", *blocks, "pool"}
    assert cuts.at("layer2").shape == (32, 16, 16) and cuts.at("layer2.2.relu2") == cuts.at("layer2")
    assert all(cut.macs_left + cut.macs_right == 40_551_040 for cut in cuts.listed)
    # The stem's 3×3 convolution of 3 to 16 channels, and two of 16 to 16, at 32×32.
    assert cuts.at("layer1.0").macs_left == (27 * 16 + 2 * 9 * 16 * 16) * 32 * 32


@pytest.mark.parametrize("layer", ["layer2.1.conv1", "layer2.1.relu1"])
def test_a_cut_inside_a_residual_block_names_those_beside_it(layer):
    cuts = resnet_cuts()
    with pytest.raises(BadInput, match=r"residual or dense block.*cut at 'layer2\.0' or 'layer2\.1'"):
        cuts.at(layer)


def test_an_unknown_cut_names_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'layer2'"):
        resnet_cuts().at("layer_2")


def test_a_file_can_be_cut_where_its_module_can():
    ours, theirs = net_cuts(trace(tiny(), (3, 16, 16))), onnx_cuts(folded())
    for cut in ours.listed:
        same = theirs.at(cut.layer)
        assert (same.shape, same.macs_left, same.macs_right) == (cut.shape, cut.macs_left, cut.macs_right)


def test_the_last_node_of_a_module_stands_for_it():
    cuts = onnx_cuts(folded())
    assert cuts.at("stem").tensor == cuts.at("stem.act").tensor


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_head_and_tail_are_the_whole_exactly(levels):
    model = folded()
    cut = onnx_cuts(model).at("stem")
    values = np.random.default_rng(0).uniform(0, 2, (16, 50))
    whole = with_latent(model, cut.tensor, *grid(values, levels), levels)
    head, tail = halves(whole)
    for made in (whole, head, tail):
        onnx.checker.check_model(made, full_check=True)
    x = array(5, 3, 16, 16)
    symbols = run(head, x)
    assert symbols.dtype == np.uint8 and symbols.shape == (5, *cut.shape) and symbols.max() < levels
    assert len(np.unique(symbols)) > 1
    assert np.array_equal(run(whole, x), run(tail, symbols))
    assert {value.name for value in (*head.graph.output, *tail.graph.input)} == {LATENT}


def test_symbols_are_rounded_and_clipped_by_the_formula():
    model = graph([helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])], (2, 1, 4), {})
    low, step = np.array([0, 1], np.float32), np.array([0.5, 0.25], np.float32)
    head, tail = halves(with_latent(model, "a", low, step, 4))
    x = np.array([[[[-1, 0.3, 0.7, 9]], [[0, 1.1, 1.4, 9]]]], np.float32)
    symbols = np.clip(np.round((np.maximum(x, 0) - low[:, None, None]) / step[:, None, None]), 0, 3)
    assert np.array_equal(run(head, x), symbols)
    session = engine("onnxruntime").load(serialise(tail)).raw
    found = session.run(None, {LATENT: symbols.astype(np.uint8)})[0]
    assert np.allclose(found, -(symbols * step[:, None, None] + low[:, None, None]))


def test_more_levels_are_closer():
    values = np.random.default_rng(0).standard_normal((3, 4000)) * [[1], [10], [0.1]]

    def error(levels):
        low, step = (part[:, None] for part in grid(values, levels))
        found = np.clip(np.round((values - low) / step), 0, levels - 1) * step + low
        return np.square(found - values).mean(axis=1)

    assert (error(256) < error(16)).all() and (error(16) < error(4)).all()
    # Few levels within the whole range would be coarser: the ends were drawn in.
    assert (grid(values, 4)[1] < np.ptp(values, axis=1) / 3 * 0.9).all()


def test_a_constant_channel_has_one_symbol():
    low, step = grid(np.full((1, 9), 2.5), 256)
    assert low == 2.5 and step == 1


def test_a_file_without_a_latent_is_not_cut():
    model = folded()
    assert not has_latent(model)
    with pytest.raises(BadInput, match=r"one cast to uint8.*this one has none"):
        latent_of(model)


def test_a_latent_that_something_goes_around_is_refused():
    nodes = [
        helper.make_node("Cast", ["x"], ["latent"], to=onnx.TensorProto.UINT8),
        helper.make_node("Cast", ["latent"], ["b"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Add", ["b", "x"], ["y"]),
    ]
    with pytest.raises(BadInput, match="'x' is read behind the latent"):
        halves(graph(nodes, (2, 4, 4), {}))


def test_inspect_lists_cuts_and_predicts_times():
    found = cut_table(RESNET, bandwidth="1Mbit", server_speed=10)
    first, last = found["cuts"][0], found["cuts"][-1]
    assert first["layer"] == "(input)" and first["int8_bytes"] == 3 * 32 * 32 and first["macs_left"] == 0
    for row in found["cuts"]:
        share = row["macs_left"] / (first["macs_right"])
        compute_ms = found["full_ms"] * (share + (1 - share) / 10)
        assert row["predicted_ms"] == pytest.approx(compute_ms + 8 * row["int8_bytes"] / 1e6 * 1e3)
    assert last["layer"] == "pool" and last["float_bytes"] == 256


def test_inspect_cuts_of_a_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(serialise(export(tiny(), Input(size=16), Output(), target("onnxruntime")).model))
    done = CliRunner().invoke(main, ["inspect", str(path), "--cuts", "--json"])
    assert "predicted_ms" not in json.loads(done.output)["cuts"][0]
    assert [row["layer"] for row in json.loads(done.output)["cuts"]][:2] == ["(input)", "stem"]


@pytest.mark.parametrize("text, rate", [("10Mbit", 1e7), ("250 kbit/s", 2.5e5), ("1.5gbit", 1.5e9), ("9bit", 9)])
def test_bandwidths(text, rate):
    assert bits_per_second(text) == rate


@pytest.mark.parametrize("text", ["10", "fast", "10MB", "0Mbit", "-1Mbit"])
def test_what_is_no_bandwidth(text):
    with pytest.raises(BadInput, match="10Mbit"):
        bits_per_second(text)
