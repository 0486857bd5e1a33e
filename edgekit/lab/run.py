"""Files run as other processors, and compared with what they answer here."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import data as datasets
from edgekit.bisect import FALL_DB, rows_of, taps_of
from edgekit.bisect import Difference as TensorDifference
from edgekit.bundle import Bundle, open_bundle
from edgekit.context import Track, no_progress
from edgekit.data import Output, Samples
from edgekit.devices.cpus import NATIVE, Cpu, named
from edgekit.devices.runner import streams
from edgekit.errors import BadInput
from edgekit.files import cache_folder
from edgekit.lab import root
from edgekit.lab.emulator import Emulated, host_python
from edgekit.lab.jobs import Task, work
from edgekit.lab.worker import answers, opened
from edgekit.machine import machine
from edgekit.metrics import METRICS
from edgekit.on_device import Difference
from edgekit.onnx_file import read, read_io, whole
from edgekit.quant.session import with_outputs

LARGEST_BYTES = 2**30
"""Most bytes of all pictures as inputs."""
FEW = 2
"""On how many pictures layers are compared."""
START_S = 8.0
"""How long an emulated Python takes to begin, roughly."""
Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a file is run.

    Attributes:
        samples: pictures of the role `test`, at most.
        processes: workers at once; 0: as many as there are cores.
        limit_s: for each file and processor; what is done by then counts.
        layers: also name the layers that differ.
    """

    samples: int = 100
    processes: int = 0
    limit_s: float | None = None
    layers: bool = False

    @property
    def workers(self) -> int:
        return self.processes or streams(1)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A file with its pictures and what it answers here.

    Attributes:
        test: SHA-256 over the role `test` that the pictures are from.
        truths: of each picture, as `Samples.batches` gives it for a batch of one.
        places: of each picture in the role `test`.
        native: all outputs for each picture.
        native_s: seconds a picture.
    """

    path: Path
    model: bytes
    test: str
    samples: Samples
    output: Output
    inputs: np.ndarray
    truths: list[Any]
    places: list[int]
    native: list[list[np.ndarray]]
    native_s: float


def run(
    paths: Sequence[Path],
    cpu_list: str,
    specs: list[str],
    plan: Plan,
    io_file: Path | None = None,
    track: Track = no_progress,
    log: Log = lambda _line: None,
) -> dict[str, Any]:
    """Run files, and those of bundles that ONNX Runtime runs, here and as each processor; a bundle keeps its result.

    Returns:
        A row for each file and processor: metrics, the share of the same answers and SQNR against those here, and
        whether time was over first (`partial`); `failed` says what crashed. With `layers` a row has `diverging`, the
        layers that are first to differ.

    Raises:
        BadInput: an unknown CPU, one that cannot be emulated here, a file that cannot be read, or nothing ran at all.
    """
    machines = [_machine(cpu) for cpu in named(cpu_list)]
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for path in paths:
        bundle = open_bundle(path) if path.is_dir() else None
        made = []
        for file in shipped_files(bundle) if bundle else [path]:
            subject = _subject(file, specs, plan, io_file)
            if bundle:
                _check_same(bundle, subject)
            made.append(_row(subject, NATIVE, list(range(len(subject.places))), subject.native))
            for on in machines:
                try:
                    made.append(_emulated_row(subject, on, plan, track, log))
                except BadInput as error:
                    failed[f"{file.name} as {on.cpu.name}"] = str(error)
        if bundle:
            bundle.add("lab", {"rows": made, "failed": failed})
        rows += made
    if machines and len(failed) == len(machines) * sum(row["cpu"] == NATIVE for row in rows):
        raise BadInput("; ".join(failed.values()))
    return {"schema": "edgekit/lab/1", "machine": machine(), "rows": rows, "failed": failed}


def _machine(cpu: Cpu) -> Emulated:
    if cpu.architecture == "aarch64":
        return root.emulated(cpu)
    return host_python(cpu, cache_folder() / "lab" / "jobs")


def shipped_files(bundle: Bundle) -> list[Path]:
    """Those that ONNX Runtime runs. Raises BadInput where there are none."""
    engines = {step["file"]: step["engine"] for step in bundle.manifest["steps"]}
    found = [path for path in bundle.models if engines.get(path.name) == "onnxruntime"]
    if not found:
        raise BadInput(f"{bundle.path}: holds no file that ONNX Runtime runs, and the lab runs no other")
    return found


def _check_same(bundle: Bundle, subject: Subject) -> None:
    """That a bundle's own scores and those of the lab are of the same pictures, so that gates can pair them."""
    if subject.test != bundle.manifest["data"]["test"]["sha256"]:
        raise BadInput(f"{bundle.path}: was scored on other test pictures; give the --data that it was made with")


