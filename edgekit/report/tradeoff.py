"""Accuracy against what it costs, over the files of all bundles, and the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit.report.metrics import COSTS
from edgekit.report.rows import METRICS as TASK_METRICS
from edgekit.vocabulary import METRICS, point

Point = dict[str, Any]


def points(bundles: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> list[Point]:
    """A point per file of each bundle (its name, task and rows) that is uncompressed or ships.

    A point has accuracy, costs with their intervals, and under "front", for each cost against which it stands on the
    front among the points of its task, its place there.
    """
    found = [_point(name, task, row) for name, task, rows in bundles for row in rows if _stays(row["file"])]
    if len(bundles) > 1:
        found = [item if item["kind"] == "uncompressed" else {**item, "label": item["bundle"]} for item in found]
    for task in {item["task"] for item in found}:
        group = [item for item in found if item["task"] == task]
        for cost in COSTS.split():
            for place, item in enumerate(front(group, cost)):
                item["front"][cost] = place
    return found


def front(points: Sequence[Point], cost: str) -> list[Point]:
    """The points than which none is as accurate and cheaper, nor as cheap and more accurate; cheapest first."""
    known = [item for item in points if item.get(cost) is not None and item.get("accuracy") is not None]
    best, found = float("-inf"), []
    for item in sorted(known, key=lambda item: (item[cost], -item["accuracy"])):
        if item["accuracy"] > best:
            best = item["accuracy"]
            found.append(item)
    return found


def _stays(file: str) -> bool:
    return file.startswith(("base.", "model."))


def _label(file: str) -> str:
    """The target and precision of a file that ships."""
    return "uncompressed" if file.startswith("base.") else file.removeprefix("model.").removesuffix(".onnx")


def _point(name: str, task: str, row: dict[str, Any]) -> Point:
    kind = "uncompressed" if row["file"].startswith("base.") else row["precision"]
    made = {
        "bundle": name,
        "task": task,
        "stage": row["stage"],
        "file": row["file"],
        "kind": kind,
        "accuracy": point(row.get(TASK_METRICS[task][0])),
        "label": _label(row["file"]),
        "front": {},
    }
    for cost in COSTS.split():
        value = row.get(cost)
        made[cost] = point(value)
        made[f"{cost}_text"] = METRICS[cost].text(value)
        if isinstance(value, dict):
            made |= {f"{cost}_low": point(value.get("low")), f"{cost}_high": point(value.get("high"))}
    return made


def costs(found: Sequence[Point]) -> list[str]:
    """The costs that at least one point has."""
    return [cost for cost in COSTS.split() if any(item[cost] is not None for item in found)]
