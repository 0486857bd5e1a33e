"""int8 of small networks trained here: SE and h-swish nets, and the whole way from pruning to int8 by latency.

    python tools/benchmarks/int8_cifar.py          # about 2 hours on one core; goes on where it was stopped
    python tools/benchmarks/int8_cifar.py --write  # the JSON from what there is

Every network is trained from scratch on the CIFAR-10 copy, and its files are made and scored on all 10,000
test pictures in the same run; the bundle is kept in out/benchmarks/int8_cifar. These are stand-ins: short trainings
on one core, far from what the networks reach. Then MobileNetV2 is pruned by measured latency until its int8 file
takes about half of its time, distilled from itself and quantised, and that file is timed against the unpruned int8
file, interleaved.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from cifar10 import RECIPE
from common import claim, write

import edgekit
from edgekit import report
from edgekit.bundle import MANIFEST, Bundle, open_bundle
from edgekit.profile import time_series
from edgekit.progress import track
from edgekit.statistics import ratio_interval

sys.path.insert(0, str(Path(__file__).parent))
WORK = Path(__file__).resolve().parents[2] / "out" / "benchmarks" / "int8_cifar"
DATA = "python:cifar10:load"
SEED, ROUNDS, EPOCHS = 0, 500, 3
MOBILENET = "mobilenet_v2?width=0.5&classes=10&small_input=true"
NETWORKS = {
    "mobilenet_v2": MOBILENET,
    "mobilenet_v3_small": "mobilenet_v3_small?classes=10&small_input=true",
    "mobilenet_v3_large": "mobilenet_v3_large?width=0.5&classes=10&small_input=true",
}
TARGETS = ("onnxruntime", "onnxruntime-vnni", "tensorrt")
PASSES = """
{passes}
[[rewrite]]
name = "fold"

[[rewrite]]
name = "int8"

[export]
targets = {targets}
"""
TRAINING = """epochs = {epochs}
batch = 64
lr = {lr}
weight_decay = 5e-4
score = 0
augment = {{ flip = true, shift = 0.125 }}
"""
TRAIN = '[[pass]]\nname = "finetune"\n' + TRAINING.format(epochs=EPOCHS, lr=0.05)
SHRINK = '[[pass]]\nname = "prune"\nbudget = {{ latency = {share} }}\nallocation = "greedy"\nfloor = 0.125\n'
DISTIL = '[[pass]]\nname = "distil"\n' + TRAINING.format(epochs=2 * EPOCHS, lr=0.05)
SHARE = 0.36
"""Of the float32 file's latency: int8 kernels gain less from fewer channels, half of float32's is 0.65 of int8's."""
# of the float network, in points; of the unpruned int8 file's latency
COLLAPSE, GAP, SPEEDUP, DROP = 5.0, 0.2, 1.8, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="train nothing")
    if not parser.parse_args().write:
        for name, spec in NETWORKS.items():
            made(name, spec, TRAIN, TARGETS)
        made("whole", f"{MOBILENET}&weights={weights()}", SHRINK.format(share=SHARE) + DISTIL, TARGETS[:2])
    bundles = {name: open_bundle(WORK / name) for name in (*NETWORKS, "whole") if (WORK / name / MANIFEST).is_file()}
    rows = [row for name, bundle in bundles.items() for row in rows_of(name, bundle)]
    found = [item for name in NETWORKS if name in bundles for item in claims_of(name, rows)]
    speed = {}
    if "whole" in bundles:
        speed = {target: speedup(bundles, target) for target in TARGETS[:2]}
        found += whole_claims(rows, speed)
    write("int8_cifar", rows, found, SEED, speedup=speed)


def made(name: str, spec: str, passes: str, targets: tuple[str, ...]) -> None:
    """The bundle of a network; one that was begun goes on."""
    WORK.mkdir(parents=True, exist_ok=True)
    recipe, out = WORK / f"{name}.toml", WORK / name
    recipe.write_text(RECIPE + PASSES.format(passes=passes, targets=list(targets)))
    if not (out / MANIFEST).is_file():
        edgekit.compress(spec, str(recipe), DATA, out, seed=SEED, resume=out.is_dir(), track=track, log=print)


def weights() -> Path:
    return WORK / "mobilenet_v2" / "weights.safetensors"


def rows_of(name: str, bundle: Bundle) -> list[dict[str, Any]]:
    keys = (
        "stage",
        "target",
        "precision",
        "params",
        "macs",
        "size_bytes",
        "top1",
        "n",
        "engine",
        "parity_db",
        "int8_convs",
    )
    rows = []
    for row in report.rows(bundle):
        torch = (row["metrics_torch"] or {}).get("top1")
        rows.append({"network": name, **{key: row.get(key) for key in keys}, "top1_torch": torch})
    return rows


def of(rows: list[dict[str, Any]], network: str, **wanted: str) -> dict[str, Any]:
    """The last row of a network with these values."""
    return [row for row in rows if row["network"] == network and wanted.items() <= row.items()][-1]


def claims_of(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for target in TARGETS:
        exact, int8 = (of(rows, name, target=target, precision=precision)["top1"] for precision in ("fp32", "int8"))
        required = f"≤ {COLLAPSE} points: no collapse"
        found.append(
            claim(f"int8_cifar.{name}.{target}.drop", required, exact - int8, "points", exact - int8 <= COLLAPSE)
        )
    gap = max(abs(row["top1"] - row["top1_torch"]) for row in rows if row["network"] == name and row["top1_torch"])
    found.append(claim(f"int8_cifar.{name}.gap", f"≤ {GAP} points, PyTorch to file", gap, "points", gap <= GAP))
    return found


def speedup(bundles: dict[str, Bundle], target: str) -> dict[str, float]:
    """The unpruned int8 file's latency over that of the pruned, distilled one, with its interval."""
    files = [bundles[name].model(target, "int8") for name in ("mobilenet_v2", "whole")]
    return ratio_interval(*time_series(files, "onnxruntime", ROUNDS, 1, SEED, track))


def whole_claims(rows: list[dict[str, Any]], speed: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    found = []
    for target, ratio in speed.items():
        drop = of(rows, "mobilenet_v2", target=target, precision="fp32")["top1"]
        drop -= of(rows, "whole", target=target, precision="int8")["top1"]
        required = f"≥ {SPEEDUP} times the unpruned int8 file's speed"
        found.append(
            claim(f"int8_cifar.whole.{target}.speed", required, ratio["median"], "times", ratio["median"] >= SPEEDUP)
        )
        found.append(
            claim(f"int8_cifar.whole.{target}.drop", f"≤ {DROP} under the float network", drop, "points", drop <= DROP)
        )
    return found


if __name__ == "__main__":
    main()
