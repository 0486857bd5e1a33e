"""Which metrics a report plots, and which of them its rows hold."""

from __future__ import annotations

from typing import Any

from edgekit.vocabulary import METRICS, Metric, point

COSTS = "latency_ms size_bytes transport_bytes traffic_model_bytes macs params peak_bytes resident_run_bytes energy_j"
"""What accuracy is plotted against, in the order of the selector."""

SHARES = ("params", "macs", "size_bytes", "latency_ms", "traffic_model_bytes")
"""What the plot of stages shows as a share of the uncompressed network."""


def measured(rows: list[dict[str, Any]]) -> list[Metric]:
    """The metrics that at least one row holds."""
    return [metric for key, metric in METRICS.items() if any(point(row.get(key)) is not None for row in rows)]


def unmeasured(rows: list[dict[str, Any]]) -> list[Metric]:
    """What could be measured and no row holds, but for other tasks' accuracy and what only cut networks have."""
    held = measured(rows)
    return [item for item in METRICS.values() if item not in held and not item.accuracy and item.key != "latent_bytes"]
