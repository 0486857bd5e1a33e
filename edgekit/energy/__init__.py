"""Energy of an inference, where the machine has a meter.

`energy_j` is all that the meter saw while a file ran, divided by the runs: what a battery pays, idle draw included. The
power of the idle machine, measured between the files, stands beside it as `idle_w`; who wants the energy above idle
subtracts idle_w times the latency. A meter sees the whole package, card or board, so other work on it counts: measure
on a machine that does nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.devices.runner import noise
from edgekit.energy.meters import Meter, NoMeter, found
from edgekit.engines import engine
from edgekit.engines.tensorrt import TENSORRT
from edgekit.statistics import interval

WINDOWS = 8
ON_GPU = ("ina3221", "nvml")
ON_CPU = ("ina3221", "rapl")
"""The meters that see the work of an engine, in the order of preference."""


def with_energy(document: dict[str, Any], files: Mapping[str, Mapping[str, Path]]) -> dict[str, Any]:
    """A profile document (`profile.document`) with `energy_j` in the rows of the files whose engine's work a meter here
    sees; `document["energy"]` names the meter and the idle power by engine, or says why there is none.

    Args:
        files: by engine and by the name that they were profiled under.
    """
    settings = document["settings"]
    energies: dict[str, Any] = {}
    by_engine: dict[str, Any] = {}
    for name in files:
        meter, reasons = found(ON_GPU if name in TENSORRT else ON_CPU)
        try:
            if meter is None:
                raise NoMeter("; ".join(reasons.values()))
            idle_w, joules = measure(meter, list(files[name].values()), name, settings["threads"], settings["batch"])
        except (NoMeter, OSError) as error:
            by_engine[name] = {"missing": str(error)}
            continue
        by_engine[name] = {"meter": meter.what, "idle_w": interval(idle_w)}
        energies |= {label: {"energy_j": interval(series)} for label, series in zip(files[name], joules)}
    rows = [row | energies.get(row["file"], {}) for row in document["rows"]]
    return document | {"rows": rows, "energy": by_engine}


def measure(
    meter: Meter, files: Sequence[Path], engine_name: str, threads: int, batch: int = 1, seed: int = 0
) -> tuple[list[float], list[list[float]]]:
    """Idle watts and, for each file, joules of a run, of every window; in each round all files take a window in random
    order, after one that the machine idles.

    Raises:
        NoMeter: the meter's counter stands still.
    """
    sessions = [engine(engine_name).load(path, threads) for path in files]
    feeds = [noise(session, batch) for session in sessions]
    rng = np.random.default_rng(seed)
    idle_w: list[float] = []
    joules: list[list[float]] = [[] for _ in files]
    for _ in range(WINDOWS):
        idle_w.append(_idle_w(meter))
        for index in rng.permutation(len(files)):
            joules[index].append(_run_j(meter, sessions[index], feeds[index]))
    return idle_w, joules


def _idle_w(meter: Meter) -> float:
    begin = time.perf_counter()
    taken = meter.joules(lambda: time.sleep(meter.window_s))
    return taken / (time.perf_counter() - begin)


def _run_j(meter: Meter, session: Any, feed: np.ndarray) -> float:
    runs = 0

    def work() -> None:
        nonlocal runs
        end = time.perf_counter() + meter.window_s
        while time.perf_counter() < end:
            session.run(feed)
            runs += 1

    taken = meter.joules(work)
    if taken <= 0:
        raise NoMeter(f"{meter.what}: does not move while a network runs")
    return taken / runs
