"""The process in which resident memory is measured: it imports an engine and nothing else and forks for every file; the
fork loads and runs it. Reads one JSON object on stdin, writes one on stdout; `resident.py` starts it.

A fork begins with the runtime loaded and no session, so that what it gains is the file's. What it holds is exact
(smaps_rollup walks the pages); its peak is the kernel's counter, which may lag by some pages.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.devices.runner import noise
from edgekit.engines import engine
from edgekit.engines.arena import arena_bytes

RUNS = 3
"""The first run allocates value by value, the later ones by plan."""
PROC = Path("/proc/self")


def kib(file: Path, field: str) -> int:
    """A field of a file of /proc, in bytes."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"{file}: has no {field}")


def resident_bytes() -> int:
    return kib(PROC / "smaps_rollup", "Rss")


def resident(name: str, file: Path, threads: int, batch: int) -> dict[str, int]:
    """What this process gains by loading a file, and the most it gains by running it."""
    before = resident_bytes()
    session = engine(name).load(file, threads)
    loaded = resident_bytes()
    (PROC / "clear_refs").write_text("5")  # the peak begins anew
    feed = noise(session, batch)
    for _ in range(RUNS):
        session.run(feed)
    running = max(resident_bytes(), kib(PROC / "status", "VmHWM"))
    return {"resident_load_bytes": loaded - before, "resident_run_bytes": running - before}


def arena(file: Path, threads: int, batch: int) -> dict[str, int | None]:
    """The arena's bytes, in a run of its own, since noting them takes memory."""
    with tempfile.TemporaryDirectory() as folder:
        session = engine("onnxruntime").load(file, threads, profile=Path(folder) / "profile")
        feed = noise(session, batch)
        for _ in range(RUNS):
            session.run(feed)
        return {"arena_bytes": arena_bytes(session)}


def forked(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives in a process of its own, or {"error": why it gave nothing}."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found = work()
        except Exception as error:
            found = {"error": str(error)}
        with open(writer, "w") as out:
            json.dump(found, out)
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    status = os.waitpid(child, 0)[1]
    if not text:
        return {"error": f"the process that ran it was ended by {signal.strsignal(os.WTERMSIG(status))}"}
    return json.loads(text)


def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """A record for each file, loaded and run in a process of its own; in another for the arena, where that is asked."""
    name, rest = asked["engine"], (asked["threads"], asked["batch"])
    engine(name).version()  # imports the runtime
    records = []
    for file in map(Path, asked["files"]):
        record = forked(functools.partial(resident, name, file, *rest))
        if asked["arena"] and "error" not in record:
            record["arena"] = forked(functools.partial(arena, file, *rest))
        records.append(record)
    return records


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
