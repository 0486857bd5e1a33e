"""int8 after training against its peers: accuracy, fidelity of the logits, latency, memory and time to make.

    python tools/benchmarks/int8.py --nncf-python NNCF/bin/python --aimet-python AIMET/bin/python
    python tools/benchmarks/int8.py --parts latency    # one part of it
    python tools/benchmarks/int8.py --write            # the JSON from what there is

About an hour on one core; it goes on where it was stopped. `int8_peer.py` says how the peers' environments are made; a
peer without one is left out, and the JSON says so. Parts:

- folds: NIPS17-1000 in five folds, 200 images without labels to calibrate, the other 800 scored in ONNX Runtime.
- latency: all files of fold 0 and float16 interleaved, one thread.
- draws: files of three calibration draws, scored on the same 400 pictures that none of them saw.
- simulation: the quantised network in PyTorch against its file in ONNX Runtime.
- memory: the peak of a process that calibrates 100 images, and of one that calibrates 1,000.

Files that saturate nowhere are scored as they run, optimisations on. Full-range files are too where the processor has
VNNI; without it the kernels of x86 saturate, and they are scored with optimisations off, which computes Q/DQ in float
and shows what the numbers in the file are worth, not what a kernel makes of them. So is TensorRT's form, always, as
ONNX Runtime is not its runtime. Each row says which it was.
"""

import argparse
import contextlib
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from common import RESULTS, write
from int8_claims import claims, hexed, summary
from int8_files import (
    CALIBRATION,
    FOLDS,
    NETWORKS,
    ONCE,
    OURS,
    PEERS,
    PICTURES,
    SAFE,
    SEED,
    WORK,
    PeerFailed,
    calibrate_on,
    context,
    digest,
    fold_indices,
    folded,
    made,
    pictures,
    predict,
    prepare,
    pythons_of,
    settings,
)

from edgekit.engines import engine
from edgekit.export import serialise
from edgekit.machine import int8_saturates
from edgekit.parity import sqnr_db
from edgekit.profile import time_series
from edgekit.progress import track
from edgekit.quant.graph import Graph
from edgekit.quant.targets import quantised_convs, scheme, violations
from edgekit.rewrites import Fp16
from edgekit.statistics import interval, ratio_interval

ROUNDS, DRAWS = 300, (0, 1, 2)
TIMED = ("portable", "vnni", "fp32", *(file for file in PEERS if file != "ort_entropy"))
CALIBRATED, PROBE = (100, 1000), "mobilenetv2_tf"


def main() -> None:
    options = arguments()
    if options.calibrate:
        print(peak_bytes(options.calibrate))
        return
    pythons = pythons_of(options.nncf_python, options.aimet_python)
    if not options.write:
        for part in options.parts:
            PARTS[part](pythons)
    rows = current()
    found = {row["file"] for row in rows}
    missing = [f"{file}: left out, no Python with it was given" for file in PEERS if file not in found]
    write("int8", rows, claims(rows), SEED, summary=summary(rows), missing=missing)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--nncf-python", metavar="PYTHON", help="one that has nncf installed")
    parser.add_argument("--aimet-python", metavar="PYTHON", help="one that has aimet-onnx installed")
    parser.add_argument("--write", action="store_true", help="measure nothing")
    parser.add_argument("--calibrate", type=int, metavar="N", help="what the part memory runs: calibrate on N images")
    return parser.parse_args()


# Rows: each is measured once, and again when the sources of its file change


def kept() -> list[dict[str, Any]]:
    """Those of the last results, and those measured since."""
    results, path = RESULTS / "int8.json", WORK / "rows.jsonl"
    rows = json.loads(results.read_text())["rows"] if results.is_file() else []
    known = {json.dumps(row) for row in rows}
    lines = path.read_text().splitlines() if path.is_file() else []
    return rows + [row for row in map(json.loads, lines) if json.dumps(row) not in known]


def current() -> list[dict[str, Any]]:
    """The rows of today's sources."""
    return [row for row in kept() if row["source"] == digest(row["file"])]


