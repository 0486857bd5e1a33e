"""Part `activation`: a given MobileNetV2, cut without training; see `split.py`."""

import dataclasses
from typing import Any

from common import claim
from int8_files import NETWORKS, context, fold_indices, folded, pictures
from split_common import WORK, bytes_at, curve, found, found_all, keep, through_packets
from split_pictures import QUALITIES, measure_pictures

from edgekit.data import Data
from edgekit.engines import engine
from edgekit.evaluate import evaluate
from edgekit.export import finish, serialise
from edgekit.rewrites.split import Split
from edgekit.split.build import cut_files
from edgekit.targets import target

NETWORK, FOLD, TARGET = "mobilenetv2_tf", 0, "onnxruntime"
CUTS = ("/3", "/6", "/10", "/13", "/16", "/17")
"""The ends of the blocks of each width."""
BITS = (2, 3, 4, 6, 8)
NEAR = 1.0
Row = dict[str, Any]


def activation() -> None:
    chosen, rest = fold_indices(FOLD)
    samples = pictures()
    data = Data({
        role: dataclasses.replace(samples, items=tuple(samples.items[index] for index in part))
        for role, part in (("calibrate", chosen), ("test", rest))
    })  # fmt: skip
    session = engine("onnxruntime").load(serialise(folded(NETWORK)), 1)
    if not found(part="activation", cut=None):
        top1 = evaluate(session.run, data.role("test"), *NETWORKS[NETWORK]).metrics["top1"]
        keep({"part": "activation", "network": NETWORK, "cut": None, "top1": top1, "n": len(data.role("test"))})
    measure_pictures(session, *NETWORKS[NETWORK], data.role("test"), network=NETWORK)
    for cut in CUTS:
        for bits in BITS:
            key: Row = {"part": "activation", "network": NETWORK, "cut": cut, "bits": bits}
            if not found(**key):
                keep({**key, **measured(Split(cut, bits), data)})


def measured(step: Split, data: Data) -> Row:
    """Write the cut files as a bundle has them, and send every test picture through."""
    folder = WORK / "nips" / f"{step.cut.strip('/')}-{step.bits}"
    folder.mkdir(parents=True, exist_ok=True)
    ctx = dataclasses.replace(context(NETWORK, TARGET, None), data=data)
    whole = folded(NETWORK)
    names = {"base": whole, "model": finish(step(whole, ctx), target(TARGET), *NETWORKS[NETWORK])}
    for name, model in names.items():
        (folder / f"{name}.{TARGET}.split.onnx").write_bytes(serialise(model))
    made = cut_files(folder, [f"model.{TARGET}.split.onnx"], step.crossing, f"base.{TARGET}.split.onnx", data)
    return through_packets(folder, made.split, data.role("test"))


def claims(rows: list[Row]) -> list[Row]:
    """For each cut the fewest bytes within a point of the uncut network, beside what JPEG or WebP takes there: stated,
    as no figure was asked."""
    uncut = next((row["top1"] for row in rows if row["part"] == "activation" and row["cut"] is None), None)
    pictures = {kind: curve(found_all(rows, format=kind, network=NETWORK)) for kind in QUALITIES}
    listed = []
    for cut in CUTS:
        near = [row for row in rows if row.get("cut") == cut and row["top1"] >= (uncut or 0) - NEAR]
        if near and all(pictures.values()):
            best = min(near, key=lambda row: row["bytes"])
            others = {kind: bytes_at(points, best["top1"]) for kind, points in pictures.items()}
            peer = min(others, key=lambda kind: others[kind])
            said = f"stated: fewest bytes within {NEAR} of {uncut:.2f}, at {best['bits']} bits, {best['top1']:.2f}; "
            said += f"the picture as {peer}: {others[peer]:,.0f}"
            listed.append(claim(f"split.activation.{cut.strip('/')}", said, best["bytes"], "bytes", True))
    return listed
