"""Data: where pictures come from, which role each plays, and how they become a network's input.

A SPEC names a source: `digits`, `folder:PATH`, `csv:PATH`, `npz:PATH`, `wds:PATTERN` or `python:package.module:factory`
of pictures with a class each, `masks:PATH` with a class for each pixel, `coco:PATH` with boxes, `synthetic` of made-up
pictures to calibrate with. A source without splits of its own is split by content, 70/10/20, so that a picture keeps
its role whatever is added, removed, renamed or listed in another order.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from edgekit.data.arrays import ROLES, digits, npz, python
from edgekit.data.boxes import coco
from edgekit.data.images import csv_file, decode, folder
from edgekit.data.input import IGNORE, Input, InputForm, Output, OutputForm, Task, View, check_plain
from edgekit.data.masks import masks
from edgekit.data.samples import (
    Batch,
    Batches,
    Found,
    OnError,
    Progress,
    Sample,
    Samples,
    Truth,
    check_labels,
    check_masks,
    check_names,
    check_task,
    fitted,
    in_order,
    no_progress,
)
from edgekit.data.shards import wds
from edgekit.data.synthetic import synthetic
from edgekit.errors import BadInput, unknown

__all__ = [
    "IGNORE",
    "ROLES",
    "SOURCES",
    "Batch",
    "Batches",
    "Data",
    "Input",
    "InputForm",
    "OnError",
    "Output",
    "OutputForm",
    "Progress",
    "Sample",
    "Samples",
    "Task",
    "Truth",
    "View",
    "check_labels",
    "check_masks",
    "check_names",
    "check_plain",
    "check_task",
    "decode",
    "fitted",
    "load",
    "no_progress",
    "role_of",
]

# What stands before the colon of a SPEC -> a function of what stands behind it.
SOURCES: dict[str, Callable[[str], Found]] = {
    "digits": digits,
    "folder": folder,
    "csv": csv_file,
    "npz": npz,
    "wds": wds,
    "python": python,
    "masks": masks,
    "coco": coco,
    "synthetic": synthetic,
}


@dataclasses.dataclass(frozen=True)
class Data:
    """Samples by role. `skipped` says, one message each, what could not be read while loading with "skip"."""

    roles: Mapping[str, Samples]
    specs: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()

    def role(self, name: str) -> Samples:
        """The samples of one role, at least one.

        Raises:
            BadInput: there are none; the message says which roles there are and how to give this one.
        """
        if name not in ROLES:
            raise unknown("data role", name, ROLES)
        if name not in self.roles:
            there = ", ".join(f"{role} ({len(samples)})" for role, samples in self.roles.items()) or "none"
            raise BadInput(
                f"there are no samples for {name!r}; --data {' '.join(self.specs) or '(not given)'} gives {there}. "
                f"Add --data {name}=SPEC, or a larger SPEC without a role, which is split 70/10/20"
            )
        return self.roles[name]


def role_of(sha256: str) -> str:
    """The role that a content hash draws, of 100 shares: 70 train, 10 calibrate, 20 test."""
    share = int(sha256[:8], 16) % 100
    return "train" if share < 70 else "calibrate" if share < 80 else "test"


def load(
    specs: Sequence[str],
    on_error: OnError = "stop",
    progress: Progress = no_progress,
    labels: Sequence[str] | None = None,
) -> Data:
    """The samples that `specs` name, by role. Every file is read once, to hash it; none is decoded.

    Args:
        specs: each `SPEC`, for the source's own splits or a split by content, or `ROLE=SPEC`, for one role from all of
            the source (from its own split of that name where it has splits).
        on_error: "stop" at a file that cannot be read or decoded, or "skip" it: here, and in the samples' batches.
        progress: wraps an iteration to show it.
        labels: the class names in the order of the network's outputs ([output] labels). Without them, named classes
            are numbered in the order in which the source sorts them.

    Raises:
        BadInput: an unknown source or role, a source that cannot be used, a role given twice, class names that do not
            match, or a picture both in test and in another role.
    """
    given = [_find(spec) for spec in specs]
    found = [source for _, source, _ in given]
    classes = _common_classes([source.classes for source in found], labels)
    skipped: list[str] = []
    roles: dict[str, list[Sample]] = {}
    for role, source, spec in given:
        read = {part: _read(makers, spec, on_error, progress, skipped) for part, makers in source.parts.items()}
        if not any(read.values()):
            raise BadInput(f"{spec}: holds no samples" + (f" that could be read; {skipped[0]}" if skipped else ""))
        for name, samples in _assigned(read, role, spec).items():
            if name in roles:
                raise BadInput(f"--data {spec}: the role {name!r} is given already; give each role once")
            roles[name] = _renumbered(samples, source.classes, classes)
    _check_overlap(roles)
    ordered = {
        role: Samples(tuple(sorted(roles[role], key=lambda sample: sample.id)), classes, on_error)
        for role in ROLES
        if roles.get(role)
    }
    return Data(ordered, tuple(specs), classes, tuple(skipped))


def _find(spec: str) -> tuple[str | None, Found, str]:
    # Only a name in front of the first = is a role: a path behind a colon may hold one too.
    match = re.fullmatch(r"(?:([^:=/\\]*)=)?(.*)", spec, re.DOTALL)
    role, source = match.groups() if match else (None, spec)
    if role is not None and role not in ROLES:
        raise unknown("data role", role, ROLES, f"--data {spec}")
    kind, _, rest = source.partition(":")
    if kind not in SOURCES:
        raise unknown("data source", kind, SOURCES, f"--data {spec}")
    return role, SOURCES[kind](rest), spec


def _read(
    makers: Iterable[Callable[[], Sample]], spec: str, on_error: OnError, progress: Progress, skipped: list[str]
) -> list[Sample]:
    def one(maker: Callable[[], Sample]) -> Sample | str:
        try:
            return maker()
        except BadInput as error:
            if on_error == "skip":
                return str(error)
            raise

    makers = list(makers)
    samples = []
    for sample in progress(in_order(one, makers, ahead=64), f"reading {spec}", len(makers)):
        if isinstance(sample, str):
            skipped.append(sample)
        else:
            samples.append(sample)
    return samples


def _assigned(parts: Mapping[str | None, list[Sample]], role: str | None, spec: str) -> dict[str, list[Sample]]:
    """The parts of one source by role; a role that would be empty is left out."""
    whole = parts.get(None)
    if role is not None and whole is not None:
        return {role: whole}
    if whole is not None:
        split = {name: [sample for sample in whole if role_of(sample.sha256) == name] for name in ROLES}
    else:
        split = _own_splits({str(name): samples for name, samples in parts.items()})
    if role is not None and not split.get(role):
        raise BadInput(f"--data {spec}: the source has splits of its own, {', '.join(split)}, and no {role!r}")
    return {name: samples for name, samples in split.items() if samples and role in (None, name)}


def _own_splits(parts: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    if "calibrate" in parts or "train" not in parts:
        return parts
    # 10 of the 80 shares that train and calibrate have together when edgekit splits.
    held = [int(sample.sha256[:8], 16) % 80 >= 70 for sample in parts["train"]]
    train = [sample for sample, out in zip(parts["train"], held) if not out]
    calibrate = [sample for sample, out in zip(parts["train"], held) if out]
    return {**parts, "train": train, "calibrate": calibrate}


def _common_classes(named: Iterable[tuple[str, ...] | None], labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """The classes that every source's names are part of: `labels`, or the longest list among the sources."""
    lists = [names for names in named if names is not None]
    if labels is None and not lists:
        return None
    classes = tuple(labels) if labels is not None else max(lists, key=len)
    for names in lists:
        if extra := [name for name in names if name not in classes and (labels is None or not _are_numbers(names))]:
            where = "[output] labels" if labels is not None else "another --data, which has more classes"
            raise BadInput(f"the class {extra[0]!r} of the data is not in {where}: {', '.join(classes[:20])}")
    return classes


