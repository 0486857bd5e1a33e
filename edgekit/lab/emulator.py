"""qemu's user emulation: where it is, whether it is new enough, and how a worker is started as another processor.

x86 processors are played on an x86 host, in the host's own Python. ARM's need a root with their own (`root.py`); qemu
is copied into it and started by its path there, so that no binfmt registration is needed.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from edgekit.devices.cpus import Cpu
from edgekit.errors import BadInput
from edgekit.traffic.measured import QUIET

OLDEST = (7, 2)
"""The first qemu that emulates AVX2."""
GET = "apt install qemu-user-static"
WORKER = Path(__file__).with_name("worker.py")
HOST = {**QUIET, "OPENBLAS_CORETYPE": "Nehalem"}
"""OpenBLAS misjudges emulated x86; numpy's products are not what is looked at."""


def binary(architecture: str) -> Path | None:
    """The statically linked emulator of an architecture, by the names that distributions give it."""
    for name in (f"qemu-{architecture}-static", f"qemu-{architecture}"):
        if found := shutil.which(name):
            return Path(found)
    return None


def version(path: Path) -> tuple[int, ...]:
    """Of an emulator; empty where it does not tell."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    found = re.search(r"version (\d+(?:\.\d+)*)", said)
    return tuple(map(int, found[1].split("."))) if found else ()


def missing(architecture: str) -> str | None:
    """Why an architecture's processors cannot be emulated here, and what to do; None where they can."""
    if architecture == "x86_64" and platform.machine().lower() not in ("x86_64", "amd64"):
        return f"x86 processors are played on an x86 host, in its own Python; this is {platform.machine()}"
    if (path := binary(architecture)) is None:
        return f"qemu-{architecture}-static is not installed; get it by `{GET}`"
    if (found := version(path)) < OLDEST:
        known, oldest = (".".join(map(str, number)) or "of no known version" for number in (found, OLDEST))
        return f"{path} is {known}; {oldest} is the first with AVX2: get a newer one by `{GET}` or from its makers"
    return None


@dataclasses.dataclass(frozen=True)
class Emulated:
    """How workers of a processor are started.

    Attributes:
        prefix: the command up to the emulated Python.
        jobs: the folder on the host that their folders are made in.
        inside: the same folder as they see it.
        identity: what an answer depends on besides file and picture: versions.
    """

    cpu: Cpu
    prefix: tuple[str, ...]
    jobs: Path
    inside: Path
    environment: dict[str, str]
    identity: tuple[str, ...]

    def command(self, folder: Path, first: int, step: int) -> list[str]:
        """What a worker of a folder in `jobs` is started by."""
        seen = self.inside / folder.name
        return [*self.prefix, str(seen / WORKER.name), str(seen), str(first), str(step)]


def host_python(cpu: Cpu, jobs: Path) -> Emulated:
    """An x86 processor in the Python that runs this.

    Raises:
        BadInput: qemu is missing or too old, or the host is no x86.
    """
    import onnxruntime as ort

    if reason := missing(cpu.architecture):
        raise BadInput(f"{cpu.name}: {reason}")
    path = binary(cpu.architecture)
    assert path is not None
    jobs.mkdir(parents=True, exist_ok=True)
    identity = (cpu.name, cpu.model, ".".join(map(str, version(path))), ort.__version__)
    return Emulated(cpu, (str(path), "-cpu", cpu.model, sys.executable), jobs, jobs, {**os.environ, **HOST}, identity)
