"""Measures the latency of ONNX files: imported on this machine, and sent as it is to a device.

It stands alone: Python 3.9 and up, the standard library and numpy, and onnxruntime once a file is opened.

    python runner.py job.json

runs the job and writes what it found beside it. A job of kind "time" measures files:

    {"schema": "edgekit/job/1", "kind": "time", "engine": "onnxruntime", "files": [{"name", "path"}], "runs": 100,
     "seconds": null, "threads": 1, "batch": 1, "seed": 0, "sustained_s": null, "throughput": false, "layers": false}

`runs` rounds, or as many as begin within `seconds`; paths are absolute or from the job's folder. Every step appends a
line {"done", "total", "what"} to progress.jsonl (`total` is null where nobody knows it), and at the end result.json is
there, whole: {"schema": "edgekit/measured/1", "rows", "machine", "machine_after", "versions"}. A file that cannot be
run has a row with its `error`, and the others are measured. A job of kind "run" has one file and `inputs`, the name of
an .npy file of (B, *shape); the first output for it is written as outputs.npy. A job that cannot be read, or fails as
a whole, has a result of {"schema", "error"} and exit status 1.

How it is measured: sessions warm up until they are stable, then all run once in each round, in random order, so that
what disturbs the machine disturbs all alike.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np

Pair = tuple[Any, np.ndarray]
"""A session and a batch for it; of a session, only `run(batch)` is used, and for throughput `fork()`."""
Track = Callable[[Iterable[Any], str, Optional[int]], Iterable[Any]]
"""Shows progress: (items, label, total) -> the same items."""


def silent(items: Iterable[Any], _label: str, _total: int | None) -> Iterable[Any]:
    return items


# ---- sessions of ONNX Runtime


@dataclasses.dataclass(frozen=True)
class Session:
    """A loaded file. `shape` is (C, H, W) of its float32 input, or (H, W, C) of one that takes uint8 pixels (`dtype`);
    `batch` is its fixed batch size, or None where it is free."""

    raw: Any
    name: str
    shape: tuple[int, ...]
    batch: int | None
    dtype: type[np.generic] = np.float32

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The first output for a batch of (B, *shape); a file of fixed batch is run piece by piece."""
        if self.batch is None or len(batch) == self.batch:
            return self.raw.run(None, {self.name: batch})[0]
        if len(batch) % self.batch:
            padding = np.repeat(batch[-1:], self.batch - len(batch) % self.batch, axis=0)
            return self.run(np.concatenate([batch, padding]))[: len(batch)]
        return np.concatenate([self.run(part) for part in np.split(batch, len(batch) // self.batch)])

    def fork(self) -> Session:
        """A session for another thread to run at the same time."""
        return self


TYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


def open_session(model: Path | bytes, threads: int = 0, optimise: bool = True, profile: Path | None = None) -> Session:
    """Open a file or a serialised model in ONNX Runtime, on the CPU.

    Args:
        threads: of one inference; 0 leaves the choice to ONNX Runtime.
        optimise: whether ONNX Runtime may rewrite the graph, as it does by default.
        profile: where ONNX Runtime notes the time of every operator (see `operators`), as the start of a file name.

    Raises:
        ValueError: ONNX Runtime cannot load it (its own message is passed on), or it has other inputs than one image.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    label = "the model" if isinstance(model, bytes) else str(model)
    try:
        raw = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own for each kind of failure
        raise ValueError(f"{label}: ONNX Runtime cannot load it: {error}") from None
    return _session(raw, label)


def _session(raw: Any, label: str) -> Session:
    inputs = raw.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) != 4:
        found = ", ".join(f"{item.name}: {item.type} {item.shape}" for item in inputs)
        raise ValueError(
            f"{label}: needs one float input of (batch, channels, height, width), or one of uint8 (batch, height, "
            f"width, channels); found {found}"
        )
    first, *shape = inputs[0].shape
    if not all(isinstance(size, int) for size in shape):
        raise ValueError(f"{label}: its input is {inputs[0].shape}; channels, height and width must be fixed numbers")
    batch = first if isinstance(first, int) else None
    return Session(raw, inputs[0].name, tuple(shape), batch, TYPES[inputs[0].type])


def noise(session: Any, size: int) -> np.ndarray:
    """A batch that a session takes, of `size` inputs or of its fixed number: normal values, or any pixels."""
    rng, shape = np.random.default_rng(0), (session.batch or size, *session.shape)
    if session.dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.standard_normal(shape, np.float32)


@dataclasses.dataclass(frozen=True)
class Operators:
    """The operators that ONNX Runtime ran, in order, e.g. `stem.act_nchwc` and `Conv`; `ms` is (runs, operators)."""

    names: list[str]
    kinds: list[str]
    ms: np.ndarray


def operators(session: Session) -> Operators:
    """What a session that was opened with `profile` noted since; it notes nothing more afterwards.

    Raises:
        ValueError: not every run had the same operators.
    """
    events = json.loads(Path(session.raw.end_profiling()).read_bytes())
    runs = sum(event["name"] == "model_run" for event in events)
    ending = "_kernel_time"
    noted = [event for event in events if event["cat"] == "Node" and event["name"].endswith(ending)]
    each = len(noted) // max(runs, 1)
    names = [event["name"][: -len(ending)] for event in noted]
    if not each or names != names[:each] * runs:
        raise ValueError("the operators of this network change from run to run; their times cannot be told apart")
    ms = np.array([event["dur"] for event in noted], np.float64).reshape(runs, each) / 1e3
    return Operators(names[:each], [event["args"]["op_name"] for event in noted[:each]], ms)


# ---- measuring, for sessions of any engine


WARM_RUNS, WARM_SHARE = 3, 0.05
FEWEST, MOST = 8, 500_000
"""Rounds that an interval takes, and that a result can hold."""


def run_ms(session: Any, batch: np.ndarray) -> float:
    begin = time.perf_counter()
    session.run(batch)
    return (time.perf_counter() - begin) * 1e3


def warm_up(session: Any, batch: np.ndarray, limit_s: float = 1.0) -> bool:
    """Run until the medians of the last three runs and of the three before agree within 5 %; False where the time was
    over first."""
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < limit_s:
        times.append(run_ms(session, batch))
        if len(times) >= 2 * WARM_RUNS:
            before, now = (float(np.median(part)) for part in np.split(np.array(times[-2 * WARM_RUNS :]), 2))
            if abs(now - before) <= WARM_SHARE * before:
                return True
    return False


def rounds(runs: int | None, seconds: float | None = None, least: int = 1) -> Iterator[int]:
    """Numbers of rounds: `runs` of them, or as many as begin within `seconds`, but `least`, and MOST."""
    if runs is not None:
        yield from range(runs)
        return
    begin, done = time.perf_counter(), 0
    while done < least or (done < MOST and time.perf_counter() - begin < (seconds or 0.0)):
        yield done
        done += 1


def interleave(pairs: Sequence[Pair], numbers: Iterable[int], seed: int = 0) -> list[list[float]]:
    """The milliseconds of each (session, batch) in each round, in which all run once, in random order."""
    rng = np.random.default_rng(seed)
    times: list[list[float]] = [[] for _ in pairs]
    for _ in numbers:
        for index in rng.permutation(len(pairs)):
            times[index].append(run_ms(*pairs[index]))
    return times


def throughput(
    pairs: Sequence[Pair], count: int, windows: int = 8, window_s: float = 0.25, seed: int = 0, track: Track = silent
) -> list[list[float]]:
    """Images a second of each (session, batch) in each of `windows` windows, run by `count` threads at once; the
    sessions take turns in random order."""
    rng = np.random.default_rng(seed)
    groups = [[(session, batch), *((session.fork(), batch) for _ in range(count - 1))] for session, batch in pairs]
    rates: list[list[float]] = [[] for _ in groups]
    for _ in track(range(windows), "throughput", windows):
        for index in rng.permutation(len(groups)):
            rates[index].append(_rate(groups[index], window_s))
    return rates


def _rate(group: Sequence[Pair], window_s: float) -> float:
    start = threading.Barrier(len(group))

    def work(pair: Pair) -> float:
        session, batch = pair
        start.wait()
        begin, done = time.perf_counter(), 0
        while not done or time.perf_counter() - begin < window_s:
            session.run(batch)
            done += len(batch)
        return done / (time.perf_counter() - begin)

    with concurrent.futures.ThreadPoolExecutor(len(group)) as pool:
        return sum(pool.map(work, group))


def streams(threads: int) -> int:
    """How many inferences of `threads` threads this process's cores can run at once; 0 threads take them all."""
    return max(1, len(_cores()) // threads) if threads else 1


def sustained(session: Any, batch: np.ndarray, seconds: float, track: Track = silent) -> list[dict[str, Any]]:
    """Run without a pause; a record per second: `at_s`, the median and the number of its `runs`, resident set, clock
    and temperature."""
    found: list[dict[str, Any]] = []
    windows, begin = max(1, round(seconds)), time.perf_counter()
    for window in track(range(windows), "sustained", windows):
        times: list[float] = []
        while not times or time.perf_counter() - begin < (window + 1) * seconds / windows:
            times.append(run_ms(session, batch))
        row = {"at_s": time.perf_counter() - begin, "median_ms": float(np.median(times)), "runs": len(times)}
        clock, heat = max(clocks_mhz(), default=None), max(temperatures_c().values(), default=None)
        found.append({**row, "rss_bytes": rss_bytes(), "clock_mhz": clock, "temperature_c": heat})
    return found


def middle_ms(ms: np.ndarray) -> np.ndarray:
    """(runs, operators) to (operators,): means over the middle half of the runs by their sums, so that the operators
    add up to a typical run."""
    order = np.argsort(ms.sum(axis=1))
    quarter = len(order) // 4
    return ms[order[quarter : len(order) - quarter]].mean(axis=0)


LAYER_ROUNDS, NOTES = 50, 64


def operator_times(
    model: Path, threads: int, batch: int, seed: int = 0, track: Track = silent
) -> tuple[list[dict[str, Any]], float]:
    """The milliseconds of a file's operators ({"name", "kind", "ms"}), and of a whole run without notes, from the same
    rounds. What taking a note costs (`note_ms`) is taken off each operator's time, down to zero.

    Raises:
        ValueError: as `open_session` and `operators`.
    """
    cost_ms = note_ms(threads)
    found, whole_ms = _operator_times(model, threads, batch, seed, track)
    return [{**item, "ms": max(0.0, item["ms"] - cost_ms)} for item in found], whole_ms


def note_ms(threads: int) -> float:
    """What ONNX Runtime adds to an operator's time by noting it: of operators that have next to nothing to do, the sum
    of their times less a whole run without notes, over their number."""
    found, whole_ms = _operator_times(_idle(NOTES), threads, 1)
    return max(0.0, sum(item["ms"] for item in found) - whole_ms) / len(found)


def _idle(count: int) -> bytes:
    """An ONNX file that changes the sign of one number `count` times, by hand: onnx need not be installed here."""

    def field(number: int, value: bytes | str | int) -> bytes:
        if isinstance(value, int):
            return bytes([number << 3, value])
        content = value.encode() if isinstance(value, str) else value
        size, head = len(content), bytearray([number << 3 | 2])
        while size > 127:
            head.append(size & 127 | 128)
            size >>= 7
        return bytes(head) + bytes([size]) + content

    shape = field(2, field(1, field(1, 1)) * 4)
    one = field(2, field(1, field(1, 1) + shape))  # float32 (1, 1, 1, 1)
    kinds = ("Neg", "Abs")  # two of a kind in a row would cancel out
    nodes = [field(1, field(1, f"x{i}") + field(2, f"x{i + 1}") + field(4, kinds[i % 2])) for i in range(count)]
    ends = field(11, field(1, "x0") + one) + field(12, field(1, f"x{count}") + one)
    graph = b"".join(nodes) + field(2, "idle") + ends
    return field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13))


def _operator_times(
    model: Path | bytes, threads: int, batch: int, seed: int = 0, track: Track = silent
) -> tuple[list[dict[str, Any]], float]:
    with tempfile.TemporaryDirectory() as folder:
        noted = open_session(model, threads, profile=Path(folder) / "operators")
        pairs = [(session, noise(session, batch)) for session in (noted, open_session(model, threads))]
        for pair in pairs:
            warm_up(*pair)
        times = interleave(pairs, track(range(LAYER_ROUNDS), "profiling layers", LAYER_ROUNDS), seed)
        account = operators(noted)
    each = zip(account.names, account.kinds, middle_ms(account.ms[-LAYER_ROUNDS:]).tolist())
    whole_ms = float(middle_ms(np.array(times[1])[:, None])[0])
    return [{"name": name, "kind": kind, "ms": ms} for name, kind, ms in each], whole_ms


# ---- the machine


def machine() -> dict[str, Any]:
    """What a latency depends on and a reader must know: `identity` and `state`."""
    return {**identity(), **state()}


def identity() -> dict[str, Any]:
    """What stays."""
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "flags": cpu_flags(), "system": platform.system()}


def state() -> dict[str, Any]:
    """What varies. None and empty lists: this machine does not tell. Counters count from its start; of two states, what
    lies between is the difference."""
    return {
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "affinity": _cores(),
        "governors": sorted(set(_each_core("cpufreq/scaling_governor"))),
        "clocks_mhz": clocks_mhz(),
        "clocks_locked": _clocks_locked(),
        "temperatures_c": temperatures_c(),
        "throttled": _throttled(),
        "power_mode": _power_mode(),
        "at_s": time.time(),
        "own_cpu_s": time.process_time(),
        **_processor_seconds(),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _cpuinfo(key: str) -> list[str]:
    lines = (line.partition(":") for line in _read(Path("/proc/cpuinfo")).splitlines())
    return [value.strip() for name, _, value in lines if name.strip() == key]


def _each_core(entry: str) -> list[str]:
    found = (_read(path / entry) for path in sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*")))
    return [text for text in found if text]


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_name() -> str:
    """The processor; on ARM boards, which do not name it in /proc/cpuinfo, the board."""
    board = _read(Path("/proc/device-tree/model")).rstrip("\0")
    return next(iter(_cpuinfo("model name")), "") or board or platform.processor() or platform.machine()


WANTED_FLAGS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "avx512_fp16": "fp16",
    "asimddp": "dot product",
    "asimdhp": "fp16",
    "i8mm": "int8 matmul",
}


def cpu_flags() -> list[str]:
    """The instruction sets that decide how fast, and on x86 how right, an int8 file is."""
    found = " ".join((_cpuinfo("flags") or _cpuinfo("Features"))[:1]).split()
    return sorted({name for flag, name in WANTED_FLAGS.items() if flag in found})


def clocks_mhz() -> list[float]:
    """The clock of each core now."""
    scaled = [int(text) / 1e3 for text in _each_core("cpufreq/scaling_cur_freq") if text.isdigit()]
    return scaled or [float(text) for text in _cpuinfo("cpu MHz")]


def _clocks_locked() -> bool | None:
    """Whether the clocks cannot vary, as after `jetson_clocks`."""
    low, high = (_each_core(f"cpufreq/scaling_{end}_freq") for end in ("min", "max"))
    return low == high if low else None


def temperatures_c() -> dict[str, float]:
    """By thermal zone, which is named as the kernel does; the hottest of those of one name."""
    found: dict[str, float] = {}
    for zone in sorted(Path("/sys/class/thermal").glob("thermal_zone*")):
        name, text = _read(zone / "type"), _read(zone / "temp")
        if name and text.lstrip("-").isdigit():
            found[name] = max(int(text) / 1e3, found.get(name, -273.15))
    return found


def _throttled() -> dict[str, int]:
    """Events by source: a processor too hot (x86), a power supply too weak or heat (Raspberry Pi, its bits), a share of
    the processor used up (containers)."""
    found = {}
    if hot := _each_core("thermal_throttle/core_throttle_count"):
        found["core_throttle_count"] = sum(map(int, hot))
    for path in sorted(Path("/sys/devices/platform/soc").glob("soc:firmware/get_throttled")):
        found["raspberry_pi_bits"] = int(_read(path) or "0", 16)
    lines = [line.split() for line in _read(Path("/sys/fs/cgroup/cpu.stat")).splitlines()]
    return {**found, **{f"cgroup_{name}": int(value) for name, value in lines if name == "nr_throttled"}}


def _power_mode() -> str | None:
    """The mode that a Jetson's `nvpmodel` is in."""
    tool = shutil.which("nvpmodel")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvpmodel cannot tell: {error}"
    return " ".join((done.stdout or done.stderr).split())


def _processor_seconds() -> dict[str, float | None]:
    """Of all cores together since the start: busy (own work included), and stolen by another virtual machine."""
    first = _read(Path("/proc/stat")).partition("\n")[0].split()
    if len(first) < 9:
        return {"busy_s": None, "stolen_s": None}
    user, nice, system, _idle, _wait, interrupts, soft, stolen = (int(text) for text in first[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return {"busy_s": (user + nice + system + interrupts + soft) / tick, "stolen_s": stolen / tick}


def rss_bytes() -> int | None:
    """Memory of this process that is resident now."""
    pages = _read(Path("/proc/self/statm")).split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else None


def versions() -> dict[str, str]:
    import onnxruntime

    return {"python": platform.python_version(), "numpy": np.__version__, "onnxruntime": onnxruntime.__version__}


# ---- jobs


MEASURED = "edgekit/measured/1"
ENGINES = {"onnxruntime": open_session}


@dataclasses.dataclass
class Progress:
    """Appends to progress.jsonl; steps that follow each other within a tenth of a second share a line."""

    path: Path
    last_s: float = 0.0

    def track(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterator[Any]:
        self.tell(label, 0, total)
        done = 0
        for done, item in enumerate(items, 1):
            yield item
            if time.monotonic() - self.last_s > 0.1:
                self.tell(label, done, total)
        self.tell(label, done, total)

    def tell(self, what: str, done: int, total: int | None) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"done": done, "total": total, "what": what}) + "\n")
        self.last_s = time.monotonic()


def measure(job: dict[str, Any], folder: Path, track: Track) -> dict[str, Any]:
    """The result of a job of kind "time"."""
    found = {"schema": MEASURED, "versions": versions()}  # imports what would count as loading time
    if job["engine"] not in ENGINES:
        raise ValueError(f"the engine {job['engine']!r} is not known here; known: {', '.join(ENGINES)}")
    rows: list[dict[str, Any]] = []
    opened: list[tuple[dict[str, Any], Path]] = []
    pairs, load, threads = list[Pair](), ENGINES[job["engine"]], job["threads"]
    for file in track(job["files"], "opening", len(job["files"])):
        row, path = {"file": file["name"], "engine": job["engine"], "error": None}, folder / file["path"]
        rows.append(row)
        try:
            opening = functools.partial(load, path, threads)
            if not pairs:
                opening()  # so that the runtime's own start counts for none
            timed, pair = open_timed(opening, job["batch"])
        except Exception as error:  # the other files are measured; what the runtime said is passed on
            row["error"] = str(error).replace(str(path), file["name"])
            continue
        row.update(timed)
        opened.append((row, path))
        pairs.append(pair)
    found.update(fill([row for row, _ in opened], pairs, job, track))
    for row, path in opened if job["layers"] else []:
        try:
            row["layers"], row["layers_whole_ms"] = operator_times(path, threads, job["batch"], job["seed"], track)
        except ValueError as error:
            row["layers_error"] = str(error)
    return {**found, "rows": rows}


def open_timed(load: Callable[[], Any], batch: int) -> tuple[dict[str, Any], Pair]:
    """What `load` opens with a batch for it; how long that and the first run took."""
    begin, session = time.perf_counter(), load()
    load_ms = (time.perf_counter() - begin) * 1e3
    feed = noise(session, batch)
    if batch not in (1, len(feed)):
        raise ValueError(f"the file is of batch {len(feed)}; measure it with that, not with {batch}")
    return {"load_ms": load_ms, "first_ms": run_ms(session, feed), "batch": len(feed)}, (session, feed)


def fill(
    rows: Sequence[dict[str, Any]], pairs: Sequence[Pair], job: Mapping[str, Any], track: Track = silent
) -> dict[str, Any]:
    """Measure opened sessions as `job` says and write what was found into their rows; returns the machine's records."""
    for row, pair in track(list(zip(rows, pairs)), "warming up", len(rows)):
        row["warm"] = warm_up(*pair)
    before = machine()
    if not pairs:
        return {"machine": before, "machine_after": before}
    numbers = track(rounds(job["runs"], job["seconds"], FEWEST), "profiling", job["runs"])
    for row, times in zip(rows, interleave(pairs, numbers, job["seed"])):
        row["times_ms"] = times
    found = {"machine": before, "machine_after": machine()}
    if job["throughput"]:
        count = streams(job["threads"])
        for row, rates in zip(rows, throughput(pairs, count, seed=job["seed"], track=track)):
            row["throughput"] = {"streams": count, "images_per_s": rates}
    if job["sustained_s"]:
        for row, pair in zip(rows, pairs):
            row["sustained"] = sustained(*pair, seconds=job["sustained_s"], track=track)
    return found


def answer(job: dict[str, Any], folder: Path, track: Track) -> dict[str, Any]:
    """The result of a job of kind "run"; writes outputs.npy."""
    (file,) = job["files"]
    batch = np.load(folder / job["inputs"], allow_pickle=False)
    session = open_session(folder / file["path"], job.get("threads", 0))
    starts = range(0, len(batch), 32)
    parts = [session.run(batch[start : start + 32]) for start in track(starts, "running", len(starts))]
    np.save(folder / "outputs.npy", np.concatenate(parts), allow_pickle=False)
    return {"schema": MEASURED, "rows": [], "machine": machine(), "versions": versions()}


KINDS = {"time": measure, "run": answer}


def main(path: Path) -> int:
    folder = path.parent
    try:
        job = json.loads(path.read_bytes())
        if job["schema"] != "edgekit/job/1":
            raise ValueError(f"the job's schema is {job['schema']!r}; this runner knows edgekit/job/1")
        result = KINDS[job["kind"]](job, folder, Progress(folder / "progress.jsonl").track)
    except Exception as error:  # whatever it was, the other end must be told
        result = {"schema": MEASURED, "error": f"{type(error).__name__}: {error}"}
    temporary = folder / "result.json.tmp"
    temporary.write_text(json.dumps(result))
    os.replace(temporary, folder / "result.json")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
