"""Fewer bits a weight: bytes of the packed file against what its answers lose.

    python tools/benchmarks/coding.py

About ten minutes on one core. Parts:

- sizes: ResNet-18 coded by `vq`, random weights, by the papers' convention.
- squeezenet: NIPS17-1000, 200 pictures without labels to fit on, the other 800 scored as the file that ships, in ONNX
  Runtime. At `CHOSEN` bits a weight three draws of the 200, at others one.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from common import claim, write
from int8_files import NETWORKS, fold_indices
from prune_common import DATA, Row, context

from edgekit import data as datasets
from edgekit.data import Data
from edgekit.engines import engine
from edgekit.export import export, serialise
from edgekit.net import Net, parse_spec
from edgekit.nets.resnet import resnet_18
from edgekit.onnx_file import read
from edgekit.onnx_torch import to_module
from edgekit.passes import VQ, Cluster
from edgekit.passes.vq import convention_bytes
from edgekit.rewrites.fold import for_torch
from edgekit.schema import parse
from edgekit.targets import target
from edgekit.transport.pack import transport_bytes

SEED, MIB = 0, 2**20
REGIMES = {
    "small": ({"conv": 9, "pointwise": 4, "linear": 4}, 1.541),
    "large": ({"conv": 18, "pointwise": 4, "linear": 4}, 1.029),
}
NETWORK, CALIBRATION, CHOSEN, CURVE, DRAWS = "squeezenet1_1", 200, 3.85, (6.0, 5.0, 4.5, 3.5, 3.0), (0, 1, 2)
BYTES, DROP, AGREEMENT = 620_000, 1.0, 89.0


def main() -> None:
    rows = [sizes(name) for name in REGIMES]
    points = [(CHOSEN, draw) for draw in DRAWS] + [(bits, 0) for bits in CURVE]
    for bits, draw in points:
        rows.append(squeezenet(bits, draw))
        print(rows[-1], flush=True)
    write("coding", rows, claims(rows), SEED)


def sizes(name: str) -> Row:
    """ResNet-18 by the convention: k = 256, the linear layer's 2048."""
    torch.manual_seed(SEED)
    base = Net(parse_spec("resnet_18"), (), resnet_18())
    m, _ = REGIMES[name]
    k = {"conv": 256, "pointwise": 256, "linear": 2048}
    settings = parse(VQ, {"k": k, "m": m, "method": {"name": "kmeans", "iterations": 1}}, "tools/benchmarks/coding.py")
    net = settings(base, context(base, NETWORKS[NETWORK][0]))
    return {"part": "sizes", "network": "resnet_18", "regime": name, "mib": convention_bytes(net.module) / MIB}


def squeezenet(bits: float, draw: int) -> Row:
    input, output = NETWORKS[NETWORK]
    samples = datasets.load([f"test=csv:{DATA / 'nips17' / 'labels.csv'}"]).role("test")
    chosen, rest = fold_indices(draw)
    fit, test = (dataclasses.replace(samples, items=tuple(samples.items[i] for i in part)) for part in (chosen, rest))
    path = DATA / "models" / f"{NETWORK}.onnx"
    base = Net(parse_spec(str(path)), (), to_module(for_torch(read(path), input.shape, str(path))))
    ctx = context(base, input, output, Data({"calibrate": fit, "test": test}))
    coded = Cluster(bits=bits, images=CALIBRATION)(base, ctx)
    files = [serialise(export(net.module, input, output, target("onnxruntime")).model) for net in (base, coded)]
    exact, found = (scores(file, test, input, output) for file in files)
    labels = np.array([sample.label for sample in test.items])
    hits = [100 * float((answers == labels).mean()) for answers in (exact, found)]
    return {
        "part": "squeezenet", "network": NETWORK, "bits": bits, "draw": draw, "n": len(labels),
        "transport_bytes": transport_bytes(files[1]), "size_bytes": len(files[1]), "top1": hits[1],
        "drop": hits[0] - hits[1], "agreement": 100 * float((exact == found).mean()),
    }  # fmt: skip


def scores(file: bytes, samples: Any, input: Any, output: Any) -> np.ndarray:
    """The class that the file answers with, for each picture."""
    session = engine("onnxruntime").load(file)
    batches = (session.run(batch) for batch, _, _ in samples.batches(input, 8))
    return np.concatenate([output.scores(batch).argmax(1) for batch in batches])


def claims(rows: list[Row]) -> list[dict[str, Any]]:
    found = []
    for row in [row for row in rows if row["part"] == "sizes"]:
        published = REGIMES[row["regime"]][1]
        ok = round(row["mib"], 3) == published
        found.append(
            claim(f"coding.resnet_18.{row['regime']}", f"{published} MiB, as published", row["mib"], "MiB", ok)
        )
    drawn = [row for row in rows if row.get("bits") == CHOSEN]
    largest = max(row["transport_bytes"] for row in drawn)
    drop, same = (float(np.mean([row[key] for row in drawn])) for key in ("drop", "agreement"))
    found.append(claim("coding.squeezenet.bytes", f"≤ {BYTES} packed", largest, "bytes", largest <= BYTES))
    found.append(claim("coding.squeezenet.drop", f"≤ {DROP}, mean of three draws", drop, "points", drop <= DROP))
    found.append(
        claim("coding.squeezenet.agreement", f"≥ {AGREEMENT}, mean of three draws", same, "%", same >= AGREEMENT)
    )
    return found


if __name__ == "__main__":
    main()
