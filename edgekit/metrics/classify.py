"""Classification: "top1" and "top5"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.data import Output, Samples, check_labels
from edgekit.errors import BadInput
from edgekit.metrics.resample import RESAMPLES, times


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


def chosen_hits(chosen: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """As `classify_hits`, of the best classes of each row, int64 (B, k): "top5" needs k of 5 or more.

    Of classes that tie for the fifth place the file gave one; `classify_hits` counts all of them.
    """
    hits = {"top1": chosen[:, 0] == labels}
    if chosen.shape[1] >= 5:
        hits["top5"] = (chosen[:, :5] == labels[:, None]).any(axis=1)
    return hits


def classify_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"top1", "top5"} of logits (N, classes) and labels (N,), in percent; see `classify_hits`.

    Raises:
        BadInput: as `classify_hits`, or no rows.
    """
    return _percent(classify_hits(logits, labels))


class Classify:
    """The shares of samples that `classify_hits` counts, and which samples they were."""

    def __init__(self, samples: Samples, output: Output) -> None:
        self._samples, self._output = samples, output
        self._hits: dict[str, list[bool]] = {}
        self._indices: list[int] = []

    def add(self, outputs: np.ndarray, truths: np.ndarray, indices: Sequence[int]) -> None:
        for name, hits in self._counted(np.asarray(outputs), truths).items():
            self._hits.setdefault(name, []).extend(hits.tolist())
        self._indices.extend(indices)

    def _counted(self, outputs: np.ndarray, truths: np.ndarray) -> dict[str, np.ndarray]:
        scored = self._output.form == "scores"
        found = self._output.scores(outputs) if scored else self._output.chosen(outputs)
        classes = found.shape[1] if scored else self._output.classes
        if not self._hits and classes is not None:
            check_labels(self._samples, classes)
        return classify_hits(found, truths) if scored else chosen_hits(found, truths)

    @property
    def counts(self) -> tuple[dict[str, list[bool]], list[int]]:
        return self._hits, self._indices

    def merge(self, counts: tuple[dict[str, list[bool]], list[int]]) -> None:
        for name, hits in counts[0].items():
            self._hits.setdefault(name, []).extend(hits)
        self._indices.extend(counts[1])

    def result(self) -> dict[str, float]:
        return _percent({name: np.array(hits) for name, hits in self._hits.items()})

    @property
    def correct(self) -> tuple[bool, ...]:
        return tuple(hit for _, hit in sorted(zip(self._indices, self._hits["top1"])))

    def resampled(self) -> dict[str, np.ndarray]:
        """Of "top5"; for "top1" there is `correct`, which tells more."""
        if "top5" not in self._hits:
            return {}
        right, n = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
        for index, hit in sorted(zip(self._indices, self._hits["top5"])):
            drawn = times(index)
            right += hit * drawn
            n += drawn
        return {"top5": 100 * right / n} if n.all() else {}


def _percent(hits: dict[str, np.ndarray]) -> dict[str, float]:
    if not all(len(hit) for hit in hits.values()):
        raise BadInput("there are no samples to score")
    return {name: 100 * float(hit.mean()) for name, hit in hits.items()}
