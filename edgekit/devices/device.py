"""One device at work: what it has, sending it files, having it run a job, fetching what came out.

A job is known by the hash of what it asks for. So a command that is given again finds the run that it began before the
connection was lost, and takes its result instead of measuring anew. A result that was taken is removed there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from edgekit.devices.address import Address, parse_address
from edgekit.devices.ssh import Connection, Unreachable, printable
from edgekit.errors import BadInput
from edgekit.schema import canonical, sha256

T = TypeVar("T")
Tell = Callable[[str, str, "int | None", "int | None"], None]
"""Takes the progress of a run: (device, what it is at, steps done, of how many)."""
OLDEST = (3, 9)
NEEDS = ("numpy", "onnxruntime")
BLOCK_BYTES = 1 << 20
SPARE_BYTES = 16 << 20
"""What must stay free on the device's disk."""
RESULT_BYTES = 64 << 20
PATIENCE_S = 600.0
"""How long a lost connection is tried again."""
ATTEMPTS = 3
"""How often a file is sent whose hash is wrong there."""


def silent(_device: str, _what: str, _done: int | None, _total: int | None) -> None:
    """Shows no progress."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a job left: its result, still to be checked, and the outputs of a job of kind "run"."""

    result: dict[str, Any]
    outputs: bytes = b""


class Device:
    """A device that edgekit can work on.

    Args:
        log: takes a line about what happens.
        patience_s: how long a lost connection is tried again.
    """

    def __init__(
        self, address: Address, log: Callable[[str], None] = lambda _line: None, patience_s: float = PATIENCE_S
    ) -> None:
        self.address, self.connection = address, Connection(address)
        self._log, self._patience_s = log, patience_s

    @property
    def name(self) -> str:
        return self.address.name

    def probe(self, needs: Sequence[str] = NEEDS) -> dict[str, Any]:
        """What the device has.

        Raises:
            BadInput: its Python is too old, or modules of `needs` are missing; the message has the command that
                installs them. Also as `Connection`.
        """
        found = self.connection.call("probe", modules=list(needs))
        with expecting(self.name):
            version = tuple(found["python"])
            if version < OLDEST:
                raise BadInput(
                    f"{self.name}: has Python {'.'.join(map(str, version))}, and 3.9 or later is needed; install one "
                    f"beside it and name it: {self.address}?python=/path/to/python3"
                )
            missing = {name: module["error"] for name, module in found["modules"].items() if "error" in module}
            if missing:
                reasons = "; ".join(f"{name}: {printable(error)}" for name, error in missing.items())
                raise BadInput(f"{self.name}: {reasons}. {self._install(found, list(missing))}")
        return found

    def identity(self) -> tuple[dict[str, Any], str]:
        """The machine, as `runner.identity` tells it there, and its version of ONNX Runtime."""
        found = self.connection.call("identity", runner=self.send_own("runner.py"))
        with expecting(self.name):
            return processor(_printable(found["machine"])), printable(found["versions"]["onnxruntime"])

    def _install(self, found: Mapping[str, Any], modules: Sequence[str]) -> str:
        """The exact commands; a system's own Python that refuses pip gets a virtual environment."""
        python, ssh = printable(found["executable"]), self.address.command
        if not found["managed"]:
            return f"Install: {ssh} {python} -m pip install {' '.join(modules)}"
        folder = f"{printable(found['home'])}/edgekit"
        make = f"{python} -m venv {folder} && {folder}/bin/pip install {' '.join(NEEDS)}"
        return f'Install: {ssh} "{make}", and give {self.address}?python={folder}/bin/python3'

    def send(self, content: bytes | Path, suffix: str) -> str:
        """Send a file that is not there yet, going on where an earlier transfer broke. Returns its name there.

        Raises:
            BadInput: the disk there has no room for it, or what arrives is not what was sent. Also as `Connection`.
        """
        data = content if isinstance(content, bytes) else content.read_bytes()
        name = f"{sha256(data)}{suffix}"
        for _ in range(ATTEMPTS):
            if self.patiently(lambda: self._send_rest(name, data)):
                return name
        raise BadInput(f"{self.name}: what arrives there is not what was sent ({ATTEMPTS} times); is its disk damaged?")

    def send_own(self, name: str) -> str:
        """Send a file of this package, to be run there. Raises BadInput as `send`."""
        return self.send(resources.files("edgekit.devices").joinpath(name).read_bytes(), ".py")

    def _send_rest(self, name: str, data: bytes) -> bool:
        held = self.connection.call("held", name=name)
        with expecting(self.name):
            if held["whole"]:
                return True
            offset = held["bytes"] if 0 <= held["bytes"] <= len(data) else 0
            if held["free_bytes"] < len(data) - offset + SPARE_BYTES:
                raise BadInput(
                    f"{self.name}: its disk has {held['free_bytes'] / 1e6:.1f} MB free, and "
                    f"{(len(data) - offset + SPARE_BYTES) / 1e6:.1f} MB are needed; make room, or remove what edgekit "
                    f"keeps there: edgekit device {self.address} --clean"
                )
        blocks = (data[at : at + BLOCK_BYTES] for at in range(offset, len(data), BLOCK_BYTES))
        return bool(self.connection.call("receive", blocks, name=name, size=len(data), offset=offset).get("whole"))

    def run(
        self, job: Mapping[str, Any], runner: str = "runner.py", tell: Tell = silent, output_bytes: int | None = None
    ) -> Found:
        """Have a job done, whose files were sent, and take its result.

        Args:
            output_bytes: the most that its outputs may have; None where it has none.

        A lost connection does not disturb it: it is tried again for `patience_s`. On KeyboardInterrupt the job is
        killed there, with all its processes.

        Raises:
            BadInput: another run is going on there, it died, or what it left cannot be used.
            Unreachable: the connection is lost for good; the job goes on there.
        """
        sent = self.send_own(runner)
        id = sha256(canonical({"job": job, "runner": sent}))[:16]
        try:
            self._say_begun(self.patiently(lambda: self.connection.call("begin", id=id, runner=sent, job=job)))
            self._await(id, tell)
            return self._take(id, output_bytes)
        except Unreachable as error:
            raise Unreachable(
                f"{error}. The run goes on there for up to an hour; give the same command again to take its result"
            ) from None
        except (KeyboardInterrupt, BadInput):
            self._stop(id)
            raise

    def _say_begun(self, began: Mapping[str, Any]) -> None:
        if "busy" in began:
            raise BadInput(
                f"{self.name}: another edgekit run is going on there, and both would be disturbed; wait for it, or end "
                f"it: edgekit device {self.address} --clean"
            )
        if began.get("found"):
            with expecting(self.name):
                self._log(f"{self.name}: taking up the run that began {began['begun_s_ago'] / 60:.0f} minutes ago")

    def _await(self, id: str, tell: Tell) -> None:
        """Follow a run until it is over."""
        offset = 0
        while True:
            try:
                for line in self.connection.follow("follow", id=id, offset=offset):
                    if line.strip():
                        offset += len(line)
                        tell(self.name, *_step(line))
                return
            except Unreachable:
                self.patiently(lambda: self.connection.call("state", id=id))

    def _take(self, id: str, output_bytes: int | None) -> Found:
        state = self.patiently(lambda: self.connection.call("state", id=id))
        if not state.get("result"):
            said = printable(str(state.get("log", ""))[-500:])
            raise BadInput(f"{self.name}: the run died there without a result. Its last words: {said or 'none'}")
        content = self.patiently(lambda: self.connection.fetch(RESULT_BYTES, id=id, name="result.json"))
        result, outputs = read_result(content, self.name), b""
        if output_bytes is not None and "error" not in result:
            outputs = self.patiently(lambda: self.connection.fetch(output_bytes, id=id, name="outputs.npy"))
        if "error" in result:
            raise BadInput(f"{self.name}: the run failed there: {result['error']}")
        self._stop(id)
        return Found(result, outputs)

    def _stop(self, id: str) -> None:
        """End a run and forget it; says so where that cannot be done."""
        self.connection.again()
        try:
            ended = self.connection.call("stop", id=id).get("ended")
        except BadInput as error:
            ended, reason = False, str(error)
        else:
            reason = f"{self.name}: its processes do not end"
        if not ended:
            self._log(f"{reason}. What runs there ends by itself within an hour; edgekit device {self.address} --clean")

    def forget(self, names: Iterable[str]) -> None:
        self.connection.call("forget", names=list(names))

    def clean(self) -> int:
        """End every run there and remove all that edgekit keeps there; returns how many bytes that were."""
        return int(self.connection.call("clean").get("freed_bytes", 0))

    def patiently(self, action: Callable[[], T]) -> T:
        """Do something, and again where the connection is lost, until it succeeds or `patience_s` are over."""
        until, pause_s = time.monotonic() + self._patience_s, 0.5
        while True:
            try:
                return action()
            except Unreachable as error:
                if time.monotonic() + pause_s > until:
                    raise
                self._log(f"{error}; trying again")
            self.connection.wait(pause_s)
            pause_s = min(2 * pause_s, 30.0)


