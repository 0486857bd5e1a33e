"""Bytes that an inference moves between the last cache and the memory, measured around the real runtime.

Each provider watches a process that runs the file N times and one that runs it M times, or one that is copied after N
runs: in the difference, start-up and loading cancel. What is counted differs, so figures of two providers are never
set side by side:

    cachegrind  lines filled into a simulated last-level cache, for reads and for writes, × line size. Lines written
                back are not counted; no prefetcher. Valgrind (Nethercote & Seward 2007) shows programs a processor with
                AVX2 and no more, so ONNX Runtime takes its AVX2 kernels. Works wherever valgrind does.
    perf        reads and writes of the memory controllers, those of everything else on the machine included.
    ncu         reads and writes of a GPU's memory, kernel by kernel, with caches emptied before each. What ONNX Runtime
                leaves to the processor is not counted.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.devices.boards import DEFAULT, Cache, Caches
from edgekit.engines import cuda, engine
from edgekit.errors import BadInput, unknown

RUNS = (2, 3)
"""N and M. ONNX Runtime lays out its memory in the first run and uses that layout from the second on."""
RUNNER = Path(__file__).with_name("inference.py")
QUIET = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""So that two processes start alike: with telemetry's thread alone, start-up varies by 40 MB."""


Parts = dict[str, int]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bytes of one inference by what they were for, such as reads; `detail` says the version and the caches."""

    provider: str
    parts: Parts
    detail: dict[str, str]

    @property
    def traffic_bytes(self) -> int:
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Provider:
    """A way to measure. `missing()` says why it cannot be used here and how to get it; `count` gives the bytes of N and
    of M runs."""

    missing: Callable[[], str | None]
    count: Callable[[Path, Caches], tuple[Parts, Parts]]
    detail: Callable[[Caches], dict[str, str]]


def measure(path: Path, provider: str = "cachegrind", caches: Caches = DEFAULT) -> Measured:
    """The traffic of one inference of a file in ONNX Runtime, one thread, batch 1.

    Raises:
        BadInput: ONNX Runtime cannot load the file, or the provider is unknown or cannot be used here.
    """
    if provider not in PROVIDERS:
        raise unknown("provider", provider, PROVIDERS)
    chosen = PROVIDERS[provider]
    if (reason := chosen.missing()) is not None:
        raise BadInput(f"{provider}: {reason}")
    engine("onnxruntime").load(path, threads=1)
    few, many = chosen.count(path, caches)
    parts = {name: (many[name] - few[name]) // (RUNS[1] - RUNS[0]) for name in many}
    return Measured(provider, parts, chosen.detail(caches))


def _run(command: Sequence[str], path: Path, *runs: int, provider: str = "CPUExecutionProvider") -> str:
    """Raises BadInput with the program's last words where it fails."""
    whole = [*command, sys.executable, str(RUNNER), provider, str(path), *map(str, runs)]
    done = subprocess.run(whole, capture_output=True, text=True, env={**os.environ, **QUIET})
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise BadInput(f"{command[0]} failed on {path} (exit code {done.returncode}): {said[-1]}")
    return done.stdout + done.stderr


# cachegrind


def _no_valgrind() -> str | None:
    return None if shutil.which("valgrind") else "valgrind is not installed; get it by `apt install valgrind`"


def _cachegrind(path: Path, caches: Caches) -> tuple[Parts, Parts]:
    found = [llc_fills(text, caches.llc.line_bytes) for text in _simulated(path, *_sizes(caches))]
    few, many = sorted(found, key=lambda parts: sum(parts.values()))
    return few, many


