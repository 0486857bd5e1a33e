"""What gates compare with: another bundle, or the small JSON of one that lives in the user's repository.

The JSON holds the metrics of each shipped file, which samples they were scored on and what was right, so that a drop in
accuracy is paired: of top-1 a bit for each sample, 2.5 kB for 10,000; of other metrics what they are on 500 resamples,
4 kB however many samples, classes and boxes there are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import report
from edgekit.bundle import Bundle, open_bundle
from edgekit.errors import BadInput
from edgekit.files import read_json, write_json
from edgekit.gate import Row
from edgekit.metrics.resample import unpacked
from edgekit.vocabulary import METRICS

SCHEMA = "edgekit/baseline/1"
KEPT = "file sha256 target precision device cpu ratio_to ratio_sha256 latency_ratio n resampled".split()


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Rows to compare with.

    Attributes:
        test: SHA-256 over the test samples that they were scored on.
        bundle: where the files themselves are, None for a JSON.
        allowed: differences that the user accepts.
    """

    where: str
    rows: tuple[Row, ...]
    test: str
    bundle: Bundle | None = None
    allowed: frozenset[str] = frozenset()

    def row(self, row: Row) -> Row:
        """What a row is compared with: the file of the same target and precision, measured on the same device.

        Raises:
            BadInput: there is none, and another target's was not allowed.
        """
        there = [other for other in self.rows if other.get("device") == row.get("device")]
        if "device" in row and not there:
            raise BadInput(
                f"{self.where}: nothing of it was measured on {row['device']}; profile it there, too, or name another "
                "device in the gate"
            )
        of_precision = [other for other in there if other["precision"] == row["precision"]]
        same = [other for other in of_precision if other["target"] == row["target"]]
        if same:
            return same[0]
        if of_precision and "target" in self.allowed:
            return of_precision[0]
        known = ", ".join(f"{other['target']} {other['precision']}" for other in there)
        raise BadInput(
            f"{self.where}: has no file for {row['target']} {row['precision']}; it has {known}. Name a target and "
            "precision in the gate, make a new baseline, or allow another target's file with --allow target"
        )


def open_baseline(path: Path, bundle: Bundle, allowed: Collection[str] = ()) -> Baseline:
    """The baseline at `path`, a bundle's folder or a JSON, for gates on `bundle`.

    Raises:
        BadInput: it is neither, has a newer schema, or was scored on other samples and that was not allowed.
    """
    if path.is_dir():
        other = open_bundle(path)
        found = Baseline(str(path), tuple(report.judged(other)), _test(other), other, frozenset(allowed))
    else:
        found = _read(path, frozenset(allowed))
    if found.test == _test(bundle):
        return found
    if "data" not in found.allowed:
        raise BadInput(
            f"{path}: was scored on other test samples than {bundle.path}; score both on the same ones, or compare "
            "all the same with --allow data"
        )
    return dataclasses.replace(found, rows=tuple({**row, "other_samples": True} for row in found.rows))


def own_baseline(bundle: Bundle) -> Baseline:
    """The uncompressed network of the same bundle, for all its files."""
    there = [row for row in report.device_rows(bundle) if row["file"] == bundle.base.name]
    bases = {row.get("device"): row for row in (report.base_row(bundle), *there)}
    rows = tuple(
        {**bases[row.get("device")], "target": row["target"], "precision": row["precision"]}
        for row in report.judged(bundle)
        if row.get("device") in bases
    )
    return Baseline(str(bundle.path), rows, _test(bundle), bundle)


def write_baseline(path: Path, bundle: Bundle) -> None:
    """Keep what `bundle` measured as a baseline; reviewed and committed, it spares CI the bundle."""
    document = {
        "schema": SCHEMA,
        "source": bundle.manifest["source"],
        "versions": bundle.manifest["versions"],
        "seal": bundle.seal,
        "test": _test(bundle),
        "rows": [_kept(row) for row in report.judged(bundle)],
    }
    write_json(path, document)


def _kept(row: Row) -> Row:
    bits = np.frombuffer(row.get("correct", "").encode(), np.uint8) == ord("1")
    kept = {key: row[key] for key in (*KEPT, *METRICS) if row.get(key) is not None}
    return {**kept, "correct": np.packbits(bits).tobytes().hex()}


def _read(path: Path, allowed: frozenset[str]) -> Baseline:
    document = read_json(path, SCHEMA)
    try:
        rows = tuple(_row(row) for row in document["rows"])
        return Baseline(str(path), rows, document["test"], None, allowed)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{path}: is no whole baseline ({error!r}); write it anew with --update-baseline") from None


def _row(row: Row) -> Row:
    texts = {key: row[key] for key in ("file", "target", "precision", "correct")}
    if not all(isinstance(value, str) for value in texts.values()):
        raise ValueError(f"a row of {texts}")
    for name in (*METRICS, "latency_ratio"):
        if name in row:
            _check_number(name, row[name])
    for text in row.get("resampled", {}).values():
        unpacked(text)
    return {**row, "correct": _bits(row["correct"], row.get("n", 0))}


def _check_number(name: str, value: Any) -> None:
    """Raises ValueError for what is neither a finite number nor an interval of them; KeyError for half an interval."""
    ends = [value[key] for key in ("median", "low", "high")] if isinstance(value, dict) else [value]
    if not all(isinstance(end, (int, float)) and math.isfinite(end) for end in ends):
        raise ValueError(f"{name} = {value}")


def _bits(text: str, count: int) -> str:
    if not text:
        return ""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    if not 0 <= count <= len(bits) < count + 8:
        raise ValueError(f"{len(bits)} answers for {count} samples")
    return "".join("01"[bit] for bit in bits[:count])


def _test(bundle: Bundle) -> str:
    return str(bundle.manifest["data"]["test"]["sha256"])
