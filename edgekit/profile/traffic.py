"""The modelled traffic of each layer and the roofs over it, beside the times that a profile has of them.

Traffic is of ONNX Runtime's own groups, so of other engines' files there is none. Layers are called as in
`profile.layers`: what the runtime added, as changes of layout, stands in one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.devices.boards import Board, hierarchy
from edgekit.errors import BadInput
from edgekit.onnx_file import read
from edgekit.profile.layers import ADDED
from edgekit.profile.plan import Plan
from edgekit.traffic.fused import fused
from edgekit.traffic.model import Row, modelled
from edgekit.traffic.roofline import estimate, precision


def with_traffic(document: dict[str, Any], paths: Mapping[str, Path], plan: Plan) -> dict[str, Any]:
    """A profile document with `traffic_layers` in each row, or why there are none: `traffic_layers_unknown`.

    With a board each row has also its `roofline`: the board's name, the peak of the cores that run the file, in its
    precision, and the bandwidth of the memory. Whether the times are that board's is for the user to know.

    Args:
        paths: of the files by name.
    """
    board, caches = hierarchy(plan.board, plan.llc)
    rows = [row | _traffic(row, paths[row["file"]], board, caches.llc.size_bytes, plan) for row in document["rows"]]
    settings = document["settings"] | {"board": plan.board, "llc_bytes": caches.llc.size_bytes}
    return document | {"rows": rows, "settings": settings}


def _traffic(row: Mapping[str, Any], path: Path, board: Board | None, llc_bytes: int, plan: Plan) -> dict[str, Any]:
    if row["engine"] != "onnxruntime":
        reason = f"it is modelled as ONNX Runtime runs a file, and this one runs in {row['engine']}"
        return {"traffic_layers_unknown": reason}
    if row["batch"] != 1:
        return {"traffic_layers_unknown": f"it is modelled at batch 1, and the file ran at batch {row['batch']}"}
    try:
        found = modelled(fused(path), llc_bytes)
    except BadInput as error:
        return {"traffic_layers_unknown": str(error)}
    named = {node.name for node in read(path).graph.node}
    return {"traffic_layers": [_layer(item, named, board) for item in found], **_roofs(found, board, plan.threads)}


def _layer(row: Row, named: set[str], board: Board | None) -> dict[str, Any]:
    layer = row.group.layer if row.group.layer in named else ADDED
    known = {"layer": layer, "traffic_model_bytes": row.traffic_bytes}
    if board is None:
        return known
    time = estimate(row, board)
    return {**known, "bound": time.bound, "least_ms": time.ms}


def _roofs(found: Sequence[Row], board: Board | None, threads: int) -> dict[str, Any]:
    if board is None or not found:
        return {}
    largest = max(found, key=lambda row: row.group.macs)
    cores = min(threads or board.cores, board.cores)
    peak = board.peak_gmacs.get(precision(largest), board.peak_gmacs["fp32"])
    speeds = {"macs_per_s": 1e9 * peak * cores, "bytes_per_s": 1e9 * board.bandwidth_gbs}
    return {"roofline": {"board": board.name, **speeds}}
