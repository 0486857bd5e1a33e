"""Modelled memory traffic against what cachegrind measures around ONNX Runtime.

    python tools/benchmarks/profile_traffic.py measure     # hours on a busy machine; resumes where it was stopped
    python tools/benchmarks/profile_traffic.py             # results and plot of what is measured so far

Thirteen networks of the zoo up to 2.2 GMACs at 224², batch 1, fp32 and int8, last-level caches of 512 KiB and 2 MiB (16
ways), four networks at 8 MiB too. Measured points are kept by the file's hash and the cache's size. Four networks were
set aside before the model was written (`HELD_OUT`) and are reported by themselves.
"""

import argparse
import json
from collections.abc import Callable, Iterator

import numpy as np
from common import RESULTS, claim, write
from profile_files import HELD_OUT, PRECISIONS, WORK, path_of

from edgekit.devices.boards import Cache, Caches
from edgekit.files import file_sha256
from edgekit.graph_onnx import onnx_cost
from edgekit.onnx_file import read
from edgekit.traffic.fused import Group, fused
from edgekit.traffic.measured import measure
from edgekit.traffic.model import traffic_bytes

POINTS = WORK / "measured.jsonl"
MIB = 2**20
NETWORKS = (
    "mobilenet_v3_small",
    "pp_lcnet",
    "mobilenet_v2",
    "squeezenet_1_1",
    "mobilenet_v3_large",
    "hardnet_39ds",
    "mobilenet_v1",
    "csp_mobilenet_v2",
    "skipblocknet_large",
    "hardnet_68ds",
    "resnet_18",
    "vovnet_v2_19_dw",
    "vovnet_27_slim",
)
LARGE = ("mobilenet_v2", "squeezenet_1_1", "hardnet_39ds", "resnet_18")
"""Measured at 8 MiB too."""
SPEARMAN = 0.97
ERROR = {"fp32": 12, "int8": 20}
"""Percent, median over the points whose working set exceeds the cache."""

Point = tuple[str, str, int]
"""(network, precision, size of the last-level cache in bytes)"""


