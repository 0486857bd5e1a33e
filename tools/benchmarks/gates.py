"""Do gates stop what they should, and nothing else?

    python tools/benchmarks/gates.py changes    # 4 minutes: a change that is fatter, and one that is worse, by the CLI
    python tools/benchmarks/gates.py slower     # 40 trials by the CLI of a change that has 10 % more work
    python tools/benchmarks/gates.py same       # 300 trials of a commit against itself
    python tools/benchmarks/gates.py drop       # 5 minutes: a drop of 0.8 points on CIFAR-10, resampled
    python tools/benchmarks/gates.py            # the claims, from the rows kept so far

`--trials N` makes fewer. The repository under test is tools/demo; a change is one line of it that is written anew in a
copy, out of which `edgekit compress` makes a bundle as a user's CI would. Finished rows stay under out/benchmarks/gates
and are not measured again; remove that folder to begin anew.

- `changes` judges by gates.toml against the committed baseline.json; the unchanged commit, made anew, must pass.
- `slower` runs `edgekit gate` against the bundle of the unchanged commit: half of the trials on the machine as it is,
  half while it is disturbed by bursts of load on every core (bursts.py), up to the default limit of 60 s a trial.
- `same` does so in this process, by `gate_bundle`, which is all that the command calls, with both gates files; always
  disturbed. The two bundles were compressed apart from each other.
- `drop` adds noise to the weights of ResNet-20, one draw of it, as strong as it takes (by bisection) for the file's
  top-1 in ONNX Runtime on the 10,000 test images to fall by 0.8 points. Each bootstrap resample of the images is judged
  by the gate's own code, as `max_drop = 0.3` is (the measured drop), and with test = "significant" (its interval).
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from bursts import bursts
from cifar10 import RECIPE
from common import claim, write

from edgekit import data as datasets
from edgekit import gate
from edgekit.bundle import open_bundle
from edgekit.deploy import gate_bundle
from edgekit.engines import engine
from edgekit.evaluate import evaluate
from edgekit.export import export, serialise
from edgekit.gate import Gate
from edgekit.net import build, parse_spec
from edgekit.progress import track
from edgekit.recipe import from_tables
from edgekit.targets import target
from edgekit.weights import load_into

ROOT = Path(__file__).resolve().parents[2]
DEMO, WORK = ROOT / "tools" / "demo", ROOT / "out" / "benchmarks" / "gates"
WEIGHTS = ROOT.parent / "shared" / "data" / "models" / "cifar_resnet20.safetensors"
Row = dict[str, Any]
SEED, SAME, SLOWER, RESAMPLES = 0, 300, 40, 1000
WANTED_DROP, MAX_DROP = 0.8, 0.3
CLOSE, MOST_NOISE, MOST_TRIED = 0.05, 0.2, 12
"""Points that a drop may lie beside the wanted one; noise as a share of a tensor's standard deviation; files tried."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One line of the demonstration that somebody wrote anew."""

    file: str = "network.py"
    line: str = ""
    anew: str = ""


