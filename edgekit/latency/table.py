"""The measured layer times of one network on one machine, kept in a file."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadInput
from edgekit.files import cache_folder, read_json, write_json
from edgekit.latency.model import LatencyModel, Sample, fit
from edgekit.schema import canonical, parse, sha256, to_json

SCHEMA = "edgekit/latency-table/1"
LARGEST_BYTES = 32 * 2**20
STEADY = 0.15
"""Spread of the reference above which a machine is too busy to trust the table."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a table is measured, and by which version of the engine.

    Attributes:
        machine: cpu, cores, flags.
    """

    machine: dict[str, Any]
    engine_version: str


@dataclasses.dataclass(frozen=True)
class Key:
    """What a table holds for; it is valid for nothing else.

    Attributes:
        network: hash of the network's source and edits and of its input's shape.
        machine: cpu, cores, flags.
    """

    network: str
    machine: dict[str, Any]
    engine: str
    engine_version: str
    threads: int

    @property
    def path(self) -> Path:
        return cache_folder() / "latency" / f"{sha256(canonical(self))[:32]}.json"


@dataclasses.dataclass(frozen=True)
class Whole:
    """A network that was measured whole.

    Attributes:
        latency_ms: an interval for its median; `fastest_ms` its fastest round.
    """

    channels: dict[str, tuple[int, int]]
    latency_ms: dict[str, float]
    fastest_ms: float


@dataclasses.dataclass(frozen=True)
class Table:
    """Measured layer times.

    Attributes:
        full: the unpruned network.
        layers: for each layer its samples, at the widths of the networks that were noted.
        constant_ms: what the whole takes beyond the sum of its layers' noted times; below 0, since notes take time.
        spread: interquartile range over median of the unpruned network's rounds: how steady the machine was.
        held: networks kept from the fit.
    """

    key: Key
    full: Whole
    layers: dict[str, tuple[Sample, ...]]
    constant_ms: float
    spread: float
    held: tuple[Whole, ...]

    def __post_init__(self) -> None:
        if not self.held or not self.layers or not all(self.layers.values()):
            raise ValueError("holds a layer without a measured time, or no network to judge it by")
        numbers = [self.spread, *(number for found in self.layers.values() for sample in found for number in sample)]
        if not math.isfinite(self.constant_ms) or not all(0 <= number < math.inf for number in numbers):
            raise ValueError("holds a time that is no finite number of at least 0")
        if not all(0 < item.fastest_ms < math.inf for item in (self.full, *self.held)):
            raise ValueError("holds a network that took no time")

    @functools.cached_property
    def model(self) -> LatencyModel:
        return LatencyModel(fit(self.layers), self.constant_ms, self.full.channels)

    @functools.cached_property
    def error(self) -> dict[str, float]:
        """Median and worst error of a latency as a share, over the held networks and the unpruned one.

        Predicted over measured (fastest round), relative to the median of that quotient: a common factor, such as a
        clock that is faster today, cancels in every share. The unpruned network is one among the others here, so that
        a single disturbed measurement of it does not count against all of them.
        """
        wholes = (self.full, *self.held)
        quotients = np.array([self.model.predict(item.channels) / item.fastest_ms for item in wholes])
        found = np.abs(quotients / np.median(quotients) - 1)
        return {"median": float(np.median(found)), "worst": float(found.max()), "n": len(found)}

    @property
    def steady(self) -> bool:
        return self.spread <= STEADY

    def __str__(self) -> str:
        found = (
            f"{len(self.layers)} layers on {self.key.machine['cpu']}, threads: {self.key.threads}; the network takes "
            f"{self.full.latency_ms['median']:.2f} ms; error on {self.error['n']} networks measured whole: median "
            f"{100 * self.error['median']:.1f} %, worst {100 * self.error['worst']:.1f} %"
        )
        if self.steady:
            return found
        return (
            f"{found}. The machine was busy (spread of the rounds {100 * self.spread:.0f} %); "
            f"for a better table delete {self.key.path} when it is quiet"
        )

    def save(self) -> None:
        write_json(self.key.path, {"schema": SCHEMA, **to_json(self)})


def read(path: Path) -> Table:
    """Raises BadInput where the file is no table of layers, damaged, or of a newer edgekit."""
    if path.is_file() and path.stat().st_size > LARGEST_BYTES:
        raise BadInput(f"{path}: is larger than {LARGEST_BYTES // 2**20} MiB")
    document = read_json(path, SCHEMA)
    document.pop("schema")
    return parse(Table, document, str(path))


def load(key: Key) -> Table | None:
    """The kept table for `key`, None where there is none yet.

    Raises:
        BadInput: the file is damaged, of a newer edgekit, or of another machine, engine or network; it says which to
            delete.
    """
    path = key.path
    if not path.is_file():
        return None
    try:
        table = read(path)
    except BadInput as error:
        raise BadInput(f"{error}. Delete {path} to have the layers measured again") from None
    if to_json(table.key) != to_json(key):
        differing = [name for name, value in to_json(key).items() if to_json(table.key)[name] != value]
        raise BadInput(f"{path}: was measured with another {', '.join(differing)}. Delete it to have it measured here")
    return table
