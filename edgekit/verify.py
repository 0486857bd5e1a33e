"""Does a bundle or a file do here what it did where it was made? Needs numpy and the engine, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import GOLDEN, Bundle, open_bundle
from edgekit.devices.runner import noise
from edgekit.engines import engine, runner
from edgekit.errors import BadInput, ParityError
from edgekit.parity import agreement, sqnr_db
from edgekit.targets import target

SAME = 87.5
"""Percent of classes that have to be the golden ones: of eight pictures one may lie between two classes."""


def verify(path: Path) -> dict[str, Any]:
    """Check hashes and golden vectors of a bundle; a bare file's answers with and without graph optimisation.

    Raises:
        BadInput: a file is missing, corrupt or cannot be loaded.
        ParityError: a golden output is not reached within the sealed tolerance.
    """
    rows = _verify_bundle(open_bundle(path)) if path.is_dir() else [_verify_file(path)]
    bad = [(row, found) for row, found in zip(rows, map(compared, rows)) if found[0] < found[1]]
    if bad:
        listed = "; ".join(f"{row['file']} {found:.1f} {unit}, needs {needed:g}" for row, (found, needed, unit) in bad)
        raise ParityError(f"{path}: answers differently on this machine: {listed}")
    return {"schema": "edgekit/verification/1", "path": str(path), "rows": rows}


def _verify_bundle(bundle: Bundle) -> list[dict[str, Any]]:
    from safetensors.numpy import load_file

    golden = load_file(bundle.path / GOLDEN)
    rows = []
    for file in bundle.models:
        _, target_name, precision, _ = file.name.split(".")
        output = runner(target(target_name)).load(file).run(golden["input"])
        rows.append(comparison(file.name, golden[file.name], output, bundle.manifest["golden_db"][precision]))
    return rows


def comparison(name: str, wanted: np.ndarray, found: np.ndarray, needed_db: float) -> dict[str, Any]:
    """A row of `verify`: scores are compared in dB; of a file that gives classes, how many are the same."""
    if np.issubdtype(wanted.dtype, np.integer):
        return {"file": name, "same_percent": agreement(wanted, found), "needed_percent": SAME}
    return {"file": name, "sqnr_db": sqnr_db(wanted, found), "needed_db": needed_db}


def compared(row: dict[str, Any]) -> tuple[float, float, str]:
    """What was found in a row of `verify`, what is needed, and of what."""
    if "sqnr_db" in row:
        return row["sqnr_db"], row["needed_db"], "dB"
    return row["same_percent"], row["needed_percent"], "% same classes"


def _verify_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(f"{path}: no such file or bundle")
    runtime = engine("onnxruntime")
    plain, optimised = runtime.load(path, optimise=False), runtime.load(path)
    batch = noise(plain, 2)
    return comparison(path.name, plain.run(batch), optimised.run(batch), 20.0)
