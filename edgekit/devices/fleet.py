"""Several devices at work at once, each in a thread of its own; what fails on one disturbs no other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from edgekit.devices.address import Address
from edgekit.devices.device import Device, Tell
from edgekit.errors import BadInput

T = TypeVar("T")
Track = Callable[..., Iterable[Any]]


class Fleet(Generic[T]):
    """What each device found, or the BadInput that it ended with."""

    def __init__(self) -> None:
        self.found: dict[str, T] = {}
        self.failed: dict[str, BadInput] = {}
        self._faults: list[BaseException] = []
        self._steps: queue.Queue[str | None] = queue.Queue()
        self._word = ""

    def work(self, devices: Sequence[Device], task: Callable[[Device, Tell], T], track: Track) -> None:
        """Do `task` on all devices; on KeyboardInterrupt all end what they began."""
        threads = [threading.Thread(target=self._one, args=(device, task)) for device in devices]
        for thread in threads:
            thread.start()
        try:
            for _ in track(self._until_done(len(devices)), "measuring", None, lambda: self._word):
                pass
        except BaseException:
            for device in devices:
                device.connection.interrupt()
            raise
        finally:
            for thread in threads:
                thread.join()
        for fault in self._faults:
            raise fault

    def _until_done(self, running: int) -> Iterator[str]:
        while running:
            step = self._steps.get()
            if step is None:
                running -= 1
            else:
                self._word = step
                yield step

    def _one(self, device: Device, task: Callable[[Device, Tell], T]) -> None:
        try:
            with device.connection:
                self.found[device.name] = task(device, self._tell)
        except BadInput as error:
            self.failed[device.name] = error
        except BaseException as error:  # raised again where the user is
            self._faults.append(error)
        finally:
            self._steps.put(None)

    def _tell(self, device: str, what: str, done: int | None, total: int | None) -> None:
        self._steps.put(f"{device}: {what} {done}{f' of {total}' if total else ''}" if done is not None else device)


def on_devices(
    addresses: Sequence[Address],
    task: Callable[[Device, Tell], T],
    track: Track,
    log: Callable[[str], None] = lambda _line: None,
) -> tuple[dict[str, T], dict[str, str]]:
    """Do `task` on every device at once. Returns what each found, and for those that could not why.

    Raises:
        BadInput: no device could; where it is one, its own error.
    """
    fleet: Fleet[T] = Fleet()
    fleet.work([Device(address, log) for address in addresses], task, track)
    if not fleet.found:
        if len(fleet.failed) == 1:
            raise next(iter(fleet.failed.values()))
        raise BadInput("\n".join(map(str, fleet.failed.values())))
    names = [address.name for address in addresses]
    reasons = {name: str(fleet.failed[name]) for name in names if name in fleet.failed}
    return {name: fleet.found[name] for name in names if name in fleet.found}, reasons
