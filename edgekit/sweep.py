"""One recipe at several settings of its step `split`: the curve of accuracy over bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekit import report, run
from edgekit.bundle import MANIFEST, Bundle, open_bundle
from edgekit.context import Track, no_progress
from edgekit.errors import BadInput
from edgekit.files import write_json
from edgekit.job import WORK
from edgekit.terminal import make, show


def sweep(
    model: str,
    recipe: str,
    data: Sequence[str],
    out: Path,
    field: str,
    values: Sequence[float | int],
    *,
    overrides: Sequence[str] = (),
    seed: int = 0,
    track: Track = no_progress,
    log: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Compress once for each value of `split.<field>`, into `out/<field>-<value>`, and write `out/curve.json`.

    A finished bundle is not made again and an unfinished one goes on, so the same command takes up a killed sweep.

    Returns:
        the curve: for each file that was cut its value, latent_bytes (a picture's in the mean, by the tables), metrics,
        and those of the uncut network.

    Raises:
        BadInput: as `run.compress`, a value given twice, or a recipe that cuts nothing.
    """
    if len(set(values)) < len(values):
        raise BadInput(f"--{field}: a value was given twice")
    points = []
    for value in values:
        changed = [*overrides, f"split.{field}={value}"]
        made = _made(model, recipe, data, out / f"{field}-{value}", changed, seed, track, log)
        points += [{field: value, **point} for point in _points(made)]
    base = report.base_row(made)
    found = {"schema": "edgekit/curve/1", "model": model, "field": field, "uncut": base["metrics"], "points": points}
    write_json(out / "curve.json", found)
    return found


def _made(
    model: str, recipe: str, data: Sequence[str], folder: Path, overrides: Sequence[str], seed: int, track: Track,
    log: Callable[[str], None],
) -> Bundle:  # fmt: skip
    if (folder / MANIFEST).is_file() and not (folder / WORK).is_dir():
        log(f"{folder}: is there already")
        return open_bundle(folder)
    begun = (folder / WORK).is_dir()
    return run.compress(
        model, recipe, data, folder, seed=seed, overrides=overrides, resume=begun, track=track, log=log, runs=8
    )


def _points(bundle: Bundle) -> list[dict[str, Any]]:
    rows = [row for row in bundle.manifest["steps"] if "latent_bytes" in row]
    if not rows:
        raise BadInput(f"{bundle.path}: is not cut; the recipe needs a step named split")
    kept = ("file", "precision", "latent_bytes", "metrics", "n")
    return [{"bundle": bundle.path.name, **{key: row[key] for key in kept}} for row in rows]


def show_curve(found: dict[str, Any]) -> None:
    """On the terminal."""
    names = list(found["uncut"])
    made = make(found["field"], "precision", "bytes a picture", *names, title=found["model"])
    for point in found["points"]:
        scores = (f"{point['metrics'][name]:.2f}" for name in names)
        made.add_row(f"{point[found['field']]:g}", point["precision"], f"{point['latent_bytes']:.1f}", *scores)
    made.add_section()
    made.add_row("uncut", "", "", *(f"{score:.2f}" for score in found["uncut"].values()))
    show(made)
