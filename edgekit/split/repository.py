"""The models that a server holds, by name and version, exchanged while it serves.

A name stands for a path. When another bundle lies there (a symbolic link was turned, the folder replaced) it is loaded
beside the old one and answers from then on. The version before it stays loaded: devices in the field change over one by
one, and a packet names the tail that its head belongs to. The one before that ends when all it took in is answered.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from edgekit.bundle import MANIFEST
from edgekit.errors import BadInput
from edgekit.split.batching import Batcher
from edgekit.split.models import WHOLE, Model, load
from edgekit.split.packet import HEADER, MAGIC, Header

VERSIONS = 2
Mark = tuple[str, int]
log = logging.getLogger(__name__)


class NotServed(BadInput):
    """There is no such model, or no such version of it."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How requests are put together.

    batch: requests of one inference. delay_ms: how long the first may wait for others.
    waiting: requests for one model that may wait. threads: of one inference.
    """

    batch: int = 8
    delay_ms: float = 0.0
    waiting: int = 256
    threads: int = 1


@dataclasses.dataclass(frozen=True)
class Served:
    """A model with its queue."""

    model: Model
    batcher: Batcher


class Repository:
    """Every bundle's models. All methods belong to one event loop; files are read in a thread."""

    def __init__(self, paths: Mapping[str, Path], limits: Limits, key: bytes | None = None) -> None:
        self._paths, self._limits, self._key = dict(paths), limits, key
        self._marks: dict[str, Mark] = {}
        self._served: dict[str, list[Served]] = {}

    @property
    def names(self) -> list[str]:
        """Of the models, each with its newest version loaded."""
        return sorted(self._served)

    def find(self, name: str, version: str | None = None, content: bytes | None = None) -> Served:
        """A model in a version; without one, in that which a packet names, or the newest.

        Raises:
            NotServed: there is none; the message lists what there is.
        """
        if name not in self._served:
            raise NotServed(f"there is no model {name[:60]!r}; there is {', '.join(self.names)}")
        versions = self._served[name]
        wanted = version or _named_by(content)
        found = next((one for one in versions if one.model.version == wanted), None)
        if found is None and version:
            there = ", ".join(one.model.version for one in versions)
            raise NotServed(f"{name} is not served in version {version[:60]!r}; it is in {there}")
        return found or versions[0]

    def versions(self, name: str) -> list[str]:
        """Those that are served, newest first. Raises NotServed as `find`."""
        self.find(name)
        return [one.model.version for one in self._served[name]]

    async def refresh(self) -> None:
        """Load every bundle that is new at its path.

        Raises:
            BadInput: one cannot be used; what is served of it stays, and it is not tried again until it changes.
        """
        for name, path in self._paths.items():
            mark = await asyncio.to_thread(_mark, path)
            if mark == self._marks.get(name):
                continue
            self._marks[name] = mark
            loaded = await asyncio.to_thread(load, name, Path(mark[0]), self._key, self._limits.threads)
            for model in loaded.values():
                await self._take_up(model)
            for gone in {name, name + WHOLE} - set(loaded):
                await _close(self._served.pop(gone, []))

    async def watch(self, every_s: float) -> None:
        """Refresh again and again; what cannot be loaded is logged."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.refresh()
            except (BadInput, OSError) as error:
                log.error("not exchanged: %s", error)

    async def _take_up(self, model: Model) -> None:
        """Put a model in front of its other versions; the oldest goes."""
        before = self._served.get(model.name, [])
        same = next((one for one in before if one.model.version == model.version), None)
        front = same or Served(model, self._batcher(model))
        versions = [front, *(one for one in before if one is not front)]
        self._served[model.name] = versions[:VERSIONS]
        log.info("%s: version %s", model.name, model.version)
        await _close(versions[VERSIONS:])

    def _batcher(self, model: Model) -> Batcher:
        limits = self._limits
        most_batch = model.most_batch or limits.batch
        return Batcher(model.run, most_batch, limits.waiting, limits.delay_ms / 1e3)

    async def close(self) -> None:
        """Answer everything that was taken in, then end."""
        await _close([one for versions in self._served.values() for one in versions])


async def _close(served: Iterable[Served]) -> None:
    await asyncio.gather(*(one.batcher.close() for one in served))


def _mark(path: Path) -> Mark:
    """What changes when another bundle lies at a path: where it really is, and when it was sealed."""
    real = os.path.realpath(path)
    manifest = Path(real) / MANIFEST
    return real, manifest.stat().st_mtime_ns if manifest.is_file() else 0


def _named_by(content: bytes | None) -> str | None:
    """The version that a packet is for, as far as can be seen before it is checked."""
    if content is None or len(content) < HEADER.size or not content.startswith(MAGIC):
        return None
    return Header._make(HEADER.unpack_from(content)).model_hash.hex()
