"""What each loss gives back: a small CIFAR ResNet trained with every loss in the same budget, and the loop's speed.

python tools/benchmarks/distil.py            # trains what is missing (about an hour on one core) and writes the JSON
python tools/benchmarks/distil.py --speed    # measures the throughput alone, on a quiet machine
python tools/benchmarks/distil.py --write    # writes the JSON from what there is

Finished rows are kept in out/benchmarks/distil and never trained again. The teacher's answers are computed once a view:
runs of one seed see the same views, so they share them.
"""

import argparse
import dataclasses
import hashlib
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import claim, score_file, write
from torch import nn

from edgekit import data as datasets
from edgekit.context import PassContext
from edgekit.data import Data, Input, Output, Samples
from edgekit.evaluate import evaluate
from edgekit.job import torch_predict
from edgekit.net import Net, build, parse_spec
from edgekit.passes import Distil, Finetune
from edgekit.progress import track
from edgekit.statistics import ratio_interval
from edgekit.train.augment import Augment
from edgekit.train.losses import LABEL_LOSSES, TEACHER_LOSSES
from edgekit.weights import load_into

sys.path.insert(0, str(Path(__file__).parent))
MODELS = Path(__file__).resolve().parents[3] / "shared" / "data" / "models"
WORK = Path(__file__).resolve().parents[2] / "out" / "benchmarks" / "distil"
INPUT = Input(size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
OUTPUT = Output(classes=10)
STUDENT = "cifar_resnet_20?width=8"
IMAGES, SEEDS = 10_000, (0, 1, 2)
AUGMENT = Augment(flip=True, shift=0.125)
BUDGET: dict[str, Any] = {"epochs": 5, "batch": 64, "lr": 0.05, "weight_decay": 5e-4, "augment": AUGMENT, "score": 0}
# Loss -> its own settings, and what of the budget its authors change. Three seeds for the first five, one for others.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ce": ({}, {}),
    "kd": ({}, {}),
    "nd": ({}, {}),
    "ofa": ({}, {}),
    "function_matching": ({}, {"mixup": 1.0}),
    "ps_kd": ({}, {}),
    "bias": ({}, {}),
    "features": ({}, {}),
    "meal_v2": ({}, {"weight_decay": 0.0}),
}
REPEATED = 5


class Remembered(nn.Module):
    """A teacher whose embedding of a batch is computed once and then looked up by the batch's bytes."""

    def __init__(self, network: nn.Module, path: Path) -> None:
        super().__init__()
        *trunk, self.linear = network.children()
        self.trunk, self.path = nn.Sequential(*trunk), path
        self.known: dict[str, np.ndarray] = dict(np.load(path)) if path.is_file() else {}
        self.found = len(self.known)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        key = hashlib.sha256(images.contiguous().numpy().tobytes()).hexdigest()
        if key not in self.known:
            self.known[key] = self.trunk(images).numpy()
        return self.linear(torch.from_numpy(self.known[key]))

    def save(self) -> None:
        if len(self.known) > self.found:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(self.path, **self.known)


def cifar(images: int) -> Data:
    """The CIFAR-10 copy with `images` of its training pictures, drawn by hash."""
    whole = datasets.load(["python:cifar10:load"], progress=track)
    train = whole.role("train").subset(images, seed=0)
    return Data({"train": train, "test": whole.role("test")}, whole.specs, whole.classes)


def context(data: Data, seed: int, base: Net) -> PassContext:
    return PassContext(
        data=data, input=INPUT, output=OUTPUT, seed=seed, base=base, cost=lambda _net: {}, score=lambda _net: {},
        network=lambda _spec: base.module, log=lambda line: print(line, flush=True), track=track,
    )  # fmt: skip


