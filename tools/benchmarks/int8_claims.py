"""What the rows of the int8 benchmark say of each figure that was asked for.

Two kinds of interval. A drop is one of pictures: these are what was drawn at random, and each is scored in four of the
five folds. So a picture's difference is the mean of its folds', the 1,000 differences are independent, and the interval
is mean ± 1.96 standard errors of them; an interval of the five folds' means would take the same pictures four times for
new ones, and be too narrow. Their mean is the mean of the folds. A figure of whole files (SQNR) has Student's interval
of the five folds.

"Not worse than NNCF's best": the 95 % interval of (NNCF's hits − ours), picture by picture, does not lie wholly above
0. That is no proof of equality; the interval stands beside it and says what difference can be excluded.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from common import claim
from int8_files import OURS, PICTURES, fold_indices

Rows = list[dict[str, Any]]
# network, file, most points of drop, least dB of the logits
REQUIRED = (
    ("mobilenetv2_tf", "portable", 0.8, 17.5),
    ("mobilenetv2_tf", "vnni", 0.4, 19.0),
    ("mobilenetv2_tf", "tensorrt", 0.6, None),
    ("squeezenet1_1", "portable", 0.5, None),
    ("squeezenet1_1", "vnni", 0.5, None),
    ("squeezenet1_1", "tensorrt", 0.5, None),
)
LATENCY_RATIO, ACCURATE_S, FAST_S, GAP, MEMORY_RATIO = 1.03, 600, 60, 0.2, 1.5
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}


def hexed(hits: np.ndarray) -> str:
    """Booleans as the digits of their bits."""
    return np.packbits(hits).tobytes().hex()


def hits_of(row: dict[str, Any]) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(row["hits"]), np.uint8), count=row["n"])
    return bits.astype(np.float64)


def chosen(rows: Rows, part: str, network: str, file: str) -> Rows:
    """In the order of the folds; rows of a peer that failed hold no figures and are left out."""
    found = [row for row in rows if (row["part"], row["network"], row["file"]) == (part, network, file)]
    return sorted((row for row in found if "error" not in row), key=lambda row: row["fold"])


def by_pictures(better: Rows, worse: Rows) -> dict[str, float]:
    """Points by which one file's hits lie above another's, folds paired: mean and 95 % interval over pictures."""
    total, times = np.zeros(PICTURES), np.zeros(PICTURES)
    others = {row["fold"]: row for row in worse}
    for row in better:
        if row["fold"] in others:
            _, scored = fold_indices(row["fold"])
            total[scored] += hits_of(row) - hits_of(others[row["fold"]])
            times[scored] += 1
    values = 100 * total[times > 0] / times[times > 0]
    half = float(1.96 * values.std(ddof=1) / len(values) ** 0.5)
    mean = float(np.average(values, weights=times[times > 0]))
    return {"mean": mean, "low": mean - half, "high": mean + half, "level": 0.95, "n": len(values)}


def by_folds(values: Sequence[float]) -> dict[str, float]:
    """Mean and Student's 95 % interval; of one value it is that value."""
    mean = float(np.mean(values))
    half = STUDENT[len(values)] * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"mean": mean, "low": mean - half, "high": mean + half, "level": 0.95, "n": len(values)}


def summary(rows: Rows) -> Rows:
    """A line for each network and file: drop, SQNR and agreement over the folds, and the longest time to make it."""
    pairs = dict.fromkeys((row["network"], row["file"]) for row in rows if row["part"] == "folds")
    lines = []
    for network, file in pairs:
        found = chosen(rows, "folds", network, file)
        if not found or file == "fp32":
            continue
        lines.append({
            "network": network,
            "file": file,
            "folds": len(found),
            "scored": found[0]["scored"],
            "top1": float(np.mean([row["top1"] for row in found])),
            "drop": by_pictures(chosen(rows, "folds", network, "fp32"), found),
            "sqnr_db": by_folds([row["sqnr_db"] for row in found]),
            "agreement": float(np.mean([row["agreement"] for row in found])),
            "seconds_max": max(row["seconds"] for row in found),
            "same_file_as": same_files(rows, found),
        })  # fmt: skip
    return lines


def same_files(rows: Rows, found: Rows) -> list[str]:
    """Other files of the network that are these byte for byte in every fold: they are no independent result."""
    mine = {(row["fold"], row["sha256"]) for row in found}
    others: dict[str, set[tuple[int, str]]] = {}
    for row in rows:
        if row["part"] == "folds" and row["network"] == found[0]["network"] and "error" not in row:
            others.setdefault(row["file"], set()).add((row["fold"], row["sha256"]))
    return [file for file, keys in others.items() if mine <= keys and file != found[0]["file"]]


