"""Can `edgekit compare` and `edgekit profile` be trusted, on this machine as it is?

    python tools/benchmarks/profile_compare.py          # at most 25 minutes on 2 cores
    python tools/benchmarks/profile_compare.py 10       # a trial with 10 comparisons of each kind; writes nothing

- A file against itself, 300 times, sessions opened anew each time: no verdict may be "faster" or "slower".
- It against one with 5 % more work (a twentieth convolution after nineteen equal ones), 100 times: found as "slower".
  That it is about 5 % slower is seen by its MACs, and by a long measurement of fixed length that no verdict ends.
- The median of `edgekit profile` over that of a bare loop of `session.run`: blocks of 50 runs of each, in random order.
- What per-layer times leave of a whole run.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from common import claim, settled, write
from torch import nn

from edgekit.data import Input, Output
from edgekit.deploy import compare_files, profile_paths
from edgekit.devices.runner import noise, open_session
from edgekit.export import export, serialise
from edgekit.graph_onnx import onnx_cost
from edgekit.net import build, parse_spec
from edgekit.profile import Plan, time_series
from edgekit.progress import track
from edgekit.statistics import interval, ratio_interval
from edgekit.targets import target

TRIALS, SLOW_SHARE = 300, 3
SAME_S, SLOW_S = 2.0, 5.0
FLOOR = 0.02
LONG_ROUNDS, BLOCKS, RUNS = 10_000, 20, 50
BLOCK_COUNTS, SIZE, CHANNELS = (19, 20), 96, 16
LAYERS_OF = ("mobilenet_v2", "mobilenet_v3_large", "resnet_18")
SEED = 0


def main(trials: int = TRIALS) -> None:
    with tempfile.TemporaryDirectory() as folder:
        plain, more = (save(chain(blocks), SIZE, Path(folder) / f"{blocks}.onnx") for blocks in BLOCK_COUNTS)
        others = [save(build(parse_spec(name)), 224, Path(folder) / f"{name}.onnx") for name in LAYERS_OF]
        same = [trial("same", plain, plain, SAME_S, seed) for seed in track(range(trials), "same", trials)]
        count = -(-trials // SLOW_SHARE)
        slow = [trial("slow", plain, more, SLOW_S, seed) for seed in track(range(count), "slower", count)]
        known = {"kind": "work", **work(plain, more, LONG_ROUNDS * trials // TRIALS)}
        overheads = [overhead(path, max(2, BLOCKS * trials // TRIALS)) for path in (plain, others[0])]
        layers = layer_sums([plain, *others])
    rows = [known, *same, *slow, *overheads, *layers]
    claims = [
        *claims_of(same, slow),
        *(
            claim(f"profile.overhead.{row['file']}", "within 2 %", 100 * row["over"], "%", abs(row["over"]) <= 0.02)
            for row in overheads
        ),
        *(
            claim(f"profile.layers.{row['file']}", "within 5 %", 100 * row["other"], "%", abs(row["other"]) <= 0.05)
            for row in layers
        ),
    ]
    if trials == TRIALS:
        write("profile_compare", rows, claims, SEED, load=[row["load"] for row in (same[0], slow[-1])])
        return
    for row in rows:
        print(row)
    for item in claims:
        print(item)


def chain(blocks: int) -> nn.Module:
    """Equal convolutions one after the other."""
    torch.manual_seed(SEED)
    layers = [nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.ReLU()]
    for _ in range(blocks):
        layers += [nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 10))


def save(module: nn.Module, size: int, path: Path) -> Path:
    made = export(settled(module), Input(size=size), Output(), target("onnxruntime"), batch=1)
    path.write_bytes(serialise(made.model))
    return path


def trial(kind: str, first: Path, second: Path, seconds: float, seed: int) -> dict:
    found = compare_files(first, second, Plan(seconds=seconds, seed=seed), FLOOR, None)
    ratio = found["ratio"] or {}
    return {
        "kind": kind,
        "verdict": found["verdict"],
        **{name: ratio.get(name) for name in ("median", "low", "high", "n")},
        "seconds": found["seconds"],
        "load": found["machine"]["load"],
        "disturbed": len(found["unstable"]) > 0,
    }


def work(plain: Path, more: Path, rounds: int) -> dict:
    """How much more there is to do, and how much longer it takes."""
    macs = [onnx_cost(onnx.load(path))["macs"] for path in (plain, more)]
    series = time_series([plain, more], "onnxruntime", rounds, 1, SEED, track)
    return {"macs_ratio": macs[1] / macs[0], "latency_ratio": ratio_interval(series[1], series[0])}


def claims_of(same: list[dict], slow: list[dict]) -> list[dict]:
    wrong = sum(row["verdict"] in ("faster", "slower") for row in same)
    found = 100 * sum(row["verdict"] == "slower" for row in slow) / len(slow)
    apart = 100 * float(np.quantile([abs((row["median"] or 1.0) - 1) for row in same], 0.95))
    return [
        claim("compare.false_verdicts", f"0 of {len(same)}, A against A", wrong, "verdicts", wrong == 0),
        claim("compare.found", f"≥ 90 % of {len(slow)} in {SLOW_S:g} s each", found, "% of trials", found >= 90),
        claim("compare.apart", "95 % of A against A below the floor", apart, "%", apart < 100 * FLOOR),
    ]


def overhead(path: Path, blocks: int) -> dict:
    """What `edgekit profile` adds to a bare loop, as a share: medians of blocks that took turns."""
    rng, medians = np.random.default_rng(SEED), {"bare": [], "profile": []}
    measured = {"bare": bare, "profile": profiled}
    for _ in track(range(blocks), "overhead", blocks):
        for name in rng.permutation(list(measured)):
            medians[str(name)].append(measured[str(name)](path))
    ratio = ratio_interval(medians["profile"], medians["bare"])
    return {"kind": "overhead", "file": path.stem, "over": ratio["median"] - 1, "ratio": ratio} | {
        f"{name}_ms": interval(values) for name, values in medians.items()
    }


def bare(path: Path) -> float:
    session = open_session(path, 1)
    feed, run, times = {session.name: noise(session, 1)}, session.raw.run, []
    for _ in range(RUNS + 10):
        begin = time.perf_counter()
        run(None, feed)
        times.append((time.perf_counter() - begin) * 1e3)
    return float(np.median(times[10:]))


def profiled(path: Path) -> float:
    return profile_paths([path], Plan(runs=RUNS))["rows"][0]["latency_ms"]["median"]


def layer_sums(paths: list[Path]) -> list[dict]:
    """What the times of layers leave of a whole run, as a share of it."""
    rows = profile_paths(paths, Plan(runs=8, layers=True))["rows"]
    return [
        {
            "kind": "layers",
            "file": row["file"].removesuffix(".onnx"),
            "whole_ms": row["layers_whole_ms"],
            "other": row["layers"][-1]["ms"] / row["layers_whole_ms"],
        }
        for row in rows
    ]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
