"""TensorRT: real engines of every family of the zoo, built on the CPU by TensorRT-RTX; what stands in without a GPU;
bad files; the script for the device; and, with a fake library and fake memory, the code that only a GPU can run."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import edgekit
from edgekit import data as datasets
from edgekit import report
from edgekit.context import RewriteContext
from edgekit.data import Input, Output
from edgekit.deploy import evaluate_file, export_file, profile_paths
from edgekit.engines import cuda, engine, runner, tensorrt
from edgekit.engines.inspector import int8_nodes, layers
from edgekit.engines.tensorrt import TENSORRT, Session, build_script
from edgekit.errors import BadInput, NothingChanged
from edgekit.export import export, serialise
from edgekit.net import Source, build
from edgekit.nets import (
    ZOO,
    cspnet,
    densenet,
    hardnet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    pp_lcnet,
    resnet,
    skipblocknet,
    vovnet,
)
from edgekit.parity import sqnr_db
from edgekit.profile import Plan
from edgekit.quant.targets import quantised_convs, scheme, violations
from edgekit.rewrites import Fold, Fp16, Int8
from edgekit.targets import TARGETS, target
from edgekit.verify import verify
from tests.nets import calibrate, tiny

RTX = TENSORRT["tensorrt-rtx"]
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx is not installed; it exists for x86-64 only",
)
no_gpu = pytest.mark.skipif(cuda.missing() is None, reason="says what happens without a GPU")

# One network a form of block: the table that it is made of, and what is left of that.
REDUCED = {
    "cifar_resnet_20": (resnet, "_cifar_resnet", lambda make: lambda _depth, *rest: make(8, *rest)),
    "resnet_18": (resnet, "BLOCKS_18", lambda _: (2, 1)),
    "resnet_50": (resnet, "BLOCKS_50", lambda _: (2, 1)),
    "csp_mobilenet_v2": (cspnet, "MOBILE_STAGES", lambda rows: rows[1:2]),
    "csp_resnext_50": (cspnet, "RESNEXT_STAGES", lambda rows: rows[:1]),
    "densenet_121": (densenet, "LAYERS_121", lambda _: (1, 2)),
    "fc_hardnet_70": (hardnet, "FC_BLOCKS", lambda rows: rows[:2]),
    "hardnet_39ds": (hardnet, "HARDNET_39DS", lambda table: first_block(table)),
    "hardnet_68": (hardnet, "HARDNET_68", lambda table: first_block(table)),
    "mobilenet_v1": (mobilenet_v1, "ROWS", lambda rows: rows[:3]),
    "mobilenet_v2": (mobilenet_v2, "ROWS", lambda rows: rows[:2]),
    "mobilenet_v3_small": (mobilenet_v3, "SMALL", lambda rows: rows[:1] + rows[3:4]),
    "pp_lcnet": (pp_lcnet, "ROWS", lambda rows: rows[-3:]),
    "skipblocknet_large": (skipblocknet, "STAGES", lambda stages: tuple(rows[:1] for rows in stages)),
    "squeezenet_1_1": None,
    "vovnet_27_slim": (vovnet, "V27_SLIM", lambda table: table._replace(layers=1)),
    "vovnet_v2_19_slim_dw": (vovnet, "V19_SLIM_DW", lambda table: table._replace(layers=2)),
}


# Other forms of families that one stands for already.
SLOW = {"resnet_18", "resnet_50", "csp_resnext_50", "fc_hardnet_70", "hardnet_68", "vovnet_v2_19_slim_dw"}


def first_block(table):
    return table._replace(transitions=(96,), growths=(16,), layers=(4,), downsample=())


def context(name: str, data, size: int, log=lambda _line: None) -> RewriteContext:
    return RewriteContext(target(name), Input(size=size), Output(), data, 0, log)


def graphs(module: torch.nn.Module, size: int, data, batch: int | str = "dynamic") -> dict[str, onnx.ModelProto]:
    """The network in the form of TensorRT-RTX, in every precision."""
    ctx = context("tensorrt-rtx", data, size)
    folded = Fold()(export(module, ctx.input, ctx.output, ctx.target, batch).model, ctx)
    quick = Int8(images=4, fit_images=4, ranges="minmax", reconstruct="none")
    return {"fp32": folded, "fp16": Fp16(images=4)(folded, ctx), "int8": quick(folded, ctx)}


def convolution_types(plan: bytes) -> dict[str, tuple[str, str]]:
    """The types of input and weight of each convolution, as the engine's own text has them.

    The inspector needs a GPU. An engine built for one compute capability ahead of time holds what the compiler made of
    the graph; the form is not documented, so nothing but these tests reads it.
    """
    text = plan.decode("latin1")
    item = r"(?:[^{}]|\{[^}]*\})*?"
    kinds = {found[1]: found[2] for found in re.finditer(rf'tensor=\{{{item}name="([^"]+)"{item}type=(\w+)', text)}
    found = re.finditer(r'corrltn=\{ name="([^"]*)" output=\{[^}]*\} input=\{([^}]*)\}', text)
    return {item[1]: tuple(kinds.get(name) for name in re.findall(r'"([^"]+)"', item[2])[:2]) for item in found}


def build_all(name: str, module: torch.nn.Module, data, batch: int | str) -> None:
    made = graphs(module, 32 if name.startswith("cifar") else 64, data, batch)
    assert violations(made["int8"], scheme("tensorrt-rtx")) == []
    convolutions = [node.name for node in made["fp32"].graph.node if node.op_type == "Conv"]
    assert quantised_convs(made["int8"]) == convolutions
    for precision, kind in (("fp32", "float"), ("fp16", "half"), ("int8", "int8")):
        found = convolution_types(RTX.build(serialise(made[precision]), capability="SM86"))
        # Some depthwise ones are compiled together with their neighbours, and then under no name of theirs.
        assert found.keys() <= set(convolutions) and len(found) > len(convolutions) / 3
        assert set(found.values()) == {(kind, kind)}, f"{precision}: {found}"
        if precision == "int8":
            assert found.keys() == set(convolutions)


def test_every_family_is_built():
    modules = {target.partition(":")[0] for target in ZOO.values()}
    assert {ZOO[name].partition(":")[0] for name in REDUCED} == modules


@needs_rtx
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in REDUCED]
)
def test_engines_of_reduced_networks(name, data, monkeypatch):
    if REDUCED[name]:
        module, constant, reduced = REDUCED[name]
        monkeypatch.setattr(module, constant, reduced(getattr(module, constant)))
    torch.manual_seed(0)
    net = calibrate(build(Source("zoo", name, {"classes": 10})), (3, 64, 64))
    build_all(name, net, datasets.load([data]), batch=1)  # a fixed batch is exported sooner


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize("name", REDUCED)
def test_engines_of_whole_networks(name, data):
    torch.manual_seed(0)
    net = calibrate(build(Source("zoo", name, {})), (3, 64, 64))
    build_all(name, net, datasets.load([data]), batch="dynamic")


@needs_rtx
def test_engines_of_a_free_batch(files):
    assert set(convolution_types(RTX.build(serialise(files["int8"]), capability="SM86")).values()) == {("int8", "int8")}


# Without a GPU another engine stands in, and everything says so.


@pytest.fixture(scope="module")
def files(data) -> dict[str, onnx.ModelProto]:
    return graphs(tiny(), 16, datasets.load([data]))


@no_gpu
@pytest.mark.parametrize("name", TENSORRT)
def test_what_stands_in_computes_q_dq_as_written(files, name, tmp_path, monkeypatch):
    """Optimised, ONNX Runtime runs int8 kernels that saturate without VNNI; the file's own arithmetic must be used."""
    found = runner(target(name))
    assert (found.name, engine(found.name).version()) != (name, None) and found.reason
    given = []
    monkeypatch.setattr("edgekit.engines.onnxruntime.load", lambda _model, **options: given.append(options))
    found.load(b"")
    assert given == [{"optimise": False}]
    (tmp_path / "m.onnx").write_bytes(serialise(files["int8"]))
    assert found.int8_convs(tmp_path / "m.onnx") == 5


