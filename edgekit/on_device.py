"""What devices are asked besides latency: the accuracy of a file, and the layer times of a network.

A file's answers are compared with those on this machine. Pictures are read and prepared here and scores are counted
here, by the same code; the file alone runs there. So what differs is the device's processor, and its version of ONNX
Runtime.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import data as datasets
from edgekit.context import Track, no_progress
from edgekit.data import Input, Output, Samples
from edgekit.devices.address import addresses
from edgekit.devices.device import Device, Tell, expecting, processor
from edgekit.devices.fleet import on_devices
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.evaluate import evaluate
from edgekit.inspection import input_shape
from edgekit.latency import Table, layer_table
from edgekit.latency.remote import table_there
from edgekit.machine import machine
from edgekit.net import Net, build, parse_spec
from edgekit.onnx_file import read_io, whole
from edgekit.parity import decibels
from edgekit.profile.plan import Plan

CHUNK_BYTES = 32 << 20
"""The most that is sent to a device at once."""
HEADER_BYTES = 4096
PART = 32
"""How many inputs of a chunk run at once, here as there."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A file and what to ask it."""

    path: Path
    samples: Samples
    input: Input
    output: Output

    @property
    def chunk(self) -> int:
        each = 4 * math.prod(self.input.shape)
        return max(1, min(CHUNK_BYTES // each, 32 * PART))


@dataclasses.dataclass
class Difference:
    """How far the answers of a device are from those here, over all samples."""

    signal: float = 0.0
    noise: float = 0.0
    same: int = 0
    answers: int = 0

    def add(self, here: np.ndarray, there: np.ndarray, output: Output) -> None:
        if (classes := _classes(here, output)) is not None:
            same = classes == _classes(there, output)
            self.same, self.answers = self.same + int(same.sum()), self.answers + same.size
        if np.issubdtype(here.dtype, np.floating):
            self.signal += float(np.square(here, dtype=np.float64).sum())
            self.noise += float(np.square(here.astype(np.float64) - there).sum())

    def record(self) -> dict[str, float]:
        """agreement: the share in percent of samples, or of a mask's pixels, with the same class; sqnr_db: of the
        outputs here against the difference."""
        found = {"agreement": 100 * self.same / self.answers} if self.answers else {}
        return found | ({"sqnr_db": decibels(self.signal, self.noise)} if self.signal or self.noise else {})


def _classes(outputs: np.ndarray, output: Output) -> np.ndarray | None:
    """The class of each sample or pixel; None for boxes."""
    if output.form != "scores":
        chosen = output.chosen(outputs)
        return chosen[:, 0] if chosen.ndim == 2 else chosen
    return None if output.task == "detect" else output.scores(outputs).argmax(1)


def evaluate_there(
    path: Path,
    specs: list[str],
    devices: Sequence[str],
    fleet: Path | None,
    engine_name: str | None = None,
    target_name: str | None = None,
    io_file: Path | None = None,
    track: Track = no_progress,
    log: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Score a file on the role `test` of the data, in ONNX Runtime on each device and here.

    Raises:
        BadInput: as `evaluate_file`, another engine than ONNX Runtime, or no device could be used.
    """
    if target_name is not None or engine_name not in (None, "onnxruntime"):
        raise BadInput("--device: files are scored there in ONNX Runtime; leave out --engine and --target")
    there = addresses(devices, fleet)
    content = whole(path)
    input, output = read_io(path, io_file)
    samples = datasets.load(specs, progress=track, labels=output.labels).role("test")
    question = Question(path, samples, input, output)
    session = engine("onnxruntime").load(path)
    here = evaluate(session.run, samples, input, output, progress=track)
    found, failed = on_devices(
        there, lambda device, tell: _score(device, tell, question, content, session.run), track, log
    )
    return {
        "schema": "edgekit/device-evaluation/1",
        "file": path.name,
        "engine": "onnxruntime",
        "n": here.n,
        "skipped": here.skipped,
        "here": {"metrics": here.metrics, "machine": machine(), "engine_version": engine("onnxruntime").version()},
        "devices": [{"device": name, **record} for name, record in found.items()],
        "failed": failed,
    }


def _score(
    device: Device, tell: Tell, question: Question, content: bytes, run: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """The metrics of a file on a device, and how its answers differ from those of `run`."""
    device.probe()
    there = Answers(device, question.path.name, device.send(content, ".onnx"))
    difference = Difference()

    def predict(x: np.ndarray) -> np.ndarray:
        expected = np.concatenate([run(x[at : at + PART]) for at in range(0, len(x), PART)])
        answer = there.run(x, expected)
        difference.add(expected, answer, question.output)
        return answer

    def telling(items: Iterable[Any], label: str, total: int | None = None) -> Iterator[Any]:
        for done, item in enumerate(items, 1):
            yield item
            tell(device.name, label, done, total)

    score = evaluate(predict, question.samples, question.input, question.output, question.chunk, telling)
    with expecting(device.name):
        found = {
            "machine": processor(there.result["machine"]),
            "engine_version": str(there.result["versions"]["onnxruntime"]),
        }
    return {"metrics": score.metrics, **difference.record(), **found}


class Answers:
    """What a file that was sent answers on a device."""

    def __init__(self, device: Device, name: str, sent: str) -> None:
        self._device, self._file = device, {"name": name, "path": sent}
        self.result: dict[str, Any] = {}

    def run(self, x: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """The first output for a batch. Raises BadInput where it has not the shape and type of `expected`, or is not
        finite."""
        stream = io.BytesIO()
        np.save(stream, x)
        sent = self._device.send(stream.getvalue(), ".npy")
        job = {"schema": "edgekit/job/1", "kind": "run", "engine": "onnxruntime", "files": [self._file], "inputs": sent}
        found = self._device.run(job, output_bytes=expected.nbytes + HEADER_BYTES)
        self._device.forget([sent])
        self.result = found.result
        return self._read(found.outputs, expected)

    def _read(self, content: bytes, expected: np.ndarray) -> np.ndarray:
        """The array in an .npy file, of which nothing is read but what was expected."""
        stream = io.BytesIO(content)
        with expecting(self._device.name):
            np.lib.format.read_magic(stream)
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream, HEADER_BYTES)
            if (shape, dtype) != (expected.shape, expected.dtype):
                raise ValueError(f"{dtype} {shape}, where this machine has {expected.dtype} {expected.shape}")
            answer = np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)
            if not np.isfinite(answer).all():
                raise ValueError("outputs that are no finite numbers")
        return answer


def layer_tables(
    models: Sequence[str],
    plan: Plan,
    engine_name: str | None,
    input_size: int | None,
    devices: Sequence[str],
    fleet: Path | None,
    track: Track = no_progress,
    log: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Measure the layers of MODELs, for budgets of latency, on each device or here; the tables are kept in the cache.

    Raises:
        BadInput: a model that is no network of PyTorch, another engine or more of a plan than its threads, no device
            could measure, or as `layer_table`.
    """
    others = [option for option in plan.options if option != "--threads"]
    others += ["--engine"] if engine_name not in (None, "onnxruntime") else []
    if others:
        raise BadInput(
            f"--layer-table: is measured in ONNX Runtime, at batch 1, in rounds of its own; leave out "
            f"{', '.join(others)}"
        )
    nets = {spec: _network(spec, input_size) for spec in models}
    if not devices and fleet is None:
        here = {spec: layer_table(*net, plan.threads, track) for spec, net in nets.items()}
        found, failed = {"here": here}, dict[str, str]()
    else:
        found, failed = on_devices(
            addresses(devices, fleet),
            lambda device, tell: {spec: table_there(*net, plan.threads, device, tell) for spec, net in nets.items()},
            track,
            log,
        )
    rows = [_table_row(name, spec, table) for name, tables in found.items() for spec, table in tables.items()]
    return {"schema": "edgekit/layer-tables/1", "rows": rows, "failed": failed}


def _network(spec: str, input_size: int | None) -> tuple[Net, Input]:
    """A MODEL, and its input, by default of the size that its card gives."""
    source = parse_spec(spec)
    if source.kind == "onnx":
        raise BadInput(f"{spec}: a layer table is of a network whose channels can be removed; give a MODEL of the zoo")
    return Net(source, (), build(source, trust=True)), Input(size=input_shape(spec.partition("?")[0], input_size)[1])


def _table_row(name: str, spec: str, table: Table) -> dict[str, Any]:
    return {
        "device": name,
        "model": spec,
        "latency_ms": table.full.latency_ms,
        "layers": len(table.layers),
        "error": table.error,
        "steady": table.steady,
        "path": str(table.key.path),
        "what": str(table),
    }