def points() -> Iterator[Point]:
    """All points, so that what is there first says most: small networks first, 8 MiB last."""
    for name in NETWORKS:
        yield from ((name, precision, size) for precision in PRECISIONS for size in (2 * MIB, MIB // 2))
    for name in LARGE:
        yield from ((name, precision, 8 * MIB) for precision in PRECISIONS)


def known() -> dict[tuple[str, int], dict]:
    """What was measured, by the file's hash and the cache's size."""
    lines = POINTS.read_text().splitlines() if POINTS.is_file() else []
    return {(row["sha256"], row["llc_bytes"]): row for row in map(json.loads, lines)}


def measure_all() -> None:
    for name, precision, size in points():
        path = path_of(name, precision)
        digest = file_sha256(path)
        if (digest, size) in known():
            continue
        found = measure(path, "cachegrind", Caches(Cache(size)))
        row = {"network": name, "precision": precision, "llc_bytes": size, "sha256": digest}
        row |= {"traffic_measured_bytes": found.traffic_bytes, "parts": found.parts}
        row |= {"provider": found.provider, **found.detail}
        with POINTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name} {precision} {size / MIB:g} MiB: {found.traffic_bytes / 1e6:.2f} MB", flush=True)


def report() -> None:
    """Model every measured point and judge the model by the claims."""
    measured = [
        row for row in known().values() if file_sha256(path_of(row["network"], row["precision"])) == row["sha256"]
    ]
    groups = {key: fused(path_of(*key)) for key in dict.fromkeys((r["network"], r["precision"]) for r in measured)}
    rows = [modelled_row(row, groups[row["network"], row["precision"]]) for row in measured]
    write("profile_traffic", rows, claims(rows), points_missing=len(list(points())) - len(rows))
    plot(rows)


def modelled_row(row: dict, groups: list[Group]) -> dict:
    cost = onnx_cost(read(path_of(row["network"], "fp32")))
    return {
        **row,
        "held_out": row["network"] in HELD_OUT,
        "traffic_model_bytes": traffic_bytes(groups, row["llc_bytes"]),
        "working_set_bytes": working_set_bytes(groups),
        **{name: cost[name] for name in ("macs", "cio", "cio_paper")},
    }


def working_set_bytes(groups: list[Group]) -> int:
    """Weights and the largest inputs and outputs of one group: what has to stay for an inference to move nothing."""
    weights = {tensor.name: tensor.size_bytes for group in groups for tensor in group.weights}
    return sum(weights.values()) + max(sum(t.size_bytes for t in (*g.inputs, *g.outputs)) for g in groups)


def claims(rows: list[dict]) -> list[dict]:
    parts: dict[str, Callable[[dict], bool]] = {
        "all": lambda _row: True,
        "development": lambda row: not row["held_out"],
        "held_out": lambda row: row["held_out"],
    }
    return [item for part, wanted in parts.items() for item in claims_of(part, [row for row in rows if wanted(row)])]


def claims_of(part: str, rows: list[dict]) -> list[dict]:
    made = []
    if len(rows) > 2:
        for name in ("traffic_model_bytes", "cio", "macs"):
            found = spearman([row[name] for row in rows], [row["traffic_measured_bytes"] for row in rows])
            model = name == "traffic_model_bytes"
            wanted = f">= {SPEARMAN}" if model else "shown beside it"
            made.append(claim(f"traffic.{part}.spearman.{name}", wanted, found, "", found >= SPEARMAN or not model))
    for precision, limit in ERROR.items():
        same = [row for row in rows if row["precision"] == precision]
        large = [error(row) for row in same if row["working_set_bytes"] > row["llc_bytes"]]
        small = [difference(row) / 1e6 for row in same if row["working_set_bytes"] <= row["llc_bytes"]]
        if large:
            found = 100 * float(np.median(large))
            required = f"<= {limit}, median of {len(large)} points"
            made.append(claim(f"traffic.{part}.error.{precision}", required, found, "%", found <= limit))
        if small:
            required = f"shown, worst of {len(small)} points that fit the cache"
            made.append(claim(f"traffic.{part}.difference.{precision}", required, max(small), "MB", True))
    return made


def error(row: dict) -> float:
    return difference(row) / row["traffic_measured_bytes"]


def difference(row: dict) -> float:
    return abs(row["traffic_model_bytes"] - row["traffic_measured_bytes"])


def spearman(first: list[float], second: list[float]) -> float:
    """Correlation of ranks, those of equal values averaged."""
    ranks = [[np.mean(np.flatnonzero(np.sort(values) == value)) for value in values] for values in (first, second)]
    return float(np.corrcoef(ranks)[0, 1])


def plot(rows: list[dict]) -> None:
    """Modelled against measured bytes; needs the extra `benchmarks`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 5), dpi=150)
    looks = {("fp32", False): "C0o", ("fp32", True): "C0^", ("int8", False): "C1o", ("int8", True): "C1^"}
    for (precision, held), look in looks.items():
        same = [row for row in rows if (row["precision"], row["held_out"]) == (precision, held)]
        pairs = [(row["traffic_measured_bytes"] / 1e6, row["traffic_model_bytes"] / 1e6) for row in same]
        label = f"{precision}, {'held out' if held else 'development'}"
        axes.loglog(*zip(*pairs), look, label=label, fillstyle="none") if pairs else None
    axes.axline((1, 1), (10, 10), color="grey", linewidth=0.8)
    axes.set(xlabel="measured by cachegrind, MB an inference", ylabel="modelled, MB an inference")
    axes.set(xlim=(1, None), ylim=(1, None))
    axes.legend()
    figure.savefig(RESULTS / "profile_traffic.png", bbox_inches="tight", metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=["measure", "report"], default="report")
    (measure_all if parser.parse_args().what == "measure" else report)()


if __name__ == "__main__":
    main()