def test_a_target_runs_in_its_own_engine_where_it_can(monkeypatch):
    assert runner(target("onnxruntime")).name == "onnxruntime" and runner(target("onnxruntime")).reason is None
    monkeypatch.setattr(tensorrt.TensorRT, "missing", lambda _self: None)
    assert str(runner(target("tensorrt"))) == "tensorrt"


def test_without_a_stand_in_there_is_an_error(monkeypatch):
    monkeypatch.setattr(tensorrt.TensorRT, "missing", lambda _self: "no GPU")
    with pytest.raises(BadInput, match="tensorrt cannot run a file here: no GPU"):
        runner(dataclasses.replace(target("tensorrt"), stand_in=None))


RECIPE = """
[input]
size = 16
[output]
classes = 4
[[rewrite]]
name = "fold"
[[rewrite]]
name = "fp16"
[[rewrite]]
name = "int8"
images = 8
[export]
targets = ["tensorrt"]
[gates]
latency_ms = { max = 1000.0 }
top1 = { max_drop = 100.0 }
"""


def compressed(folder: Path, files: dict[str, onnx.ModelProto], data: str, name: str = "tensorrt"):
    (folder / "recipe.toml").write_text(RECIPE.replace('"tensorrt"', f'"{name}"'))
    (folder / "tiny.onnx").write_bytes(serialise(files["fp32"]))
    lines: list[str] = []
    model, recipe = str(folder / "tiny.onnx"), str(folder / "recipe.toml")
    return edgekit.compress(model, recipe, data, folder / "out", runs=8, log=lines.append), lines


