"""Segmentation: "miou", the mean intersection over union, and "pixel_accuracy".

With n[t, p] pixels of class t that the network gives class p:

    IoU_c = n[c, c] / (Σ_p n[c, p] + Σ_t n[t, c] − n[c, c])        pixel accuracy = Σ_c n[c, c] / Σ n

The mean is over the classes that occur in the labels or in the answers; pixels of class IGNORE count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.data import IGNORE, Output, Samples, check_masks, check_names, check_task
from edgekit.errors import BadInput
from edgekit.metrics.resample import times


def confusion(logits: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """How many pixels of each class (row) got each answer (column): int64 (classes, classes).

    Args:
        logits: (B, classes, H, W); the answer is the first of the largest.
        masks: whole numbers (B, H, W), 0 to classes - 1 or IGNORE.

    Raises:
        BadInput: NaN in the logits, or shapes that do not fit.
    """
    if logits.ndim != 4 or len(logits) != len(masks):
        raise BadInput(f"logits must be (B, classes, H, W) with masks (B, H, W); got {logits.shape} and {masks.shape}")
    if np.isnan(logits).any():
        raise BadInput("the network's output holds NaN; look for an overflow (fp16?) or broken weights")
    return chosen_confusion(logits.argmax(axis=1), masks, logits.shape[1])


def chosen_confusion(answers: np.ndarray, masks: np.ndarray, classes: int) -> np.ndarray:
    """`confusion` of answers that are classes already, whole numbers (B, H, W)."""
    if answers.shape[1:] != masks.shape[1:]:
        found, wanted = ("×".join(map(str, shape)) for shape in (answers.shape[1:], masks.shape[1:]))
        raise BadInput(
            f"the network's output is {found} and the labels, of its input's size, are {wanted}; "
            "let the network scale its output up to its input"
        )
    known = masks != IGNORE
    pairs = masks[known].astype(np.int64) * classes + answers[known]
    return np.bincount(pairs, minlength=classes**2).astype(np.int64).reshape(classes, classes)


def segment_metrics(counts: np.ndarray) -> dict[str, float]:
    """{"miou", "pixel_accuracy"} of a confusion matrix int64 (classes, classes), in percent.

    Raises:
        BadInput: it counts no pixel.
    """
    if not counts.any():
        raise BadInput(f"there is no labelled pixel to score: every one is {IGNORE}, or lies outside the input")
    return {name: float(value) for name, value in overlap_metrics(overlaps(counts)).items()}


def overlaps(counts: np.ndarray) -> np.ndarray:
    """Intersection and union of each class, int64 (2, classes), by a confusion matrix."""
    right = np.diag(counts)
    return np.stack([right, counts.sum(axis=0) + counts.sum(axis=1) - right])


def overlap_metrics(found: np.ndarray) -> dict[str, np.ndarray]:
    """`segment_metrics` of overlaps (…, 2, classes): arrays (…), NaN where there is no pixel."""
    right, union = found[..., 0, :], found[..., 1, :]
    ious = right / np.maximum(union, 1)  # 0 of a class that does not occur
    with np.errstate(invalid="ignore"):
        return {
            "miou": 100 * ious.sum(axis=-1) / (union > 0).sum(axis=-1),
            "pixel_accuracy": 100 * 2 * right.sum(axis=-1) / (right + union).sum(axis=-1),
        }


class Segment:
    """Adds up one confusion matrix, and the overlaps of each resample, whatever the number of pictures."""

    def __init__(self, samples: Samples, output: Output) -> None:
        check_task(samples, "segment")
        self._samples, self._output = samples, output
        self._counts: np.ndarray | None = None
        self._drawn: np.ndarray | int = 0  # (RESAMPLES, 2, classes)

    def add(self, outputs: np.ndarray, truths: np.ndarray, indices: Sequence[int]) -> None:
        scored, outputs = self._output.form == "scores", np.asarray(outputs)
        found = self._output.scores(outputs) if scored else self._output.chosen(outputs)
        classes = found.shape[1] if scored else self._known_classes()
        if self._counts is None:
            check_names(self._samples, classes)
            self._counts = np.zeros((classes, classes), np.int64)
        check_masks(self._samples, truths, indices, classes)
        for index, one, mask in zip(indices, found, truths):
            own = confusion(one[None], mask[None]) if scored else chosen_confusion(one[None], mask[None], classes)
            self._counts += own
            self._drawn = self._drawn + times(index)[:, None, None] * overlaps(own)

    def _known_classes(self) -> int:
        """Masks do not tell how many classes there are. Raises BadInput where [output] does not either."""
        if self._output.classes is None:
            raise BadInput("the file gives masks; write [output] classes, the number of its classes")
        return self._output.classes

    @property
    def counts(self) -> tuple[np.ndarray | None, np.ndarray | int]:
        return self._counts, self._drawn

    def merge(self, counts: tuple[np.ndarray | None, np.ndarray | int]) -> None:
        own, drawn = counts
        if own is not None:
            self._counts = own if self._counts is None else self._counts + own
            self._drawn = self._drawn + drawn

    def result(self) -> dict[str, float]:
        return segment_metrics(np.zeros((1, 1), np.int64) if self._counts is None else self._counts)

    @property
    def correct(self) -> tuple[bool, ...]:
        return ()

    def resampled(self) -> dict[str, np.ndarray]:
        found = overlap_metrics(np.asarray(self._drawn))
        return found if all(np.isfinite(values).all() for values in found.values()) else {}