def _subject(path: Path, specs: list[str], plan: Plan, io_file: Path | None) -> Subject:
    """Raises BadInput as `read_io`, or where the pictures are more than LARGEST_BYTES."""
    model = whole(path)
    input, output = read_io(path, io_file)
    role = datasets.load(specs, labels=output.labels).role("test")
    samples = role.subset(plan.samples, 0)
    places = {id: place for place, id in enumerate(role.ids)}
    inputs, truths, indices = [], [], []
    for x, truth, (index,) in samples.batches(input, 1):
        if len(samples) * x.nbytes > LARGEST_BYTES:
            raise BadInput(f"{path}: {len(samples)} pictures take over 1 GiB; give fewer --samples")
        inputs.append(x[0])
        truths.append(truth)
        indices.append(index)
    session = opened(model)
    answers(session, inputs[0])
    begin = time.perf_counter()
    native = [answers(session, x) for x in inputs]
    native_s = (time.perf_counter() - begin) / len(inputs)
    at = [places[samples.ids[index]] for index in indices]
    return Subject(path, model, role.sha256, samples, output, np.stack(inputs), truths, at, native, native_s)


def _emulated_row(subject: Subject, on: Emulated, plan: Plan, track: Track, log: Log) -> dict[str, Any]:
    """What a processor answers. Raises BadInput where it crashed, or got nothing done."""
    task = _task(subject, on, subject.model, subject.inputs)
    left = len(task.keys) - len(task.known())
    if left:
        processes = min(plan.workers, left)
        seconds = START_S + left * subject.native_s * on.cpu.slowdown / processes
        log(
            f"{subject.path.name} as {on.cpu.name}: about {on.cpu.slowdown:.0f} times as slow as here; {left} pictures "
            f"in {processes} processes take about {seconds:.0f} s"
        )
    begin = time.perf_counter()
    work(task, on, plan.workers, plan.limit_s, track)
    known = task.known()
    if not known:
        raise BadInput(
            f"{subject.path.name}: not one picture was done as {on.cpu.name} in {plan.limit_s} s; give it more"
        )
    row = _row(subject, on.cpu.name, known, [task.answer(row) for row in known])
    row |= {"seconds": time.perf_counter() - begin, "ran": left, "features": list(on.cpu.features)}
    if plan.layers:
        row["diverging"] = _diverging(subject, on, plan, track)
    return row


def _task(subject: Subject, on: Emulated, model: bytes, inputs: np.ndarray) -> Task:
    digest = hashlib.sha256(model)
    digest.update("\n".join(on.identity).encode())
    kept = cache_folder() / "lab" / "answers" / digest.hexdigest()[:32]
    keys = tuple(hashlib.sha256(x.tobytes()).hexdigest()[:32] for x in inputs)
    return Task(subject.path.name, model, inputs, kept, keys)


def _row(subject: Subject, cpu: str, known: list[int], found: list[list[np.ndarray]]) -> dict[str, Any]:
    """The metrics of the pictures that are known, and how they differ from the answers here."""
    metric, difference = METRICS[subject.output.task](subject.samples, subject.output), Difference()
    for row, outputs in zip(known, found):
        metric.add(outputs[0], subject.truths[row], [row])
        difference.add(subject.native[row][0], outputs[0], subject.output)
    return {
        "file": subject.path.name,
        "sha256": hashlib.sha256(subject.model).hexdigest(),
        "cpu": cpu,
        "n": len(known),
        "partial": len(known) < len(subject.places),
        "metrics": metric.result(),
        "correct": "".join("1" if hit else "0" for hit in metric.correct),
        "scored": [subject.places[row] for row in known],
        **difference.record(),
    }


def _diverging(subject: Subject, on: Emulated, plan: Plan, track: Track) -> list[str]:
    """The layers whose output differs by FALL_DB more than any of their inputs, first ones first."""
    model = read(subject.path)
    taps = taps_of(model)
    wanted = list(dict.fromkeys(tap.output for tap in taps.values()))
    content = with_outputs(model, wanted).SerializeToString()
    task = _task(subject, on, content, subject.inputs[:FEW])
    work(task, on, plan.workers, plan.limit_s, track)
    session, found = opened(content), {name: TensorDifference() for name in taps}
    for row in task.known():
        both = (dict(zip(wanted, outputs)) for outputs in (answers(session, task.inputs[row]), task.answer(row)))
        here, there = both
        for name, tap in taps.items():
            found[name].add(tap.value(here[tap.output]), tap.value(there[tap.output]))
    return [row["layer"] for row in rows_of(model, found) if row["fall_db"] >= FALL_DB]
