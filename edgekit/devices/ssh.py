"""Commands on a device, through the system's own OpenSSH client.

One connection is shared by all commands (ssh's ControlMaster); it is a child of this process and ends with it. Host
keys, keys, aliases and jumps are ssh's business: ~/.ssh/config, known_hosts and the agent count as they do for `ssh`.
Nothing that a user, a file or a device names is ever part of a command line there but the path of the interpreter:
`agent.py` and its arguments go through standard input.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgekit.devices.address import Address
from edgekit.errors import BadInput

OPTIONS = {
    "BatchMode": "yes",  # never asks
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "ControlPersist": "no",
}
MARK = "edgekit-agent-1\n"
LINE_BYTES, NOISE_LINES = 1 << 20, 200
"""The longest line that is taken from a device, and how many its shell may write first."""


class Unreachable(BadInput):
    """No connection, or none any more; trying again may help."""


class Connection:
    """A connection to one device, opened when first needed, and again after it broke.

    Raises:
        BadInput: no ssh on this machine; the device refuses the key, has another host key than before, or an agent
            that does not answer.
        Unreachable: it cannot be reached, or the connection broke.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._folder = tempfile.TemporaryDirectory(prefix="ek")  # short: the path of a socket has some 100 characters
        self._master: subprocess.Popen[bytes] | None = None
        self._running: set[subprocess.Popen[bytes]] = set()
        self._interrupted = threading.Event()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._end_master()
        self._folder.cleanup()

    def interrupt(self) -> None:
        """From another thread: end what runs; the thread that waits for it gets a KeyboardInterrupt."""
        self._interrupted.set()
        for process in list(self._running):
            process.kill()

    def again(self) -> None:
        """Forget that it was interrupted, so that what was begun can be ended."""
        self._interrupted.clear()

    def wait(self, seconds: float) -> None:
        """Raises KeyboardInterrupt where it is interrupted meanwhile."""
        if self._interrupted.wait(seconds):
            raise KeyboardInterrupt

    def call(self, command: str, body: Iterable[bytes] = (), **arguments: Any) -> dict[str, Any]:
        """Have the agent do `command`; `body` is what it reads. Returns its answer.

        Raises:
            BadInput: as the class says, or what the agent says went wrong.
        """
        with self._agent(command, arguments, body) as agent:
            return self._answer(agent.line())

    def follow(self, command: str, **arguments: Any) -> Iterator[bytes]:
        """As `call` for a command that takes its time: each line that it writes, the answer apart."""
        with self._agent(command, arguments) as agent:
            while not (line := agent.line()).startswith(b'{"answer":'):
                yield line
            self._answer(line)

    def fetch(self, limit: int, **arguments: Any) -> bytes:
        """A file that a run left, of at most `limit` bytes."""
        with self._agent("fetch", arguments) as agent:
            size = self._answer(agent.line()).get("bytes")
            if not isinstance(size, int) or not 0 <= size <= limit:
                raise BadInput(f"{self.address.name}: left a result of {size!r} bytes; at most {limit:,} are taken")
            return agent.read(size)

    @contextlib.contextmanager
    def _agent(self, command: str, arguments: dict[str, Any], body: Iterable[bytes] = ()) -> Iterator[_Agent]:
        """The agent doing a command, from its first line on."""
        self._open()
        source = resources.files("edgekit.devices").joinpath("agent.py").read_text(encoding="utf-8")
        text = f"{source}\n\nanswer({MARK!r}, {command!r}, json.loads({json.dumps(arguments)!r}))\n".encode()
        python = f'{shlex.quote(self.address.python)} -c "import sys; exec(sys.stdin.buffer.read({len(text)}))"'
        with tempfile.TemporaryFile() as errors:
            process = self._ssh("no", python, errors)
            assert process.stdout is not None
            if command != "begin":  # cut short, it would leave nobody to know whether a run began
                self._watch(process)
            try:
                _feed(process, itertools.chain((text,), body))
                agent = _Agent(process.stdout, lambda: self._failure(process, errors))
                agent.wait_for(MARK)
                yield agent
            finally:
                _end(process)
                self._running.discard(process)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Let `interrupt` end it, also one that came while it was starting."""
        self._running.add(process)
        if self._interrupted.is_set():
            process.kill()

    def _failure(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> BaseException:
        """Why an agent says nothing more."""
        if self._interrupted.is_set():
            return KeyboardInterrupt()
        _end(process, wait_s=5)
        said = _said(errors)
        if process.returncode == 255:
            return explain(self.address, said)
        if process.returncode == 127:
            return BadInput(
                f"{self.address.name}: has no {self.address.python}; install Python 3.9 or later there, or say where "
                f"it is: {self.address}?python=/path/to/python3"
            )
        return BadInput(f"{self.address.name}: {self.address.python} failed there: {said[-1000:] or 'it says nothing'}")

    def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)["answer"]
            error = found.get("error")
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise BadInput(f"{self.address.name}: answers what edgekit never would: {line[:80]!r}") from None
        if error is not None:
            raise BadInput(f"{self.address.name}: {printable(error)}")
        return found

    def _open(self) -> None:
        """Make the shared connection, where there is none."""
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        if self._master is not None and self._master.poll() is None:
            return
        self._end_master()
        with tempfile.TemporaryFile() as errors:
            # Its input is never written to: it ends with this process, and the connection with it.
            self._master = master = self._ssh("yes", "echo edgekit; exec cat > /dev/null", errors)
            self._watch(master)
            assert master.stdout is not None
            _Agent(master.stdout, lambda: self._failure(master, errors)).wait_for("edgekit\n")
            self._running.discard(master)

    def _ssh(self, master: str, command: str, errors: IO[bytes]) -> subprocess.Popen[bytes]:
        if shutil.which("ssh") is None:
            raise BadInput(
                "--device needs the ssh command; install OpenSSH's client, e.g. apt-get install openssh-client"
            )
        settings = [f"-o{name}={value}" for name, value in OPTIONS.items()]
        shared = (f"-oControlMaster={master}", f"-oControlPath={Path(self._folder.name) / 'ssh'}")
        return subprocess.Popen(
            ["ssh", *settings, *shared, *self.address.options, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for this process, which ends them in order
        )

    def _end_master(self) -> None:
        if self._master is not None:
            _end(self._master)
            self._running.discard(self._master)
            self._master = None


class _Agent:
    """What an agent writes, read within bounds; `failure` makes the error for when it says nothing more."""

    def __init__(self, stream: IO[bytes], failure: Callable[[], BaseException]) -> None:
        self._stream, self._failure = stream, failure

    def wait_for(self, mark: str) -> None:
        """Skip what the user's shell says before `mark`."""
        for _ in range(NOISE_LINES):
            if self.line() == mark.encode():
                return
        raise self._failure()

    def line(self) -> bytes:
        return self._some(self._stream.readline(LINE_BYTES))

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        return content if len(content) == size else self._some(b"")

    def _some(self, content: bytes) -> bytes:
        if not content:
            raise self._failure()
        return content


