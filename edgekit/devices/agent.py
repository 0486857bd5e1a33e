"""What edgekit does on a device besides measuring. Sent as text with every command, and never installed there.

Old Pythons must be able to read this file, so that a device can say that its Python is too old: standard library only,
and no syntax later than Python 3.5's.

    ROOT/files/SHA256.onnx      what was sent, by its hash; SHA256.onnx.part while it is incomplete
    ROOT/jobs/ID/job.json       one run, with progress.jsonl, result.json and log; each process of the run holds `lock`
    ROOT/jobs/ID/lease          when the host was last heard of; a run ends by itself LEASE_S later

A run is a process group of its own: it survives the connection that began it, and is killed as a whole. Whether it
lives is asked of its lock, which the system frees with the last of its processes; so no number of a dead process is
ever signalled, also after a restart of the device.
"""

import fcntl
import hashlib
import importlib.util
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time

CACHE = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
ROOT = os.path.join(CACHE, "edgekit", "device")
FILES, JOBS = os.path.join(ROOT, "files"), os.path.join(ROOT, "jobs")
LEASE_S = 3600
KEPT_S = 24 * 3600
"""How long a result that nobody fetched is kept."""
BLOCK = 1 << 20
BEAT_S = 1.0
GRACE_S = 3.0


def probe(modules: list) -> dict:
    """What there is to run with. A module that cannot be imported has the reason as `error`."""
    managed = os.path.exists(os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED"))
    return {
        "python": list(sys.version_info[:3]),
        "executable": sys.executable,
        "managed": managed and sys.prefix == sys.base_prefix,
        "modules": {name: _module(name) for name in modules} if sys.version_info >= (3, 9) else {},
        "free_bytes": shutil.disk_usage(FILES).free,
        "cache_bytes": _bytes(ROOT),
        "system": platform.system() + " " + platform.machine(),
        "home": os.path.expanduser("~"),
        "folder": ROOT,
    }


def _module(name: str) -> dict:
    try:
        return {"version": str(__import__(name).__version__)}
    except Exception as error:  # a library that is half there fails in its own way
        return {"error": type(error).__name__ + ": " + str(error)}


def _bytes(folder: str) -> int:
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(folder) for name in names)


def identity(runner: str) -> dict:
    """What of this machine a latency depends on and stays, as the runner tells it, and its versions."""
    spec = importlib.util.spec_from_file_location("runner", os.path.join(FILES, runner))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["runner"] = module  # where its dataclasses look for themselves
    sys.dont_write_bytecode = True  # nothing is left there but what was sent
    spec.loader.exec_module(module)
    return {"machine": module.identity(), "versions": module.versions()}


def held(name: str) -> dict:
    """How much of a file is here, and how much room for the rest."""
    path = os.path.join(FILES, name)
    whole = os.path.exists(path)
    part = path + ".part"
    size = os.path.getsize(part) if os.path.exists(part) else 0
    return {"whole": whole, "bytes": size, "free_bytes": shutil.disk_usage(FILES).free}


def receive(name: str, size: int, offset: int) -> dict:
    """Go on with a file at `offset` from what comes in; whole only if its SHA-256 is the one in its name."""
    path = os.path.join(FILES, name)
    part = path + ".part"
    with open(part, "r+b" if os.path.exists(part) else "wb") as file:
        file.truncate(offset)
        file.seek(offset)
        shutil.copyfileobj(sys.stdin.buffer, file, BLOCK)
    have = os.path.getsize(part)
    if have < size:
        return {"whole": False, "bytes": have}
    if _sha256(part) != name.split(".")[0]:
        os.remove(part)
        return {"whole": False, "bytes": 0}
    os.replace(part, path)
    return {"whole": True, "bytes": size}


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def begin(id: str, runner: str, job: dict) -> dict:
    """Start a run, or find the one of that name. Only one at a time: two would disturb each other's times."""
    folder = os.path.join(JOBS, id)
    _sweep()
    if os.path.exists(folder) and (_lives(folder) or os.path.exists(os.path.join(folder, "result.json"))):
        return {"found": True, "begun_s_ago": time.time() - os.path.getmtime(os.path.join(folder, "job.json"))}
    others = [name for name in _jobs() if name != id and _lives(os.path.join(JOBS, name))]
    if others:
        return {"busy": others[0]}
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    for entry in job["files"]:
        entry["path"] = os.path.join(FILES, entry["path"])
    for name in ("inputs", "runner"):
        if name in job:
            job[name] = os.path.join(FILES, job[name])
    with open(os.path.join(folder, "job.json"), "w") as file:
        json.dump(job, file)
    _heard(folder)
    _detach(folder, [sys.executable, os.path.join(FILES, runner), os.path.join(folder, "job.json")])
    return {"found": False}


def _jobs() -> list:
    return os.listdir(JOBS) if os.path.isdir(JOBS) else []


