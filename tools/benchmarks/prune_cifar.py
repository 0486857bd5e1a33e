"""Part `cifar`: what a CIFAR ResNet at half of its MACs still knows, by edgekit and by Torch-Pruning.

The network is a given ResNet-56, fine-tuned on 20,000 pictures of the JPEG copy (`distil.trained_teacher`). It is
scored right after pruning, after reconstruction, after its batch norms were re-estimated, and after one epoch on the
20,000 pictures, on the labels (ce) and towards the unpruned network (kd): always the exported file, in ONNX Runtime, on
all 10,000 test pictures. What is trained was re-estimated before; a reconstructed network was not, as least squares
gives its norms the unpruned network's statistics. The recipe's steps are the tables below; a row holds those it was
made by.

Each tool has several settings; the one that scores best on 5,000 held training pictures after pruning and re-estimating
is taken, for both alike, and so is each one's learning rate, by an epoch on the labels. Counts need not be multiples of
8, since Torch-Pruning's are not either. It can prune inside the blocks only (it breaks on the padded shortcuts); its
network is taken over by `prune_peer`, and has no step of reconstruction. `edgekit_plain` goes without that step, too.
ResNet-20 shows TAS beside both.
"""

import functools
import hashlib
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import prune_peer as peer
from common import claim, score_file
from distil import INPUT, OUTPUT, trained_teacher
from prune_common import WORK, Row, applied, context, found, keep, kept, unknown_passes
from safetensors.torch import load_file, save_file

from edgekit import data as datasets
from edgekit.data import Data
from edgekit.evaluate import evaluate
from edgekit.graph import trace
from edgekit.job import torch_predict
from edgekit.net import Net, build, edits_from_json, edits_to_json, parse_spec
from edgekit.progress import track

MACS, IMAGES, HELD, SEEDS = 0.5, 20_000, 5_000, (0, 1)
NETWORKS = {"cifar_resnet_56": 56, "cifar_resnet_20": 20}
Steps = tuple[Row, ...]

# Inside the blocks alone, as the peer must: the shortcuts' channels stay.
INSIDE = ["conv1", "*.downsample", "linear"]
PRUNE: Row = {"name": "prune", "budget": {"macs": MACS}, "round_to": 1}
TAYLOR = {"name": "taylor", "batches": 20}
PEER: Row = {"name": "torch_pruning", "macs": MACS}
# Tool -> the settings to choose from.
SETTINGS: dict[str, list[Row]] = {
    "edgekit": [
        {**PRUNE, "importance": importance, **allocation, **where}
        for importance in ("l2", TAYLOR)
        for allocation in (
            {"allocation": "uniform"}, {"allocation": "global", "floor": 0.25}, {"allocation": "greedy", "floor": 0.25},
        )
        for where in ({}, {"exclude": INSIDE})
    ],
    "torch_pruning": [{**PEER, "across": False}, {**PEER, "across": True}],
    "tas": [
        {
            "name": "tas", "budget": {"macs": MACS}, "round_to": 2, "epochs": 8, "arch_lr": 0.05,
            "augment": {"flip": True, "shift": 0.125},
        }
    ],
}  # fmt: skip

