"""Measuring files on this machine, in any engine, by the runner's own functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.context import Track, no_progress
from edgekit.data import Input, Output
from edgekit.devices import runner
from edgekit.engines import engine
from edgekit.engines.tensorrt import TENSORRT
from edgekit.errors import BadInput, EdgekitError
from edgekit.onnx_file import read_io
from edgekit.profile.layers import operators
from edgekit.profile.plan import Plan

CAMERA = (480, 640, 3)
"""The picture that end-to-end times start from."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: a file, or for the engine torch a bundle (whose code may run with `trust`), under a name."""

    name: str
    path: Path
    engine: str = "onnxruntime"
    trust: bool = False

    def load(self, threads: int) -> Any:
        """A session. Raises BadInput where the engine cannot load it."""
        more = {"trust": True} if self.trust and self.engine == "torch" else {}
        return engine(self.engine).load(self.path, threads, **more)


@dataclasses.dataclass(frozen=True)
class EndToEnd:
    """A session with what comes before and after it: `run` takes a picture, uint8 (H, W, 3), to the task's answer."""

    session: Any
    input: Input
    output: Output

    def run(self, picture: np.ndarray) -> np.ndarray:
        """Classes (1, …) or, for detection, boxes (n, 6)."""
        found = self.session.run(self.input.apply(picture)[None])
        if self.output.form != "scores":
            return self.output.chosen(found)
        return self.output.detections(found[0]) if self.output.task == "detect" else self.output.scores(found).argmax(1)


def measure(subjects: Sequence[Subject], plan: Plan, end_to_end: bool = False, track: Track = no_progress) -> dict:
    """Measure files interleaved, as the runner's result (`edgekit/measured/1`); each row has also its `engine`.

    Args:
        end_to_end: also `end_to_end_ms`, the times from a picture to the answer, of files that say how.

    Raises:
        BadInput: a file cannot be opened or run, or an engine tells no times of layers.
    """
    versions = runner.versions() | {name: engine(name).version() for name in {subject.engine for subject in subjects}}
    opened = open_timed(subjects, plan, track)
    rows = [
        {"file": item.name, "engine": item.engine, "error": None, **row} for item, (row, _) in zip(subjects, opened)
    ]
    pairs = [pair for _, pair in opened]
    found = runner.fill(rows, pairs, plan.job(), track)
    if end_to_end:
        _fill_end_to_end(rows, pairs, subjects, plan, track)
    if plan.layers:
        for row, pair, subject in zip(rows, pairs, subjects):
            row["layers"], row["layers_whole_ms"] = operators(subject.engine, subject.path, pair, plan, track)
    return {"schema": runner.MEASURED, "rows": rows, "versions": versions, **found}


def open_timed(
    subjects: Sequence[Subject], plan: Plan, track: Track = no_progress
) -> list[tuple[dict[str, Any], runner.Pair]]:
    """As the runner's, of each. The first of an engine is opened once before, so that the engine's own start counts for
    none; but in TensorRT, where opening a file is building it and takes minutes.

    Raises:
        BadInput: an engine cannot open or run a file; its own message is passed on.
    """
    started, opened = set(TENSORRT), []
    for subject in track(subjects, "opening", len(subjects)):
        if subject.engine not in started:
            subject.load(plan.threads)
            started.add(subject.engine)
        opened.append(_open_timed(subject, plan))
    return opened


def _open_timed(subject: Subject, plan: Plan) -> tuple[dict[str, Any], runner.Pair]:
    try:
        return runner.open_timed(lambda: subject.load(plan.threads), plan.batch)
    except EdgekitError:
        raise
    except Exception as error:  # each engine raises classes of its own
        raise BadInput(f"{subject.path}: {subject.engine} cannot run it: {error}") from None


def _fill_end_to_end(
    rows: Sequence[dict[str, Any]],
    pairs: Sequence[runner.Pair],
    subjects: Sequence[Subject],
    plan: Plan,
    track: Track,
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, CAMERA, np.uint8)
    known = [(row, EndToEnd(pair[0], *io)) for row, pair, subject in zip(rows, pairs, subjects) if (io := _io(subject))]
    whole: list[dict[str, Any]] = [{} for _ in known]
    job = {**plan.job(), "throughput": False, "sustained_s": None}
    runner.fill(whole, [(chain, picture) for _, chain in known], job, track)
    for (row, _), timed in zip(known, whole):
        row["end_to_end_ms"] = timed["times_ms"]


def _io(subject: Subject) -> tuple[Input, Output] | None:
    """What the file says of its input and output; None where it says nothing."""
    try:
        return None if subject.path.is_dir() else read_io(subject.path)
    except BadInput:
        return None
