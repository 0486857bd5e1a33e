"""What a report shows of one bundle, or of two files that were compared, gathered before anything is drawn."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle
from edgekit.errors import BadInput
from edgekit.gate import Verdict
from edgekit.onnx_file import read
from edgekit.report.card import Section, card_sections
from edgekit.report.changes import Change, beyond, changes
from edgekit.report.layers import file_layers, with_measured
from edgekit.report.metrics import SHARES
from edgekit.report.reproduce import command, environment, machine_text, recipe_toml
from edgekit.report.rows import METRICS as TASK_METRICS
from edgekit.report.rows import device_rows, newest_verdicts, rows, task
from edgekit.report.text import notes
from edgekit.report.tradeoff import Point, points
from edgekit.vocabulary import METRICS, point

Row = dict[str, Any]
MOST_STEPS = 400
"""Points of a training curve; of longer ones every nth step is kept."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One bundle, or one comparison of files, as the report shows it.

    Attributes:
        rows: a record per stage; the first is what drops and ratios compare with.
        layers: by file, a record per layer.
        training: step, pass, series and value of the training logs.
        there: a record per file and device that it was measured on layer by layer; `file` names both, as in `layers`.
        beyond: how many edits name no layer of the file.
    """

    name: str
    task: str
    rows: Sequence[Row]
    layers: Mapping[str, Sequence[Row]]
    notes: Sequence[str]
    environment: Sequence[tuple[str, str]]
    training: Sequence[Row] = ()
    there: Sequence[Row] = ()
    changes: Sequence[Change] = ()
    beyond: int = 0
    verdicts: Sequence[Verdict] = ()
    card: Sequence[Section] = ()
    command: str = ""
    recipe: str = ""
    data: str = ""
    cpu: str = ""

    @property
    def series(self) -> list[str]:
        """The columns of the training logs that are drawn."""
        return list(dict.fromkeys(row["series"] for row in self.training))

    @property
    def shipped(self) -> list[Row]:
        return [row for row in self.rows if row["file"].startswith("model.")]

    @property
    def shares(self) -> list[Row]:
        """What each stage left of the uncompressed network, by metric."""
        base = self.rows[0]
        found = []
        for index, row in enumerate(self.rows):
            for key in SHARES:
                value, of = point(row.get(key)), point(base.get(key))
                if value is not None and of:
                    stage = f"{index} {row['stage']}"
                    found.append({"stage": stage, "series": METRICS[key].title, "share": value / of})
        return found

    @property
    def first_shown(self) -> str | None:
        """The file whose layers are shown at first: the last of those of which most is known."""
        known = {file: len({key for row in rows for key in row}) for file, rows in self.layers.items()}
        return max(reversed(known), key=lambda file: known[file], default=None)

    @property
    def roofs(self) -> dict[str, list[Row]]:
        """By file, the corners of the machine's roofs where the profile names its peaks."""
        return {
            row["file"]: _roof(row["roofline"], self.layers.get(row["file"], ()))
            for row in (*self.rows, *self.there)
            if row.get("roofline")
        }


def cost_points(entries: Sequence[Entry]) -> list[Point]:
    return points([(entry.name, entry.task, entry.rows) for entry in entries])


def bundle_entries(bundles: Sequence[Bundle]) -> list[Entry]:
    """An entry for each bundle, under names of their own.

    Raises:
        BadInput: a bundle was given twice, or holds what no report can show.
    """
    return [_bundle_entry(name, bundle) for name, bundle in zip(names([bundle.path for bundle in bundles]), bundles)]


