"""What a file takes in memory: its weights, its activations at once, ONNX Runtime's arena, and the resident set.

Three tiers, of which none stands for another: `weight_bytes` and `peak_bytes` are computed from the file (live.py),
`arena_bytes` is what the runtime's allocator had in use beside the weights (engines/arena.py), the resident set is what
the process really held (resident.py). A file of few bytes may need many: weights are decoded and packed at load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.engines.tensorrt import TENSORRT
from edgekit.errors import BadInput
from edgekit.memory.live import peak_bytes
from edgekit.memory.resident import measure
from edgekit.onnx_data import weight_bytes
from edgekit.onnx_file import read

ON_CARD = "its weights and activations lie on the graphics card, of which the resident set says nothing"


def sizes(path: Path, batch: int = 1) -> dict[str, Any]:
    """weight_bytes and peak_bytes of a file; the latter is None, and `peak_unknown` says why, where shapes within the
    file cannot be inferred.

    Raises:
        BadInput: as `onnx_file.read`.
    """
    model = read(path)
    weights = weight_bytes(model.graph)
    try:
        return {"weight_bytes": weights, "peak_bytes": peak_bytes(model, batch)}
    except BadInput as error:
        return {"weight_bytes": weights, "peak_bytes": None, "peak_unknown": str(error)}


def with_memory(document: dict[str, Any], files: Mapping[str, Mapping[str, Path]]) -> dict[str, Any]:
    """A profile document (`profile.document`) with the memory of each file in its row; `document["memory"]` says by
    file what could not be measured, and why.

    Args:
        files: by engine and by the name that they were profiled under.
    """
    settings = document["settings"]
    found: dict[str, dict[str, Any]] = {}
    for name, named in files.items():
        for (label, path), record in zip(named.items(), _resident(list(named.values()), name, settings)):
            found[label] = sizes(path, settings["batch"]) | record
    failed = {name: record.pop("error") for name, record in found.items() if "error" in record}
    rows = [row | found.get(row["file"], {}) for row in document["rows"]]
    return document | {"rows": rows, "memory": {"unmeasured": failed}}


def _resident(files: Sequence[Path], engine_name: str, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    if engine_name in TENSORRT:
        return [{"error": ON_CARD} for _ in files]
    return measure(files, engine_name, settings["threads"], settings["batch"])
