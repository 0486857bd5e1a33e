"""Measures ONNX files in TensorRT on a device that builds their engines with `trtexec`, as a Jetson does.

Sent to the device beside `runner.py`, whose jobs and results it shares: in a job of the engine "tensorrt", `runner` is
the path of that file, and each file has `build`, options for building it, `shapes`, options for running it, and the
`batch` that it runs then.

Engines ("plans") fit the GPU and the TensorRT that built them and nothing else. They are kept by the hash of the ONNX
file, the version of TensorRT, the GPU's compute capability (SM) and the options.

Files take turns in random order, BLOCK inferences at a time: trtexec loads an engine, warms up and runs it. What
counts is its `computeMs`, the GPU's time for one inference. Versions 10 and 11 have different defaults, so transfers
and CUDA graphs are switched off in both. Sources: NVIDIA's "Command-Line Programs" (`--duration=0 --iterations=N`) and
samples/common/sampleOptions.cpp of 10.16 and 11.0. Tested with a stand-in for trtexec; not yet run on a Jetson.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BLOCK = 10
WARM_MS = 200
PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec")
"""Where JetPack puts it, which is in nobody's PATH."""
COMPUTE_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def trtexec() -> str:
    """Raises ValueError where there is none."""
    found = shutil.which("trtexec") or next((place for place in PLACES if os.access(place, os.X_OK)), None)
    if found is None:
        raise ValueError(
            f"there is no trtexec, neither in the PATH nor as {PLACES[0]}; on a Jetson: "
            "sudo apt-get install tensorrt libnvinfer-bin"
        )
    return found


def version(tool: str) -> tuple[int, int, int]:
    """Of TensorRT, from what trtexec says first: v100300 is 10.3.0, v8602 was 8.6.2."""
    said = _output([tool, "--help"])
    found = re.search(r"TensorRT v(\d{4,6})\]", said)
    if found is None:
        raise ValueError(f"{tool} does not tell its version: {said[:200]!r}")
    number = int(found[1])
    if number < 10_000:
        return number // 1000, number // 100 % 10, number % 100
    return number // 10_000, number // 100 % 100, number % 100


def capability() -> str:
    """The compute capability of the first GPU, e.g. "87"."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ValueError(f"there is no CUDA driver: {error}") from None
    device, found = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        raise ValueError("the CUDA driver finds no GPU")
    digits = ""
    for attribute in COMPUTE_CAPABILITY:
        if cuda.cuDeviceGetAttribute(ctypes.byref(found), attribute, device):
            raise ValueError("the CUDA driver does not tell the GPU's compute capability")
        digits += str(found.value)
    return digits


def plan_path(model: Path, options: list[str], release: tuple[int, int, int], sm: str) -> Path:
    """Where the engine of a file is kept; the file is named by its hash."""
    asked = hashlib.sha256(json.dumps(options).encode()).hexdigest()[:8]
    return model.with_name(f"{model.stem}-trt{'.'.join(map(str, release))}-sm{sm}-{asked}.plan")


def build_command(tool: str, model: Path, plan: Path, options: list[str]) -> list[str]:
    return [tool, f"--onnx={model}", f"--saveEngine={plan}", *options, "--skipInference"]


def time_command(tool: str, plan: Path, options: list[str], times: Path, major: int) -> list[str]:
    graphs = ["--noCudaGraph"] if major >= 11 else []  # unknown to 10, which has them off
    counts = [f"--warmUp={WARM_MS}", "--duration=0", f"--iterations={BLOCK}"]
    settings = ["--noDataTransfers", "--useSpinWait", *graphs]
    return [tool, f"--loadEngine={plan}", *options, *counts, *settings, f"--exportTimes={times}"]


def _output(command: list[str]) -> str:
    """What a command says. Raises ValueError where it fails, with the lines that it marks as errors."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if "[E]" in line] or done.stdout.splitlines()[-3:]
        raise ValueError(f"{Path(command[0]).name} failed ({done.returncode}): {' '.join(errors)[:1000]}")
    return done.stdout


def build(tool: str, file: dict[str, Any], release: tuple[int, int, int], sm: str) -> tuple[Path, float | None]:
    """The engine of a file, and the seconds that building it took; None where it was kept from before."""
    model = Path(file["path"])
    plan = plan_path(model, file["build"], release, sm)
    if plan.exists():
        return plan, None
    temporary = plan.with_name(f"{plan.name}.tmp")
    begin = time.monotonic()
    _output(build_command(tool, model, temporary, file["build"]))
    os.replace(temporary, plan)
    return plan, time.monotonic() - begin


def measure(runner: Any, job: dict[str, Any], folder: Path, track: Any) -> dict[str, Any]:
    """The result of a job, as `runner.measure` gives it for ONNX Runtime."""
    tool = trtexec()
    release, sm = version(tool), capability()
    rows, built = [], []
    for file in track(job["files"], "building", len(job["files"])):
        row = {"file": file["name"], "engine": "tensorrt", "error": None, "batch": file["batch"], "times_ms": []}
        rows.append(row)
        try:
            plan, row["build_s"] = build(tool, file, release, sm)
            built.append((row, plan, file["shapes"]))
        except ValueError as error:
            row["error"] = str(error).replace(file["path"], file["name"])
    before = runner.machine()
    blocks = None if job["runs"] is None else -(-job["runs"] // BLOCK)
    order = random.Random(job["seed"])
    for _ in track(runner.rounds(blocks, job["seconds"]), "profiling", blocks):
        for row, plan, shapes in order.sample(built, len(built)):
            times = folder / "times.json"
            _output(time_command(tool, plan, shapes, times, release[0]))
            row["times_ms"] += [entry["computeMs"] for entry in json.loads(times.read_bytes())]
    versions = {"tensorrt": ".".join(map(str, release)), "sm": sm}
    return {
        "schema": runner.MEASURED,
        "rows": rows,
        "machine": before,
        "machine_after": runner.machine(),
        "versions": versions,
    }


def load_runner(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("runner", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["runner"] = module  # where its dataclasses look for themselves
    sys.dont_write_bytecode = True  # nothing is left there but what was sent
    spec.loader.exec_module(module)
    return module


def main(path: Path) -> int:
    runner = load_runner(Path(json.loads(path.read_bytes())["runner"]))
    runner.KINDS["time"] = lambda job, folder, track: measure(runner, job, folder, track)
    return int(runner.main(path))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