def _simulated(path: Path, *options: str) -> list[str]:
    """What cachegrind wrote of a process and of its copy that ended after N runs: start-up takes most of the time and
    is paid once."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "-q", "--tool=cachegrind", f"--cachegrind-out-file={folder}/%p", *options]
        _run(command, path, RUNS[0], RUNS[1] - RUNS[0])
        return [file.read_text() for file in Path(folder).iterdir()]


def counts(path: Path, caches: Caches = DEFAULT) -> Parts:
    """What one inference of a file costs in ONNX Runtime, one thread, batch 1, by the metrics' names: the same numbers
    in each run, whatever else the machine does. Valgrind shows programs AVX2 and no more, so they are those of the AVX2
    kernels; misses are of data in simulated caches.

    Raises:
        BadInput: ONNX Runtime cannot load the file, valgrind is missing, or a cache cannot be simulated.
    """
    if (reason := _no_valgrind()) is not None:
        raise BadInput(f"instructions: {reason}")
    engine("onnxruntime").load(path, threads=1)
    few, many = sorted((events(text) for text in _simulated(path, *_sizes(caches))), key=lambda found: found["Ir"])
    one = {name: (many[name] - few[name]) // (RUNS[1] - RUNS[0]) for name in many}
    return {
        "instructions": one["Ir"],
        "l1_misses": one["D1mr"] + one["D1mw"],
        "llc_misses": max(0, one["DLmr"] + one["DLmw"]),  # a few less where loading had put more there
    }


def _sizes(caches: Caches) -> list[str]:
    levels = {"I1": caches.l1i, "D1": caches.l1d, "LL": caches.llc}
    return ["--cache-sim=yes", *(f"--{level}={_geometry(level, cache)}" for level, cache in levels.items())]


def _geometry(level: str, cache: Cache) -> str:
    """Raises BadInput for a cache that cachegrind cannot simulate."""
    sets, rest = divmod(cache.size_bytes, cache.ways * cache.line_bytes)
    if rest or sets & (sets - 1) or not sets:
        raise BadInput(
            f"cachegrind: {level} of {cache.size_bytes} bytes and {cache.ways} ways has no power of two of sets, "
            f"and it simulates no other; take the nearest size, such as {_nearest(cache)}"
        )
    return f"{cache.size_bytes},{cache.ways},{cache.line_bytes}"


def _nearest(cache: Cache) -> int:
    way = cache.ways * cache.line_bytes
    return way << max(0, (cache.size_bytes // way).bit_length() - 1)


def events(text: str) -> dict[str, int]:
    """The totals of what cachegrind wrote, by the names of its events."""
    lines = dict(line.split(": ", 1) for line in text.splitlines() if line.startswith(("events: ", "summary: ")))
    return dict(zip(lines["events"].split(), map(int, lines["summary"].split())))


def llc_fills(text: str, line_bytes: int) -> Parts:
    """Bytes filled into the last-level cache, from what cachegrind wrote."""
    counts = events(text)
    names = {"instructions": "ILmr", "reads": "DLmr", "writes": "DLmw"}
    return {part: counts[event] * line_bytes for part, event in names.items()}


def _cachegrind_detail(caches: Caches) -> dict[str, str]:
    version = subprocess.run(["valgrind", "--version"], capture_output=True, text=True).stdout.strip()
    names = {"l1i": caches.l1i, "l1d": caches.l1d, "llc": caches.llc}
    return {"version": version, **{name: f"{c.size_bytes},{c.ways},{c.line_bytes}" for name, c in names.items()}}


# Memory controllers

CONTROLLERS = Path("/sys/bus/event_source/devices")


def _imc_events() -> list[str]:
    """The controllers' counters of reads and writes, as the kernel names them."""
    units = sorted(path.name for path in CONTROLLERS.glob("uncore_imc*") if "free_running" not in path.name)
    return [f"{unit}/cas_count_{way}/" for unit in units for way in ("read", "write")]


def _no_perf() -> str | None:
    if not shutil.which("perf"):
        return "perf is not installed; get it by `apt install linux-perf` (Debian) or `linux-tools-generic` (Ubuntu)"
    if not _imc_events():
        return (
            f"the kernel shows no memory controllers (uncore_imc in {CONTROLLERS}); virtual machines hide them: run on "
            "the bare machine, an Intel server or desktop"
        )
    return None


def _perf(path: Path, _caches: Caches) -> tuple[Parts, Parts]:
    command = ["perf", "stat", "-a", "-x,", "-e", ",".join(_imc_events())]
    few, many = (perf_bytes(_run(command, path, runs)) for runs in RUNS)
    return few, many


def perf_bytes(text: str) -> Parts:
    """Bytes from perf's comma-separated lines, which count in MiB.

    Raises:
        BadInput: a counter was not counted.
    """
    rows = [row for row in csv.reader(text.splitlines()) if len(row) > 2 and "cas_count" in row[2]]
    if not rows or any(not re.fullmatch(r"[0-9.]+", row[0]) for row in rows):
        raise BadInput(
            "perf: the memory controllers were not counted; run as root, or set kernel.perf_event_paranoid=0"
        )
    return {
        f"{way}s": round(sum(float(row[0]) * 2**20 for row in rows if row[2].endswith(f"{way}/")))
        for way in ("read", "write")
    }


# A GPU's memory

GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
METRICS = {"reads": "dram__bytes_read.sum", "writes": "dram__bytes_write.sum"}


def _no_ncu() -> str | None:
    if not shutil.which("ncu"):
        return "Nsight Compute is not installed; get it by `apt install nsight-compute`, or with the CUDA toolkit"
    if _gpu_provider() is None:
        return "this ONNX Runtime runs nothing on a GPU; get one that does by `pip install onnxruntime-gpu`"
    return cuda.missing()


def _gpu_provider() -> str | None:
    """The execution provider of this ONNX Runtime that runs files on the GPU."""
    import onnxruntime as ort

    return next((name for name in GPU_PROVIDERS if name in ort.get_available_providers()), None)


def _ncu(path: Path, _caches: Caches) -> tuple[Parts, Parts]:
    command = ["ncu", "--csv", "--print-units", "base", "--metrics", ",".join(METRICS.values())]
    few, many = (ncu_bytes(_run(command, path, runs, provider=str(_gpu_provider()))) for runs in RUNS)
    return few, many


def ncu_bytes(text: str) -> Parts:
    """Bytes from Nsight Compute's table, a line for each kernel and metric, in base units.

    Raises:
        BadInput: the counters may not be read.
    """
    if "ERR_NVGPUCTRPERM" in text:
        raise BadInput(
            "ncu: the driver keeps the counters for root; run as root, or set NVreg_RestrictProfilingToAdminUsers=0"
        )
    rows = list(csv.DictReader(line for line in text.splitlines() if line.startswith('"')))
    counts = [(row["Metric Name"], round(float(row["Metric Value"].replace(",", "")))) for row in rows]
    return {part: sum(count for name, count in counts if name == metric) for part, metric in METRICS.items()}


PROVIDERS = {
    "cachegrind": Provider(_no_valgrind, _cachegrind, _cachegrind_detail),
    "perf": Provider(_no_perf, _perf, lambda _caches: {}),
    "ncu": Provider(_no_ncu, _ncu, lambda _caches: {"execution_provider": str(_gpu_provider())}),
}
