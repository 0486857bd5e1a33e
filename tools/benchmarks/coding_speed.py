"""What coded weights cost when the file runs and loads: the coded int8 file beside the plain int8 file of a network.

Both are made by the same int8 rewrite on the same pictures; the coded one's weights are codes and a table of int8,
which ONNX Runtime looks up when it loads the file. The two run interleaved, one thread, and are loaded in turns. To be
run on a quiet machine: `coding.py speed --fresh` times them anew and takes the files as they are.
"""

import functools
import itertools
import time
from pathlib import Path

import numpy as np
from coding_common import IMAGES, INT8, WORK, Steps, base, coded, digest, kept, once, written
from common import claim
from prune_common import Row

from edgekit.engines import engine
from edgekit.net import Net
from edgekit.profile import time_series
from edgekit.statistics import interval, ratio_interval

BITS = {"squeezenet1_1": 3.85, "mobilenetv2_tf": 4.0}
TARGETS = ("onnxruntime", "onnxruntime-vnni")
ROUNDS, LOADS, RATIO = 1000, 25, 1.03


def steps_of(network: str, file: str) -> Steps:
    clustering = {"name": "cluster", "bits": BITS[network], "images": IMAGES}
    return {"fp32": (), "int8": INT8, "coded": (clustering, *INT8)}[file]


def made(network: str, file: str, target_name: str) -> Path:
    """The `fp32`, plain `int8` or `coded` int8 file; kept in the work folder, made where it is not there."""
    steps = steps_of(network, file)
    path = WORK / "files" / f"{network}.{target_name}.{file}.{digest(steps)}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        net = clustered(network) if file == "coded" else base(network)
        path.write_bytes(written(network, net, steps, 0, target_name))
    return path


@functools.cache
def clustered(network: str) -> Net:
    return coded(network, steps_of(network, "coded"), 0)


def speed() -> None:
    for network, target_name in itertools.product(BITS, TARGETS):
        once("speed", functools.partial(timed, network, target_name), steps_of(network, "coded"),
             network=network, target=target_name, bits=BITS[network])  # fmt: skip


def timed(network: str, target_name: str) -> Row:
    files = [made(network, file, target_name) for file in ("coded", "int8")]
    loads = load_times(files)
    runs = time_series(files, "onnxruntime", ROUNDS, 1)
    return {
        "latency_ratio": ratio_interval(*runs),
        "latency_ms": float(np.median(runs[0])),
        "latency_ms_int8": float(np.median(runs[1])),
        "load_ratio": ratio_interval(*loads),
        "load_ms": interval(loads[0])["median"],
        "load_ms_int8": interval(loads[1])["median"],
        "size_bytes": files[0].stat().st_size,
        "size_bytes_int8": files[1].stat().st_size,
        "int8_convs": engine("onnxruntime").int8_convs(files[0]),
        "int8_convs_int8": engine("onnxruntime").int8_convs(files[1]),
    }


def load_times(files: list[Path]) -> list[list[float]]:
    """Milliseconds of `LOADS` loads of each file, in turns, after one of each."""
    times: list[list[float]] = [[] for _ in files]
    for _ in range(LOADS + 1):
        for file, found in zip(files, times):
            begin = time.perf_counter()
            engine("onnxruntime").load(file, 1)
            found.append((time.perf_counter() - begin) * 1e3)
    return [found[1:] for found in times]


def claims() -> list[Row]:
    found = []
    for row in kept("speed"):
        high, name = row["latency_ratio"]["high"], f"coding.speed.{row['network']}.{row['target']}"
        required = (
            f"upper end of the ratio to the plain int8 file ≤ {RATIO}; loads in {row['load_ms']:.0f} ms, "
            f"the plain one in {row['load_ms_int8']:.0f}"
        )
        found.append(claim(name, required, high, "ratio", high <= RATIO))
    return found
