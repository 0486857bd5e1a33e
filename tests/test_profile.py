"""Profiles: whose time is whose, what makes a measurement unstable, and the documents; no timing is asserted."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import helper

from edgekit import tables
from edgekit.cli import main
from edgekit.deploy import compare_files, profile_paths
from edgekit.devices import runner
from edgekit.errors import BadInput
from edgekit.export import serialise
from edgekit.onnx_file import read
from edgekit.profile import Plan, Subject, document, seconds_of, time_files
from edgekit.profile.compare import exit_code
from edgekit.profile.layers import ADDED, attributed
from edgekit.profile.local import open_timed
from edgekit.profile.remote import _options
from edgekit.profile.stability import disturbed, unstable
from tests.onnx_models import array, graph

FEW = Plan(runs=8)
STATE = {"cores": 2, "at_s": 0.0, "own_cpu_s": 0.0, "busy_s": 0.0, "stolen_s": 0.0, "clocks_mhz": [], "throttled": {}}
ENDS = {"machine": {**STATE, "cpu": "A CPU", "busy_s": None}, "machine_after": {**STATE, "busy_s": None}}


def conv(channels=4):
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="stem")
    return graph([node], (4, 8, 8), {"w": array(4, channels, 3, 3)}, result=["n", 4, 6, 6])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(serialise(conv()))
    return path


def test_every_file_has_its_record(bundle):
    records = time_files([bundle.base, *bundle.models], "onnxruntime", runs=8, threads=1)
    assert [record["file"] for record in records] == [bundle.base.name, *(path.name for path in bundle.models)]
    assert all(record["latency_ms"]["n"] == 8 and record["ratio_to"] == bundle.base.name for record in records)


def test_a_bundle_keeps_its_profile(bundle):
    found = profile_paths([bundle.path], FEW)
    kept = bundle.latest("profile")
    assert kept["rows"] == json.loads(json.dumps(found["rows"])) and kept["seal"] == bundle.seal
    assert all(row["end_to_end_ms"]["median"] > row["latency_ms"]["low"] / 2 for row in found["rows"])
    assert {row["file"] for row in found["rows"]} == {bundle.base.name, *(path.name for path in bundle.models)}


def test_files_and_bundles_are_measured_together_under_names_of_their_own(bundle, file, tmp_path):
    other = tmp_path / "other" / bundle.base.name
    other.parent.mkdir()
    other.write_bytes(bundle.base.read_bytes())
    found = profile_paths([file, bundle.path, other], FEW)
    names = [row["file"] for row in found["rows"]]
    assert len(set(names)) == len(names) == 3 + len(bundle.models)
    assert f"other/{other.name}" in names and {row["ratio_to"] for row in found["rows"]} == {names[0]}
    with pytest.raises(BadInput, match="given twice"):
        profile_paths([file, file], FEW)


def test_the_module_of_a_bundle_is_measured_in_pytorch(bundle):
    found = profile_paths([bundle.path], FEW, "torch", trust=True)
    assert [(row["file"], row["engine"]) for row in found["rows"]] == [(bundle.path.name, "torch")]
    with pytest.raises(BadInput, match="--trust"):
        profile_paths([bundle.path], FEW, "torch")
    with pytest.raises(BadInput, match="--engine torch"):
        profile_paths([bundle.path], FEW, "openvino")
    with pytest.raises(BadInput, match="torch runs the module of a bundle"):
        profile_paths([bundle.base], FEW, "torch")


def test_layers_are_those_of_the_file(bundle):
    found = profile_paths([bundle.base], Plan(runs=8, layers=True))["rows"][0]
    *layers, other = found["layers"]
    assert other["layer"] == "other"
    assert sum(item["ms"] for item in found["layers"]) == pytest.approx(found["layers_whole_ms"])
    nodes = {node.name: node.op_type for node in read(bundle.base).graph.node}
    convolutions = {name for name, kind in nodes.items() if kind in ("Conv", "Gemm")}
    assert convolutions <= {item["layer"] for item in layers} <= {*nodes, ADDED}


def test_layers_that_could_not_be_told_apart_are_said_to_be_so(file, capsys):
    row = {"file": "a.onnx", "engine": "onnxruntime", "error": None, "times_ms": [1.0] * 8, "layers_error": "they vary"}
    found = document({"rows": [row], "versions": {"onnxruntime": "1"}, **ENDS}, Plan(layers=True), {"a.onnx": file}, {})
    tables.show_fleet({"profiles": [{"device": "pi", **found}], "failed": {}})
    assert "pi: a.onnx: layers not measured: they vary" in capsys.readouterr().out


def test_what_trtexec_runs_is_of_the_batch_that_is_told(file, tmp_path):
    fixed = conv()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    (tmp_path / "fixed.onnx").write_bytes(serialise(fixed))
    free, fixed = (Subject("a", path, "tensorrt") for path in (file, tmp_path / "fixed.onnx"))
    assert _options(free, Plan(batch=2))["batch"] == 2 and _options(free, Plan(batch=2))["shapes"] != []
    assert _options(fixed, Plan())["batch"] == 4 and _options(fixed, Plan())["shapes"] == []
    with pytest.raises(BadInput, match="of batch 4"):
        _options(fixed, Plan(batch=2))


def operator(name, kind, ms, **more):
    return {"name": name, "kind": kind, "ms": ms, **more}


def test_operators_are_attributed_to_what_they_were_made_from():
    from tests.test_latency import chain

    found = [
        operator("y_nchwc", "Conv", 1.0),  # `a`, its batch norm and its clip
        operator("ReorderOutput_token_7", "ReorderOutput", 0.5),
        operator("pool", "MaxPool", 2.0),
        operator("b_token_3", "QLinearConv", 3.0),
        operator("out", "Softmax", 0.25),
    ]
    rows = [(row["layer"], row["ms"]) for row in attributed(found, 7.0, chain().model)]
    assert rows == [("a", 1.0), ("pool", 2.0), ("b", 3.0), ("end", 0.25), (ADDED, 0.5), ("other", 0.25)]
    told = [operator("fused", "conv", 4.0, nodes=["a", "a.norm"]), operator("copy", "", 1.0, nodes=[])]
    rows = [(row["layer"], row["ms"]) for row in attributed(told, 5.0, chain().model)]
    assert rows == [("a", 4.0), (ADDED, 1.0), ("other", 0.0)]


@pytest.mark.parametrize(
    ("times", "settled", "words"),
    [
        ([1.0, 1.01] * 20, True, []),
        ([1.0, 1.01] * 20, False, ["warming up"]),
        ([1.0] * 20 + [1.06] * 20, True, ["drifts: +6%"]),
        ([1.0, 1.3] * 20, True, ["scatters"]),
    ],
)
def test_unstable_times_are_called_so(times, settled, words):
    found = unstable(times, settled)
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found))


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ({}, {"busy_s": 10.5, "own_cpu_s": 9.5}, None),
        ({}, {"busy_s": 13.0, "own_cpu_s": 9.5}, "other processes took 18%"),
        ({}, {"stolen_s": 1.0}, "virtual machines"),
        ({"clocks_mhz": [800.0, 2000.0]}, {"clocks_mhz": [2000.0, 1500.0]}, None),
        ({"clocks_mhz": [2000.0]}, {"clocks_mhz": [1500.0]}, "between 1500 and 2000 MHz"),
        ({"throttled": {"core_throttle_count": 5}}, {"throttled": {"core_throttle_count": 5}}, None),
        ({"throttled": {"core_throttle_count": 5}}, {"throttled": {"core_throttle_count": 7}}, "for heat (2 times)"),
        ({}, {"throttled": {"cgroup_nr_throttled": 1}}, "container"),
        ({}, {"throttled": {"raspberry_pi_bits": 0x50005}}, "too little voltage"),
        ({}, {"throttled": {"raspberry_pi_bits": 0x50000}}, None),  # it was, before this measurement
        ({"busy_s": None}, {"busy_s": None}, None),
    ],
)
def test_a_disturbed_machine_is_called_so(before, after, word):
    found = disturbed({**STATE, **before}, {**STATE, "at_s": 10.0, **after})
    assert (word in found[0]) if word else not found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"runs": 20, "seconds": 3.0}, "not both"),
        ({"runs": 3}, "at least 8"),
        ({"seconds": 0.0}, "above 0"),
        ({"sustained_s": -1.0}, "--sustained"),
        ({"threads": -1}, "threads"),
        ({"batch": 0}, "batch"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(given, message):
    with pytest.raises(BadInput, match=message):
        Plan(**given)


def test_a_plan_is_a_job():
    job = Plan(seconds=3.0, layers=True).job()
    assert job["runs"] is None and Plan().job()["runs"] == 100
    assert job.keys() == {*"runs seconds threads batch seed throughput sustained_s layers".split()}


def test_times_are_written_with_their_unit():
    assert [seconds_of(text) for text in ("90", "1.5s", "5m", "1h")] == [90.0, 1.5, 300.0, 3600.0]
    for wrong in ("5 minutes", "m", "-3s", ""):
        with pytest.raises(BadInput, match="is no time"):
            seconds_of(wrong)


def test_a_fixed_batch_is_not_measured_as_another(tmp_path):
    model = conv()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    path = tmp_path / "fixed.onnx"
    path.write_bytes(serialise(model))
    assert profile_paths([path], FEW)["rows"][0]["batch"] == 4
    with pytest.raises(BadInput, match="of batch 4"):
        profile_paths([path], Plan(runs=8, batch=2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile", "junk.onnx"], "junk.onnx"),
        (["profile", "gone.onnx"], "no such file"),
        (["profile", "a.onnx", "--engine", "tesnorrt"], "did you mean 'tensorrt'"),
        (["profile", "a.onnx", "--runs", "20", "--seconds", "2"], "not both"),
        (["profile", "a.onnx", "--threads", "-1"], "threads"),
        (["profile", "a.onnx", "--sustained", "long"], "is no time"),
        (["profile", "a.onnx", "--engine", "openvino", "--layers", "--runs", "8"], "no times of layers"),
        (["profile", "a", "--layer-table", "--layers", "--seconds", "2"], "leave out --seconds, --layers"),
        (["profile", "a", "--layer-table", "--engine", "torch"], "leave out --engine"),
        (["profile", "a.onnx", "--device", "ssh://x", "--engine", "tensorrt", "--layers"], "leave out --layers, or"),
        (["profile", "a.onnx", "--device", "ssh://x", "--engine", "tensorrt", "--sustained", "1m"], "out --sustained,"),
        (["profile", "a.onnx", "--device", "ssh://x", "--engine", "tensorrt", "--throughput"], "out --throughput,"),
        (["profile", "a.onnx", "--input-size", "64"], "--input-size goes with --layer-table"),
        (["profile", "a.onnx", "--board", "jetson_nano"], "give --layers too"),
        (["profile", "a.onnx", "--layers", "--board", "jetson_mano"], "did you mean 'jetson_nano'"),
        (["profile", "a.onnx", "--layers", "--llc", "2 apples"], "is no size"),
        (["compare", "a.onnx", "junk.onnx"], "junk.onnx"),
        (["compare", "a.onnx", "a.onnx", "--io", "io.toml"], "give --data too"),
        (["compare", "a.onnx", "."], "takes two files"),
        (["compare", "a.onnx", "a.onnx", "--floor", "2"], "between 0 and 1"),
    ],
)
def test_bad_input_is_told(arguments, message, file, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "junk.onnx").write_bytes(b"no model")
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 2 and message in found.output and "Traceback" not in found.output


def test_the_start_of_each_engine_counts_for_no_file(monkeypatch):
    loaded = []
    monkeypatch.setattr(Subject, "load", lambda self, _threads: loaded.append(self.name))
    monkeypatch.setattr(runner, "open_timed", lambda load, _batch: ({}, (load(), None)))
    named = {"a": "onnxruntime", "b": "onnxruntime", "c": "openvino", "d": "tensorrt"}
    open_timed([Subject(name, Path(name), engine) for name, engine in named.items()], FEW)
    assert loaded == ["a", "a", "b", "c", "c", "d"]


def test_what_the_engine_says_is_passed_on(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(serialise(conv(channels=3)))  # of three channels, where x has four
    with pytest.raises(BadInput, match=r"a\.onnx.*onnxruntime cannot run it|a\.onnx: ONNX Runtime cannot load it"):
        profile_paths([path], FEW)


def test_a_comparison_ends_when_it_is_sure(file, monkeypatch):
    def rounds(slowdown):
        def interleave(_pairs, numbers, seed):
            jitter = np.random.default_rng(seed).normal(1, 0.005, (2, len(numbers)))
            return (jitter * [[1.0], [slowdown]]).tolist()

        monkeypatch.setattr(runner, "interleave", interleave)
        return compare_files(file, file, Plan(seconds=5.0), floor=0.02, max_ratio=None)

    assert rounds(1.05)["verdict"] == "slower" and rounds(0.9)["verdict"] == "faster"
    same = rounds(1.0)
    assert same["verdict"] == "same" and same["rows"][0]["latency_ms"]["n"] < 200
    assert [row["file"] for row in same["rows"]] == [str(file), f"{file} again"]


@pytest.mark.parametrize(
    ("verdict", "low", "high", "max_ratio", "code"),
    [
        ("slower", 1.1, 1.2, None, 0),
        ("same", 0.99, 1.01, None, 0),
        ("undecided", 0.9, 1.1, None, 3),
        ("slower", 1.1, 1.2, 1.05, 1),
        ("slower", 1.03, 1.04, 1.05, 0),
        ("slower", 1.03, 1.2, 1.05, 3),
    ],
)
def test_exit_codes_of_a_comparison(verdict, low, high, max_ratio, code):
    found = {"verdict": verdict, "ratio": {"low": low, "high": high}, "max_ratio": max_ratio}
    assert exit_code(found) == code
    assert exit_code({"verdict": "undecided", "ratio": None, "max_ratio": max_ratio}) == 3


def test_two_files_compared_as_a_page(file, tmp_path):
    other, out = tmp_path / "other.onnx", tmp_path / "compared.html"
    other.write_bytes(file.read_bytes())
    found = CliRunner().invoke(main, ["compare", str(file), str(other), "--seconds", "0.2", "--html", str(out)])
    assert found.exit_code in (0, 3) and f"{file.name} and other.onnx" in out.read_text()
