"""Scores: what a network gets right on samples, for any function from a batch to logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from edgekit.data import Input, Output, Progress, Samples, check_labels, no_progress
from edgekit.errors import BadInput

Predict = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Score:
    """How a network did. metrics: percent, 0 to 100; n: samples scored; skipped: samples that could not be decoded.

    correct: for each sample scored, in the samples' order, whether the first choice was right: two networks scored on
    the same samples can be compared pair by pair.
    """

    metrics: dict[str, float]
    n: int
    correct: tuple[bool, ...]
    skipped: int


def classify_hits(logits: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """For each row of logits (B, classes), whether it counts for each metric: bool (B,).

    "top1": the label is the first of the largest logits. "top5", given more than 5 classes: fewer than 5 logits are
    larger than the label's.

    Raises:
        BadInput: NaN in the logits, a label outside them, or shapes that do not fit.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise BadInput(f"logits must be (B, classes) with labels (B,); got {logits.shape} and {labels.shape}")
    outside = (labels < 0) | (labels >= logits.shape[1])
    if outside.any():
        raise BadInput(f"label {labels[outside][0]} is outside the network's {logits.shape[1]} classes")
    if np.isnan(logits).any():
        raise BadInput("the network's output holds NaN; look for an overflow (fp16?) or broken weights")
    hits = {"top1": logits.argmax(axis=1) == labels}
    if logits.shape[1] > 5:
        own = np.take_along_axis(logits, labels[:, None], axis=1)
        hits["top5"] = (logits > own).sum(axis=1) < 5
    return hits


def classify_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"top1", "top5"} of logits (N, classes) and labels (N,), in percent; see `classify_hits`.

    Raises:
        BadInput: as `classify_hits`, or no rows.
    """
    return _percent(classify_hits(logits, labels))


# Task -> which samples of a batch count for which metric; a metric is the share of them, the first one is `correct`.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]] = {"classify": classify_hits}


def evaluate(
    predict: Predict,
    samples: Samples,
    input: Input,
    output: Output,
    batch_size: int = 32,
    progress: Progress = no_progress,
) -> Score:
    """Score `predict`, float32 (B, C, H, W) -> logits (B, class_offset + classes), on all of `samples`.

    Pictures that cannot be decoded stop it, or are counted in `Score.skipped`, as the samples were loaded.

    Raises:
        BadInput: a task that cannot be scored, outputs that fit neither [output] nor the labels, NaN, or no picture
            that could be decoded.
    """
    if output.task not in METRICS:
        raise BadInput(f"[output] task = {output.task!r} cannot be scored; these can: {', '.join(METRICS)}")
    batches = samples.batches(input, batch_size)
    parts: list[dict[str, np.ndarray]] = []
    for x, labels, _ in progress(batches, "scoring", -(-len(samples) // batch_size)):
        logits = output.scores(np.asarray(predict(x)))
        if len(logits) != len(x):
            raise BadInput(f"the network gave {len(logits)} outputs for a batch of {len(x)}")
        if not parts:
            check_labels(samples, logits.shape[1])
        parts.append(METRICS[output.task](logits, labels))
    if not parts:
        raise BadInput(f"none of {len(samples)} samples could be scored; {len(batches.skipped)} could not be decoded")
    hits = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    correct = tuple(next(iter(hits.values())).tolist())
    return Score(_percent(hits), len(correct), correct, len(batches.skipped))


def _percent(hits: dict[str, np.ndarray]) -> dict[str, float]:
    if not all(len(hit) for hit in hits.values()):
        raise BadInput("there are no samples to score")
    return {name: 100 * float(hit.mean()) for name, hit in hits.items()}
