"""Detection: "map", COCO's average precision over IoU 0.50, 0.55 … 0.95, and "map50", that at 0.50.

Lin et al.: Microsoft COCO, 2014, arXiv 1405.0312, and the evaluation published with it (area "all", at most 100
detections a class and picture). At one IoU threshold, in the order of their scores, each detection takes the box of its
class and picture that it overlaps most, not yet taken and by at least the threshold; one that gets none but lies in a
crowd by as much, is not counted. With tp and fp counted over all pictures down to a score and P boxes of the class:

    recall = tp / P, precision = tp / (tp + fp), AP = mean over r = 0, 0.01 … 1 of max precision where recall ≥ r

The metrics are the mean over the classes that have boxes (and, for "map", over the thresholds).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from edgekit.data import Output, Samples, check_names, check_task
from edgekit.errors import BadInput
from edgekit.metrics.resample import times

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST_DETECTIONS = 100
# A detection, with a bit for each threshold at which it is right, and at which it counts neither way.
RECORD = np.dtype([("label", np.int32), ("score", np.float64), ("right", np.uint16), ("ignored", np.uint16)])
Picture = tuple[int, np.ndarray, np.ndarray]
"""Its index, its detections (RECORD), and the classes of its boxes, crowds apart."""
BITS = 2 ** np.arange(len(THRESHOLDS), dtype=np.uint16)


class Detect:
    """Keeps 16 bytes a detection: precision is ordered by score over all pictures, so none can be summed up earlier."""

    def __init__(self, samples: Samples, output: Output) -> None:
        check_task(samples, "detect")
        if output.classes is not None:
            check_names(samples, output.classes)
        self._samples, self._output = samples, output
        self._pictures: list[Picture] = []

    def add(self, outputs: Sequence[np.ndarray], truths: Sequence[np.ndarray], indices: Sequence[int]) -> None:
        for found, boxes, index in zip(outputs, truths, indices):
            found = self._output.detections(found)
            if np.isnan(found).any():
                raise BadInput(f"{self._samples[index].id}: the network's boxes hold NaN; look for an overflow (fp16?)")
            self._pictures.append((index, judged(found, boxes), boxes[boxes[:, 4] >= 0, 4].astype(int)))

    @property
    def counts(self) -> list[Picture]:
        return self._pictures

    def merge(self, counts: list[Picture]) -> None:
        self._pictures = sorted([*self._pictures, *counts], key=lambda picture: picture[0])

    def result(self) -> dict[str, float]:
        classes = _by_class(self._pictures)
        if not classes:
            raise BadInput("there is no box to score: none is inside the input, or all are crowds")
        return _metrics(classes, np.ones(len(self._pictures), np.uint8))

    @property
    def correct(self) -> tuple[bool, ...]:
        return ()

    def resampled(self) -> dict[str, np.ndarray]:
        classes = _by_class(self._pictures)
        drawn = np.stack([times(index) for index, _, _ in self._pictures], axis=1)  # (RESAMPLES, pictures)
        if not sum(drawn @ one.boxes for one in classes).all():
            return {}
        found = [_metrics(classes, each) for each in drawn]
        return {name: np.array([one[name] for one in found]) for name in found[0]}


@dataclasses.dataclass(frozen=True)
class OneClass:
    """All detections of one class, the surest first.

    Attributes:
        right, wrong: at each threshold, bool (detections, thresholds).
        picture: the place of each detection's picture, int64 (detections,).
        boxes: how many each picture has, int64 (pictures,).
    """

    right: np.ndarray
    wrong: np.ndarray
    picture: np.ndarray
    boxes: np.ndarray


def _by_class(pictures: Sequence[Picture]) -> list[OneClass]:
    """The classes that have boxes."""
    records = np.concatenate([found for _, found, _ in pictures])
    picture = np.repeat(np.arange(len(pictures)), [len(found) for _, found, _ in pictures])
    order = np.argsort(-records["score"], kind="stable")
    records, picture = records[order], picture[order]
    classes = []
    for label in np.unique(np.concatenate([labels for _, _, labels in pictures])):
        own = records["label"] == label
        right = (records["right"][own, None] & BITS) > 0
        wrong = ~right & ((records["ignored"][own, None] & BITS) == 0)
        boxes = np.array([np.count_nonzero(labels == label) for _, _, labels in pictures])
        classes.append(OneClass(right, wrong, picture[own], boxes))
    return classes


def _metrics(classes: Sequence[OneClass], drawn: np.ndarray) -> dict[str, float]:
    """The metrics where each picture counts `drawn` times, uint8 (pictures,)."""
    counted = [(one, int(drawn @ one.boxes)) for one in classes]
    precisions = [_average_precision(one, drawn[one.picture], boxes) for one, boxes in counted if boxes]
    mean = 100 * np.mean(precisions, axis=0)  # (thresholds,)
    return {"map": float(mean.mean()), "map50": float(mean[0])}


def judged(found: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """One picture's detections as an array of RECORD, by class and falling score.

    Args:
        found: (n, 6) of x1, y1, x2, y2, score, class.
        boxes: (m, 5) of x1, y1, x2, y2, class, ~class for a crowd.
    """
    parts = [np.empty(0, RECORD)]
    for label in np.unique(found[:, 5]):
        own = found[found[:, 5] == label]
        own = own[np.argsort(-own[:, 4], kind="stable")][:MOST_DETECTIONS]
        crowd = boxes[:, 4] == -1 - label
        true = (boxes[:, 4] == label) | crowd
        right, ignored = _matched(overlaps(own, boxes[true], crowd[true]), crowd[true])
        part = np.empty(len(own), RECORD)
        part["label"], part["score"] = label, own[:, 4]
        part["right"], part["ignored"] = right @ BITS, ignored @ BITS
        parts.append(part)
    return np.concatenate(parts)


def overlaps(found: np.ndarray, boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Intersection over union (n, m) of boxes x1, y1, x2, y2, …; of a crowd, bool (m,), over the area of `found`."""
    low = np.maximum(found[:, None, :2], boxes[None, :, :2])
    high = np.minimum(found[:, None, 2:4], boxes[None, :, 2:4])
    shared = np.clip(high - low, 0, None).prod(axis=2)  # (n, m)
    area, other = (np.clip(item[:, 2:4] - item[:, :2], 0, None).prod(axis=1) for item in (found, boxes))
    union = area[:, None] + np.where(crowd, 0, other[None] - shared)
    return np.divide(shared, union, out=np.zeros(shared.shape), where=union > 0)


