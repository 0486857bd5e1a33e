"""What `edgekit traffic` finds out about a file: the three tiers side by side, and the layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.devices.boards import Board, hierarchy
from edgekit.errors import BadInput
from edgekit.graph_onnx import onnx_cost
from edgekit.onnx_file import read
from edgekit.traffic.accelerator import cross_check
from edgekit.traffic.fused import fused
from edgekit.traffic.measured import Measured, measure
from edgekit.traffic.model import Row, modelled
from edgekit.traffic.roofline import estimate


def traffic_of(
    path: Path, board_name: str | None, llc: str | None, provider: str | None, check: str | None = None
) -> dict[str, Any]:
    """Memory traffic of one inference of a file at batch 1.

    Args:
        board_name: whose caches, bandwidth and peak count.
        llc: the last-level cache alone, such as 2MiB; instead of a board.
        provider: what also measures it; None measures nothing.
        check: the program for accelerators that also counts it; None asks none.

    Raises:
        BadInput: no model, no such board, no size, or a provider or program that cannot be used here.
    """
    if provider in ("perf", "ncu") and (board_name or llc):
        raise BadInput(
            f"--measure {provider}: counts what this machine moves, with the caches it has; leave out --board and "
            f"--llc, or give --measure cachegrind, which simulates them"
        )
    device, caches = hierarchy(board_name, llc)
    cost = onnx_cost(read(path))
    rows = modelled(fused(path), caches.llc.size_bytes)
    found = measure(path, provider, caches) if provider else None
    checked = cross_check(check, path) if check else None
    return {
        "schema": "edgekit/traffic/1",
        "file": str(path),
        "board": device.name if device else None,
        "llc_bytes": caches.llc.size_bytes,
        "macs": cost["macs"],
        "cio": cost["cio"],
        "cio_paper": cost["cio_paper"],
        "traffic_model_bytes": sum(row.traffic_bytes for row in rows),
        "model_parts": {part: sum(row.filled[part] for row in rows) for part in rows[0].filled} if rows else {},
        **(_measured(found) if found else {}),
        **({"cross_check": checked} if checked else {}),
        "layers": [_layer(row, device) for row in rows],
    }


def _measured(found: Measured) -> dict[str, Any]:
    by = {"provider": found.provider, "parts": found.parts, **found.detail}
    return {"traffic_measured_bytes": found.traffic_bytes, "measured_by": by}


def _layer(row: Row, device: Board | None) -> dict[str, Any]:
    group, time = row.group, estimate(row, device) if device else None
    return {
        "layer": group.layer,
        "op": group.kind,
        "class": group.op_class,
        "macs": group.macs,
        **{f"{part}_bytes": size for part, size in row.sizes.items()},
        "traffic_model_bytes": row.traffic_bytes,
        "resident": row.resident,
        "macs_per_byte": row.intensity,
        "bound": time.bound if time else None,
        "least_ms": time.ms if time else None,
    }
