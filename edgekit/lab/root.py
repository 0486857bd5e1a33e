"""A root with an aarch64 Python, numpy and ONNX Runtime in the user's cache folder: made and entered without being root
where the system allows that.

The distribution's own apt fetches the packages, with lists and archives in that folder, so that nothing of the system
changes; it checks them against the signed lists. pip fetches the wheels and checks them against the index. They are
unpacked, not installed. What was fetched is kept, so a set-up that was stopped goes on where it was.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.devices.cpus import Cpu
from edgekit.errors import BadInput
from edgekit.files import cache_folder, file_sha256, read_json, write_json
from edgekit.lab.emulator import GET, Emulated, binary, missing, version
from edgekit.lab.entries import entered, entry
from edgekit.traffic.measured import QUIET

SCHEMA = "edgekit/lab-root/1"
PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
MODULES = "usr/lib/python3/dist-packages"
QEMU, JOBS = "qemu", "jobs"
SETUP = "edgekit lab setup"
Log = Callable[[str], None]


def folder() -> Path:
    """Where the root for the ONNX Runtime and numpy at hand is, or would be."""
    import numpy as np
    import onnxruntime as ort

    return cache_folder() / "lab" / f"aarch64-onnxruntime-{ort.__version__}-numpy-{np.__version__}"


def state() -> str:
    """`ready`, or what is missing and the command that gets it."""
    if reason := missing("aarch64"):
        return reason
    try:
        entry()
    except BadInput as error:
        return str(error)
    return "ready" if (folder() / "root.json").is_file() else f"not set up; do so by `{SETUP}`"


def emulated(cpu: Cpu) -> Emulated:
    """How workers of an ARM processor are started.

    Raises:
        BadInput: something is missing; what, and how to get it.
    """
    if (found := state()) != "ready":
        raise BadInput(f"{cpu.name}: {found}")
    known, root = read_json(folder() / "root.json", SCHEMA), folder() / "root"
    prefix = (*entered(root), f"/{QEMU}", "-cpu", cpu.model, known["python"])
    identity = (cpu.name, cpu.model, known["qemu"], known["onnxruntime"])
    # The ways in are looked for in PATH and may need HOME; the Python in the root is not to be told of the host's.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return Emulated(cpu, prefix, root / JOBS, Path("/") / JOBS, {**own, **QUIET}, identity)


def intact(place: Path) -> bool:
    """Whether all that a root was made of still has the hashes that were noted."""
    noted = read_json(place / "root.json", SCHEMA)["files"]
    found = {path.name: path for kind in ("*.deb", "*.whl") for path in place.rglob(kind)}
    return all(name in found and file_sha256(found[name]) == digest for name, digest in noted.items())


def setup(log: Log) -> Path:
    """Make the root, or go on where an earlier set-up was stopped; one whose packages were damaged is made anew.

    Raises:
        BadInput: qemu, apt, pip or a way in is missing, a package or wheel cannot be had, or the Python there does not
            run.
    """
    if reason := missing("aarch64"):
        raise BadInput(reason)
    way, place = entry(), folder()
    if state() == "ready" and intact(place):
        log(f"{place}: is ready, entered by {way}")
        return place
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise BadInput(f"{SETUP}: needs {tool}, of Debian and what is made from it; run it on such a system")
    place.mkdir(parents=True, exist_ok=True)
    log(f"{place}: fetching {', '.join(PACKAGES)} and what they need, for arm64")
    packages = _packages(place / "apt")
    root = place / "root.part"
    shutil.rmtree(root, ignore_errors=True)
    for package in packages:
        _run(["dpkg", "-x", str(package), str(root)], package.name)
    python = _python(root)
    log(f"fetching the wheels of ONNX Runtime and numpy for aarch64 and {python.name}")
    wheels = _wheels(place / "wheels", python.name.removeprefix("python"))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(root / MODULES)
    _finish(place, root, python, [*packages, *wheels])
    log(f"{place}: ready, entered by {way}")
    return place


def _packages(place: Path) -> list[Path]:
    """The packages and all that they need, fetched and checked by apt."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (place / part).mkdir(parents=True, exist_ok=True)
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "1",
        "Dir::State": str(place / "state"),
        "Dir::State::status": "/dev/null",
        "Dir::Cache": str(place / "cache"),
    }
    apt = ["apt-get", *(part for key, value in settings.items() for part in ("-o", f"{key}={value}"))]
    _run([*apt, "update"], "the lists of arm64 packages (Debian's mirrors have them, those of Ubuntu do not)")
    _run([*apt, "install", "--yes", "--download-only", *PACKAGES], "arm64 packages")
    return sorted((place / "cache" / "archives").glob("*.deb"))


def _python(root: Path) -> Path:
    """The interpreter as seen from inside."""
    found = sorted((root / "usr" / "bin").glob("python3.*"))
    if not found:
        raise BadInput(f"{SETUP}: {', '.join(PACKAGES)} brought no Python; is the list of packages whole?")
    return Path("/usr/bin") / found[0].name


def _wheels(place: Path, python: str) -> list[Path]:
    """ONNX Runtime and numpy of the host's versions, fetched and checked by pip."""
    import numpy as np
    import onnxruntime as ort

    wanted = [f"onnxruntime=={ort.__version__}", f"numpy=={np.__version__}"]
    options = [part for name in PLATFORMS for part in ("--platform", name)]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(place)]
    for name in wanted:
        _run(
            [*pip, *options, "--python-version", python, "--implementation", "cp", name],
            f"a wheel of {name} for aarch64 and Python {python} (another version of it here may have one)",
        )
    return sorted(place.glob("*.whl"))


def _finish(place: Path, root: Path, python: Path, fetched: Sequence[Path]) -> None:
    """Put the emulator in, try the Python, and note what the root was made of."""
    import onnxruntime as ort

    emulator = binary("aarch64")
    assert emulator is not None
    shutil.copy(emulator.resolve(), root / QEMU)
    for name in (JOBS, "dev"):
        (root / name).mkdir(exist_ok=True)
    trial = [*entered(root), f"/{QEMU}", str(python), "-c", "import onnxruntime"]
    _run(trial, f"ONNX Runtime in {root} (qemu has to be linked statically: {GET})")
    final = place / "root"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(root, final)
    document = {
        "schema": SCHEMA,
        "python": str(python),
        "qemu": ".".join(map(str, version(emulator))),
        "onnxruntime": ort.__version__,
        "files": {path.name: file_sha256(path) for path in fetched},
    }
    write_json(place / "root.json", document)


def _run(command: Sequence[str], what: str) -> None:
    """Raises BadInput with the program's last words."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()
        raise BadInput(f"{SETUP}: cannot get {what}: {command[0]} says: {said[-1]}")