def _matched(ious: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which detections, of falling score, are right and which ignored, bool (n, thresholds), from IoUs (n, m)."""
    needed = THRESHOLDS[:, None]
    # Backwards, since argmax takes the first of equal overlaps and COCO's evaluation the last.
    own = ious[:, ~crowd][:, ::-1]
    right = np.zeros((len(ious), len(THRESHOLDS)), bool)
    free = np.ones((len(THRESHOLDS), own.shape[1]), bool)
    for index, row in enumerate(own if own.shape[1] else ()):
        fits = np.where(free & (row >= needed), row, -1)  # (thresholds, m)
        best = fits.argmax(axis=1)
        right[index] = fits.max(axis=1) > 0
        free[right[index], best[right[index]]] = False
    in_crowd = (ious[:, None, crowd] >= needed).any(axis=2)
    return right, in_crowd & ~right


def _average_precision(found: OneClass, times: np.ndarray, boxes: int) -> np.ndarray:
    """AP (thresholds,) of a class with that many boxes, where each detection counts so many times, uint8 (n,)."""
    tp, fp = ((one * times[:, None]).cumsum(axis=0, dtype=np.int64) for one in (found.right, found.wrong))
    precision = tp / np.maximum(tp + fp, 1)
    best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    best = np.concatenate([best, np.zeros((1, len(THRESHOLDS)))])  # a recall that is never reached
    reached = [np.searchsorted(column, RECALLS, side="left") for column in (tp / boxes).T]
    return np.array([best[at, index].mean() for index, at in enumerate(reached)])