def measure(run: Callable[[], dict[str, Any]], **key: Any) -> None:
    """Keep what `run` finds under its key, which names part, network and file, if it is not kept yet."""
    key["source"] = digest(key["file"])
    if any(key.items() <= row.items() for row in kept()):
        return
    row = key | run()
    WORK.mkdir(parents=True, exist_ok=True)
    with open(WORK / "rows.jsonl", "a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(json.dumps({name: value for name, value in row.items() if name != "hits"}), flush=True)


# Folds


def measure_folds(pythons: dict[str, str]) -> None:
    for fold in range(FOLDS):
        for network in NETWORKS:
            for file in ("fp32", *OURS, *pythons):
                if fold and file in ONCE:
                    continue
                run = functools.partial(scored, network, file, fold, pythons)
                measure(run, part="folds", network=network, file=file, fold=fold)


def scored(network: str, file: str, fold: int, pythons: dict[str, str]) -> dict[str, Any]:
    bench = prepare(network)
    try:
        content, record = made(bench, file, fold, pythons)
    except PeerFailed as error:
        return {"error": str(error)}
    _, rest = fold_indices(fold)
    native, output = runs_natively(file), bench.output
    exact = output.scores(bench.logits[rest])
    found = output.scores(predict(content, bench.images[rest], native))
    hits = found.argmax(1) == bench.labels[rest]
    drop = 100 * float((exact.argmax(1) == bench.labels[rest]).mean() - hits.mean())
    return record | {
        "scored": f"ONNX Runtime, optimisations {'on' if native else 'off'}",
        "n": len(rest),
        "top1": 100 * float(hits.mean()),
        "drop": drop,
        "agreement": 100 * float((exact.argmax(1) == found.argmax(1)).mean()),
        "sqnr_db": sqnr_db(exact, found),
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "hits": hexed(hits),
        **form(content, file),
    }


def runs_natively(file: str) -> bool:
    """Whether a file is scored as ONNX Runtime runs it here."""
    return file in ("fp32", *SAFE) or (file != "tensorrt" and not int8_saturates())


def form(content: bytes, file: str) -> dict[str, Any]:
    """What of a file is int8, and whether it obeys its target."""
    model = onnx.load_model_from_string(content)
    convs = sum(node.op_type == "Conv" for node in model.graph.node)
    found = {"convs": convs, "quantised_convs": len(quantised_convs(model))}
    if file in OURS:
        found["violations"] = len(violations(model, scheme(OURS[file][0])))
    if file != "tensorrt":
        return found | {"int8_convs": engine("onnxruntime").int8_convs(content)}
    return found | {"rtx_engine_bytes": len(engine("tensorrt-rtx").build(content, capability="SM86"))}


# Latency


def measure_latency(pythons: dict[str, str]) -> None:
    for network in NETWORKS:
        measure(functools.partial(timed, network, pythons), part="latency", network=network, file="portable")


def timed(network: str, pythons: dict[str, str]) -> dict[str, Any]:
    """Of each file its milliseconds and their ratios; files that their peer could not make are left out."""
    bench, contents = prepare(network), {}
    for file in [file for file in TIMED if file in ("fp32", *OURS, *pythons)]:
        with contextlib.suppress(PeerFailed):
            contents[file] = made(bench, file, 0, pythons)[0]
    contents["fp16"] = serialise(
        Fp16()(bench.model, context(network, "onnxruntime", calibrate_on(bench, "portable", 0)))
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{file}.onnx" for file in contents]
        for path, content in zip(paths, contents.values()):
            path.write_bytes(content)
        times = dict(zip(contents, time_series(paths, "onnxruntime", ROUNDS, 1, SEED, track)))
    found = {file: {"latency_ms": interval(series)} for file, series in times.items()}
    for file, series in times.items():
        found[file] |= {f"to_{other}": ratio_interval(series, times[other]) for other in ("fp32", "ort_minmax")}
    return {"files": found}


# Calibration draws


def measure_draws(pythons: dict[str, str]) -> None:
    for network in NETWORKS:
        for file in ("portable", "vnni"):
            run = functools.partial(spread, network, file, pythons)
            measure(run, part="draws", network=network, file=file)


def spread(network: str, file: str, pythons: dict[str, str]) -> dict[str, Any]:
    bench = prepare(network)
    unseen = np.setdiff1d(np.arange(PICTURES), np.concatenate([fold_indices(fold)[0] for fold in DRAWS]))
    exact, labels = bench.output.scores(bench.logits[unseen]), bench.labels[unseen]
    drops, decibels, scales = [], [], []
    for fold in DRAWS:
        content, _ = made(bench, file, fold, pythons)
        found = bench.output.scores(predict(content, bench.images[unseen], runs_natively(file)))
        hits = [scores.argmax(1) == labels for scores in (exact, found)]
        drops.append(100 * float(hits[0].mean() - hits[1].mean()))
        decibels.append(sqnr_db(exact, found))
        scales.append(activation_scales(content))
    ratios = [max(values) / min(values) for values in zip(*(draw.values() for draw in scales), strict=True)]
    return {
        "n": len(unseen),
        "images": CALIBRATION,
        "drops": drops,
        "sqnrs_db": decibels,
        "scale_ratio_median": float(np.median(ratios)),
        "scale_ratio_max": float(max(ratios)),
    }


def activation_scales(content: bytes) -> dict[str, float]:
    """The step of every quantised tensor."""
    graph = Graph(onnx.load_model_from_string(content))
    quantisers = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    return {node.input[0]: float(graph.constants[node.input[1]]) for node in quantisers}


# Simulation


def measure_simulation(_pythons: dict[str, str]) -> None:
    for network in NETWORKS:
        for file in ("portable", "vnni"):
            run = functools.partial(simulated, network, file)
            measure(run, part="simulation", network=network, file=file, fold=0)


def simulated(network: str, file: str) -> dict[str, Any]:
    from edgekit.job import torch_predict
    from edgekit.quant.simulate import Simulated

    bench, (target_name, recipe) = prepare(network), OURS[file]
    ctx = context(network, target_name, calibrate_on(bench, "portable", 0))
    fitted = settings(recipe, NETWORKS[network][0].size).fitted(bench.model, ctx)
    module = Simulated(fitted.model, fitted.plan, fitted.grids, fitted.layers, fitted.scheme).module
    _, rest = fold_indices(0)
    run = torch_predict(module)
    in_torch = np.concatenate([run(bench.images[part]) for part in np.array_split(rest, 50)])
    deployed = predict(made(bench, file, 0, {})[0], bench.images[rest], runs_natively(file))
    top1 = [100 * float((bench.output.scores(x).argmax(1) == bench.labels[rest]).mean()) for x in (in_torch, deployed)]
    return {
        "n": len(rest),
        "top1_torch": top1[0],
        "top1": top1[1],
        "gap": abs(top1[0] - top1[1]),
        "between_db": sqnr_db(in_torch, deployed),
    }


# Memory


def measure_memory(_pythons: dict[str, str]) -> None:
    for images in CALIBRATED:
        run = functools.partial(in_own_process, images)
        measure(run, part="memory", network=PROBE, file="fast", images=images)


def in_own_process(images: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--calibrate", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {"peak_bytes": int(done.stdout.strip().splitlines()[-1])}


def peak_bytes(images: int) -> int:
    """Of this process, after ranges were found on so many images; weights are rounded to nearest, which needs none."""
    rewrite = settings("int8_fast", NETWORKS[PROBE][0].size, images=images, reconstruct="none", bias_correction=False)
    rewrite(folded(PROBE), context(PROBE, "onnxruntime", pictures()))
    # Not `getrusage`: its peak is that of the process that started this one, where that was larger.
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


PARTS: dict[str, Callable[[dict[str, str]], None]] = {
    "folds": measure_folds,
    "latency": measure_latency,
    "draws": measure_draws,
    "simulation": measure_simulation,
    "memory": measure_memory,
}

if __name__ == "__main__":
    main()
