"""Fewer bits a weight with training: CIFAR networks coded by vectors and by shifts, all with the same training.

    python tools/benchmarks/coding_cifar.py          # about an hour on one core; goes on where it was stopped
    python tools/benchmarks/coding_cifar.py --only mobilenet_v2  # of one network; several can run side by side
    python tools/benchmarks/coding_cifar.py --write  # the JSON from what there is

The networks: two given CIFAR ResNets, fine-tuned on these JPEGs (`distil.trained_teacher`), and the MobileNetV2 of
half width that `int8_cifar` trains. Each way gets `EPOCHS` epochs on the same `IMAGES` training pictures: plain product
quantisation (`pq`) codes first and trains its codebooks; LR²VQ (`lr2vq`) trains its low rank in the first half and its
codebooks in the second; shifts train their weights; `float` trains as it is. Two ways with the same bits have the same
k and m, so their files hold as many codes and as large codebooks.

Each way's learning rate is the one of `RATES` that is best on 5,000 training pictures held out of this training, after
a run on ResNet-20 with seed 0 and two bits (vectors) or three (shifts). Scored: the exported file in ONNX Runtime, on
all 10,000 test pictures.
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import int8_cifar
from common import claim, kept, score_file, write
from common import keep as keep_row
from distil import INPUT, OUTPUT, network, trained_teacher
from prune_common import applied, context

from edgekit import data as datasets
from edgekit.data import Data
from edgekit.evaluate import evaluate
from edgekit.export import export, serialise
from edgekit.job import torch_predict
from edgekit.net import Net
from edgekit.progress import track
from edgekit.targets import target
from edgekit.transport.pack import transport_bytes
from edgekit.weights import load_into

sys.path.insert(0, str(Path(__file__).parent))
ROWS = Path(__file__).resolve().parents[2] / "out" / "benchmarks" / "coding_cifar" / "rows.jsonl"
IMAGES, HELD, EPOCHS, SEEDS, RATES = 5_000, 5_000, 2, (0, 1), (0.003, 0.01, 0.03)
NETWORKS = ("cifar_resnet_20", "cifar_resnet_56", "mobilenet_v2")
Row = dict[str, Any]

# Bits of a code over the weights it stands for. Small layers need small codebooks, or these outweigh the codes.
VECTORS: dict[int, Row] = {
    bits: {
        "k": {"depthwise": 2 ** (3 * bits), "conv": k, "pointwise": k, "linear": k},
        "m": {"depthwise": 3, "conv": m, "pointwise": m, "linear": m},
    }
    for bits, k, m in ((1, 16, 4), (2, 16, 2), (3, 64, 2))
}
SHIFTS = {"denseshift": (2, 3, 4), "deepshift_q": (2, 3, 4), "deepshift_ps": (3, 4)}
CHOSEN_AT = {"float": 32, "pq": 2, "lr2vq": 2, "denseshift": 3, "deepshift_q": 3, "deepshift_ps": 3}
"""The bits at which a way's learning rate is found."""
WAYS = (
    ("float", 32),
    *((way, bits) for bits in VECTORS for way in ("pq", "lr2vq")),
    *((way, bits) for way, widths in SHIFTS.items() for bits in widths),
)
TUNE: Row = {
    "name": "finetune", "batch": 64, "weight_decay": 5e-4, "augment": {"flip": True, "shift": 0.125}, "score": 0,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="train nothing")
    parser.add_argument("--only", choices=NETWORKS, help="this network alone, and write no JSON")
    given = parser.parse_args()
    if not given.write:
        networks = [given.only] if given.only else NETWORKS
        for name in networks:
            measure(name, "base", 32, 0)
        for seed in SEEDS:
            for name in networks:
                for way, bits in WAYS:
                    measure(name, way, bits, seed)
    if not given.only:
        write("coding_cifar", [row for row in kept(ROWS) if row["part"] == "scored"], claims(), SEEDS[0])


