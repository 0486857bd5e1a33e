"""Latency of files, measured so that it can be compared: all files in one run, interleaved in random order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle
from edgekit.context import Track, no_progress
from edgekit.engines import engine
from edgekit.footprint import with_footprint
from edgekit.profile.document import document, summary
from edgekit.profile.local import Subject, measure
from edgekit.profile.plan import Plan, seconds_of
from edgekit.profile.traffic import with_traffic
from edgekit.targets import target

__all__ = [
    "Plan",
    "Subject",
    "document",
    "measure",
    "profile",
    "profile_bundle",
    "seconds_of",
    "subjects",
    "time_files",
    "time_series",
]


def profile(
    subjects: Sequence[Subject], plan: Plan, end_to_end: bool = False, track: Track = no_progress
) -> dict[str, Any]:
    """Measure files here, all interleaved, with their footprint and what they were measured by and on.

    Files of an engine that cannot run here are not timed: `unmeasured` says why. Another engine's times would say
    nothing about them.

    Raises:
        BadInput: as `measure`.
    """
    reasons = {subject.name: engine(subject.engine).missing() for subject in subjects}
    usable = [subject for subject in subjects if reasons[subject.name] is None]
    unmeasured = {name: reason for name, reason in reasons.items() if reason is not None}
    measured = measure(usable, plan, end_to_end, track)
    files: dict[str, dict[str, Path]] = {}
    for subject in usable:
        if subject.path.is_file():  # a bundle's module is none
            files.setdefault(subject.engine, {})[subject.name] = subject.path
    paths = {subject.name: subject.path for subject in subjects}
    found = with_footprint(document(measured, plan, paths, unmeasured), files)
    return with_traffic(found, paths, plan) if plan.layers else found


def profile_bundle(
    bundle: Bundle, plan: Plan, stages: Sequence[Path] = (), end_to_end: bool = False, track: Track = no_progress
) -> dict[str, Any]:
    """`profile` of the `subjects` of a bundle; the result is kept in it."""
    found = profile(subjects(bundle, stages), plan, end_to_end, track)
    bundle.add("profile", found)
    return found


def subjects(bundle: Bundle, stages: Sequence[Path] = ()) -> list[Subject]:
    """The base, the `stages` and every shipped file of a bundle, each for its target's engine."""
    files = []
    for file in (bundle.base, *stages, *bundle.models):
        of = bundle.base if file in stages else file  # a stage is of the base's target
        files.append(Subject(file.name, file, target(of.name.split(".")[1]).engine))
    return files


def time_files(
    files: Sequence[Path], engine_name: str, runs: int, threads: int, seed: int = 0, track: Track = no_progress
) -> list[dict[str, Any]]:
    """A record per file: load_ms, first_ms, latency_ms and latency_ratio (interval, against the first file)."""
    return summary(_measured(files, engine_name, Plan(runs=runs, threads=threads, seed=seed), track))


def time_series(
    files: Sequence[Path], engine_name: str, runs: int, threads: int, seed: int = 0, track: Track = no_progress
) -> list[list[float]]:
    """The milliseconds of each file in every round, for comparisons of one's own."""
    measured = _measured(files, engine_name, Plan(runs=runs, threads=threads, seed=seed), track)
    return [row["times_ms"] for row in measured]


def _measured(files: Sequence[Path], engine_name: str, plan: Plan, track: Track) -> list[dict[str, Any]]:
    return measure([Subject(file.name, file, engine_name) for file in files], plan, track=track)["rows"]
