"""Ways into a folder as the root of a program, most of them without being root: the first that works here is taken.

A container engine runs a program in an image; its image here is empty, and all there is comes from the folder. It
hides /sys, where ONNX Runtime would find the host's processor instead of the emulated one. A container outlives an
engine that was killed until its worker misses its folder, which is before the worker's next picture.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from edgekit.errors import BadInput

IMAGE = "edgekit-empty"
EMPTY_TAR = bytes(10240)
PARTS = ("bin", "etc", "jobs", "lib", "lib64", "qemu", "sbin", "usr", "var")
TRIAL_S = 60


def entered(root: Path) -> list[str]:
    """The command up to the program in `root`, by the first way that works here.

    Raises:
        BadInput: none does.
    """
    return ENTRIES[entry()](root)


@functools.cache
def entry() -> str:
    """The name of the first way that works here.

    Raises:
        BadInput: none does.
    """
    for name, command in ENTRIES.items():
        if _done([*command(Path("/")), "true"]):
            return name
    raise BadInput(
        "a folder cannot be entered as a root here: get bubblewrap by `apt install bubblewrap`, allow user namespaces "
        "(sysctl kernel.unprivileged_userns_clone=1), get podman or docker, or run as root"
    )


def _bwrap(root: Path) -> list[str]:
    return ["bwrap", "--unshare-all", "--die-with-parent", "--bind", str(root), "/", "--dev", "/dev"]


def _unshare(root: Path) -> list[str]:
    return ["unshare", "--map-root-user", "chroot", str(root)]


def _chroot(root: Path) -> list[str]:
    return ["chroot", str(root)]


def _podman(root: Path) -> list[str]:
    return _container("podman", root, "0:0")  # that is the user who runs it


def _docker(root: Path) -> list[str]:
    return _container("docker", root, f"{os.getuid()}:{os.getgid()}")


def _container(engine: str, root: Path, user: str) -> list[str]:
    if not _done([engine, "image", "inspect", IMAGE]):
        _done([engine, "import", "-", IMAGE], EMPTY_TAR)
    shown = [f"--volume={root / part}:/{part}" for part in PARTS if (root / part).exists()]
    return [engine, "run", "--rm", "--network=none", "--pid=host", "--tmpfs=/sys", f"--user={user}", *shown, IMAGE]


# In the order in which they are tried.
ENTRIES: dict[str, Callable[[Path], list[str]]] = {
    "bwrap": _bwrap,
    "unshare": _unshare,
    "chroot": _chroot,
    "podman": _podman,
    "docker": _docker,
}


def _done(command: list[str], given: bytes = b"") -> bool:
    """Whether a command was there and did what it was to."""
    try:
        return subprocess.run(command, input=given, capture_output=True, timeout=TRIAL_S).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False
