"""The traffic model: closed forms of groups, properties of the cache and the arena, and what the command says."""

import dataclasses
import itertools
import json
import re

import numpy as np
import onnx
import pytest

from edgekit.devices.boards import DEFAULT, Board, board, known_boards, parse_bytes
from edgekit.errors import BadInput
from edgekit.export import serialise
from edgekit.graph_onnx import onnx_cost
from edgekit.onnx_codes import Stored, write
from edgekit.onnx_file import read
from edgekit.traffic.cache import Cache, Layout, Span
from edgekit.traffic.fused import Group, Tensor, fused
from edgekit.traffic.model import NODE_BYTES, RUNTIME_BYTES, modelled, traffic_bytes
from edgekit.traffic.roofline import CLASSES, by_class, estimate, fit
from tests.onnx_models import array, one
from tests.test_cli import run

KIB, MIB = 2**10, 2**20
SMALL = RUNTIME_BYTES + 2 * NODE_BYTES + 64 * KIB


@pytest.fixture(scope="module")
def files(bundle):
    """The float and the int8 file of a bundle."""
    return bundle.path / "model.onnxruntime.fp32.onnx", bundle.path / "model.onnxruntime.int8.onnx"


@pytest.fixture(scope="module")
def groups(files) -> dict[str, list[Group]]:
    return {"fp32": fused(files[0]), "int8": fused(files[1])}


def saved(path, model: onnx.ModelProto):
    """A model with the shapes of its outputs, as a file."""
    path.write_bytes(serialise(onnx.shape_inference.infer_shapes(model)))
    return path


