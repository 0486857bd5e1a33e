"""The cross-check with SCALE-Sim: the layers that it is given, what is made of its answer, and real runs (slow)."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgekit.errors import BadInput
from edgekit.traffic import accelerator
from edgekit.traffic.accelerator import cross_check, scalesim
from edgekit.traffic.accelerator.program import plain
from tests.onnx_models import array, graph, one
from tests.test_cli import run
from tests.test_traffic import saved


def table(model) -> list[tuple]:
    """The rows of a model, without the name."""
    return [row[1:] for row in scalesim.table(plain(model, Path("a.onnx")))]


@pytest.mark.parametrize(
    ("model", "row"),
    [
        (one("Conv", array(16, 4, 3, 3), pads=[1] * 4), (10, 10, 3, 3, 4, 16, 1, 1)),
        (one("Conv", array(16, 4, 3, 3), auto_pad="SAME_UPPER"), (10, 10, 3, 3, 4, 16, 1, 1)),
        (one("Conv", array(16, 4, 3, 3)), (8, 8, 3, 3, 4, 16, 1, 1)),
        (one("Conv", array(6, 4, 1, 1), strides=[2, 2]), (7, 7, 1, 1, 4, 6, 2, 2)),
        (one("Conv", array(6, 4, 3, 3), pads=[1] * 4, strides=[2, 2]), (9, 9, 3, 3, 4, 6, 2, 2)),
        (one("Conv", array(6, 4, 1, 5), strides=[2, 3]), (7, 8, 1, 5, 4, 6, 2, 3)),
        (one("MatMul", array(8, 5)), (4 * 8, 8, 1, 8, 1, 5, 1, 1)),
        (one("Gemm", array(7, 12), shape=(12,), transB=1), (1, 12, 1, 12, 1, 7, 1, 1)),
        (one("Gemm", array(12, 7), shape=(12,)), (1, 12, 1, 12, 1, 7, 1, 1)),
    ],
)
def test_a_layer_as_a_row_covers_what_its_windows_do(model, row):
    assert table(model) == [(*row, 1, 1)]


def test_what_it_cannot_express_is_left_out():
    assert table(one("Conv", array(4, 1, 3, 3), group=4)) == []
    assert table(one("Conv", array(4, 4, 3, 3), dilations=[2, 2])) == []
    assert table(one("Conv", array(4, 4, 3), shape=(4, 8))) == []
    assert table(one("ConvTranspose", array(4, 4, 2, 2))) == []
    assert table(one("MatMul", "x", "x", shape=(8, 8))) == []
    assert table(one("MaxPool", "x", kernel_shape=[2, 2])) == []


def test_the_array_asks_for_whole_folds():
    """33 filters take two turns of 32 columns, 33 positions two of 32 rows."""
    row = scalesim.Row("a", 1, 33, 1, 1, 5, 33)
    assert row.requests == 5 * 33 * 2 + 33 * 5 * 2
    assert row._replace(width=32, filters=32).requests == 5 * 32 + 32 * 5
    assert row._replace(width=65, stride_width=2).requests == row.requests


# A SCALE-Sim that stands in


@pytest.fixture
def file(tmp_path):
    """A convolution of 8×8, a depthwise and a pointwise one."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("Conv", ["a", "d"], ["b"], name="depthwise", kernel_shape=[3, 3], pads=[1] * 4, group=16),
        helper.make_node("Conv", ["b", "p"], ["y"], name="pointwise", kernel_shape=[1, 1]),
    ]
    weights = {"w": array(16, 8, 3, 3), "d": array(16, 1, 3, 3), "p": array(40, 16, 1, 1)}
    return saved(tmp_path / "a.onnx", graph(nodes, (8, 8, 8), weights, result=["n", 40, 6, 6]))


ONCE = {
    "conv": {"weights_bytes": 1152, "input_bytes": 512, "output_bytes": 576},
    "pointwise": {"weights_bytes": 640, "input_bytes": 576, "output_bytes": 1440},
}
"""Elements of each tensor."""


class Simulation:
    """A `single_layer_sim` that reports `ONCE`, and writes down what it was given."""

    given: list

    def set_params(self, layer_id, config_obj, topology_obj, layout_obj, verbose):
        self.array, (self.name, self.row) = config_obj, topology_obj.loaded
        assert (layer_id, layout_obj.loaded, verbose) == (0, None, False)

    def run(self):
        self.given.append((self.name, self.row, self.array.set))

    def get_detail_report_items(self):
        weights, read, written = ONCE[self.name].values()
        return [*range(9), 0, 1, read, 2, 3, weights, 4, 5, written]


class Setting:
    """Its `scale_config`, `topologies` and `layouts`."""

    def __init__(self):
        self.set, self.loaded = {}, None

    def load_layer_params_from_list(self, name, row):
        self.loaded = name, row

    def __getattr__(self, name):
        return lambda *values: self.set.update({name: values})