def names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart."""
    whole = [path.resolve() for path in paths]
    if len(set(whole)) < len(whole):
        twice = next(path for path in whole if whole.count(path) > 1)
        raise BadInput(f"{twice}: was given twice")
    for depth in itertools.count(1):
        found = ["/".join(path.parts[-depth:]) for path in whole]
        if len(set(found)) == len(found):
            return found
    raise AssertionError("different paths differ somewhere")


def _bundle_entry(name: str, bundle: Bundle) -> Entry:
    _check(bundle)
    found = rows(bundle)
    ordered = sorted(found, key=lambda row: row["file"] != bundle.base.name)  # stable: the base first
    kept = [row for row in ordered if row["file"].startswith(("base.", "model."))]
    layers = {row["file"]: file_layers(bundle, row) for row in kept}
    there = [row for row in device_rows(bundle) if row.get("layers")]
    named = [{**row, "file": f"{row['file']} on {row['device']}"} for row in there]
    weighed = [[item for item in layers[row["file"]] if item.get("weights")] for row in kept[:2]]
    before, after = weighed[0], weighed[-1]
    profile, manifest = bundle.latest("profile") or {}, bundle.manifest
    return Entry(
        name=name,
        task=task(bundle),
        rows=ordered,
        layers=layers | {label["file"]: file_layers(bundle, row) for label, row in zip(named, there)},
        there=named,
        notes=[*notes(bundle), *_gaps(bundle, profile)],
        environment=environment(bundle),
        training=_training(bundle),
        changes=changes(manifest["edits"], before, after),
        beyond=beyond(manifest["edits"], before),
        verdicts=newest_verdicts(bundle),
        card=card_sections(bundle),
        command=command(bundle),
        recipe=recipe_toml(bundle),
        data=manifest.get("data", {}).get("test", {}).get("sha256", ""),
        cpu=profile.get("machine", {}).get("cpu", ""),
    )


def _check(bundle: Bundle) -> None:
    where = bundle.path / "manifest.json"
    if task(bundle) not in TASK_METRICS:
        raise BadInput(f"{where}: its task {task(bundle)!r} is none of {', '.join(TASK_METRICS)}")
    for index, step in enumerate(bundle.manifest["steps"]):
        lacking = [key for key in ("stage", "file", "target", "precision", "metrics") if key not in step]
        if lacking:
            raise BadInput(f"{where}: step {index} lacks {', '.join(lacking)}")
    if bundle.base.name not in {step["file"] for step in bundle.manifest["steps"]}:
        raise BadInput(f"{where}: no step made {bundle.base.name}")


def _gaps(bundle: Bundle, profile: Mapping[str, Any]) -> list[str]:
    """What was not timed, or not well."""
    if not profile:
        return [f"Not profiled yet: run edgekit profile {bundle.path.name}, and report again."]
    found = [f"{name}: not timed: {reason}" for name, reason in profile.get("unmeasured", {}).items()]
    found += [f"{row['file']}: unstable: {why}" for row in profile["rows"] for why in row.get("unstable", [])]
    return [*found, *(f"Unstable: {why}" for why in profile.get("unstable", []))]


def _training(bundle: Bundle) -> list[Row]:
    wanted = ("loss", TASK_METRICS[task(bundle)][0])
    passes = bundle.manifest.get("recipe", {}).get("tables", {}).get("pass", [])
    found = []
    for name in sorted(bundle.manifest["files"]):
        if name.startswith("train.") and name.endswith(".csv"):
            number = name.split(".")[1]
            place = int(number) - 1 if number.isdigit() else len(passes)
            label = f"{number} {passes[place]['name']}" if 0 <= place < len(passes) else number
            for series in wanted:
                found += _curve(bundle.path / name, label, series)
    return found


def _curve(path: Path, label: str, series: str) -> list[Row]:
    """One column of a training log, thinned out."""
    with open(path, encoding="utf-8", newline="") as file:
        held = [(row["step"], row[series]) for row in csv.DictReader(file) if row.get(series)]
    every = -(-len(held) // MOST_STEPS) or 1
    return [
        {"step": int(step), "pass": label, "series": series, "value": float(value)} for step, value in held[::every]
    ]


def _roof(peaks: Mapping[str, Any], layers: Sequence[Row]) -> list[Row]:
    """Three corners: along the bandwidth to the ridge, and flat from there; over the span of the layers."""
    ridge = peaks["macs_per_s"] / peaks["bytes_per_s"]
    seen = [row["intensity"] for row in layers if row.get("intensity")] or [ridge]
    ends = [min(*seen, ridge) / 2, ridge, max(*seen, ridge) * 2]
    speed = [min(peaks["macs_per_s"], peaks["bytes_per_s"] * at) / 1e9 for at in ends]
    corners: list[Row] = [{"roof": True, "intensity": at, "gmacs_per_s": value} for at, value in zip(ends, speed)]
    corners[1]["label"] = peaks.get("board", "")
    return corners


def comparison_entry(files: Sequence[Path], document: Mapping[str, Any], lines: Sequence[str] = ()) -> Entry:
    """Files that were measured side by side, the first as what the others compare with.

    Args:
        document: what measured them, as a profile: rows by file name, machine, settings.
        lines: what the comparison found, in words.

    Raises:
        BadInput: a file is no ONNX model.
    """
    timed = {row["file"]: row for row in document["rows"]}
    found, layers = [], {}
    for name, path in zip(names(files), files):
        model = read(path)
        measured = timed.get(path.name) or timed.get(name) or {}
        layers[name] = with_measured(model, measured)
        macs = sum(item.get("macs") or 0 for item in layers[name])
        row: Row = {"target": "", "precision": "", "metrics": {}, "macs": macs, "size_bytes": path.stat().st_size}
        found.append({**row, **measured, "stage": name, "file": name})
    machine = document.get("machine", {})
    return Entry(
        name=" and ".join(row["file"] for row in found),
        task="classify",
        rows=found,
        layers=layers,
        notes=list(lines),
        environment=[("timed on", machine_text(machine))],
        cpu=machine.get("cpu", ""),
    )
