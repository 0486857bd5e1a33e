"""The roofline of a group (Williams, Waterman & Patterson, CACM 52(4), 2009): the slower of arithmetic and memory.

    time = factor(class) · max(work / peak, traffic / bandwidth)

Work is MACs; of a group without any, its output elements. Peak and bandwidth are a data sheet's, which no program
reaches: `factor`, one for each class of operators, says how many times longer it takes. Factors are fitted from layers
that were measured (`fit`); without, they are 1 and the time is a lower bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

from edgekit.devices.boards import Board
from edgekit.traffic.model import Row

CLASSES = ("dense", "pointwise", "depthwise", "elementwise")
Bound = Literal["compute", "memory"]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a group takes on a board, on one core, and what it waits for."""

    compute_ms: float
    memory_ms: float
    factor: float = 1.0

    @property
    def bound(self) -> Bound:
        return "compute" if self.compute_ms >= self.memory_ms else "memory"

    @property
    def ms(self) -> float:
        return self.factor * max(self.compute_ms, self.memory_ms)


def estimate(row: Row, board: Board, factors: Mapping[str, float] | None = None) -> Estimate:
    """The time of a group on one core of a board."""
    group = row.group
    work = group.macs or sum(tensor.size_bytes // tensor.item_bytes for tensor in group.outputs)
    peak = board.peak_gmacs.get(precision(row), board.peak_gmacs["fp32"])
    factor = (factors or {}).get(group.op_class, 1.0)
    return Estimate(work / peak / 1e6, row.traffic_bytes / board.bandwidth_gbs / 1e6, factor)


def precision(row: Row) -> str:
    """Of the arithmetic: that of the largest weight, else of the output."""
    tensors = (*row.group.weights[:1], *row.group.outputs)
    return {1: "int8", 2: "fp16"}.get(tensors[0].item_bytes if tensors else 4, "fp32")


def fit(networks: Sequence[tuple[Sequence[Row], Mapping[str, float]]], board: Board) -> dict[str, float]:
    """The factor of each class: the time that was measured over the time by peak and bandwidth, of all networks, each
    of which counts the same however long it takes.

    Args:
        networks: of each, its rows and the milliseconds measured of each class.
    """
    measured, ideal = dict.fromkeys(CLASSES, 0.0), dict.fromkeys(CLASSES, 0.0)
    for rows, times in networks:
        whole, roofs = sum(times.values()), by_class(rows, board)
        for name in CLASSES:
            measured[name] += times.get(name, 0.0) / whole
            ideal[name] += roofs[name] / whole
    return {name: measured[name] / ideal[name] if ideal[name] else 1.0 for name in CLASSES}


def by_class(rows: Sequence[Row], board: Board, factors: Mapping[str, float] | None = None) -> dict[str, float]:
    """Milliseconds of each class of operators."""
    times = dict.fromkeys(CLASSES, 0.0)
    for row in rows:
        times[row.group.op_class] += estimate(row, board, factors).ms
    return times