def _sweep() -> None:
    """Remove results that nobody fetched for a day."""
    for name in _jobs():
        folder = os.path.join(JOBS, name)
        if not _lives(folder) and time.time() - os.path.getmtime(folder) > KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)


def _lives(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "lock")) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _detach(folder: str, command: list) -> None:
    """Run `command` in a process group of its own, watched over by its first process."""
    lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    sys.stdout.flush()
    group = os.fork()
    if group == 0:
        try:
            os.setsid()
            _supervise(folder, command, lock)
        finally:
            os._exit(0)
    with open(os.path.join(folder, "group"), "w") as file:
        file.write(str(group))
    os.close(lock)


def _supervise(folder: str, command: list, lock: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    with open(os.path.join(folder, "log"), "wb") as log:
        child = subprocess.Popen(command, stdin=null, stdout=log, stderr=log, cwd=folder, pass_fds=[lock])
    # Waits for an alarm, and does not look every few milliseconds: nothing else may run while times are taken.
    signal.signal(signal.SIGALRM, lambda *_: _expire(folder))
    _expire(folder)
    child.wait()


def _expire(folder: str) -> None:
    """End this process group where the host was not heard of for LEASE_S, else look again when that may be so."""
    with open(os.path.join(folder, "lease")) as file:
        left = float(file.read() or 0) + LEASE_S - time.monotonic()
    if left <= 0:
        os.killpg(0, signal.SIGKILL)
    signal.alarm(math.ceil(left))


def _heard(folder: str) -> None:
    """Note that the host is there. Not in time of day, which jumps when a board without a clock learns it."""
    path = os.path.join(folder, "lease")
    with open(path + ".new", "w") as file:
        file.write(str(time.monotonic()))
    os.replace(path + ".new", path)


def follow(id: str, offset: int) -> dict:
    """Pass on the lines of progress from `offset` on until the run is over. Empty lines tell whether anyone listens."""
    folder = os.path.join(JOBS, id)
    path = os.path.join(folder, "progress.jsonl")
    while True:
        alive = _lives(folder)
        if os.path.exists(path):
            with open(path, "rb") as file:
                file.seek(offset)
                lines = file.read(BLOCK)
            lines = lines[: lines.rfind(b"\n") + 1]
            offset += len(lines)
            sys.stdout.buffer.write(lines)
        if not alive:
            break
        _heard(folder)
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()
        time.sleep(BEAT_S)
    return state(id)


def state(id: str) -> dict:
    """How a run ended: whether it left a result, and the end of what it said."""
    folder = os.path.join(JOBS, id)
    try:
        with open(os.path.join(folder, "log"), "rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 2000))
            said = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        said = ""
    return {"known": os.path.isdir(folder), "result": os.path.exists(os.path.join(folder, "result.json")), "log": said}


def fetch(id: str, name: str) -> None:
    """A file that a run left: its size as the answer, then its bytes."""
    with open(os.path.join(JOBS, id, name), "rb") as file:
        _say({"bytes": os.path.getsize(file.name)})
        shutil.copyfileobj(file, sys.stdout.buffer)


def stop(id: str) -> dict:
    """Kill a run and all its processes, and forget it."""
    folder = os.path.join(JOBS, id)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if _lives(folder):
            with open(os.path.join(folder, "group")) as file:
                os.killpg(int(file.read()), number)
        until = time.monotonic() + GRACE_S
        while _lives(folder) and time.monotonic() < until:
            time.sleep(0.05)
    ended = not _lives(folder)
    if ended:
        shutil.rmtree(folder, ignore_errors=True)
    return {"ended": ended}


def forget(names: list) -> dict:
    """Remove files that will not be wanted again."""
    for name in names:
        if os.path.exists(os.path.join(FILES, name)):
            os.remove(os.path.join(FILES, name))
    return {}


def clean() -> dict:
    """Kill every run and remove all that edgekit keeps here."""
    for name in _jobs():
        stop(name)
    freed = _bytes(ROOT)
    shutil.rmtree(ROOT, ignore_errors=True)
    return {"freed_bytes": freed}


COMMANDS = {
    item.__name__: item for item in (probe, identity, held, receive, begin, follow, state, fetch, stop, forget, clean)
}


def _say(found: dict) -> None:
    sys.stdout.buffer.write(json.dumps({"answer": found}).encode() + b"\n")


def answer(mark: str, command: str, arguments: dict) -> None:
    """Do what the host asked for. Writes `mark`, lines of progress, a line {"answer": …}, and the bytes of a file."""
    sys.stdout.buffer.write(mark.encode())
    os.umask(0o077)  # what is measured may be nobody else's business
    try:
        os.makedirs(FILES, exist_ok=True)
        found = COMMANDS[command](**arguments)
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        found = {"error": str(error.strerror or error) + (": " + str(error.filename) if error.filename else "")}
    if found is not None:
        _say(found)
    sys.stdout.buffer.flush()
