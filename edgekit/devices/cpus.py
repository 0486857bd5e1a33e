"""Processors that can be emulated; the table is `cpus.toml`."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Literal

from edgekit.errors import unknown
from edgekit.files import read_toml
from edgekit.schema import parse

NATIVE = "native"
"""The name of the processor at hand, which is not emulated."""


@dataclasses.dataclass(frozen=True)
class Cpu:
    """A processor.

    Attributes:
        model: qemu's name for it; empty for the one at hand.
        features: the instruction sets that decide how int8 is computed.
        slowdown: how many times longer than natively an inference takes, roughly.
    """

    architecture: Literal["x86_64", "aarch64"]
    model: str
    stands_for: str
    features: tuple[str, ...]
    slowdown: float
    name: str = ""


@functools.cache
def cpus() -> dict[str, Cpu]:
    """The table by name."""
    path = Path(__file__).with_name("cpus.toml")
    tables = read_toml(path)
    return {name: parse(Cpu, {**table, "name": name}, f"{path} [{name}]") for name, table in tables.items()}


def named(names: str) -> list[Cpu]:
    """The processors of a list such as `haswell,cortex-a53`; NATIVE may stand in it and adds none.

    Raises:
        BadInput: one is not in the table.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name != NATIVE and name not in cpus():
            raise unknown("CPU", name, [NATIVE, *cpus()])
    return [cpus()[name] for name in dict.fromkeys(wanted) if name != NATIVE]