def _are_numbers(names: tuple[str, ...]) -> bool:
    """Whether the names say no more than the class numbers themselves, so that any other names may replace them."""
    return names == tuple(map(str, range(len(names))))


def _renumbered(samples: list[Sample], names: tuple[str, ...] | None, classes: tuple[str, ...] | None) -> list[Sample]:
    """The samples with their classes in the order of `classes` instead of the source's own `names`."""
    if names is None or classes is None or names == classes or not set(names) <= set(classes):
        return samples  # labels that are numbers without names, or digits under the names that the recipe gives them
    numbers = [classes.index(name) for name in names]
    return [_with_numbers(sample, numbers) for sample in samples]


def _with_numbers(sample: Sample, numbers: list[int]) -> Sample:
    if sample.truth is None:
        return dataclasses.replace(sample, label=numbers[sample.label])
    return dataclasses.replace(sample, truth=sample.truth.renumbered(numbers))


def _check_overlap(roles: Mapping[str, list[Sample]]) -> None:
    test = {sample.sha256: sample for sample in roles.get("test", [])}
    for role, samples in roles.items():
        shared = [sample for sample in samples if role != "test" and sample.sha256 in test]
        if shared:
            twin = test[shared[0].sha256]
            raise BadInput(
                f"{len(shared)} samples of {role} are in test too, such as {shared[0].id} (in test: {twin.id}); "
                "a score on them would say nothing. Remove them from one of the two"
            )
