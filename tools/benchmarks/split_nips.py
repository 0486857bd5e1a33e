"""Part `activation`: a given MobileNetV2, cut without training; see `split.py`."""

import dataclasses
from typing import Any

from common import claim
from int8_files import NETWORKS, context, fold_indices, folded, pictures
from split_common import WORK, found, found_all, keep, through_packets
from split_pictures import measure_pictures

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
    """For each cut the fewest bytes within a point of the uncut network, beside what pictures take: stated, since none
    was asked."""
    uncut = next((row["top1"] for row in rows if row["part"] == "activation" and row["cut"] is None), None)
    pictures = found_all(rows, part="pictures", network=NETWORK)
    listed = []
    for cut in CUTS:
        near = [row for row in rows if row.get("cut") == cut and row["top1"] >= (uncut or 0) - NEAR]
        if near and pictures:
            best = min(near, key=lambda row: row["bytes"])
            said = f"stated: fewest bytes within {NEAR} of {uncut:.2f}, at {best['bits']} bits, {best['top1']:.2f}; "
            said += beside(pictures, best["top1"])
            listed.append(claim(f"split.activation.{cut.strip('/')}", said, best["bytes"], "bytes", True))
    return listed


def beside(pictures: list[Row], top1: float) -> str:
    """The fewest bytes of a picture for as good an answer; where no quality gives one, what the best gives."""
    enough = [row for row in pictures if row["top1"] >= top1]
    row = min(enough, key=lambda row: row["bytes"]) if enough else max(pictures, key=lambda row: row["top1"])
    best = "" if enough else "at best "
    return f"the picture {best}as {row['format']} {row['quality']}, {row['bytes']:,.0f}, {row['top1']:.2f}"