def steps(way: str, bits: int, lr: float) -> list[Row]:
    """The recipe of a way."""
    train = {**TUNE, "epochs": EPOCHS, "lr": lr}
    if way == "pq":
        return [{"name": "vq", **VECTORS[bits]}, train]
    if way == "lr2vq":
        half = {**train, "epochs": EPOCHS // 2}
        return [{"name": "project", **VECTORS[bits]}, half, {"name": "vq", **VECTORS[bits]}, half]
    return [train] if way == "float" else [{"name": "shift", "method": way, "bits": bits}, train]


def measure(name: str, way: str, bits: int, seed: int) -> None:
    key: Row = {"part": "scored", "network": name, "way": way, "bits": bits, "seed": seed}
    if found(key):
        return
    began = time.monotonic()
    lr = None if way == "base" else rate(way)
    net = base(name) if lr is None else made(name, way, bits, lr, seed)
    top1 = score_file(net, pictures().role("test"), INPUT, OUTPUT)
    content = serialise(export(net.module, INPUT, OUTPUT, target("onnxruntime")).model)
    sizes = {"size_bytes": len(content), "transport_bytes": transport_bytes(content)}
    keep({**key, "lr": lr, "top1": top1, **sizes, "minutes": round((time.monotonic() - began) / 60, 2)})


def rate(way: str) -> float:
    """The learning rate that a way was best with on the held pictures."""
    rows, bits = [], CHOSEN_AT[way]
    for lr in RATES:
        key: Row = {"part": "rate", "way": way, "bits": bits, "lr": lr}
        if not (row := found(key)):
            module = made(NETWORKS[0], way, bits, lr, 0).module
            score = evaluate(torch_predict(module), pictures().role("calibrate"), INPUT, OUTPUT)
            row = keep({**key, "top1": score.metrics["top1"]})
        rows.append(row)
    return max(rows, key=lambda row: row["top1"])["lr"]


@functools.lru_cache(maxsize=len(RATES))
def made(name: str, way: str, bits: int, lr: float, seed: int) -> Net:
    net = base(name)
    ctx = context(net, INPUT, OUTPUT, pictures(), seed)
    for table in steps(way, bits, lr):
        net = applied(table, net, ctx)
    return net


@functools.cache
def base(name: str) -> Net:
    if name == "mobilenet_v2":
        int8_cifar.made(name, int8_cifar.MOBILENET, int8_cifar.TRAIN, int8_cifar.TARGETS)
        net = network(int8_cifar.MOBILENET)
        load_into(net.module, int8_cifar.weights())
        net.module.eval()
        return net
    net = network(name)
    net.module.load_state_dict(trained_teacher(int(name.rpartition("_")[2])).state_dict())
    net.module.eval()
    return net


@functools.cache
def pictures() -> Data:
    """`IMAGES` to train on and `HELD` others of the training pictures, drawn by hash; all test pictures."""
    whole = datasets.load(["python:cifar10:load"], progress=track)
    roles = {"train": whole.role("train").subset(IMAGES, 0), "calibrate": whole.role("calibrate").subset(HELD, 0)}
    return Data({**roles, "test": whole.role("test")}, whole.specs, whole.classes)


def found(key: Row) -> Row | None:
    return next((row for row in kept(ROWS) if key.items() <= row.items()), None)


def keep(row: Row) -> Row:
    print(row, flush=True)
    return keep_row(ROWS, row)


def by_seed(name: str, way: str, bits: int) -> dict[int, float]:
    """Top-1 of each seed there is."""
    rows = [row for row in kept(ROWS) if row["part"] == "scored"]
    return {row["seed"]: row["top1"] for row in rows if (row["network"], row["way"], row["bits"]) == (name, way, bits)}


def claims() -> list[Row]:
    """LR²VQ above plain PQ, and DenseShift above the better DeepShift, at the same bits, training and seeds."""
    compared = [("lr2vq", bits, ("pq",)) for bits in VECTORS]
    compared += [("denseshift", bits, ("deepshift_q", "deepshift_ps")) for bits in SHIFTS["denseshift"]]
    listed = []
    for name in NETWORKS:
        for way, bits, peers in compared:
            ours, others = by_seed(name, way, bits), [found for peer in peers if (found := by_seed(name, peer, bits))]
            seeds = set(ours).intersection(*others)
            if not seeds or not others:
                continue
            mine, best = mean(ours, seeds), max(mean(other, seeds) for other in others)
            required = f"above {' and '.join(peers)}: {best:.2f} (seeds {', '.join(map(str, sorted(seeds)))})"
            listed.append(claim(f"coding_cifar.{name}.{way}.{bits}", required, mine, "% top-1", mine > best))
    return listed


def mean(scores: dict[int, float], seeds: set[int]) -> float:
    return statistics.mean(scores[seed] for seed in seeds)


if __name__ == "__main__":
    main()