CHANGES = {
    "main": Change(),
    "again": Change(),
    "fatter": Change(line="HIDDEN = 128", anew="HIDDEN = 187"),
    "worse": Change("recipe.toml", "epochs = 6", "epochs = 3"),
    "slower": Change(line="BLOCKS = 20", anew="BLOCKS = 22"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=PARTS)
    parser.add_argument("--trials", type=int, help="of slower and same; of drop, resamples")
    given = parser.parse_args()
    if given.part:
        PARTS[given.part](**({"count": given.trials} if given.trials else {}))
    else:
        rows = {part: kept(part) for part in PARTS}
        claims = claims_of(rows)
        write("gates", [row for part in rows.values() for row in part], claims, SEED, summary=summary(rows))


def kept(part: str) -> list[Row]:
    return common.kept(WORK / f"{part}.jsonl")


def keep(part: str, row: Row) -> Row:
    return common.keep(WORK / f"{part}.jsonl", {"part": part, **row})


# The demonstration


def made(name: str) -> Path:
    """The bundle of a change, by the CLI in a copy of the demonstration."""
    change, folder = CHANGES[name], WORK / name
    if not (folder / "bundle" / "manifest.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("__pycache__"))
        text = (folder / change.file).read_text()
        if change.line not in text:
            raise SystemExit(f"{change.file} holds no line {change.line!r} to change")
        (folder / change.file).write_text(text.replace(change.line, change.anew))
        edgekit(folder, "compress", "network:network", "--recipe", "recipe.toml", "--data", "digits", "--out", "bundle")
    return folder / "bundle"


def edgekit(folder: Path, *words: object, codes: tuple[int, ...] = (0,)) -> tuple[int, str]:
    """Run the command in a folder; its exit code and what it printed."""
    command = [sys.executable, "-m", "edgekit", *map(str, words)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.returncode, done.stdout


def judged(name: str, gates: str, baseline: Path) -> Row:
    """What `edgekit gate` says of a change, and how long the command takes."""
    bundle, begin = made(name), time.perf_counter()
    options = ("--gates", DEMO / gates, "--baseline", baseline, "--json")
    code, printed = edgekit(bundle.parent, "gate", bundle, *options, codes=(0, 1, 3))
    return {
        "change": name,
        "exit": code,
        "seconds": time.perf_counter() - begin,
        "verdicts": json.loads(printed)["verdicts"],
    }


def changes(count: int = 3) -> None:
    done = {row["change"] for row in kept("changes")}
    for name in ("again", "fatter", "worse")[:count]:
        if name not in done:
            print(keep("changes", judged(name, "gates.toml", DEMO / "baseline.json")))


def slower(count: int = SLOWER) -> None:
    first, second = made("main"), made("slower")
    macs = [open_bundle(path).manifest["steps"][-1]["macs"] for path in (first, second)]
    for index in track(range(len(kept("slower")), count), "slower", None):
        disturbed = index % 2 == 1
        with bursts(disturbed * (os.cpu_count() or 1), seed=index):
            found = judged("slower", "latency.toml", first)
        keep("slower", {**found, "trial": index, "disturbed": disturbed, "macs_ratio": macs[1] / macs[0]})


def same(count: int = SAME) -> None:
    first, second = made("main"), made("again")
    begun = len(kept("same"))
    with bursts(os.cpu_count() or 1, seed=begun):
        for index in track(range(begun, count), "same", None):
            keep("same", {"trial": index, **same_trial(first, second)})


def same_trial(first: Path, second: Path) -> Row:
    begin, load = time.perf_counter(), os.getloadavg()[0]
    found = [v for gates in ("gates.toml", "latency.toml") for v in gate_bundle(second, DEMO / gates, first)]
    ratio = next(verdict for verdict in found if verdict.metric == "latency_ms")
    return {
        "exit": gate.exit_code(found),
        "outcomes": {verdict.metric: verdict.outcome for verdict in found},
        "ratio": {"median": ratio.value, "low": ratio.low, "high": ratio.high},
        "seconds": time.perf_counter() - begin,
        "load": load,
    }


# A drop of 0.8 points


def drop(count: int = RESAMPLES) -> None:
    base, low, high = scored(0.0), 0.0, MOST_NOISE
    nearest, away = base, WANTED_DROP
    for _ in range(MOST_TRIED):
        if abs(away) <= CLOSE:
            break
        row = scored((low + high) / 2)
        found = WANTED_DROP - (base["top1"] - row["top1"])
        low, high = ((low + high) / 2, high) if found > 0 else (low, (low + high) / 2)
        nearest, away = min((nearest, away), (row, found), key=lambda pair: abs(pair[1]))
    print(keep("drop", resampled(base, nearest, count)))


def scored(noise: float) -> Row:
    """`noisy`, measured once."""
    done = {row["noise"]: row for row in kept("drop") if "hits" in row}
    if noise not in done:
        done[noise] = keep("drop", {"noise": noise, **noisy(noise)})
        print(noise, done[noise]["top1"], flush=True)
    return done[noise]


def noisy(noise: float) -> Row:
    """Top-1 of the exported file of ResNet-20 with noise on its weights, and which images it got right."""
    module, generator = build(parse_spec("cifar_resnet_20")), torch.Generator().manual_seed(SEED)
    load_into(module, WEIGHTS)
    with torch.no_grad():
        for weight in module.parameters():
            weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
    recipe = from_tables(tomllib.loads(RECIPE), "cifar10", "cifar10.py")
    samples = datasets.load(["python:cifar10:load_test"]).role("test")
    content = serialise(export(module.eval(), recipe.input, recipe.output, target("onnxruntime")).model)
    score = evaluate(engine("onnxruntime").load(content).run, samples, recipe.input, recipe.output, progress=track)
    return {"top1": score.metrics["top1"], "n": score.n, "hits": np.packbits(score.correct).tobytes().hex()}


def resampled(base: Row, row: Row, count: int) -> Row:
    """How the gate judges bootstrap resamples of the images, each the same for both files."""
    before, after = (np.unpackbits(np.frombuffer(bytes.fromhex(item["hits"]), np.uint8)) for item in (base, row))
    before, after = before[: base["n"]], after[: row["n"]]
    gates = {test: Gate(max_drop=MAX_DROP, test=test) for test in ("point", "significant")}
    rng = np.random.default_rng(SEED)
    outcomes: dict[str, list[str]] = {test: [] for test in gates}
    for _ in track(range(count), "resampling", count):
        picks = rng.integers(0, len(before), len(before))
        for test, limit in gates.items():
            outcomes[test].append(verdict(limit, before[picks], after[picks]).outcome)
    whole = verdict(gates["point"], before, after)
    lost, won = np.mean(before > after), np.mean(after > before)
    return {
        "chosen": row["noise"],
        "drop": whole.value,
        "low": whole.low,
        "high": whole.high,
        "differ": float(lost + won),
        "standard_error": 100 * float(((lost + won) - (lost - won) ** 2) / len(before)) ** 0.5,
        "resamples": count,
        **{test: {name: found.count(name) / count for name in sorted(set(found))} for test, found in outcomes.items()},
    }


def verdict(limit: Gate, before: np.ndarray, after: np.ndarray) -> gate.Verdict:
    """The gate's own judgement of two files with these answers."""
    rows = [
        {
            "file": name,
            "target": "onnxruntime",
            "precision": "fp32",
            "top1": 100 * float(hits.mean()),
            "correct": (hits + ord("0")).tobytes().decode(),
        }
        for name, hits in (("base", before), ("noisy", after))
    ]
    (found,) = gate.judge({"top1": [limit]}, rows[1:], lambda _row: rows[0])
    return found


# Claims


def claims_of(rows: dict[str, list[Row]]) -> list[Row]:
    missing = [part for part, found in rows.items() if not found]
    if missing:
        raise SystemExit(f"nothing is kept yet of {', '.join(missing)}; run gates.py with each of these words")
    return [
        *change_claims(rows["changes"]),
        *slower_claims(rows["slower"]),
        *same_claims(rows["same"]),
        *drop_claims(rows["drop"][-1]),
    ]


def change_claims(rows: list[Row]) -> list[Row]:
    verdicts = {(row["change"], item["metric"]): item for row in rows for item in row["verdicts"]}
    size, top1 = verdicts["fatter", "size_bytes"], verdicts["worse", "top1"]
    code = next(row["exit"] for row in rows if row["change"] == "again")
    return [
        claim("gates.size", "3 % more bytes fail", size["value"], "of the bytes", size["outcome"] == "fail"),
        claim("gates.accuracy", "fewer epochs fail", top1["value"], "points lost", top1["outcome"] == "fail"),
        claim("gates.unchanged", "the same commit passes against baseline.json", code, "exit code", code == 0),
    ]


def slower_claims(rows: list[Row]) -> list[Row]:
    claims, each = [], SLOWER // 2
    for disturbed, where in ((False, "quiet"), (True, "disturbed")):
        exits = [row["exit"] for row in rows if row["disturbed"] == disturbed]
        failed = 100 * exits.count(1) / len(exits)
        required = f"10 % more work fails in each of {each} trials, {len(exits)} made"
        ok = len(exits) >= each and failed == 100
        claims.append(claim(f"gates.slower.{where}", required, failed, "% of trials", ok))
    return claims


def same_claims(rows: list[Row]) -> list[Row]:
    exits, whole = [row["exit"] for row in rows], len(rows) >= SAME
    failed, undecided = exits.count(1), 100 * exits.count(3) / len(exits)
    of = f"{SAME} trials against itself under load, {len(rows)} made"
    return [
        claim("gates.same.failures", f"0 of {of}", failed, "trials", whole and failed == 0),
        claim("gates.same.inconclusive", f"≤ 5 % of {of}", undecided, "% of trials", whole and undecided <= 5),
    ]


def drop_claims(row: Row) -> list[Row]:
    claims = []
    for test in ("point", "significant"):
        share = 100 * row[test].get("fail", 0)
        required = f'a drop of {row["drop"]:.2f} points fails max_drop = {MAX_DROP}, test = "{test}", in ≥ 90 %'
        claims.append(claim(f"gates.drop.{test}", required, share, "% of resamples", share >= 90))
    return claims


def summary(rows: dict[str, list[Row]]) -> list[Row]:
    """How the trials of latency gates came out, and how long one takes."""
    found = []
    for part, disturbed in (("slower", False), ("slower", True), ("same", True)):
        chosen = [row for row in rows[part] if row.get("disturbed", True) == disturbed]
        exits, seconds = [row["exit"] for row in chosen], [row["seconds"] for row in chosen]
        counts = {name: exits.count(code) for name, code in (("pass", 0), ("fail", 1), ("inconclusive", 3))}
        times = {"median_s": statistics.median(seconds), "longest_s": max(seconds)}
        found.append({"part": part, "disturbed": disturbed, "n": len(chosen), **counts, **times})
    return found


PARTS = {"changes": changes, "slower": slower, "same": same, "drop": drop}

if __name__ == "__main__":
    main()