@pytest.fixture(scope="module")
def for_tensorrt(files, data, tmp_path_factory):
    return compressed(tmp_path_factory.mktemp("tensorrt"), files, data)


@no_gpu
def test_a_bundle_for_tensorrt_says_what_scored_it(for_tensorrt):
    made, lines = for_tensorrt
    rows = {row["stage"]: row for row in made.manifest["steps"]}
    assert {row["engine"] for row in rows.values()} == {"onnxruntime"}
    assert all(row["engine_version"] == engine("onnxruntime").version() for row in rows.values())
    assert rows["int8"]["int8_convs"] == 5 and rows["fp16"]["int8_convs"] == 0
    assert rows["int8"]["parity_db"] > 20 and rows["fp16"]["parity_db"] > 40
    assert sum("onnxruntime, standing in: " in line for line in lines) == len(rows)
    (note,) = report.stand_ins(made)
    assert note.startswith("scored in onnxruntime, which stands in for tensorrt: ") and "int8.onnx" in note
    assert note in report.markdown(made)


@no_gpu
def test_a_file_is_scored_as_in_its_bundle(for_tensorrt, data):
    made, _ = for_tensorrt
    path = made.model("tensorrt", "int8")
    (row,) = (row for row in made.manifest["steps"] if row["file"] == path.name)
    found = evaluate_file(path, [data], None, None, target_name="tensorrt")
    assert found["metrics"] == row["metrics"] and found["engine"].startswith("onnxruntime, standing in: ")
    assert evaluate_file(path, [data], None, None)["engine"] == "onnxruntime"
    with pytest.raises(BadInput, match="--engine or --target"):
        evaluate_file(path, [data], "onnxruntime", None, target_name="tensorrt")


@no_gpu
def test_no_latency_is_invented(for_tensorrt):
    made, _ = for_tensorrt
    profile = made.latest("profile")
    assert profile["rows"] == [] and profile["settings"]["engines"] == {}
    assert set(profile["unmeasured"]) == {made.base.name, *(path.name for path in made.models)}
    verdicts = {item["metric"]: item["outcome"] for item in made.latest("gates")["verdicts"]}
    assert verdicts["latency_ms"] == "fail", "a metric that was not measured fails its gate"


