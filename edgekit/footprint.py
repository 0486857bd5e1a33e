"""What a file takes beside time: bytes on its way to the device, memory there, and energy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.energy import with_energy
from edgekit.errors import BadInput
from edgekit.memory import sizes, with_memory
from edgekit.targets import Target
from edgekit.traffic.fused import fused
from edgekit.traffic.model import traffic_bytes
from edgekit.transport.pack import transport_bytes


def sized(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The row of a file with its transport_bytes, weight_bytes and peak_bytes where `folder` holds the file; a stage
    between two passes is not in the bundle, and its row stays as it is."""
    path = folder / row["file"]
    return row | sizes(path) | {"transport_bytes": transport_bytes(path.read_bytes())} if path.is_file() else row


def modelled_traffic(path: Path, wanted: Target) -> dict[str, Any]:
    """The modelled bytes of ONNX Runtime's files, or why there are none."""
    if wanted.engine != "onnxruntime":
        return {}
    try:
        return {"traffic_model_bytes": traffic_bytes(fused(path))}
    except BadInput as error:
        return {"traffic_unknown": str(error)}


def with_footprint(document: dict[str, Any], files: Mapping[str, Mapping[str, Path]]) -> dict[str, Any]:
    """A profile document (`profile.document`) with the memory and the energy of each file.

    Args:
        files: by engine and by the name that they were profiled under.
    """
    return with_energy(with_memory(document, files), files)
