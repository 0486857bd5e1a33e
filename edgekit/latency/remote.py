"""Layer tables of devices: as `measure.py`, with the networks sent there.

The device's runner gives of every operator the mean over the middle half of its rounds, where `measure.py` takes the
fastest. The common factor between the two cancels in shares of a network's latency, and a table says by itself how far
it is off networks that were measured whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.context import Track
from edgekit.data import Input
from edgekit.devices.device import Device, Tell, expecting
from edgekit.devices.runner import FEWEST, Operators
from edgekit.errors import BadInput
from edgekit.latency import layer_table
from edgekit.latency.measure import Timings, layer_times
from edgekit.latency.table import Place, Table
from edgekit.latency.variants import Variant
from edgekit.net import Net
from edgekit.profile.plan import Plan
from edgekit.profile.remote import checked


def table_there(net: Net, input: Input, threads: int, device: Device, tell: Tell) -> Table:
    """The table of `net` on a device: from this machine's cache, or measured there now and kept here.

    Raises:
        BadInput: as `layer_table`, or the device cannot be used.
    """
    device.probe()
    place = Place(*device.identity())

    def timer(
        noted: Sequence[Variant], whole: Sequence[Variant], threads: int, runs: int, seed: int, _track: Track
    ) -> Timings:
        accounts = _measured(device, tell, noted, Plan(threads=threads, runs=FEWEST, seed=seed, layers=True))
        series = _measured(device, tell, whole, Plan(threads=threads, runs=runs, seed=seed))
        with expecting(device.name):
            operators = [_operators(row["layers"]) for row in accounts]
        return Timings(
            layers=[layer_times(found, variant, 1) for found, variant in zip(operators, noted)],
            sums=[float(found.ms.sum()) for found in operators],
            whole=[row["times_ms"] for row in series],
        )

    return layer_table(net, input, threads, timer=timer, place=place)


def _measured(device: Device, tell: Tell, variants: Sequence[Variant], plan: Plan) -> list[dict[str, Any]]:
    """The rows of a job that measures these networks; they are removed there afterwards."""
    sent = [device.send(variant.bytes(), ".onnx") for variant in variants]
    files = [{"name": str(number), "path": path} for number, path in enumerate(sent)]
    job = {"schema": "edgekit/job/1", "kind": "time", "engine": "onnxruntime", **plan.job(), "files": files}
    result = device.run(job, tell=tell).result
    device.forget(sent)
    with expecting(device.name):
        rows = checked(result["rows"], [file["name"] for file in files])
    if errors := [str(row["error"]) for row in rows if row["error"] is not None]:
        raise BadInput(f"{device.name}: cannot measure a narrower form of the network: {errors[0]}")
    return rows


def _operators(layers: Sequence[dict[str, Any]]) -> Operators:
    """Raises ValueError for times that are none."""
    ms = np.array([[float(item["ms"]) for item in layers]])
    if not all(0 <= value < math.inf for value in ms[0]):
        raise ValueError("an operator's time is no number of at least 0")
    return Operators([str(item["name"]) for item in layers], [str(item["kind"]) for item in layers], ms)
