"""Scores: what a network gets right on samples, for any function from a batch to outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from edgekit.data import Input, Output, Progress, Samples, no_progress
from edgekit.errors import BadInput
from edgekit.metrics import METRICS, classify_hits, classify_metrics
from edgekit.parallel import ALONE, World

__all__ = ["METRICS", "Predict", "Score", "classify_hits", "classify_metrics", "evaluate"]

Predict = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Score:
    """How a network did. metrics: percent, 0 to 100; n: samples scored; skipped: samples that could not be decoded.

    correct: for classification, for each sample scored, in the samples' order, whether the first choice was right: two
    networks scored on the same samples can be compared pair by pair. Empty for other tasks.
    resampled: for other metrics, where that was asked for, what each is on resamples of the samples, the same for all
    networks; see metrics/resample.py.
    """

    metrics: dict[str, float]
    n: int
    correct: tuple[bool, ...]
    skipped: int
    resampled: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)


def evaluate(
    predict: Predict,
    samples: Samples,
    input: Input,
    output: Output,
    batch_size: int = 32,
    progress: Progress = no_progress,
    world: World = ALONE,
    resample: bool = False,
) -> Score:
    """Score `predict` on all of `samples`; it takes float32 (B, C, H, W) and gives, by [output] task:

    "classify" logits (B, class_offset + classes); "segment" logits (B, class_offset + classes, H, W); "detect" for each
    picture (n, 6) of x1, y1, x2, y2 in the input's pixels, score, class: a list of them, or one array (B, n, 6).

    Of several processes each scores every `world.size`-th picture, none twice, and all get the whole result.
    Pictures that cannot be decoded stop it, or are counted in `Score.skipped`, as the samples were loaded.

    Raises:
        BadInput: samples of another task, outputs that fit neither [output] nor the samples, NaN, or no picture
            that could be decoded.
    """
    metric = METRICS[output.task](samples, output)
    order = range(world.rank, len(samples), world.size)
    batches = samples.batches(input, batch_size, order)
    n = 0
    for x, truths, indices in progress(batches, "scoring", -(-len(order) // batch_size)):
        outputs = predict(x)
        if len(outputs) != len(x):
            raise BadInput(f"the network gave {len(outputs)} outputs for a batch of {len(x)}")
        metric.add(outputs, truths, indices)
        n += len(x)
    parts = world.gathered((metric.counts, n, len(batches.skipped)))
    n, skipped = sum(part[1] for part in parts), sum(part[2] for part in parts)
    if n == 0:
        raise BadInput(f"none of {len(samples)} samples could be scored; {skipped} could not be decoded")
    for rank, (counts, _, _) in enumerate(parts):
        if rank != world.rank:
            metric.merge(counts)
    resampled = {name: tuple(values.tolist()) for name, values in metric.resampled().items()} if resample else {}
    return Score(metric.result(), n, metric.correct, skipped, resampled)
