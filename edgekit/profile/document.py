"""What was measured, as the document that commands print and bundles keep: medians, ratios, what to make of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.onnx_file import read
from edgekit.profile.layers import attributed
from edgekit.profile.plan import Plan
from edgekit.profile.stability import disturbed, unstable
from edgekit.statistics import interval, ratio_interval, tails

SCHEMA = "edgekit/profile/1"


def document(measured: Mapping[str, Any], plan: Plan, paths: Mapping[str, Any], unmeasured: Mapping[str, str]) -> dict:
    """The document of a runner's result (`edgekit/measured/1`), from this machine or another.

    Args:
        paths: of the files by name, whose nodes their layers are named after.
        unmeasured: why files could not be measured, by name; rows with an error are added.
    """
    good = [row for row in measured["rows"] if row["error"] is None]
    failed = {row["file"]: row["error"] for row in measured["rows"] if row["error"] is not None}
    rows = summary(good)
    for row, raw in zip(rows, good):
        if "layers" in raw:
            row["layers"] = attributed(raw["layers"], raw["layers_whole_ms"], read(paths[raw["file"]]))
            row["layers_whole_ms"] = raw["layers_whole_ms"]
        if "layers_error" in raw:
            row["layers_unknown"] = str(raw["layers_error"])
    return {
        "schema": SCHEMA,
        "rows": rows,
        "unmeasured": {**unmeasured, **failed},
        "settings": {
            "engines": {name: measured["versions"][name] for name in dict.fromkeys(row["engine"] for row in good)},
            "threads": plan.threads,
            "batch": plan.batch,
            "runs": len(good[0]["times_ms"]) if good else 0,
            "seed": plan.seed,
        },
        "machine": measured["machine"],
        "machine_after": measured["machine_after"],
        "unstable": disturbed(measured["machine"], measured["machine_after"]),
    }


def summary(good: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A record per measured row: load_ms, first_ms, latency_ms and latency_ratio (interval, against the first), tails
    where there are enough samples, and whatever else was measured."""
    return [_row(raw, good[0]) for raw in good]


def _row(raw: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    times = raw["times_ms"]
    row = {name: raw[name] for name in ("file", "engine", "load_ms", "first_ms", "batch") if name in raw}
    row |= {
        "latency_ms": interval(times),
        **{f"latency_{name}_ms": value for name, value in tails(times).items()},
        "latency_ratio": ratio_interval(times, reference["times_ms"]),
        "ratio_to": reference["file"],
        "unstable": unstable(times, raw.get("warm", True)),
    }
    if "end_to_end_ms" in raw:
        row["end_to_end_ms"] = interval(raw["end_to_end_ms"])
    if "throughput" in raw:
        rates = interval(raw["throughput"]["images_per_s"])
        row["throughput"] = {"streams": raw["throughput"]["streams"], "images_per_s": rates}
    if "sustained" in raw:
        row["sustained"] = raw["sustained"]
        row["sustained_slowdown"] = _slowdown(raw["sustained"])
    return row


def _slowdown(samples: list[dict[str, Any]]) -> float:
    """The median of the last tenth of the time over that of the first: above 1 where it slows down."""
    tenth = max(1, len(samples) // 10)
    first, last = (np.median([row["median_ms"] for row in part]) for part in (samples[:tenth], samples[-tenth:]))
    return float(last / first)