RECONSTRUCT: Row = {"name": "reconstruct", "method": {"name": "least_squares", "images": 2000}}
REESTIMATE: Row = {"name": "reestimate", "images": 2000}
RATE, RATES = 0.02, (0.005, 0.02)
LEARN: Row = {
    "epochs": 1, "batch": 64, "lr": RATE, "weight_decay": 5e-4, "augment": {"flip": True, "shift": 0.125}, "score": 0,
}  # fmt: skip
CE, KD = {"name": "finetune", **LEARN}, {"name": "distil", "loss": "kd", **LEARN}
# Point -> the steps after pruning; the trained ones are repeated for every seed.
PLAIN: dict[str, Steps] = {
    "pruned": (),
    "reestimated": (REESTIMATE,),
    "ce": (REESTIMATE, CE),
    "kd": (REESTIMATE, KD),
}
RECONSTRUCTED: dict[str, Steps] = {
    "pruned": (),
    "reconstructed": (RECONSTRUCT,),
    "reestimated": (RECONSTRUCT, REESTIMATE),
    "ce": (RECONSTRUCT, CE),
    "kd": (RECONSTRUCT, KD),
}
TRAINED = ("ce", "kd")
# Network, the name of the run, whose settings prune, the points after it, seeds.
RUNS = (
    ("cifar_resnet_56", "edgekit", "edgekit", RECONSTRUCTED, SEEDS),
    ("cifar_resnet_56", "torch_pruning", "torch_pruning", PLAIN, SEEDS),
    ("cifar_resnet_56", "edgekit_plain", "edgekit", PLAIN, SEEDS[:1]),
    ("cifar_resnet_20", "edgekit", "edgekit", RECONSTRUCTED, SEEDS[:1]),
    ("cifar_resnet_20", "torch_pruning", "torch_pruning", PLAIN, SEEDS[:1]),
    ("cifar_resnet_20", "tas", "tas", PLAIN, SEEDS[:1]),
)
CLAIMED = (("cifar_resnet_56", "edgekit"),)
COMPARED = (*CLAIMED, ("cifar_resnet_56", "torch_pruning"))
TAS_MINUTES = 120


def cifar(only: list[str]) -> None:
    for network in NETWORKS:
        if not only or network in only:
            measure(network, "unpruned", "base", (), 0)
    for seed in SEEDS:  # one seed of everything first
        for network, run, tool, points, seeds in RUNS:
            if seed not in seeds or (only and not {network, run} & set(only)):
                continue
            if reason := missing(tool, points):
                print(f"{network}, {run}: {reason}", flush=True)
            usable = {point: steps for point, steps in points.items() if not missing(tool, {point: steps})}
            for point, steps in usable.items():
                if point in TRAINED:
                    steps = at_rate(steps, rate(network, run, tool, usable["ce"]))
                if seed == 0 or point in TRAINED:
                    measure(network, run, point, (setting(network, tool), *steps), seed)


def missing(tool: str, points: Mapping[str, Steps]) -> str | None:
    """Why not every point can be measured."""
    if tool == "torch_pruning" and peer.missing():
        return peer.missing()
    own = SETTINGS[tool] if tool != "torch_pruning" else []
    unknown = unknown_passes([*own, *(step for steps in points.values() for step in steps)])
    return f"this edgekit has no pass {unknown[0]!r}; what needs it is left out" if unknown else None


def measure(network: str, run: str, point: str, steps: Steps, seed: int) -> None:
    key: Row = {"network": network, "run": run, "point": point, "seed": seed, "steps": list(steps)}
    if found("cifar", **key) is not None:
        return
    net, minutes = timed(network, json.dumps(steps), seed)
    top1 = score_file(net, pictures().role("test"), INPUT, OUTPUT)
    full = trace(made(network, "[]").module, INPUT.shape).macs
    macs = trace(net.module, INPUT.shape).macs / full
    keep("cifar", {**key, "top1": top1, "macs": macs, "minutes": round(minutes, 2)})


@functools.cache
def pictures() -> Data:
    whole = datasets.load(["python:cifar10:load"], progress=track)
    drawn = {"train": IMAGES, "calibrate": HELD}
    roles = {role: whole.role(role).subset(count, seed=0) for role, count in drawn.items()}
    return Data({**roles, "test": whole.role("test")}, whole.specs, whole.classes)


def made(network: str, steps: str) -> Net:
    """The network after these steps, of seed 0."""
    return timed(network, steps, 0)[0]


@functools.cache
def timed(network: str, steps: str, seed: int) -> tuple[Net, float]:
    """The network after these steps, the last one of a seed, and the minutes that this one took; kept on disk."""
    *before, last = json.loads(steps) or [None]
    if last is None:
        return Net(parse_spec(network), (), trained_teacher(NETWORKS[network])), 0.0
    path = WORK / "nets" / f"{network}.{seed}.{hashlib.sha256(steps.encode()).hexdigest()[:16]}.safetensors"
    if path.is_file():
        return loaded(network, path)
    net = made(network, json.dumps(before))
    began = time.monotonic()
    net = stepped(last, net, network, seed)
    minutes = (time.monotonic() - began) / 60
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"edits": edits_to_json(net.edits), "minutes": minutes}
    path.with_suffix(".json").write_text(json.dumps(record))
    save_file(net.module.state_dict(), path)
    return net, minutes