def test_a_bundle_for_tensorrt_verifies(for_tensorrt):
    assert {row["needed_db"] for row in verify(for_tensorrt[0].path)["rows"]} == {60.0, 40.0, 25.0}


@no_gpu
def test_a_graph_without_int8_convolutions_is_no_int8(files, tmp_path, data, monkeypatch):
    monkeypatch.setattr("edgekit.quant.targets.quantised_convs", lambda _model: [])
    with pytest.raises(NothingChanged, match="int8: no convolution runs as int8 in tensorrt"):
        compressed(tmp_path, files, data)


# What is missing, and files that cannot be built.


@no_gpu
@needs_rtx
def test_running_without_a_gpu_says_what_to_do(files, tmp_path, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(serialise(files["fp32"]))
    with pytest.raises(BadInput, match=r"cannot run a file here: .*(GPU|CUDA).*Run it on the device, or score it"):
        RTX.load(path)
    with pytest.raises(BadInput, match="Run it on the device"):
        evaluate_file(path, [data], "tensorrt-rtx", None)
    with pytest.raises(BadInput, match="cannot be measured in tensorrt-rtx here"):
        profile_paths([path], Plan(runs=8), "tensorrt-rtx")
    with pytest.raises(BadInput, match="cannot open an engine here"):
        RTX.executed_ops(path)


@no_gpu
def test_the_full_tensorrt_does_not_build_without_a_gpu(files, monkeypatch):
    full = TENSORRT["tensorrt"]
    monkeypatch.setattr(tensorrt.TensorRT, "not_installed", lambda _self: None)
    with pytest.raises(BadInput, match=r"cannot build an engine: .*--target tensorrt` writes; the target tensorrt-rtx"):
        full.build(serialise(files["fp32"]))


def test_what_is_not_installed_names_its_extra():
    absent = dataclasses.replace(RTX, module="nonesuch")
    assert absent.missing() == "tensorrt-rtx is not installed; pip install 'edgekit[tensorrt-rtx]'"
    with pytest.raises(BadInput, match=r"pip install 'edgekit\[tensorrt-rtx\]'"):
        absent.build(b"")
    with pytest.raises(BadInput, match="nonesuch cannot be imported"):
        absent.version()


def one(op: str, shape: tuple, **attributes) -> bytes:
    made = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], name="the_node", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@needs_rtx
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "cannot take it: .*Failed to parse"),
        (one("Det", ("n", 3, 4, 4)), r"cannot take it: the_node \(Det\): .*UNSUPPORTED_NODE"),
        (one("Relu", ("n", 3, "h", 4)), r"its input 'x' is \['\?', 3, '\?', 4\]; channels, height and width"),
    ],
)
def test_a_bad_model_is_explained(content, message):
    with pytest.raises(BadInput, match=f"the model: .*{message}"):
        RTX.build(content)


@needs_rtx
def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(one("Relu", (1, 3, 4, 4))[:40])
    with pytest.raises(BadInput, match=r"m\.onnx"):
        RTX.build(path)


@needs_rtx
def test_the_form_for_onnx_runtime_is_refused(files, data):
    ctx = context("onnxruntime", datasets.load([data]), 16)
    made = Int8(images=4, fit_images=4, reconstruct="none")(files["fp32"], ctx)
    assert violations(made, scheme("tensorrt-rtx"))
    with pytest.raises(BadInput, match=r"DequantizeLinear\): Invalid Node|zero point"):
        RTX.build(serialise(made))


@needs_rtx
def test_what_a_builder_does_not_have_is_refused_by_name(files):
    content = serialise(files["fp32"])
    with pytest.raises(BadInput, match=r"builds for SM.*, not for 'SM42'"):
        RTX.build(content, capability="SM42")
    with pytest.raises(BadInput, match="no version-compatible engines"):
        RTX.build(content, version_compatible=True)
    with pytest.raises(BadInput, match="builds for the GPU that it finds"):
        dataclasses.replace(TENSORRT["tensorrt"])._check_capability("SM86")


