"""Part `nips`: a given MobileNetV2 loses 10, 20 and 30 % of its MACs, with no training.

It is an ONNX file with batch norm folded. NIPS17-1000: 200 pictures without labels calibrate, the other 800 are scored,
as exported files in ONNX Runtime: by magnitude alone, with reconstruction that needs no data, and with one that needs
the 200 pictures. The narrow streams between the blocks stay whole. This and the allocation were chosen on the 200
pictures: fitted to 40 of them, it agreed with the unpruned network most often on 120 others.
"""

import dataclasses
import time
from typing import Any

from common import claim, score_file
from int8_files import NETWORKS, fold_indices
from prune_common import DATA, Row, applied, context, found, keep, kept, unknown_passes

from edgekit import data as datasets
from edgekit.data import Data
from edgekit.graph import trace
from edgekit.net import Net, parse_spec
from edgekit.onnx_file import read
from edgekit.onnx_torch import to_module
from edgekit.rewrites.fold import for_torch

NETWORK, FOLD, CALIBRATION = "mobilenetv2_tf", 0, 200
INPUT, OUTPUT = NETWORKS[NETWORK]
SHARES = (0.9, 0.8, 0.7)
STREAMS = ["0.c", "1.m.1.c", "*.m.2.c"]
PRUNE: Row = {"name": "prune", "importance": "l2", "allocation": "greedy", "floor": 0.5, "exclude": STREAMS}
# Way -> the steps; the budget of the first is filled in.
WAYS: dict[str, tuple[Row, ...]] = {
    "magnitude": (PRUNE,),
    "data_free": (PRUNE, {"name": "reconstruct", "method": "udfc"}),
    "merging": (PRUNE, {"name": "reconstruct", "method": "merging"}),
    "data_driven": (PRUNE, {"name": "reconstruct", "method": {"name": "least_squares", "images": CALIBRATION}}),
}


def nips(only: list[str]) -> None:
    samples = datasets.load([f"test=csv:{DATA / 'nips17' / 'labels.csv'}"]).role("test")
    chosen, rest = fold_indices(FOLD)
    calibrate, test = (
        dataclasses.replace(samples, items=tuple(samples.items[i] for i in part)) for part in (chosen, rest)
    )
    data = Data({"train": calibrate, "calibrate": calibrate, "test": test})
    path = DATA / "models" / f"{NETWORK}.onnx"
    base = Net(parse_spec(str(path)), (), to_module(for_torch(read(path), INPUT.shape, str(path))))
    measure("unpruned", 1.0, (), base, data)
    for share in SHARES:
        for way, (prune, *after) in WAYS.items():
            if only and way not in only:
                continue
            if unknown := unknown_passes(after):
                print(f"{way}: this edgekit has no pass {unknown[0]!r}, left out", flush=True)
                continue
            measure(way, share, ({**prune, "budget": {"macs": share}}, *after), base, data)


def measure(way: str, share: float, steps: tuple[Row, ...], base: Net, data: Data) -> None:
    key: dict[str, Any] = {"network": NETWORK, "way": way, "asked": share, "steps": list(steps)}
    if found("nips", **key) is not None:
        return
    net, ctx = base, context(base, INPUT, OUTPUT, data)
    began = time.monotonic()
    for table in steps:
        net = applied(table, net, ctx)
    seconds = round(time.monotonic() - began, 1)
    macs = trace(net.module, INPUT.shape).macs / trace(base.module, INPUT.shape).macs
    top1 = score_file(net, data.role("test"), INPUT, OUTPUT)
    keep("nips", {**key, "top1": top1, "n": len(data.role("test")), "macs": macs, "seconds": seconds})


def claims() -> list[Row]:
    """With pictures reconstruction is better than without; what the others reach stands in the rows."""
    top1 = {(row["way"], row["asked"]): row["top1"] for row in kept("nips")}
    found = []
    for share in SHARES:
        others = [way for way in WAYS if way != "data_driven" and (way, share) in top1]
        if others and ("data_driven", share) in top1:
            best, ours = max(top1[way, share] for way in others), top1["data_driven", share]
            required = f"above {', '.join(others)}: {best:.2f} (unpruned {top1['unpruned', 1.0]:.2f})"
            found.append(claim(f"prune.nips.data_driven.{share}", required, ours, "% top-1", ours > best))
    return found
