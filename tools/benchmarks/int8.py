"""int8 after training against ONNX Runtime's own quantiser: accuracy, fidelity of the logits, latency and time to make.

    python tools/benchmarks/int8.py      # about 90 minutes on 2 cores; goes on where it was stopped

NIPS17-1000 in five folds: 200 images without labels to calibrate, the other 800 scored in ONNX Runtime. The portable
form is scored as it runs, optimisations on. The forms `onnxruntime-vnni` and `tensorrt` need a processor with VNNI, or
a GPU; without VNNI the kernels of x86 saturate, so they are scored with optimisations off, which computes Q/DQ in float
and shows what the numbers in the file are worth, not what a kernel makes of them. Each row says which it was.
"""

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import RESULTS, claim, write

from edgekit import data as datasets
from edgekit.context import RewriteContext
from edgekit.data import Input, Output
from edgekit.engines import engine
from edgekit.export import finish, serialise
from edgekit.files import read_toml
from edgekit.onnx_file import read
from edgekit.parity import sqnr_db
from edgekit.profile import cpu_flags, ratio_interval, time_series
from edgekit.progress import track
from edgekit.quant.targets import scheme, violations
from edgekit.recipe import from_tables, known_recipes
from edgekit.rewrites import Fold, Int8
from edgekit.targets import Target

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDS, CALIBRATION, SEED, ROUNDS = 5, 200, 0, 150
IMAGENET = Input(size=224, resize="squash", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NETWORKS = {
    "mobilenetv2_tf": (
        Input(size=224, resize="squash", mean=(0.5,), std=(0.5,)),
        Output(classes=1000, class_offset=1),
    ),
    "squeezenet1_1": (IMAGENET, Output(classes=1000)),
}
OURS = {
    "portable": ("onnxruntime", "int8"),
    "fast": ("onnxruntime", "int8_fast"),
    "vnni": ("onnxruntime-vnni", "int8"),
    "tensorrt": ("tensorrt", "int8"),
}
PEERS = {"ort_minmax": "MinMax", "ort_entropy": "Entropy"}
# network, file, most points of drop, least dB of the logits
REQUIRED = (
    ("mobilenetv2_tf", "portable", 0.8, 17.5),
    ("mobilenetv2_tf", "vnni", 0.4, 19.0),
    ("mobilenetv2_tf", "tensorrt", 0.6, None),
    ("squeezenet1_1", "portable", 0.5, None),
    ("squeezenet1_1", "vnni", 0.5, None),
    ("squeezenet1_1", "tensorrt", 0.5, None),
)
LATENCY_RATIO, ACCURATE_S, FAST_S = 1.03, 600, 60


@dataclasses.dataclass
class Bench:
    """One network with its data: images in memory, labels and the float network's logits."""

    name: str
    model: onnx.ModelProto
    data: datasets.Samples
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    @property
    def io(self) -> tuple[Input, Output]:
        return NETWORKS[self.name]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--fresh", action="store_true", help="forget the rows of an earlier run")
    options = parser.parse_args()
    rows = [] if options.fresh else earlier()
    for fold in range(options.folds):
        for name in NETWORKS:
            todo = [file for file in (*OURS, *PEERS) if not any(key(row) == (name, file, fold) for row in rows)]
            if todo:
                bench = prepare(name)
            for file in todo:
                rows.append(row_of(bench, file, fold))
                print(json.dumps(rows[-1]), flush=True)
                write("int8", rows, claims(rows, {}), SEED)
    latency = {name: latency_of(prepare(name)) for name in NETWORKS}
    write("int8", rows, claims(rows, latency), SEED, latency=latency)


def earlier() -> list[dict[str, Any]]:
    path = RESULTS / "int8.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["network"], row["file"], row["fold"]


def prepare(name: str) -> Bench:
    input, output = NETWORKS[name]
    samples = datasets.load([f"test=csv:{DATA / 'nips17' / 'labels.csv'}"]).role("test")
    images = np.concatenate([batch for batch, _, _ in samples.batches(input, 50)])
    model = Fold()(read(DATA / "models" / f"{name}.onnx"), context(name, "onnxruntime", None))
    model = finish(model, wanted("onnxruntime"), input, output)
    return Bench(name, model, samples, images, samples.labels, predict(serialise(model), images, True))


def wanted(name: str) -> Target:
    return Target(name, "onnxruntime", opset=20, ir_version=10, reduce_range=name == "onnxruntime")


def context(name: str, target_name: str, calibrate: datasets.Samples | None) -> RewriteContext:
    data = datasets.Data({"calibrate": calibrate}) if calibrate else None
    return RewriteContext(wanted(target_name), *NETWORKS[name], data, SEED, lambda _line: None)


def folds(n: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices to calibrate with and to score."""
    order = np.random.default_rng(SEED).permutation(n)
    chosen = np.sort(order[fold * CALIBRATION : (fold + 1) * CALIBRATION])
    return chosen, np.setdiff1d(np.arange(n), chosen)


def row_of(bench: Bench, file: str, fold: int) -> dict[str, Any]:
    chosen, rest = folds(len(bench.images), fold)
    begin = time.perf_counter()
    model = make(bench, file, chosen)
    seconds = time.perf_counter() - begin
    target_name = OURS[file][0] if file in OURS else "onnxruntime"
    native = target_name == "onnxruntime" or (target_name == "onnxruntime-vnni" and "vnni" in cpu_flags())
    content = serialise(model)
    found = predict(content, bench.images[rest], native)
    float_logits, labels, (_, output) = bench.logits[rest], bench.labels[rest], bench.io
    hits = [output.scores(logits).argmax(1) == labels for logits in (float_logits, found)]
    same = output.scores(float_logits).argmax(1) == output.scores(found).argmax(1)
    return {
        "network": bench.name,
        "file": file,
        "target": target_name,
        "fold": fold,
        "scored": "ONNX Runtime, optimisations on" if native else "ONNX Runtime, optimisations off",
        "n": len(rest),
        "top1_fp32": 100 * float(hits[0].mean()),
        "top1": 100 * float(hits[1].mean()),
        "drop": 100 * float(hits[0].mean() - hits[1].mean()),
        "agreement": 100 * float(same.mean()),
        "sqnr_db": sqnr_db(output.scores(float_logits), output.scores(found)),
        "seconds": seconds,
        "size_bytes": len(content),
        "int8_convs": engine("onnxruntime").executed_ops(content).get("QLinearConv", 0),
        "violations": len(violations(model, scheme(target_name))) if file in OURS else None,
    }


def make(bench: Bench, file: str, chosen: np.ndarray) -> onnx.ModelProto:
    input, output = bench.io
    if file in PEERS:
        return finish(by_onnxruntime(bench, PEERS[file], bench.images[chosen]), wanted("onnxruntime"), input, output)
    target_name, recipe = OURS[file]
    samples = dataclasses.replace(bench.data, items=tuple(bench.data.items[index] for index in chosen))
    model = settings(recipe, input)(bench.model, context(bench.name, target_name, samples))
    return finish(model, wanted(target_name), input, output)


def settings(recipe: str, input: Input) -> Int8:
    """The int8 step of a shipped recipe."""
    tables = {**read_toml(known_recipes()[recipe]), "input": {"size": input.size}}
    steps = {step.name: step.run for step in from_tables(tables, recipe, recipe).rewrites}
    return steps["int8"]


def by_onnxruntime(bench: Bench, method: str, images: np.ndarray) -> onnx.ModelProto:
    """ONNX Runtime's own quantiser: uint8 asymmetric, int8 per channel within ±64, Q/DQ."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(bench.model, source)
        quantize_static(
            source, path, Feeds(bench.model.graph.input[0].name, iter(images)), quant_format=QuantFormat.QDQ,
            per_channel=True, reduce_range=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )  # fmt: skip
        return onnx.load(path)


class Feeds:
    def __init__(self, name: str, images: Iterator[np.ndarray]) -> None:
        self.name, self.images = name, images

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {self.name: image[None]}


def predict(model: bytes, images: np.ndarray, optimise: bool) -> np.ndarray:
    session = engine("onnxruntime").load(model, 1, optimise)
    return np.concatenate([session.run(image[None]) for image in images])


def latency_of(bench: Bench) -> dict[str, Any]:
    """Our portable file against ONNX Runtime's own, and both against float, interleaved, one thread."""
    chosen, _ = folds(len(bench.images), 0)
    made = {file: make(bench, file, chosen) for file in ("portable", "ort_minmax")} | {"fp32": bench.model}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{file}.onnx" for file in made]
        for path, model in zip(paths, made.values()):
            path.write_bytes(serialise(model))
        times = dict(zip(made, time_series(paths, "onnxruntime", ROUNDS, 1, SEED, track)))
    medians = {f"{file}_ms": float(np.median(series)) for file, series in times.items()}
    ratios = {f"to_{file}": ratio_interval(times["portable"], times[file]) for file in ("ort_minmax", "fp32")}
    return {**medians, **ratios}


def claims(rows: list[dict[str, Any]], latency: dict[str, Any]) -> list[dict[str, Any]]:
    """Of what was measured so far; an interrupted run leaves fewer folds, and says how many."""
    there = {(row["network"], row["file"]) for row in rows}
    found = []
    for network, file, drop, db in REQUIRED:
        if (network, file) not in there:
            continue
        found.append(at_most(rows, network, file, "drop", drop, "points"))
        if db is not None:
            value = over_folds(rows, network, file, "sqnr_db")
            required = f"≥ {db} dB of the logits, mean of folds"
            found.append(claim(f"int8.{network}.{file}.sqnr_db", required, value["mean"], "dB", value["mean"] >= db))
    for name, record in latency.items():
        high = record["to_ort_minmax"]["high"]
        required = f"upper end of the ratio to ONNX Runtime's own file ≤ {LATENCY_RATIO}"
        found.append(claim(f"int8.{name}.latency_ratio", required, high, "ratio", high <= LATENCY_RATIO))
    for file, limit in (("portable", ACCURATE_S), ("fast", FAST_S)):
        if ("mobilenetv2_tf", file) in there:
            found.append(at_most(rows, "mobilenetv2_tf", file, "seconds", limit, "s", max))
    broken = sum(row["violations"] for row in rows if row["file"] in OURS)
    found.append(claim("int8.violations", "0 nodes break their target's rules", broken, "nodes", broken == 0))
    return found


def over_folds(rows: list[dict[str, Any]], network: str, file: str, metric: str) -> dict[str, float]:
    """Mean over the folds, and half the width of its 95 % interval by Student's t."""
    values = np.array([row[metric] for row in rows if (row["network"], row["file"]) == (network, file)])
    t = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}.get(len(values))
    half = float(t * values.std(ddof=1) / len(values) ** 0.5) if t else float("inf")
    return {"mean": float(values.mean()), "half": half, "n": len(values)}


def at_most(
    rows: list[dict[str, Any]], network: str, file: str, metric: str, limit: float, unit: str,
    pick: Callable[[list[float]], float] | None = None,
) -> dict[str, Any]:  # fmt: skip
    if pick:
        value = pick([row[metric] for row in rows if (row["network"], row["file"]) == (network, file)])
        return claim(f"int8.{network}.{file}.{metric}", f"≤ {limit} {unit}", value, unit, value <= limit)
    mean = over_folds(rows, network, file, metric)
    required = f"≤ {limit} {unit}, mean of {mean['n']} folds (± {mean['half']:.2f})"
    return claim(f"int8.{network}.{file}.{metric}", required, mean["mean"], unit, mean["mean"] <= limit)


if __name__ == "__main__":
    main()