def network(spec: str, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    source = parse_spec(spec)
    return Net(source, (), build(source))


def trained_teacher(depth: int) -> nn.Module:
    """A given CIFAR ResNet, fine-tuned for one epoch on 20,000 of these JPEGs."""
    from safetensors.torch import load_file, save_file

    path = WORK / f"teacher-{depth}.safetensors"
    net = network(f"cifar_resnet_{depth}")
    if path.is_file():
        net.module.load_state_dict(load_file(path))
        return net.module.eval()
    load_into(net.module, MODELS / f"cifar_resnet{depth}.safetensors")
    data = cifar(20_000)
    tune = Finetune(epochs=1, batch=64, lr=0.01, weight_decay=5e-4, augment=AUGMENT, score=0)
    tuned = tune(net, context(data, 0, net))
    WORK.mkdir(parents=True, exist_ok=True)
    save_file(tuned.module.state_dict(), path)
    row = {"loss": "teacher", "network": f"cifar_resnet_{depth}", "seed": 0}
    keep({**row, "top1": evaluate(torch_predict(tuned.module), data.role("test"), INPUT, OUTPUT).metrics["top1"]})
    return tuned.module.eval()


def keep(row: dict[str, Any]) -> None:
    print(common.keep(WORK / "rows.jsonl", row), flush=True)


def kept() -> list[dict[str, Any]]:
    return common.kept(WORK / "rows.jsonl")


def train(name: str, seed: int, data: Data, teachers: dict[int, nn.Module]) -> None:
    fields, changes = RUNS[name]
    settings = {**BUDGET, **changes}
    net = network(STUDENT, seed)
    began = time.monotonic()
    if name in LABEL_LOSSES:
        step: Any = Finetune(**settings, loss=LABEL_LOSSES[name](**fields))
        memories = []
        ctx = context(data, seed, net)
    else:
        step = Distil(**settings, loss=TEACHER_LOSSES[name](**fields), teachers=("56", "20")[: 1 + (name == "meal_v2")])
        memories = [] if name == "features" else [_remembered(depth, teachers, settings, seed) for depth in (56, 20)]
        ctx = context(data, seed, net)
        chosen = {str(d): memory for d, memory in zip((56, 20), memories or (teachers[56], teachers[20]))}
        ctx = dataclasses.replace(ctx, network=chosen.__getitem__)
    done = step(net, ctx)
    for memory in memories:
        memory.save()
    top1_torch = evaluate(torch_predict(done.module), data.role("test"), INPUT, OUTPUT).metrics["top1"]
    row = {
        "loss": name,
        "seed": seed,
        "top1": score_file(done, data.role("test"), INPUT, OUTPUT),
        "top1_torch": top1_torch,
    }
    keep({**row, "settings": {**fields, **changes}, "minutes": round((time.monotonic() - began) / 60, 1)})


def _remembered(depth: int, teachers: dict[int, nn.Module], settings: dict[str, Any], seed: int) -> Remembered:
    views = "mixed" if settings.get("mixup") else "plain"
    return Remembered(teachers[depth], WORK / f"answers-{depth}-{views}-{seed}.npz")


def train_all(seeds: list[int], losses: list[str]) -> None:
    data = cifar(IMAGES)
    teachers = {depth: trained_teacher(depth) for depth in (56, 20)}
    wanted = [(name, seed) for seed in seeds for name in list(RUNS)[:REPEATED]]
    wanted += [(name, seeds[0]) for name in list(RUNS)[REPEATED:]]
    for name, seed in wanted:
        if name in losses and (name, seed) not in {(row["loss"], row["seed"]) for row in kept()}:
            train(name, seed, data, teachers)


# Throughput


def bare_loop(module: nn.Module, samples: Samples, batch: int, lr: float) -> float:
    """What one would write by hand, without a framework: images/s over one pass."""
    mean, std = (np.array(values, np.float32) * 255 for values in (INPUT.mean, INPUT.std))
    rng = np.random.default_rng(0)
    module.train().to(memory_format=torch.channels_last)
    decays = [p for p in module.parameters() if p.ndim > 1], [p for p in module.parameters() if p.ndim <= 1]
    optimiser = torch.optim.SGD(
        [{"params": decays[0], "weight_decay": 5e-4}, {"params": decays[1]}], lr, 0.9, nesterov=True
    )
    began = time.monotonic()
    order = rng.permutation(len(samples))
    for start in range(0, len(order) // batch * batch, batch):
        pictures, labels = [], []
        for index in order[start : start + batch]:
            image = np.pad(samples[index].read(), ((4, 4), (4, 4), (0, 0)))
            top, left = rng.integers(0, 9, 2)
            image = image[top : top + 32, left : left + 32]
            pictures.append(image[:, ::-1] if rng.random() < 0.5 else image)
            labels.append(samples[index].label)
        x = (np.stack(pictures).astype(np.float32) - mean) / std
        x = torch.from_numpy(x).permute(0, 3, 1, 2)  # already channels last
        loss = nn.functional.cross_entropy(module(x), torch.tensor(labels))
        if not torch.isfinite(loss):
            raise SystemExit("the bare loop's loss is not finite")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return len(order) // batch * batch / (time.monotonic() - began)


def speed(rounds: int = 12, images: int = 2560) -> list[dict[str, Any]]:
    """Pairs of passes over the same pictures, one after the other; the first pair warms up."""
    data = cifar(images)
    rows = []
    for round_ in range(rounds + 1):
        net = network(STUDENT)
        bare = bare_loop(net.clone().module, data.role("train"), 64, 0.05)
        lines: list[str] = []
        ctx = dataclasses.replace(context(data, 0, net), log=lines.append)
        began = time.monotonic()
        Finetune(**{**BUDGET, "epochs": 1})(net, ctx)
        ours = images / (time.monotonic() - began)
        if round_:
            rows.append({"loss": "speed", "seed": round_, "edgekit": ours, "bare": bare})
            print(rows[-1], flush=True)
    return rows


def result() -> None:
    rows = kept()
    by_loss = {name: [row["top1"] for row in rows if row["loss"] == name] for name in RUNS}
    spread = {name: max(values) - min(values) for name, values in by_loss.items() if values}
    mean = {name: statistics.mean(values) for name, values in by_loss.items() if values}
    better = [
        name
        for name in list(RUNS)[1:REPEATED]
        if name in mean and mean[name] - mean["ce"] > max(spread[name], spread["ce"])
    ]
    claims = [
        claim("distil.better", "≥ 2 distillation losses beat CE by more than the seeds' spread", len(better), "losses",
              len(better) >= 2)
    ]  # fmt: skip
    gap = max(abs(row["top1"] - row["top1_torch"]) for row in rows if "top1_torch" in row)
    claims.append(claim("distil.gap", "≤ 0.2 points, torch to file", gap, "points", gap <= 0.2))
    if pairs := [row for row in rows if row["loss"] == "speed"]:
        found = ratio_interval([row["edgekit"] for row in pairs], [row["bare"] for row in pairs])
        required = "≥ 0.95 of a bare loop's images/s"
        claims.append(claim("distil.speed", required, found["median"], "of it", found["median"] >= 0.95))
    summary = [{"loss": name, "n": len(by_loss[name]), "mean": mean[name], "spread": spread[name]} for name in mean]
    budget = {**BUDGET, "augment": {"flip": AUGMENT.flip, "shift": AUGMENT.shift}, "images": IMAGES}
    train_role = cifar(IMAGES).role("train")
    write("distil", rows, claims, summary=summary, budget=budget, student=STUDENT, train_sha256=train_role.sha256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="Several runs may share the work.")
    parser.add_argument("--losses", nargs="+", default=list(RUNS), choices=list(RUNS))
    given = parser.parse_args()
    if given.speed:
        for row in speed():
            keep(row)
    elif not given.write:
        train_all(given.seeds, given.losses)
    result()


if __name__ == "__main__":
    main()
