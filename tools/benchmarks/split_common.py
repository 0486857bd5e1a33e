"""What the parts of the split benchmark share: rows, packets, and points between those that were measured."""

from pathlib import Path
from typing import Any

import common
import numpy as np

from edgekit.data import Samples
from edgekit.engines import engine
from edgekit.graph_onnx import onnx_cost
from edgekit.onnx_file import read, read_io
from edgekit.split.artifact import Split
from edgekit.split.codec import Codec
from edgekit.split.packet import HEADER, Wire

WORK = Path(__file__).resolve().parents[2] / "out" / "benchmarks" / "split"
ROWS = WORK / "rows.jsonl"
BATCH = 50
Row = dict[str, Any]
Curve = list[tuple[float, float]]
"""(bytes, top-1), by bytes."""


def found(**key: Any) -> Row | None:
    return next((row for row in common.kept(ROWS) if key.items() <= row.items()), None)


def found_all(rows: list[Row], **key: Any) -> list[Row]:
    return [row for row in rows if key.items() <= row.items()]


def keep(row: Row) -> Row:
    print(row, flush=True)
    return common.keep(ROWS, row)


def through_packets(folder: Path, split: Split, samples: Samples) -> Row:
    """Every picture through head, packet and tail: accuracy, and the mean bytes of a packet without its header; by the
    tables alone, and as one byte a symbol."""
    (taken, output), codec = read_io(folder / split.head.file), Codec(split.tables, split.latent.shape)
    wire, load = Wire(split.model_hash, codec), engine("onnxruntime").load
    head, tail = (load(folder / part.file, 1) for part in (split.head, split.tail))
    sizes, ideal, hits = [], [], 0
    for batch, labels, _ in samples.batches(taken, BATCH):
        latents = head.run(batch)
        packets = [wire.pack(latent) for latent in latents]
        arrived = np.stack([wire.unpack(packet) for packet in packets])
        assert np.array_equal(arrived, latents)
        sizes += [len(packet) - HEADER.size for packet in packets]
        ideal += [codec.tables.bits(latent) / 8 for latent in latents]
        hits += int((output.scores(tail.run(arrived)).argmax(1) == labels).sum())
    macs = {f"{name}_macs": onnx_cost(read(folder / part.file))["macs"] for name, part in parts(split)}
    return {
        "bytes": float(np.mean(sizes)),
        "ideal_bytes": float(np.mean(ideal)),
        "raw_bytes": split.latent.size,
        "header_bytes": HEADER.size,
        "top1": 100 * hits / len(samples),
        "n": len(samples),
        **macs,
    }


def parts(split: Split) -> list[tuple[str, Any]]:
    return [("head", split.head), ("tail", split.tail)]


def curve(rows: list[Row]) -> Curve:
    return sorted((row["bytes"], row["top1"]) for row in rows)


def pareto(curve: Curve) -> Curve:
    """Without the points that cost more than another and are no better."""
    kept: Curve = []
    for size, top1 in sorted(curve):
        if not kept or top1 > kept[-1][1]:
            kept.append((size, top1))
    return kept


def bytes_at(curve: Curve, top1: float) -> float:
    """The fewest bytes for an accuracy, on lines between the points; infinite where no point reaches it."""
    points = pareto(curve)
    if top1 > points[-1][1]:
        return float("inf")
    return float(np.interp(top1, [point[1] for point in points], [point[0] for point in points]))


def accuracy_at(curve: Curve, size: float) -> float:
    """The accuracy for so many bytes, on lines between the points; 0 for fewer than the smallest point's."""
    points = pareto(curve)
    return float(np.interp(size, [point[0] for point in points], [point[1] for point in points], left=0.0))