@pytest.fixture
def stand_in(monkeypatch):
    """Returns what it was given; numpy is one that SCALE-Sim runs with."""
    monkeypatch.setattr(Simulation, "given", [], raising=False)
    parts = dict.fromkeys(("layout_utils.layouts", "scale_config.scale_config", "topology_utils.topologies"), Setting)
    parts["single_layer_sim.single_layer_sim"] = Simulation
    monkeypatch.setitem(sys.modules, "scalesim", types.ModuleType("scalesim"))
    for path, part in parts.items():
        module, name = path.split(".")
        made = types.ModuleType(f"scalesim.{module}")
        setattr(made, name, part)
        monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setattr(accelerator.metadata, "version", lambda _name: "3.0.0")
    monkeypatch.setattr(np, "__version__", "2.3.5")
    return Simulation.given


def test_its_report_becomes_bytes(file, stand_in):
    lines = []
    found = cross_check("scalesim", file, log=lines.append)
    assert [row["layer"] for row in found["layers"]] == ["conv", "pointwise"] and found["uncounted"] == ["depthwise"]
    for row in found["layers"]:
        assert {key: row[key] for key in ONCE[row["layer"]]} == ONCE[row["layer"]]
        assert row["traffic_bytes"] == row["once_bytes"] == sum(ONCE[row["layer"]].values())
    assert lines == ["SCALE-Sim simulates 2 layers: about 1 min"]
    assert [(name, row[1:9]) for name, row, _ in stand_in] == [
        ("conv", [8, 8, 3, 3, 8, 16, 1, 1]),
        ("pointwise", [6, 6, 1, 1, 16, 40, 1, 1]),
    ]
    assert stand_in[0][2] == {
        "set_arr_dims": (32, 32),
        "set_buffer_sizes_kb": (64, 64, 64),
        "set_dataflow": ("os",),
        "force_valid": (),
    }


@pytest.mark.usefixtures("stand_in")
def test_the_command_says_how_long_first_and_what_was_left_out(file):
    out, err = run("traffic", file, "--cross-check", "scalesim")
    assert "scalesim 3.0.0, bytes" in out and "depthwise: not counted by scalesim" in out and "about 1 min" in err
    found = json.loads(run("traffic", file, "--cross-check", "scalesim", "--json")[0])
    assert "output-stationary array of 32×32" in found["cross_check"]["accelerator"]


def test_what_it_cannot_take(file, stand_in, monkeypatch, bundle, tmp_path):
    with pytest.raises(BadInput, match="takes float files"):
        cross_check("scalesim", bundle.model("onnxruntime", "int8"))
    unknown = saved(tmp_path / "unknown.onnx", one("Conv", array(4, 4, 1, 1), shape=(4, None, 8)))
    with pytest.raises(BadInput, match="node: its shapes cannot be inferred"):
        cross_check("scalesim", unknown)
    large = saved(tmp_path / "large.onnx", one("Conv", array(64, 64, 3, 3), shape=(64, 1026, 1026)))
    with pytest.raises(BadInput, match=r"large\.onnx: node: SCALE-Sim would take about 282 min and 97 GB of memory"):
        cross_check("scalesim", large)
    assert not stand_in
    monkeypatch.setattr(Simulation, "run", lambda _self: sys.modules["scalesim"].missing)
    with pytest.raises(BadInput, match=r"a\.onnx: SCALE-Sim cannot take it \(AttributeError: .*missing"):
        cross_check("scalesim", file)


def test_without_it_or_with_too_new_a_numpy_the_way_to_it_is_told(file, stand_in, monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.4.0")
    said = run("traffic", file, "--cross-check", "scalesim", code=2)[1]
    assert "fails with numpy 2.4.0, it takes those before 2.4; get it by `pip install 'edgekit[scalesim]'`" in said
    monkeypatch.setitem(sys.modules, "scalesim.single_layer_sim", None)
    said = run("traffic", file, "--cross-check", "scalesim", code=2)[1]
    assert "cannot be imported" in said and "pip install 'edgekit[scalesim]'" in said
    assert not stand_in


# SCALE-Sim itself


absent = importlib.util.find_spec("scalesim") is None
unfit = "scalesim is not installed" if absent else scalesim.SCALE_SIM.unfit()
real = pytest.mark.skipif(unfit is not None, reason=str(unfit))


@pytest.mark.slow
@real
def test_each_tensor_moves_once_where_all_fit(file):
    found = {row["layer"]: row for row in cross_check("scalesim", file)["layers"]}
    assert {name: {key: row[key] for key in ONCE[name]} for name, row in found.items()} == ONCE


@pytest.mark.slow
@real
def test_padding_is_read(tmp_path):
    file = saved(tmp_path / "a.onnx", one("Conv", array(16, 4, 3, 3), pads=[1] * 4))
    (row,) = cross_check("scalesim", file)["layers"]
    assert row["traffic_bytes"] - row["once_bytes"] == 4 * (10 * 10 - 8 * 8)


@pytest.mark.slow
@real
def test_an_input_beyond_half_a_buffer_is_read_for_every_32_filters(tmp_path):
    file = saved(tmp_path / "a.onnx", one("Conv", array(65, 40, 1, 1), shape=(40, 29, 29)))
    (row,) = cross_check("scalesim", file)["layers"]
    assert row["input_bytes"] == 3 * 40 * 29 * 29 and row["weights_bytes"] == 65 * 40
    assert 0 <= row["output_bytes"] - 65 * 29 * 29 <= 32
