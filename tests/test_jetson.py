"""Building and timing with trtexec: its commands and the cache of engines, by a stand-in for it. No GPU."""

import json
import sys
from pathlib import Path

import pytest

from edgekit.devices import jetson
from edgekit.devices import runner as measuring
from edgekit.engines.tensorrt import TENSORRT, build_options, shape_option
from tests.ssh_server import script

TRTEXEC = f"""#!{sys.executable}
import json, sys
from pathlib import Path
options = dict(part.lstrip("-").partition("=")[::2] for part in sys.argv[1:])
with open(Path(__file__).with_name("calls"), "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
print("&&&& RUNNING TensorRT.trtexec [TensorRT v" + Path(__file__).with_name("v").read_text() + "] [b17] # trtexec")
if "onnx" in options:
    if Path(options["onnx"]).read_bytes() == b"bad":
        sys.exit("[09/25/2026-10:00:00] [E] In node 3: unsupported")
    Path(options["saveEngine"]).write_bytes(b"plan")
if "loadEngine" in options:
    assert Path(options["loadEngine"]).read_bytes() == b"plan"
    times = [dict(computeMs=2.5, latencyMs=9)] * int(options["iterations"])
    Path(options["exportTimes"]).write_text(json.dumps(times))
"""


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Calls of the stand-in, as lists of arguments, and its version."""
    path = script(tmp_path / "bin" / "trtexec", TRTEXEC)
    path.with_name("v").write_text("100300")
    path.with_name("calls").write_text("")
    monkeypatch.setenv("PATH", str(path.parent))
    monkeypatch.setattr(jetson, "capability", lambda: "87")
    return path


def calls(tool: Path) -> list[list[str]]:
    return [json.loads(line) for line in tool.with_name("calls").read_text().splitlines()]


def measure(folder: Path, content: bytes = b"onnx", **changes) -> dict:
    shapes = {"x": [None, 3, 224, 224]}
    model = folder / "0123.onnx"
    model.write_bytes(content)
    options = build_options(TENSORRT["tensorrt"], shapes), [shape_option("shapes", 1, shapes)]
    file = {"name": "a.onnx", "path": str(model), "batch": 1, "build": options[0], "shapes": options[1]}
    job = {
        "schema": "edgekit/job/1", "kind": "time", "engine": "tensorrt", "runs": 25, "seconds": None, "batch": 1,
        "seed": 0, "files": [file], "runner": measuring.__file__, **changes,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    jetson.main(folder / "job.json")
    return json.loads((folder / "result.json").read_text())


def test_a_file_is_built_once_and_timed_in_blocks(tmp_path, tool):
    found = measure(tmp_path)
    (row,) = found["rows"]
    assert row["error"] is None and row["times_ms"] == [2.5] * 30 and row["build_s"] > 0
    assert found["versions"] == {"tensorrt": "10.3.0", "sm": "87"} and "power_mode" in found["machine"]
    help, build, *timed = calls(tool)
    assert help == ["--help"]
    (plan,) = tmp_path.glob("*.plan")
    assert plan.name.startswith("0123-trt10.3.0-sm87-")
    assert build == [
        f"--onnx={tmp_path / '0123.onnx'}", f"--saveEngine={plan}.tmp", "--stronglyTyped",
        "--memPoolSize=workspace:1024", "--minShapes=x:1x3x224x224", "--optShapes=x:1x3x224x224",
        "--maxShapes=x:32x3x224x224", "--profilingVerbosity=detailed", "--skipInference",
    ]  # fmt: skip
    assert len(timed) == 3 and timed[0] == [
        f"--loadEngine={plan}", "--shapes=x:1x3x224x224", "--warmUp=200", "--duration=0", "--iterations=10",
        "--noDataTransfers", "--useSpinWait", f"--exportTimes={tmp_path / 'times.json'}",
    ]  # fmt: skip
    assert measure(tmp_path)["rows"][0]["build_s"] is None, "the engine is built again"


def test_an_engine_is_kept_for_one_file_version_gpu_and_set_of_options(tmp_path):
    one = jetson.plan_path(tmp_path / "a.onnx", ["x"], (10, 3, 0), "87")
    others = [
        jetson.plan_path(tmp_path / "b.onnx", ["x"], (10, 3, 0), "87"),
        jetson.plan_path(tmp_path / "a.onnx", ["x"], (10, 3, 1), "87"),
        jetson.plan_path(tmp_path / "a.onnx", ["x"], (10, 3, 0), "72"),
        jetson.plan_path(tmp_path / "a.onnx", ["y"], (10, 3, 0), "87"),
    ]
    assert len({one, *others}) == 5 and one == jetson.plan_path(tmp_path / "a.onnx", ["x"], (10, 3, 0), "87")


@pytest.mark.parametrize(
    ("said", "release"), [("100300", (10, 3, 0)), ("101601", (10, 16, 1)), ("110401", (11, 4, 1)), ("8602", (8, 6, 2))]
)
def test_the_version_is_what_trtexec_says(tool, said, release):
    tool.with_name("v").write_text(said)
    assert jetson.version(str(tool)) == release


def test_version_11_is_told_to_leave_out_graphs(tool, tmp_path):
    tool.with_name("v").write_text("110401")
    measure(tmp_path)
    assert "--noCudaGraph" in calls(tool)[-1] and "--noCudaGraph" not in calls(tool)[1]


@pytest.mark.usefixtures("tool")
def test_what_trtexec_refuses_comes_back(tmp_path):
    (row,) = measure(tmp_path, b"bad")["rows"]
    assert "trtexec failed (1): " in row["error"] and "In node 3: unsupported" in row["error"]
    assert not list(tmp_path.glob("*.plan*"))


def test_a_device_without_trtexec_or_cuda(tmp_path, monkeypatch):
    monkeypatch.setattr(jetson, "PLACES", (str(tmp_path / "none"),))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no trtexec" in measure(tmp_path)["error"]
    monkeypatch.setattr(jetson.ctypes, "CDLL", lambda _name: (_ for _ in ()).throw(OSError("libcuda.so.1: none")))
    with pytest.raises(ValueError, match="there is no CUDA driver"):
        jetson.capability()
