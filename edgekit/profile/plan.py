"""How to measure."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from edgekit.devices.boards import hierarchy
from edgekit.devices.runner import FEWEST
from edgekit.errors import BadInput

RUNS = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How to measure; but for the last two, the fields that a job for `edgekit.devices.runner` has, by the same names.

    Attributes:
        runs: rounds, in each of which every file runs once; 100 where neither they nor `seconds` are given.
        seconds: instead of a number of rounds, how long they go on.
        threads: of one inference.
        batch: inputs of one inference, where the file leaves that free.
        throughput: also images a second, with every core at work.
        sustained_s: also how each file does in that time without a pause.
        layers: also the time of each layer, and its modelled traffic.
        board, llc: whose caches that traffic is counted with, a board by name or a size of the last level.
    """

    runs: int | None = None
    seconds: float | None = None
    threads: int = 1
    batch: int = 1
    seed: int = 0
    throughput: bool = False
    sustained_s: float | None = None
    layers: bool = False
    board: str | None = None
    llc: str | None = None

    def __post_init__(self) -> None:
        """Raises BadInput for what contradicts itself or cannot be measured."""
        if self.runs is not None and self.seconds is not None:
            raise BadInput("give --runs or --seconds, not both: a measurement ends by number or by time")
        if self.runs is not None and self.runs < FEWEST:
            raise BadInput(f"--runs {self.runs}: give at least {FEWEST}; fewer tell nothing of an interval")
        for name in ("seconds", "sustained_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise BadInput(f"--{name.removesuffix('_s')} {value:g}: give a time above 0")
        if (self.board or self.llc) and not self.layers:
            raise BadInput("--board and --llc count for the traffic of layers; give --layers too")
        hierarchy(self.board, self.llc)
        if self.threads < 0 or self.batch < 1:
            raise BadInput(f"--threads {self.threads} --batch {self.batch}: give 0 or more threads, and a batch from 1")

    @property
    def options(self) -> list[str]:
        """The options that were given other than by default, as a user writes them."""
        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        return [f"--{name.removesuffix('_s')}" for name in given]

    def job(self) -> dict[str, Any]:
        """The fields as a job has them: all but what this machine models by itself."""
        runs = self.runs if self.runs or self.seconds else RUNS
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("board", "llc")}
        return {**fields, "runs": runs}


UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds_of(text: str) -> float:
    """A time as in `5m`: 300.0; seconds where no unit is given. Raises BadInput for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if found is None:
        raise BadInput(f"{text!r} is no time; write for example 90s, 5m or 1h")
    return float(found[1]) * UNITS[found[2]]
