"""Does a bundle or a file do here what it did where it was made? Needs numpy and the engine, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import GOLDEN, Bundle, open_bundle
from edgekit.engines import engine, runner
from edgekit.errors import BadInput, ParityError
from edgekit.parity import sqnr_db
from edgekit.targets import target


def verify(path: Path) -> dict[str, Any]:
    """Check hashes and golden vectors of a bundle; a bare file's answers with and without graph optimisation.

    Raises:
        BadInput: a file is missing, corrupt or cannot be loaded.
        ParityError: a golden output is not reached within the sealed tolerance.
    """
    rows = _verify_bundle(open_bundle(path)) if path.is_dir() else [_verify_file(path)]
    bad = [row for row in rows if row["sqnr_db"] < row["needed_db"]]
    if bad:
        found = "; ".join(f"{row['file']} {row['sqnr_db']:.1f} dB, needs {row['needed_db']:.0f}" for row in bad)
        raise ParityError(f"{path}: answers differently on this machine: {found}")
    return {"schema": "edgekit/verification/1", "path": str(path), "rows": rows}


def _verify_bundle(bundle: Bundle) -> list[dict[str, Any]]:
    from safetensors.numpy import load_file

    golden = load_file(bundle.path / GOLDEN)
    rows = []
    for file in bundle.models:
        _, target_name, precision, _ = file.name.split(".")
        output = runner(target(target_name)).load(file).run(golden["input"])
        needed = bundle.manifest["golden_db"][precision]
        rows.append({"file": file.name, "sqnr_db": sqnr_db(golden[file.name], output), "needed_db": needed})
    return rows


def _verify_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadInput(f"{path}: no such file or bundle")
    runtime = engine("onnxruntime")
    plain, optimised = runtime.load(path, optimise=False), runtime.load(path)
    batch = np.random.default_rng(0).standard_normal((plain.batch or 2, *plain.shape), np.float32)
    return {"file": path.name, "sqnr_db": sqnr_db(plain.run(batch), optimised.run(batch)), "needed_db": 20.0}