def claims(rows: Rows) -> Rows:
    """Of what was measured so far; a run that was stopped leaves fewer folds, and says how many."""
    lines = {(line["network"], line["file"]): line for line in summary(rows)}
    found = [item for wanted in REQUIRED if wanted[:2] in lines for item in accuracy(lines[wanted[:2]], *wanted[2:])]
    found += [*not_worse(rows, lines), *tensorrt(rows), *latency(rows), *making(lines, rows), *rest(rows)]
    return found


def accuracy(line: dict[str, Any], drop: float, db: float | None) -> Iterable[dict[str, Any]]:
    name, value = f"int8.{line['network']}.{line['file']}", line["drop"]
    where = f"mean of {line['folds']} folds [{value['low']:.2f}, {value['high']:.2f}]; {line['scored']}"
    yield claim(f"{name}.drop", f"≤ {drop} points, {where}", value["mean"], "points", value["mean"] <= drop)
    if db is not None:
        mean = line["sqnr_db"]
        required = f"≥ {db} dB of the logits, mean of folds [{mean['low']:.2f}, {mean['high']:.2f}]"
        yield claim(f"{name}.sqnr_db", required, mean["mean"], "dB", mean["mean"] >= db)


def not_worse(rows: Rows, lines: dict[tuple[str, str], dict[str, Any]]) -> Iterable[dict[str, Any]]:
    network = "mobilenetv2_tf"
    nncf = [lines[network, file] for file in ("nncf_default", "nncf_mixed") if (network, file) in lines]
    if nncf and (network, "vnni") in lines:
        best = max(nncf, key=lambda line: line["top1"])["file"]
        value = by_pictures(chosen(rows, "folds", network, best), chosen(rows, "folds", network, "vnni"))
        required = f"not worse than {best}: its lead [{value['low']:.2f}, {value['high']:.2f}] is not wholly above 0"
        yield claim(f"int8.{network}.vnni.behind_nncf", required, value["mean"], "points", value["low"] <= 0)


def tensorrt(rows: Rows) -> Iterable[dict[str, Any]]:
    found = [row for row in rows if row["part"] == "folds" and row["file"] == "tensorrt"]
    if found:
        left = sum(row["convs"] - row["quantised_convs"] for row in found)
        yield claim("int8.tensorrt.float_convs", "0 convolutions in float", left, "convolutions", left == 0)
        built = sum(row["rtx_engine_bytes"] > 0 for row in found)
        required = f"all {len(found)} files built by TensorRT-RTX"
        yield claim("int8.tensorrt.built", required, built, "files", built == len(found))


def latency(rows: Rows) -> Iterable[dict[str, Any]]:
    for row in [row for row in rows if row["part"] == "latency"]:
        for file in ("portable", "vnni"):
            high, name = row["files"][file]["to_ort_minmax"]["high"], f"int8.{row['network']}.{file}.latency_ratio"
            required = f"upper end of the ratio to ONNX Runtime's own U8S8 file ≤ {LATENCY_RATIO}"
            yield claim(name, required, high, "ratio", high <= LATENCY_RATIO)


def making(lines: dict[tuple[str, str], dict[str, Any]], rows: Rows) -> Iterable[dict[str, Any]]:
    for file, limit in (("portable", ACCURATE_S), ("vnni", ACCURATE_S), ("tensorrt", ACCURATE_S), ("fast", FAST_S)):
        if line := lines.get(("mobilenetv2_tf", file)):
            required = f"≤ {limit} s to make, longest of the folds (drop {line['drop']['mean']:.2f} points)"
            name = f"int8.mobilenetv2_tf.{file}.seconds"
            yield claim(name, required, line["seconds_max"], "s", line["seconds_max"] <= limit)
    ours = [row for row in rows if row["part"] == "folds" and row["file"] in OURS]
    broken = sum(row["violations"] for row in ours)
    if ours:
        yield claim(
            "int8.violations", f"0 nodes of {len(ours)} files break their target's rules", broken, "nodes", broken == 0
        )


def rest(rows: Rows) -> Iterable[dict[str, Any]]:
    for row in rows:
        if row["part"] == "simulation":
            name = f"int8.{row['network']}.{row['file']}.simulation_gap"
            required = f"≤ {GAP} points, PyTorch to file ({row['between_db']:.1f} dB between their logits)"
            yield claim(name, required, row["gap"], "points", row["gap"] <= GAP)
    peaks = {row["images"]: row["peak_bytes"] for row in rows if row["part"] == "memory"}
    if {100, 1000} <= peaks.keys():
        ratio = peaks[1000] / peaks[100]
        required = f"peak with 1,000 images ≤ {MEMORY_RATIO} of that with 100 ({peaks[100] / 2**20:.0f} MiB)"
        yield claim("int8.memory_ratio", required, ratio, "ratio", ratio <= MEMORY_RATIO)
