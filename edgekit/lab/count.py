"""Instructions and cache misses of an inference: costs that are the same in every run, for gates where times are too
noisy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.bundle import open_bundle
from edgekit.context import Track, no_progress
from edgekit.lab.run import shipped_files
from edgekit.onnx_file import read
from edgekit.traffic.measured import counts


def count(paths: Sequence[Path], track: Track = no_progress) -> dict[str, Any]:
    """The counts of files, and of those of bundles that ONNX Runtime runs; a bundle keeps its result.

    Raises:
        BadInput: a file that cannot be read, or no valgrind.
    """
    rows: list[dict[str, Any]] = []
    for path in paths:
        bundle = open_bundle(path) if path.is_dir() else None
        files = shipped_files(bundle) if bundle else [path]
        for file in files:
            read(file)
        made = [{"file": file.name, **counts(file)} for file in track(files, "counting", len(files))]
        if bundle:
            bundle.add("instructions", {"rows": made})
        rows += made
    return {"schema": "edgekit/instructions/1", "rows": rows}