def chain(*names: str, kind: str = "Cast", size: int = MIB, planned: bool = True) -> list[Group]:
    """Groups of one input and one output each, of float tensors of `size` bytes."""
    tensors = [Tensor(name, (1, 1, 1, size // 4), 4, False, planned) for name in names]
    return [Group(t.name, kind, "", {}, (s,), (), (t,), 0) for s, t in itertools.pairwise(tensors)]


# The cache


def test_a_cache_keeps_what_was_used_last():
    cache, a, b, c = Cache(2 * KIB), *(Span("input", index * KIB, KIB) for index in range(3))
    assert cache.filled([a, b, a, c, a])["input"] == 3 * KIB
    assert cache.filled([b])["input"] == KIB, "c pushed out b, not a"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_larger_cache_never_has_more_traffic(groups, precision):
    sizes = [traffic_bytes(groups[precision], size * KIB) for size in (48, 96, 192, 512, 4096)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0 == sizes[-1], "all of it fits into 4 MiB"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_alive_at_once_lies_apart(groups, precision):
    layout, made = Layout(groups[precision]), {}
    for place, group in enumerate(groups[precision]):
        made |= {tensor.name: (tensor, place) for tensor in group.outputs}
        needed = [tensor for tensor in group.inputs if tensor.name in made]
        spans = sorted({(layout.places[t.name], t.size_bytes) for t in (*needed, *group.weights)})
        assert all(address + size <= after for (address, size), (after, _) in itertools.pairwise(spans))


# Closed forms


def test_tensors_larger_than_the_cache_are_read_and_written_whole():
    (first, second) = modelled(chain("a", "b", "c"), SMALL)
    assert first.filled["input"] == second.filled["input"] == MIB
    assert first.filled["output"] == second.filled["output"] == MIB
    assert not first.resident and not second.resident


def test_a_result_that_fits_is_resident_for_the_next_group():
    rows = modelled([*chain("a", "b", "c", size=16 * KIB), *chain("x", "y", size=MIB)], 128 * KIB)
    assert rows[1].resident and rows[1].filled["input"] == 0
    assert rows[0].filled["input"] == 16 * KIB, "the large tensors of the last inference pushed it out"


def test_a_kernel_that_may_writes_over_its_input():
    plain, over = (modelled(chain("a", "b", "c", kind=kind), SMALL)[1] for kind in ("Cast", "Relu"))
    assert plain.filled["output"] == MIB and over.filled["output"] == 0
    unknown = modelled(chain("a", "b", "c", kind="Relu", planned=False), SMALL)[1]
    assert unknown.filled["output"] == MIB, "not where the runtime does not know the shape beforehand"


def test_a_pointwise_convolution_reads_its_input_once_for_32_output_channels(tmp_path):
    model = one("Conv", array(96, 16, 1, 1), shape=(16, 128, 128), name="conv", kernel_shape=[1, 1])
    rows = modelled(fused(saved(tmp_path / "conv.onnx", model)), SMALL)
    conv = next(row for row in rows if row.group.is_conv)
    assert conv.group.layer == "conv" and conv.group.op_class == "pointwise"
    assert conv.group.macs == 96 * 16 * 128 * 128
    assert conv.filled["input"] == pytest.approx(3 * 16 * 128 * 128 * 4, rel=0.01)
    assert conv.filled["output"] == pytest.approx(96 * 128 * 128 * 4, rel=0.01)
    assert 96 * 16 * 4 <= conv.filled["weights"] <= 96 * 16 * 4 + 4 * KIB


def test_a_depthwise_convolution_reads_its_input_once(tmp_path):
    model = one("Conv", array(32, 1, 3, 3), shape=(32, 96, 96), kernel_shape=[3, 3], pads=[1] * 4, group=32)
    rows = modelled(fused(saved(tmp_path / "conv.onnx", model)), SMALL)
    conv = next(row for row in rows if row.group.is_conv)
    assert conv.group.op_class == "depthwise"
    assert conv.filled["input"] == pytest.approx(32 * 96 * 96 * 4, rel=0.01)


@pytest.mark.parametrize("filters, times", [(32, 1), (64, 32)])
def test_in_int8_groups_of_several_channels_read_their_input_one_by_one(filters, times):
    """With channels last a cache line holds the channels of all groups, and a group takes its own of every line."""
    x, y = (Tensor(name, (1, 64, 64, count), 1, False, True) for name, count in (("x", 32), ("y", filters)))
    weight = Tensor("w", (filters, 1, 3, 3), 1, False, False)
    attributes = {"group": 32, "channels_last": 1, "kernel_shape": [3, 3], "pads": [1] * 4}
    conv = Group("conv", "QLinearConv", "conv", attributes, (x,), (weight,), (y,), 0)
    (row,) = modelled([conv], SMALL)
    assert row.filled["input"] == pytest.approx(times * x.size_bytes, rel=0.05)


def test_weights_that_are_coded_count_as_what_they_decode_to(tmp_path):
    weight = np.round(array(8, 4, 3, 3))
    table, codes = np.unique(weight, return_inverse=True)
    plain = one("Conv", weight, shape=(4, 16, 16), kernel_shape=[3, 3])
    coded = onnx.ModelProto()
    coded.CopyFrom(plain)
    del coded.graph.initializer[:]
    write(coded, "c1", Stored(codes.ravel().astype(np.uint8), table[:, None].astype(np.float32), None, weight.shape))
    first, second = (fused(saved(tmp_path / f"{name}.onnx", model)) for name, model in (("a", plain), ("b", coded)))
    assert traffic_bytes(first, 16 * KIB) == traffic_bytes(second, 16 * KIB) > 0


# Files


def test_groups_carry_the_layers_and_macs_of_the_file(files, groups):
    wanted = onnx_cost(read(files[0]))
    layers = {node.name for node in read(files[0]).graph.node if node.op_type in ("Conv", "Gemm")}
    for found in groups.values():
        assert sum(group.macs for group in found) == wanted["macs"]
        assert {group.layer for group in found if group.macs} == layers


def test_weights_count_by_their_type(groups):
    for name, item_bytes in (("fp32", 4), ("int8", 1)):
        layers = [group for group in groups[name] if group.macs]
        largest = [max(group.weights, key=lambda tensor: len(tensor.shape)) for group in layers]
        assert {tensor.item_bytes for tensor in largest} == {item_bytes}


def test_a_quantised_file_has_the_cio_of_its_float_file(files):
    first, second = (onnx_cost(read(path)) for path in files)
    assert {key: first[key] for key in ("macs", "cio", "cio_paper")} == {
        key: second[key] for key in ("macs", "cio", "cio_paper")
    }


def test_the_rows_of_a_bundle_hold_the_traffic_of_their_files(bundle, groups):
    rows = {row["file"]: row["traffic_model_bytes"] for row in bundle.manifest["steps"]}
    assert rows["model.onnxruntime.int8.onnx"] == traffic_bytes(groups["int8"], DEFAULT.llc.size_bytes)


# Boards and the roofline


@pytest.mark.parametrize("name", known_boards())
def test_every_number_of_a_board_has_a_source(name):
    found = board(name)
    assert set(found.sources) == {"cpu", "caches", "bandwidth_gbs", "peak_gmacs"}
    assert {"fp32", "int8"} <= set(found.peak_gmacs)
    assert found.caches.l1d.size_bytes < found.caches.llc.size_bytes


FMAS = {"Cortex-A55": 4, "Cortex-A57": 4, "Cortex-A72": 4, "Cortex-A76": 8, "Cortex-A78AE": 8, "i5-8250U": 16}
"""Multiply-accumulates of float32 that a core does in a cycle."""


@pytest.mark.parametrize("name", known_boards())
def test_peaks_are_the_clock_times_what_a_cycle_does(name):
    found = board(name)
    ghz = float(re.search(r"at ([0-9.]+) GHz", found.cpu)[1])
    (each,) = (macs for core, macs in FMAS.items() if core in found.cpu)
    assert found.peak_gmacs["fp32"] == pytest.approx(each * ghz, rel=0.01)
    assert found.peak_gmacs.get("fp16", 2 * each * ghz) == pytest.approx(2 * each * ghz, rel=0.01)


def test_the_roofline_is_the_slower_of_arithmetic_and_memory(tmp_path):
    device = dataclasses.replace(board("raspberry_pi_4"), bandwidth_gbs=1.0, peak_gmacs={"fp32": 2.0})
    model = one("Conv", array(32, 32, 3, 3), shape=(32, 32, 32), kernel_shape=[3, 3], pads=[1] * 4)
    row = max(modelled(fused(saved(tmp_path / "conv.onnx", model)), 32 * KIB), key=lambda row: row.group.macs)
    slow = dataclasses.replace(device, bandwidth_gbs=1e-3)
    assert estimate(row, device).ms == row.group.macs / 2e6 and estimate(row, device).bound == "compute"
    assert estimate(row, slow).ms == row.traffic_bytes / 1e3 and estimate(row, slow).bound == "memory"


def test_factors_are_found_again(groups):
    device: Board = board("cortex_a76")
    rows, wanted = modelled(groups["fp32"], 64 * KIB), dict(zip(CLASSES, (2.0, 3.0, 5.0, 7.0)))
    found = fit([(rows, by_class(rows, device, wanted))], device)
    present = {row.group.op_class for row in rows}
    assert {name: found[name] for name in present} == pytest.approx({name: wanted[name] for name in present})


# The command


def test_the_command_shows_the_tiers_side_by_side(files, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = run("traffic", files[1], "--board", "raspberry_pi_4", "--layers")
    assert "modelled bytes" in out and "1 MiB, raspberry_pi_4" in out and "measured: no" in out
    assert max(map(len, out.splitlines())) <= 80
    found = json.loads(run("traffic", files[1], "--llc", "48KiB", "--json")[0])
    assert found["llc_bytes"] == 48 * KIB and found["board"] is None and "traffic_measured_bytes" not in found
    assert found["traffic_model_bytes"] == sum(row["traffic_model_bytes"] for row in found["layers"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--llc", "2 apples"], "'2 apples' is no size; write a number and a unit, such as 2MiB"),
        (["--llc", "0"], "is no size"),
        (["--board", "raspberry_pi_6"], "unknown board 'raspberry_pi_6'; did you mean 'raspberry_pi_5'?"),
        (["--board", "jetson_nano", "--llc", "1MiB"], "give one of the two"),
        (["--measure", "perf", "--board", "jetson_nano"], "leave out --board and --llc"),
        (["--measure", "ncu", "--llc", "1MiB"], "give --measure cachegrind, which simulates them"),
        (["--measure", "oscilloscope"], "unknown provider 'oscilloscope'. Known: cachegrind, ncu, perf"),
    ],
)
def test_bad_input_is_explained(files, arguments, said):
    assert said in " ".join(run("traffic", files[0], *arguments, code=2)[1].split())


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    for name in ("text.onnx", "missing.onnx"):
        assert str(tmp_path / name) in run("traffic", tmp_path / name, code=2)[1]


def test_sizes():
    sizes = {"2MiB": 2**21, "512 KiB": 2**19, "48kB": 48_000, "64": 64, "1.5MiB": 3 * 2**19}
    assert {text: parse_bytes(text) for text in sizes} == sizes
    with pytest.raises(BadInput, match="no size"):
        parse_bytes("1.0001KiB")
