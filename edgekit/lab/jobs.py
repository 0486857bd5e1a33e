"""Workers of an emulated processor on one file: shared out over processes, kept picture by picture, and stopped where
their time is over."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgekit.context import Track
from edgekit.errors import BadInput
from edgekit.lab.emulator import WORKER, Emulated

POLL_S = 0.2
Worker = subprocess.Popen[bytes]


@dataclasses.dataclass(frozen=True)
class Task:
    """What an emulated processor is to answer.

    Attributes:
        name: of the file, for messages.
        model: the file's bytes.
        inputs: (N, …), a row a picture.
        kept: the folder of the answers that are known already; new ones are added.
        keys: a hash of each row, by which its answer is kept.
    """

    name: str
    model: bytes
    inputs: np.ndarray
    kept: Path
    keys: tuple[str, ...]

    def known(self) -> list[int]:
        """The rows that are answered."""
        return [row for row, key in enumerate(self.keys) if self.path(key).is_file()]

    def path(self, key: str) -> Path:
        return self.kept / f"{key}.npz"

    def answer(self, row: int) -> list[np.ndarray]:
        """All outputs for a row that is known."""
        with np.load(self.path(self.keys[row]), allow_pickle=False) as found:
            return [found[name] for name in found.files]


def work(task: Task, on: Emulated, processes: int, limit_s: float | None, track: Track) -> None:
    """Answer the rows that are not known yet, until all are or the time is over.

    Raises:
        BadInput: a worker failed or crashed; its last words.
    """
    known = set(task.known())
    left = [row for row in range(len(task.keys)) if row not in known]
    if not left:
        return
    task.kept.mkdir(parents=True, exist_ok=True)
    with _folder(task, on, left) as folder:
        workers = _start(on, folder, min(processes, len(left)))
        try:
            for number in track(_finished(workers, folder, limit_s), f"{task.name} as {on.cpu.name}", len(left)):
                shutil.move(folder / "answers" / f"{number}.npz", task.path(task.keys[left[number]]))
            failed = next((first for first, worker in enumerate(workers) if worker.poll()), None)
        finally:
            for worker in workers:
                _end(worker)
        if failed is not None:
            raise BadInput(f"{task.name}: {_crash(on, workers[failed], folder / f'said.{failed}')}")


@contextlib.contextmanager
def _folder(task: Task, on: Emulated, left: list[int]) -> Iterator[Path]:
    """A folder of the emulated processor's with all that its workers read."""
    on.jobs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=on.jobs) as made:
        folder = Path(made)
        folder.chmod(0o755)
        (folder / "answers").mkdir()
        shutil.copy(WORKER, folder)
        (folder / "model.onnx").write_bytes(task.model)
        np.save(folder / "inputs.npy", task.inputs[left])
        yield folder


def _start(on: Emulated, folder: Path, count: int) -> list[Worker]:
    workers = []
    for first in range(count):
        with open(folder / f"said.{first}", "wb") as said:
            command = on.command(folder, first, count)
            workers.append(Worker(command, stdout=said, stderr=said, env=on.environment, start_new_session=True))
    return workers


def _finished(workers: list[Worker], folder: Path, limit_s: float | None) -> Iterator[int]:
    """The rows as they get done; ends when the workers have, or the time is over. Who takes a row moves its file."""
    begin = time.monotonic()
    while True:
        working = any(worker.poll() is None for worker in workers)
        yield from sorted(int(path.stem) for path in (folder / "answers").glob("*.npz"))
        if not working or (limit_s is not None and time.monotonic() - begin > limit_s):
            return
        time.sleep(POLL_S)


def _end(worker: Worker) -> None:
    if worker.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def _crash(on: Emulated, worker: Worker, said: Path) -> str:
    words = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
    last = next((line for line in reversed(words) if "warning" not in line), "nothing")
    code = worker.returncode
    signalled = -code if code < 0 else code - 128  # the latter as container engines tell it
    how = f"signal {signalled}" if signalled > 0 else f"exit code {code}"
    return f"crashed as {on.cpu.name} ({how}), and said: {last}"
