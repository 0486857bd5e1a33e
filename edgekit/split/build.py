"""Cut the files of a bundle that is being made: head and tail beside each file with a latent, and `split.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgekit.bottlenecks import bottleneck_of
from edgekit.data import Data, Samples
from edgekit.engines import runner
from edgekit.errors import ParityError
from edgekit.export import serialise
from edgekit.files import write_bytes
from edgekit.graph_onnx import shapes_at_batch_1
from edgekit.onnx_file import read, read_io
from edgekit.onnx_split import LATENT, Crossing, halves, has_latent
from edgekit.rewrites.split import Split
from edgekit.split import artifact
from edgekit.split.tables import Tables, from_counts
from edgekit.targets import target

if TYPE_CHECKING:
    from torch import nn

BATCH, COUNTED, PROBED = 32, 1000, 4
"""Pictures at once; at most, that symbols are counted on; that head and tail are checked on."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A file with a latent and the two that it falls into, by name."""

    whole: str
    head: str
    tail: str


class Made(NamedTuple):
    """What cutting a bundle's files gave: what `split.json` says, the names of all new files, and for each file that
    was cut `latent_bytes`, what a test picture's symbols cost by the tables, in the mean."""

    split: artifact.Split
    files: list[str]
    rates: dict[str, dict[str, float]]


def crossing_of(module: nn.Module | None, rewrites: Sequence[Any]) -> Crossing | None:
    """What crosses, where the network has a bottleneck or a rewrite cuts its file; None where it stays whole."""
    if module is not None and (found := bottleneck_of(module)):
        return found[1].latent.crossing(found[0])
    return next((rewrite.crossing for rewrite in rewrites if isinstance(rewrite, Split)), None)


def cut_files(folder: Path, files: Sequence[str], crossing: Crossing, full: str, data: Data) -> Made:
    """Cut each of `files` that has a latent; `split.json` names the last one's halves.

    Args:
        full: the file of the uncut network.
        data: symbols are counted on its role `calibrate`, for tables that no prior gives.

    Raises:
        BadInput: calibration pictures are needed and missing.
        ParityError: head and tail answer otherwise than the file that they are of.
    """
    test = data.role("test")
    pairs = [_cut(folder, name) for name in files if has_latent(read(folder / name))]
    _check(folder, pairs, test)
    last = pairs[-1]
    tables = _tables(folder, last, crossing, data)
    head, tail, uncut = (artifact.part(folder, name) for name in (last.head, last.tail, full))
    channels, height, width = shapes_at_batch_1(read(folder / last.head))[LATENT][1:]
    latent = artifact.Latent(LATENT, (channels, height, width))
    split = artifact.Split(crossing.cut, crossing.bottleneck, head, tail, latent, tables, uncut)
    names = [*(name for pair in pairs for name in (pair.head, pair.tail)), artifact.write(folder, split).name]
    return Made(split, names, {pair.whole: {"latent_bytes": _mean_bytes(folder, pair, tables, test)} for pair in pairs})


def _cut(folder: Path, name: str) -> Pair:
    kind = name.partition(".")[2]  # <target>.<precision>.onnx
    pair = Pair(name, f"head.{kind}", f"tail.{kind}")
    for part, model in zip((pair.head, pair.tail), halves(read(folder / name))):
        write_bytes(folder / part, serialise(model))
    return pair


def _session(folder: Path, name: str) -> Any:
    return runner(target(name.split(".")[1])).load(folder / name)


def _latents(folder: Path, pair: Pair, samples: Samples) -> Iterator[np.ndarray]:
    """The symbols of every picture, uint8 (C, H, W)."""
    session = _session(folder, pair.head)
    for batch, _, _ in samples.batches(read_io(folder / pair.whole)[0], BATCH):
        yield from session.run(batch)


def _check(folder: Path, pairs: Sequence[Pair], test: Samples) -> None:
    for pair in pairs:
        whole, head, tail = (_session(folder, name) for name in (pair.whole, pair.head, pair.tail))
        batch, _, _ = next(test.subset(PROBED, 0).batches(read_io(folder / pair.whole)[0], PROBED))
        if not np.array_equal(whole.run(batch), tail.run(head.run(batch))):
            raise ParityError(f"{pair.whole}: head and tail, one after the other, answer otherwise; nothing was sealed")


def _tables(folder: Path, pair: Pair, crossing: Crossing, data: Data) -> Tables:
    if crossing.counts is not None:
        return from_counts(crossing.counts)
    counts: Any = 0
    for latent in _latents(folder, pair, data.role("calibrate").subset(COUNTED, 0)):
        counts = counts + np.stack([np.bincount(channel.ravel(), minlength=crossing.levels) for channel in latent])
    return from_counts(counts)


def _mean_bytes(folder: Path, pair: Pair, tables: Tables, test: Samples) -> float:
    return float(np.mean([tables.bits(latent) / 8 for latent in _latents(folder, pair, test)]))