@needs_rtx
def test_a_fixed_batch_is_built_as_it_is():
    assert RTX.build(one("Relu", (2, 3, 4, 4)), capability="SM86")


@needs_rtx
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timings_are_kept_for_the_next_build(files, tmp_path, monkeypatch):
    """The path of the full TensorRT, on the library that is here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keeping = dataclasses.replace(RTX, timing_cache=True)
    for _ in range(2):
        assert keeping.build(serialise(files["fp32"]))
    assert [path.name for path in (tmp_path / "edgekit").iterdir()] == [f"tensorrt-rtx-{RTX.version()}.timing"]


# The script for the device.


def words(script: str) -> list[str]:
    return script.split("set -e\n")[1].replace("\\\n", " ").split()[3:]


def test_the_script_for_tensorrt_10_and_11():
    script = build_script(TENSORRT["tensorrt"], "net.onnx", {"input": [None, 3, 16, 24]})
    assert words(script) == [
        "trtexec", "--onnx=net.onnx", "--saveEngine=net.plan", "--timingCacheFile=net.timing", "--stronglyTyped",
        "--memPoolSize=workspace:1024", "--minShapes=input:1x3x16x24", "--optShapes=input:1x3x16x24",
        "--maxShapes=input:32x3x16x24", "--profilingVerbosity=detailed", "--skipInference",
    ]  # fmt: skip


def test_the_script_for_tensorrt_rtx_and_a_fixed_batch():
    script = build_script(RTX, "a net.onnx", {"input": [1, 3, 16, 16]})
    assert "'--onnx=a net.onnx' \\\n" in script and "Shapes" not in script and "timingCache" not in script
    assert "tensorrt_rtx \\\n" in script and script.endswith("--profilingVerbosity=detailed \\\n  --skipInference\n")


@pytest.mark.parametrize("name", TENSORRT)
def test_export_writes_the_file_and_its_script(files, tmp_path, name):
    source = tmp_path / "source.onnx"
    source.write_bytes(serialise(files["fp32"]))
    out = tmp_path / "device" / "net.onnx"
    said = export_file(source, name, "fp16", out, [], None, False)
    assert "fp16 for " + name in said and f"net.build.sh: builds its engine with {TENSORRT[name].tool}" in said
    assert "no engine was built or run here" in said
    (tmp_path / TENSORRT[name].tool).write_text('#!/bin/sh\necho "$PWD" "$@" >said\n')
    (tmp_path / TENSORRT[name].tool).chmod(0o755)
    subprocess.run([out.with_name("net.build.sh")], check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    ran = (out.parent / "said").read_text()
    assert ran.startswith(str(out.parent)) and "--onnx=net.onnx" in ran and "--maxShapes=input:32x3x16x16" in ran
    with pytest.raises(BadInput, match=r"net\.onnx: exists"):
        export_file(source, name, None, out, [], None, False)
    out.unlink()
    with pytest.raises(BadInput, match=r"net\.build\.sh: exists"):
        export_file(source, name, None, out, [], None, False)
    assert not out.exists()


@needs_rtx
def test_a_bundle_for_another_target_is_exported_in_tensorrts_form(files, data, tmp_path):
    """Its recipe runs again: int8 for ONNX Runtime has another form."""
    made, _ = compressed(tmp_path, files, data, "onnxruntime")
    out = tmp_path / "net.onnx"
    assert "int8 for tensorrt-rtx" in export_file(made.path, "tensorrt-rtx", "int8", out, [data], None, False)
    assert violations(onnx.load(out), scheme("tensorrt-rtx")) == [] and len(quantised_convs(onnx.load(out))) == 5
    assert set(convolution_types(RTX.build(out, capability="SM86")).values()) == {("int8", "int8")}


def test_a_target_without_a_device_gets_no_script(files, tmp_path):
    source = tmp_path / "source.onnx"
    source.write_bytes(serialise(files["fp32"]))
    assert "build" not in export_file(source, "onnxruntime", None, tmp_path / "net.onnx", [], None, False)
    assert not (tmp_path / "net.build.sh").exists()


def test_every_target_has_its_engine():
    assert all(engine(wanted.engine) and wanted.name == name for name, wanted in TARGETS.items())


# The inspector's JSON. TensorRT 11 splits format and type.

LAYER_10 = {
    "Name": "stem.conv + stem.act",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
    "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
    "Metadata": "[ONNX Layer: stem.conv]\u001e[ONNX Layer: stem.act]",
}
LAYER_11 = {
    "Name": "head",
    "LayerType": "gemm",
    "Inputs": [{"Name": "y", "Format": "kLINEAR", "DataType": "Half"}, {"Name": "w", "DataType": "Int8"}],
    "Outputs": [{"Name": "z", "Format": "kLINEAR", "DataType": "Float"}],
    "Metadata": "[ONNX Layer: head.conv]",
}


def test_the_inspector_of_either_version():
    ten, eleven = layers(json.dumps({"Layers": [LAYER_10, LAYER_11], "Bindings": ["x", "z"]}))
    assert (ten.kind, ten.nodes) == ("CaskConvolution", ("stem.conv", "stem.act"))
    assert (ten.inputs, ten.outputs) == (("int8",), ("fp16",))
    assert (eleven.inputs, eleven.outputs) == (("fp16", "int8"), ("fp32",))
    assert int8_nodes([ten, eleven]) == {"stem.conv", "stem.act"}, "an int8 weight alone makes no int8 layer"


def test_names_alone_are_no_layers():
    """What an engine without detailed verbosity gives."""
    assert layers(json.dumps({"Layers": ["stem.conv"]})) == []


# The code that runs engines, on memory that is numpy's: what goes where, which batches, which errors.


class Memory:
    """Stands for device memory and hands out addresses."""

    held: dict[int, "Memory"] = {}  # noqa: RUF012

    def __init__(self, size: int) -> None:
        self.size, self.address, self.values = size, len(Memory.held) + 1, np.zeros(0, np.float32)
        Memory.held[self.address] = self

    def write(self, values: np.ndarray) -> None:
        assert values.nbytes <= self.size
        self.values = values.copy()

    def read(self, values: np.ndarray) -> np.ndarray:
        assert values.nbytes <= self.size
        values[:] = self.values
        return values


class Engine:
    """Gives for each image of (1, 2, 2) its first two pixels, doubled."""

    num_io_tensors = 2

    def __init__(self, batch: int) -> None:
        self.batch, self.batches, self.works = batch, [], True

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> str:
        return {"x": "in", "y": "out"}[name]

    def get_tensor_shape(self, name: str) -> tuple:
        return {"x": (self.batch, 1, 2, 2), "y": (self.batch, 2)}[name]

    def get_tensor_dtype(self, _name: str) -> str:
        return "float"

    def create_execution_context(self):
        return Context(self)

    def create_engine_inspector(self):
        told = {"Layers": [{"Name": "layer", "LayerType": "Conv", "Metadata": "[ONNX Layer: a][ONNX Layer: b]"}]}
        return types.SimpleNamespace(get_engine_information=lambda _form: json.dumps(told))


class Context:
    profiler = None

    def __init__(self, engine: Engine) -> None:
        self.engine, self.address, self.shape = engine, {}, ()

    def set_input_shape(self, _name: str, shape: tuple) -> None:
        self.shape = tuple(shape)

    def get_tensor_shape(self, name: str) -> tuple:
        return self.shape if name == "x" else (self.shape[0], 2)

    def set_tensor_address(self, name: str, address: int) -> None:
        self.address[name] = address

    def execute_async_v3(self, _stream: int) -> bool:
        batch = Memory.held[self.address["x"]].values
        assert batch.shape == self.shape
        self.engine.batches.append(len(batch))
        Memory.held[self.address["y"]].values = 2 * batch.reshape(len(batch), 4)[:, :2]
        if self.profiler:
            self.profiler.report_layer_time("layer", 3.0)
        return self.engine.works


@pytest.fixture
def session(monkeypatch):
    library = types.SimpleNamespace(
        TensorIOMode=types.SimpleNamespace(INPUT="in"),
        nptype=lambda _kind: np.float32,
        IProfiler=object,
        LayerInformationFormat=types.SimpleNamespace(JSON="json"),
    )
    monkeypatch.setattr(tensorrt, "_library", lambda _module: (library, None))
    monkeypatch.setattr(cuda, "Buffer", Memory)
    monkeypatch.setattr(cuda, "Stream", lambda: types.SimpleNamespace(address=0, wait=lambda: None))
    return lambda batch: Session(RTX, Engine(batch))


@pytest.mark.parametrize(("fixed", "given", "ran"), [(-1, 5, [5]), (-1, 40, [32, 8]), (2, 5, [2, 2, 2]), (2, 2, [2])])
def test_a_session_runs_any_number_of_images(session, fixed, given, ran):
    opened = session(fixed)
    assert opened.shape == (1, 2, 2) and opened.batch == (None if fixed < 0 else fixed)
    x = np.random.default_rng(0).standard_normal((given, 1, 2, 2), np.float32)
    assert np.array_equal(opened.run(x), 2 * x.reshape(given, 4)[:, :2])
    assert opened._engine.batches == ran


def test_a_run_that_fails_is_an_error(session):
    opened = session(-1)
    opened._engine.works = False
    with pytest.raises(BadInput, match="could not run the engine"):
        opened.run(np.zeros((1, 1, 2, 2), np.float32))


def test_times_of_layers_leave_the_warm_up_out(session):
    opened = session(-1)
    found = opened.operator_times(np.zeros((1, 1, 2, 2), np.float32), runs=4)
    assert found == [{"name": "layer", "kind": "Conv", "nodes": ["a", "b"], "ms": 3.0}]
    assert len(opened._engine.batches) == 5


def test_a_fork_runs_the_same_engine_with_memory_of_its_own(session):
    opened = session(-1)
    forked = opened.fork()
    assert forked._engine is opened._engine and forked._buffers["x"] is not opened._buffers["x"]


class Driver:
    """libcuda with a fault."""

    def __init__(self, devices: int, failing: str = "") -> None:
        self.devices, self.failing = devices, failing

    def __getattr__(self, function: str):
        def call(*arguments):
            if function == "cuDeviceGetCount":
                arguments[0]._obj.value = self.devices
            if function == "cuGetErrorString":
                arguments[1]._obj.value = b"it is on fire"
            return 7 if function == self.failing else 0

        return call


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (Driver(0), "the driver finds no device"),
        (Driver(1, "cuInit"), r"CUDA: cuInit failed: it is on fire \(7\)"),
        (Driver(1), None),
    ],
)
def test_the_driver_is_asked_what_it_has(monkeypatch, driver, message):
    monkeypatch.setattr(cuda.ctypes, "CDLL", lambda _name: driver)
    cuda._driver.cache_clear()
    try:
        found = cuda.missing()
    finally:
        cuda._driver.cache_clear()
    assert found is None if message is None else re.search(message, found)


# With a GPU. None of these was ever run: no machine of the project had one.


@pytest.mark.gpu
@pytest.mark.parametrize("name", TENSORRT)
def test_an_engine_answers_as_onnx_runtime_does(files, name):
    if TENSORRT[name].missing():
        pytest.skip(TENSORRT[name].missing())
    x = np.random.default_rng(0).standard_normal((40, 3, 16, 16), np.float32)
    for precision, needed in (("fp32", 50), ("fp16", 40), ("int8", 25)):
        content = serialise(files[precision])
        expected = engine("onnxruntime").load(content, optimise=False).run(x)
        opened = engine(name).load(content)
        assert sqnr_db(expected, opened.run(x)) > needed
        assert sum(item["ms"] for item in opened.operator_times(x[:1])) > 0
    assert engine(name).int8_convs(serialise(files["int8"])) == 5
    assert sum(engine(name).executed_ops(serialise(files["fp32"])).values()) > 0