@contextlib.contextmanager
def expecting(name: str) -> Iterator[None]:
    """What a device says is not to be trusted: where it is not of the kind that it should be, that is its fault."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{name}: answers what edgekit never would ({type(error).__name__}: {error})") from None


def _step(line: bytes) -> tuple[str, int | None, int | None]:
    """What a run is at, how many steps of it are done, and of how many; None where it does not say."""
    try:
        step = json.loads(line)
        found = {name: step[name] if isinstance(step[name], int) else None for name in ("done", "total")}
        return printable(step["what"])[:40], found["done"], found["total"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return "running", None, None


def read_result(content: bytes, name: str) -> dict[str, Any]:
    """The JSON object of a result, with texts that can be printed.

    Raises:
        BadInput: it is no JSON object of the schema edgekit/measured/1, or holds a number that is not finite.
    """
    try:
        result = json.loads(content, parse_constant=_refuse)
        result = _printable(result)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{name}: left a result that is no JSON ({str(error)[:100]})") from None
    if not isinstance(result, dict) or result.get("schema") != "edgekit/measured/1":
        raise BadInput(f"{name}: left a result that is not of the schema edgekit/measured/1")
    return result


def processor(machine: Mapping[str, Any]) -> dict[str, Any]:
    """A machine in a result, whose processor is named. To be called in `expecting`."""
    return {**machine, "cpu": str(machine["cpu"]), "flags": [str(flag) for flag in machine["flags"]]}


def _refuse(constant: str) -> None:
    raise ValueError(f"holds {constant}")


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_printable(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): _printable(item) for key, item in value.items()}
    return value


def examine(address: str, clean: bool = False) -> dict[str, Any]:
    """What a device has; where `clean`, after removing what edgekit ran and kept there. Raises BadInput as `probe`."""
    with (device := Device(parse_address(address))).connection:
        freed = device.clean() if clean else None
        found = device.probe()
    with expecting(device.name):
        return {
            "schema": "edgekit/device/1",
            "device": str(device.address),
            "python": ".".join(map(str, found["python"])),
            **{name: printable(found["modules"][name]["version"]) for name in NEEDS},
            "system": printable(found["system"]),
            "free_bytes": int(found["free_bytes"]),
            "folder": printable(found["folder"]),
            "cache_bytes": int(found["cache_bytes"]),
            "freed_bytes": freed,
        }
