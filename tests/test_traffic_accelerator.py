"""The cross-check with ZigZag: what is asked of it, what is made of its answer, and one real search (slow)."""

import importlib.util
import json
import sys
import types

import pytest
from onnx import helper

from edgekit.errors import BadInput
from edgekit.traffic import accelerator
from edgekit.traffic.accelerator import cross_check, zigzag
from edgekit.traffic.commands import traffic_of
from tests.onnx_models import array, graph
from tests.test_cli import run
from tests.test_traffic import saved


@pytest.fixture
def file(tmp_path):
    """A convolution, a depthwise and a pointwise one of 16×16, and one more that the stand-in does not count."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Conv", ["a", "d"], ["b"], name="depthwise", kernel_shape=[3, 3], pads=[1] * 4, group=16),
        helper.make_node("Conv", ["b", "p"], ["y"], name="pointwise", kernel_shape=[1, 1]),
    ]
    weights = {"w": array(16, 8, 3, 3), "d": array(16, 1, 3, 3), "p": array(32, 16, 1, 1)}
    return saved(tmp_path / "a.onnx", graph(nodes, (8, 16, 16), weights, result=["n", 32, 16, 16]))


ONCE = {
    "conv": {"weights_bytes": 1152, "input_bytes": 2048, "output_bytes": 4096},
    "depthwise": {"weights_bytes": 144, "input_bytes": 4096, "output_bytes": 4096},
    "pointwise": {"weights_bytes": 512, "input_bytes": 4096, "output_bytes": 8192},
}
"""Elements of each tensor."""


def answer(layers):
    """As ZigZag's: words at two memories, of which the last counts, in four directions."""

    def counted(name, parts):
        words = {
            operand: [
                types.SimpleNamespace(data={"rd": 9}),
                types.SimpleNamespace(data={"rd": parts[key] // 8, "wr": 0}),
            ]
            for operand, key in accelerator.PARTS.items()
        }
        return types.SimpleNamespace(layer=types.SimpleNamespace(name=name), memory_word_access=words), None

    return 1.0, 2.0, [(None, [counted(*item) for item in layers])]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A ZigZag that answers with `ONCE` but for the last layer; returns what it was asked."""
    asked = []

    def search(model, *setting, **settings):
        asked.append((model, setting, settings))
        return answer(list(ONCE.items())[:2])

    monkeypatch.setitem(sys.modules, "zigzag", types.ModuleType("zigzag"))
    module = types.ModuleType("zigzag.api")
    module.get_hardware_performance_zigzag = search
    monkeypatch.setitem(sys.modules, "zigzag.api", module)
    monkeypatch.setattr(accelerator.resources, "files", lambda _name: tmp_path)
    monkeypatch.setattr(accelerator.metadata, "version", lambda _name: "3.9.1")
    return asked


def test_words_of_the_last_memory_become_bytes(file, stand_in):
    found = zigzag(file)
    assert [row["layer"] for row in found["layers"]] == ["conv", "depthwise"] and found["uncounted"] == ["pointwise"]
    for row in found["layers"]:
        assert {key: row[key] for key in accelerator.PARTS.values()} == ONCE[row["layer"]]
        assert row["traffic_bytes"] == row["once_bytes"] == sum(ONCE[row["layer"]].values())
    ((model, setting, settings),) = stand_in
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1 and len(model.graph.value_info) == 2
    assert [path.rpartition("inputs/")[2] for path in setting] == [
        "hardware/edge_tpu_like.yaml",
        "mapping/edge_tpu_like.yaml",
    ]
    assert settings["opt"] == "energy"


@pytest.mark.usefixtures("stand_in")
def test_the_command_shows_it_beside_the_tiers(file):
    out, _ = run("traffic", file, "--cross-check", "zigzag")
    assert "zigzag 3.9.1, bytes" in out and "pointwise: not counted by zigzag" in out
    found = json.loads(run("traffic", file, "--cross-check", "zigzag", "--json")[0])
    assert len(found["cross_check"]["layers"]) == 2 and found["traffic_model_bytes"] >= 0
    assert "cross_check" not in traffic_of(file, None, None, None)


def test_what_zigzag_cannot_take(file, stand_in, monkeypatch, bundle):
    with pytest.raises(BadInput, match=r"unknown cross-check 'scalesim'\. Known: zigzag"):
        cross_check("scalesim", file)
    with pytest.raises(BadInput, match="takes float files"):
        zigzag(bundle.model("onnxruntime", "int8"))

    def search(*_args, **_settings):
        raise AssertionError("Batch size is different")

    monkeypatch.setattr(sys.modules["zigzag.api"], "get_hardware_performance_zigzag", search)
    with pytest.raises(BadInput, match=r"a\.onnx: ZigZag cannot take it \(AssertionError: Batch size"):
        zigzag(file)
    assert not stand_in


def test_without_zigzag_the_way_to_it_is_told(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "zigzag.api", None)
    assert "pip install 'edgekit[zigzag]'" in run("traffic", file, "--cross-check", "zigzag", code=2)[1]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("zigzag") is None, reason="zigzag-dse is not installed")
def test_zigzag_itself_moves_each_tensor_once_where_all_fit(file):
    found = {row["layer"]: row for row in zigzag(file)["layers"]}
    assert {name: {key: row[key] for key in ONCE[name]} for name, row in found.items()} == ONCE