def loaded(network: str, path: Path) -> tuple[Net, float]:
    record = json.loads(path.with_suffix(".json").read_text())
    source, edits = parse_spec(network), edits_from_json(record["edits"], str(path))
    module = build(source, edits).eval()
    module.load_state_dict(load_file(path))
    return Net(source, edits, module), record["minutes"]


def stepped(table: Row, net: Net, network: str, seed: int) -> Net:
    if table["name"] == "torch_pruning":
        ends = [name for name, _ in net.module.named_modules() if name.endswith("conv2")]
        return peer.pruned(net, INPUT.shape, table["macs"], ["conv1", "linear", *ends], table["across"])
    return applied(table, net, context(made(network, "[]"), INPUT, OUTPUT, pictures(), seed))


def setting(network: str, tool: str) -> Row:
    """The tool's best setting, by pictures that are neither trained nor tested on."""
    if len(SETTINGS[tool]) == 1:
        return SETTINGS[tool][0]
    rows = [chosen_by(network, tool, table) for table in SETTINGS[tool]]
    return max(rows, key=lambda row: row["reestimated"])["table"]


def chosen_by(network: str, tool: str, table: Row) -> Row:
    key: dict[str, Any] = {"network": network, "tool": tool, "point": "choice", "table": table}
    if (row := found("cifar", **key)) is not None:
        return row
    scores = {}
    for name, steps in (("pruned", [table]), ("reestimated", [table, REESTIMATE])):
        predict = torch_predict(made(network, json.dumps(steps)).module)
        scores[name] = evaluate(predict, pictures().role("calibrate"), INPUT, OUTPUT).metrics["top1"]
    return keep("cifar", {**key, **scores})


def at_rate(steps: Steps, lr: float) -> Steps:
    return tuple({**step, "lr": lr} if "lr" in step else step for step in steps)


def rate(network: str, run: str, tool: str, steps: Steps) -> float:
    """The learning rate that scores best on the held pictures; RATE for runs that nothing is claimed of."""
    if (network, run) not in COMPARED:
        return RATE
    rows = []
    for lr in RATES:
        key: dict[str, Any] = {"network": network, "tool": run, "point": "rate", "table": {"lr": lr}}
        row = found("cifar", **key)
        if row is None:
            net = made(network, json.dumps([setting(network, tool), *at_rate(steps, lr)]))
            held = evaluate(torch_predict(net.module), pictures().role("calibrate"), INPUT, OUTPUT).metrics["top1"]
            row = keep("cifar", {**key, "held": held})
        rows.append(row)
    return max(rows, key=lambda row: row["held"])["table"]["lr"]


def claims() -> list[Row]:
    """edgekit's mean over the seeds above the peer's, at every point; without reconstruction the peer's last one."""
    rows = [row for row in kept("cifar") if "run" in row]
    found = []
    for network, run in CLAIMED:
        for point in RECONSTRUCTED:
            ours = mean(rows, network, run, point)
            theirs = mean(rows, network, "torch_pruning", "pruned" if point == "reconstructed" else point)
            if ours is not None and theirs is not None:
                required = f"above Torch-Pruning's {theirs:.2f}"
                found.append(claim(f"prune.{network}.{run}.{point}", required, ours, "% top-1", ours > theirs))
    searched = [row["minutes"] for row in rows if row["run"] == "tas" and row["point"] == "pruned"]
    if searched:
        minutes = searched[-1]
        found.append(claim("prune.tas.minutes", f"≤ {TAS_MINUTES}", minutes, "minutes", minutes <= TAS_MINUTES))
    return found


def mean(rows: list[Row], network: str, run: str, point: str) -> float | None:
    """Over the seeds of the newest recipe."""
    of_point = [row for row in rows if (row["network"], row["run"], row["point"]) == (network, run, point)]
    values = [row["top1"] for row in of_point if row["steps"] == of_point[-1]["steps"]]
    return statistics.mean(values) if values else None
