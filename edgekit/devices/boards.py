"""What is known of boards: caches, memory bandwidth and peak arithmetic, each number with its source in the table."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from pydantic import BeforeValidator

from edgekit.errors import BadInput, unknown
from edgekit.files import read_toml
from edgekit.schema import parse

FOLDER, CPUS = Path(__file__).parent, "cpus.toml"
"""Where the boards lie, and what lies there beside them: the processors that the lab emulates."""
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """`2MiB`, `512 KiB`, `48kB` or plain bytes as a number.

    Raises:
        BadInput: anything else, or zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get((found[2] or "B").upper()) if found else None
    size = float(found[1]) * unit if found and unit else 0.0
    if size < 1 or size != int(size):
        raise BadInput(f"{text!r} is no size; write a number and a unit, such as 2MiB or 512KiB")
    return int(size)


def _bytes(value: Any) -> Any:
    """A size in a table is text, so that its unit is seen."""
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except BadInput as error:
        raise ValueError(str(error)) from None


Size = Annotated[int, Gt(0), BeforeValidator(_bytes)]


@dataclasses.dataclass(frozen=True)
class Cache:
    """One cache: `ways` lines of `line_bytes` share a set."""

    size_bytes: Size
    ways: Annotated[int, Gt(0)] = 16
    line_bytes: Annotated[int, Gt(0)] = 64


@dataclasses.dataclass(frozen=True)
class Caches:
    """What one core sees. `llc` is the last level before the memory; levels in between change no traffic behind it."""

    llc: Cache
    l1i: Cache = Cache(32 * 1024, 8)
    l1d: Cache = Cache(32 * 1024, 8)


DEFAULT = Caches(Cache(2 * 2**20))
"""Where nobody names a board or a size: 2 MiB, the last level of a phone's or a small laptop's processor."""


@dataclasses.dataclass(frozen=True)
class Board:
    """A device as its data sheets describe it.

    Attributes:
        bandwidth_gbs: of the memory, 10⁹ bytes a second.
        peak_gmacs: 10⁹ multiply-accumulates a second of one core by precision: fp32, fp16, int8.
        cores: those of the kind that `peak_gmacs` describes.
        sources: where each number comes from; "unconfirmed" is what was found in no second place.
    """

    title: str
    cpu: str
    cores: Annotated[int, Gt(0)]
    caches: Caches
    bandwidth_gbs: Annotated[float, Gt(0)]
    peak_gmacs: dict[str, Annotated[float, Gt(0)]]
    sources: dict[str, str]
    name: str = ""


def known_boards() -> dict[str, Path]:
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml")) if path.name != CPUS}


def board(name: str) -> Board:
    """Raises BadInput for a board that has no table."""
    if name not in known_boards():
        raise unknown("board", name, known_boards())
    path = known_boards()[name]
    return dataclasses.replace(parse(Board, read_toml(path), path.name), name=name)


def hierarchy(board_name: str | None, llc: str | None) -> tuple[Board | None, Caches]:
    """The board of a name, or none, and the caches to count with: its own, those of a last level of that size, DEFAULT.

    Raises:
        BadInput: both are given, there is no such board, or it is no size.
    """
    if board_name and llc:
        raise BadInput("--board and --llc: a board has its own last-level cache; give one of the two")
    device = board(board_name) if board_name else None
    return device, device.caches if device else Caches(Cache(parse_bytes(llc))) if llc else DEFAULT
