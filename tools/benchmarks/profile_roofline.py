"""What predicts latency across the zoo: MACs, CIO, modelled bytes or the roofline?

    python tools/benchmarks/profile_roofline.py                               # about 10 minutes on a quiet core
    python tools/benchmarks/profile_roofline.py mobilenet_v2 squeezenet_1_1   # these networks alone

fp32 files at 224² in ONNX Runtime, one thread, interleaved; of every network the fastest round counts. R² is that of a
straight line through the logarithms. The roofline's factors, one for each class of operators, are fitted to the layer
times of half of the families and judged on the others. Peak and bandwidth of this machine are those of a large product
and of a large copy in numpy; the factors take up what they miss.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from common import claim, write
from profile_files import DEVELOPMENT, HELD_OUT, path_of

from edgekit.devices import runner
from edgekit.devices.boards import Board, Cache, Caches
from edgekit.engines import onnxruntime
from edgekit.graph_onnx import onnx_cost
from edgekit.onnx_file import read
from edgekit.progress import track
from edgekit.traffic.fused import FUSED_CONVS, PRODUCTS, fused
from edgekit.traffic.model import Row, modelled
from edgekit.traffic.roofline import CLASSES, by_class, fit

FITTED = ("mobilenet", "resnet", "squeezenet")
"""Families that the factors are fitted to; the others are predicted."""
PREDICTORS = ("macs", "cio", "traffic_model_bytes", "roofline_ms")
REQUIRED, SEED = 20, 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=[*DEVELOPMENT, *HELD_OUT])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument(
        "--llc", type=int, default=2 * 2**20, help="Bytes of the last level that one core has to itself."
    )
    options = parser.parse_args()
    device = this_machine(options.llc)
    found = {name: modelled(fused(path_of(name, "fp32")), options.llc) for name in options.networks}
    whole, classes = timed(found, options.rounds)
    factors = fit([(found[name], classes[name]) for name in found if is_fitted(name)], device)
    rows = [row_of(name, found[name], whole[name], device, factors) for name in found]
    write("profile_roofline", rows, claims(rows), SEED, factors=factors)


def is_fitted(name: str) -> bool:
    return name.startswith(FITTED)


def this_machine(llc_bytes: int) -> Board:
    a = np.ones((1024, 1024), np.float32)
    large = np.ones(2**26, np.float32)
    peak = 1024**3 / fastest(lambda: a @ a) / 1e9
    bandwidth = 2 * large.nbytes / fastest(lambda: large.copy()) / 1e9
    return Board("this machine", "", 1, Caches(Cache(llc_bytes)), bandwidth, {"fp32": peak}, {})


def fastest(work, runs: int = 10) -> float:
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def timed(found: dict[str, list[Row]], rounds: int) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Milliseconds of each network, and of each class of its operators."""
    with tempfile.TemporaryDirectory() as folder:
        noted = [onnxruntime.load(path_of(name, "fp32"), 1, profile=Path(folder) / "ops") for name in found]
        plain = [onnxruntime.load(path_of(name, "fp32"), 1) for name in found]
        pairs = [(session, runner.noise(session, 1)) for session in (*noted, *plain)]
        series = runner.interleave(pairs, track(range(rounds), "rounds", rounds), SEED)
        accounts = [onnxruntime.operators(session) for session in noted]
    whole = dict(zip(found, (min(times) for times in series[len(noted) :])))
    return whole, {name: class_times(rows, account, rounds) for (name, rows), account in zip(found.items(), accounts)}


def class_times(rows: list[Row], account: onnxruntime.Operators, rounds: int) -> dict[str, float]:
    """Of each operator its fastest round. Operators are found by kind and order: some of the runtime's have no name."""
    waiting: dict[str, list[str]] = {}
    for row in rows:
        waiting.setdefault(row.group.kind, []).append(row.group.op_class)
    times = dict.fromkeys(CLASSES, 0.0)
    for kind, ms in zip(account.kinds, account.ms[-rounds:].min(axis=0).tolist()):
        layer = kind in FUSED_CONVS or kind in PRODUCTS
        times[waiting[kind].pop(0) if layer and waiting.get(kind) else "elementwise"] += ms
    return times


def row_of(name: str, rows: list[Row], ms: float, device: Board, factors: dict[str, float]) -> dict:
    cost = onnx_cost(read(path_of(name, "fp32")))
    return {
        "network": name,
        "fitted": is_fitted(name),
        "latency_ms": ms,
        "roofline_ms": sum(by_class(rows, device, factors).values()),
        "traffic_model_bytes": sum(row.traffic_bytes for row in rows),
        "macs": cost["macs"],
        "cio": cost["cio"],
    }


def claims(rows: list[dict]) -> list[dict]:
    made = [claim(f"roofline.r2.{name}", "shown", r2(rows, name), "", True) for name in PREDICTORS]
    judged = [abs(row["roofline_ms"] / row["latency_ms"] - 1) for row in rows if not row["fitted"]]
    if judged:
        found = 100 * float(np.median(judged))
        required = f"<= {REQUIRED}, median of {len(judged)} networks of other families"
        made.append(claim("roofline.error", required, found, "%", found <= REQUIRED))
    return made


def r2(rows: list[dict], name: str) -> float:
    logs = np.log([[row[name], row["latency_ms"]] for row in rows])
    return float(np.corrcoef(logs.T)[0, 1] ** 2)


if __name__ == "__main__":
    main()
