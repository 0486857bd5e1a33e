"""Measuring files on devices: the same jobs, the same document, and what a device answers is checked first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekit.context import Track, no_progress
from edgekit.devices.address import Address
from edgekit.devices.device import NEEDS, Device, Tell, expecting, processor
from edgekit.devices.fleet import on_devices
from edgekit.devices.runner import FEWEST
from edgekit.devices.ssh import Unreachable
from edgekit.engines.tensorrt import TENSORRT, build_options, shape_option
from edgekit.errors import BadInput
from edgekit.onnx_file import input_shapes, whole
from edgekit.profile.document import document
from edgekit.profile.local import Subject
from edgekit.profile.plan import Plan
from edgekit.profile.traffic import with_traffic

SCHEMA = "edgekit/fleet/1"
RUNNERS = {"onnxruntime": ("runner.py", NEEDS), "tensorrt": ("jetson.py", ("numpy",))}
"""What measures the files of an engine there, and the modules that it needs."""
MORE = ("--throughput", "--sustained", "--layers")
"""What is not measured there in TensorRT."""


def profile_there(
    subjects: Sequence[Subject],
    plan: Plan,
    addresses: Sequence[Address],
    track: Track = no_progress,
    log: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Measure files on every device at once, on each all of an engine interleaved (`edgekit/fleet/1`).

    Returns:
        profiles: for each device and engine a document as `profile` gives it, with its `device`.
        failed: why there is none, by device.

    Raises:
        BadInput: an engine that is not measured on devices, or not so, or no device could measure.
    """
    for subject in subjects:
        _check(subject, plan)
    contents = {subject.name: whole(subject.path) for subject in subjects}
    found, failed = on_devices(
        addresses, lambda device, tell: _documents(device, tell, subjects, contents, plan), track, log
    )
    profiles = [{"device": name, **made} for name, documents in found.items() for made in documents]
    return {"schema": SCHEMA, "profiles": profiles, "failed": failed}


def _check(subject: Subject, plan: Plan) -> None:
    if subject.engine not in RUNNERS:
        raise BadInput(f"{subject.name}: {subject.engine} is not measured on devices; known: {', '.join(RUNNERS)}")
    if subject.engine in TENSORRT and (more := [option for option in plan.options if option in MORE]):
        raise BadInput(
            f"{subject.name}: in TensorRT a device measures latency alone; leave out {' and '.join(more)}, or name "
            f"files for ONNX Runtime"
        )


def _documents(
    device: Device, tell: Tell, subjects: Sequence[Subject], contents: Mapping[str, bytes], plan: Plan
) -> list[dict[str, Any]]:
    """A document for each engine. One that is not there does not cost the others."""
    made: list[dict[str, Any]] = []
    failed: list[tuple[list[Subject], BadInput]] = []
    for name in dict.fromkeys(subject.engine for subject in subjects):
        group = [subject for subject in subjects if subject.engine == name]
        try:
            made.append(_document(device, tell, group, contents, plan))
        except Unreachable:
            raise
        except BadInput as error:
            failed.append((group, error))
    if not made:
        raise failed[0][1]
    for missed, reason in failed:
        made[0]["unmeasured"].update({subject.name: str(reason) for subject in missed})
    return made


def _document(
    device: Device, tell: Tell, group: Sequence[Subject], contents: Mapping[str, bytes], plan: Plan
) -> dict[str, Any]:
    name = group[0].engine
    runner, needs = RUNNERS[name]
    device.probe(needs)
    files = [{"name": item.name, "path": device.send(contents[item.name], ".onnx")} for item in group]
    job = {"schema": "edgekit/job/1", "kind": "time", "engine": name, **plan.job(), "files": files}
    if name in TENSORRT:
        job["files"] = [{**file, **_options(item, plan)} for file, item in zip(files, group)]
        job["runner"] = device.send_own("runner.py")
    result = device.run(job, runner, tell).result
    with expecting(device.name):
        rows = [{**row, "engine": name} for row in checked(result["rows"], [item.name for item in group])]
        before, after = processor(result["machine"]), processor(result["machine_after"])
        measured = {**result, "rows": rows, "machine": before, "machine_after": after}
        paths = {item.name: item.path for item in group}
        found = document(measured, plan, paths, {})
    return with_traffic(found, paths, plan) if plan.layers else found


def _options(subject: Subject, plan: Plan) -> dict[str, Any]:
    """What trtexec is told to build the engine of a file, and to run it; the batch that it then runs."""
    shapes = input_shapes(subject.path)
    free = any(shape[0] is None for shape in shapes.values())
    fixed = max((shape[0] or plan.batch for shape in shapes.values()), default=plan.batch)
    if plan.batch not in (1, fixed):
        raise BadInput(
            f"{subject.name}: the file is of batch {fixed}; measure it with that, not with --batch {plan.batch}"
        )
    return {
        "batch": fixed,
        "build": build_options(TENSORRT[subject.engine], shapes),
        "shapes": [shape_option("shapes", plan.batch, shapes)] if free else [],
    }


def checked(rows: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a result. Raises ValueError where they are not of these files, or hold what is no time."""
    if [row["file"] for row in rows] != list(names):
        raise ValueError("the rows are not of the files that were sent")
    for row in rows:
        if row["error"] is None:
            times = row["times_ms"]
            if not isinstance(times, list) or len(times) < FEWEST or not all(map(_is_time, times)):
                raise ValueError(f"{row['file']}: its times are no {FEWEST} or more positive numbers")
            if not all(_is_time(row[name]) for name in ("load_ms", "first_ms") if name in row):
                raise ValueError(f"{row['file']}: what loading took is no positive number")
        elif not isinstance(row["error"], str):
            raise ValueError(f"{row['file']}: its error is no text")
    return rows


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
