"""Resident memory of a file: what a process gains by loading and running it, above one that runs a network of a single
operator in the same engine. Median over fresh processes (child.py): the layout of the heap varies from one to another,
and with it by megabytes what is reused. Memory that a GPU has of its own is not in it."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPEATS = 3
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Those of NumPy in a process that forks; the engine's own are set by session."""


def missing(proc: Path = Path("/proc")) -> str | None:
    """Why resident memory cannot be measured here."""
    if not (proc / "self/smaps_rollup").is_file():
        return f"resident memory is read in {proc}/self/smaps_rollup, which only Linux has, from version 4.14 on"
    return None


def measure(files: Sequence[Path], engine_name: str, threads: int, batch: int = 1) -> list[dict[str, Any]]:
    """What every file takes in memory in an engine.

    Returns:
        A record per file: resident_load_bytes after loading, resident_run_bytes at most while running and, in ONNX
        Runtime, arena_bytes (see engines/arena.py); or {"error": why} where it cannot be measured.
    """
    if why := missing():
        return [{"error": why} for _ in files]
    with tempfile.TemporaryDirectory() as folder:
        least = Path(folder) / "least.onnx"
        least.write_bytes(_least())
        names = [str(path.resolve()) for path in (least, *files)]
        asked = {"engine": engine_name, "files": names, "threads": threads, "batch": batch, "arena": False}
        first = asked | {"arena": engine_name == "onnxruntime"}  # the same in every process
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # memory does not depend on who else computes
            answers = list(pool.map(_ask, [first, *[asked] * (REPEATS - 1)]))
    _, *arenas = (record.pop("arena", {}) for record in answers[0])
    runtime, *records = (_median(repeats) for repeats in zip(*answers))
    if "error" in runtime:
        return [runtime for _ in files]
    return [_above(record, runtime) | arena for record, arena in zip(records, arenas)]


def _ask(asked: dict[str, Any]) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "edgekit.memory.child"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, env=os.environ | ONE_THREAD)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or done.returncode
        return [{"error": f"the process that measures memory ended with {reason}"} for _ in asked["files"]]
    return json.loads(done.stdout)


def _median(repeats: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of every size over the repeats, or the first error."""
    failed = [record for record in repeats if "error" in record]
    return failed[0] if failed else {key: statistics.median(item[key] for item in repeats) for key in repeats[0]}


def _above(record: dict[str, Any], runtime: dict[str, Any]) -> dict[str, Any]:
    return record if "error" in record else {key: max(0, int(record[key] - runtime[key])) for key in record}


def _least() -> bytes:
    """A network of one operator."""
    from onnx import TensorProto, helper

    shape = ["n", 1, 1, 1]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "least", [x], [y])
    opset = helper.make_opsetid("", 13)
    return helper.make_model(graph, ir_version=8, opset_imports=[opset]).SerializeToString()
