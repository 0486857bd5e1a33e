"""`split.json` of a bundle: which two ONNX files make up the cut network, and the tables that its latent is coded by.

The head takes the network's own input and gives `latent`, uint8 (B, C, H, W), every symbol within its channel's table.
The tail takes that and gives the network's own outputs; dequantisation is inside it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from edgekit.bundle import Bundle
from edgekit.errors import BadInput
from edgekit.files import file_sha256, read_json, write_json
from edgekit.schema import parse, to_json
from edgekit.split.tables import Tables

SCHEMA = "edgekit/split/1"
FILE = "split.json"
MOST_VALUES = 2**24
"""Of a latent: what either end will allocate for one."""
Bottleneck = Literal["activation", "entropic", "reduction"]


@dataclasses.dataclass(frozen=True)
class Part:
    """An ONNX file of the bundle."""

    file: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Latent:
    """The tensor between the two: its name in both files and its (C, H, W)."""

    name: str
    shape: tuple[int, int, int]
    dtype: Literal["uint8"] = "uint8"

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.size > MOST_VALUES:
            raise ValueError(f"shape = {list(self.shape)} must have from 1 to {MOST_VALUES:,} values")

    @property
    def size(self) -> int:
        """How many values it has."""
        channels, height, width = self.shape
        return channels * height * width


@dataclasses.dataclass(frozen=True)
class Split:
    """What `split.json` says.

    full: the uncut network, to run on the device where the server is away; None where the bundle has none.
    """

    cut: str
    bottleneck: Bottleneck
    head: Part
    tail: Part
    latent: Latent
    tables: Tables
    full: Part | None = None

    def __post_init__(self) -> None:
        rows, channels = len(self.tables.frequencies), self.latent.shape[0]
        if rows != channels:
            raise ValueError(f"tables have {rows} rows; the latent has {channels} channels")

    @property
    def model_hash(self) -> bytes:
        """What a packet names the tail by: the first 16 bytes of its file's SHA-256."""
        return bytes.fromhex(self.tail.sha256)[:16]


def part(folder: Path, file: str) -> Part:
    """A file of the folder with its hash."""
    return Part(file, file_sha256(folder / file))


def write(folder: Path, split: Split) -> Path:
    """Write `split.json` beside its files, which are there already; returns its path."""
    path = folder / FILE
    write_json(path, {"schema": SCHEMA, "full": None, **to_json(split)})
    return path


def read(bundle: Bundle) -> Split:
    """What an opened bundle says about its cut.

    Raises:
        BadInput: the bundle is not cut, or `split.json` is wrong or names a file that the manifest does not seal.
    """
    path = bundle.path / FILE
    if FILE not in bundle.manifest["files"]:
        raise BadInput(f"{bundle.path}: is not cut, so it has no {FILE}; compress the network with the pass `split`")
    table = {key: value for key, value in read_json(path, SCHEMA).items() if key != "schema"}
    split = parse(Split, {**table, **_sections(table, str(path))}, str(path))
    for found in filter(None, (split.head, split.tail, split.full)):
        sealed = bundle.manifest["files"].get(found.file, {}).get("sha256")
        if sealed != found.sha256:
            raise BadInput(f"{path}: {found.file} is not the file that the bundle's manifest seals under that name")
    return split


def _sections(table: dict[str, Any], where: str) -> dict[str, Any]:
    """The inner tables one by one, so that a message about one does not quote all of it."""
    sections = {"tables": Tables, "latent": Latent}
    wrong = [name for name in sections if not isinstance(table.get(name), dict)]
    if wrong:
        raise BadInput(f"{where}: {' and '.join(wrong)} must be a table")
    return {name: parse(cls, table[name], f"{where}: {name}") for name, cls in sections.items()}