def _feed(process: subprocess.Popen[bytes], blocks: Iterable[bytes]) -> None:
    """Write to a process; one that ended says why elsewhere."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        for block in blocks:
            process.stdin.write(block)
        process.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def _end(process: subprocess.Popen[bytes], wait_s: float = 0) -> None:
    """Wait for a process, and kill it where it does not end by itself in time."""
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


def _said(errors: IO[bytes]) -> str:
    errors.seek(0)
    return printable(errors.read(8192).decode("utf-8", "replace"))


def printable(text: object) -> str:
    """Text from a device, without what would move the cursor of a terminal."""
    return "".join(char if char.isprintable() else " " for char in str(text)).strip()


def explain(address: Address, said: str) -> BadInput:
    """What ssh's failure means, and what to do about it."""
    by_hand = f"try it by hand: {address.command}"
    if "HOST IDENTIFICATION HAS CHANGED" in said:
        return BadInput(
            f"{address.name}: its host key is another than before: the device was set up anew, or someone is in "
            f"between. Where you know why, forget the old key: ssh-keygen -R {_known_as(address)}"
        )
    if "Host key verification failed" in said:
        return BadInput(f"{address.name}: its host key is not known here; connect once and check it: {address.command}")
    if "Permission denied" in said or "Too many authentication failures" in said:
        return BadInput(
            f"{address.name}: refuses the key ({said[-200:]}). edgekit cannot ask for passwords: "
            f"ssh-copy-id {address.command.removeprefix('ssh ')}"
        )
    return Unreachable(f"{address.name}: cannot be reached ({said[-300:] or 'the connection broke'}); {by_hand}")


def _known_as(address: Address) -> str:
    return f"'[{address.host}]:{address.port}'" if address.port not in (None, 22) else address.host
