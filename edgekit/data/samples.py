"""Samples with what they show: decoded lazily, hashed by content, served in batches."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np

from edgekit.data.input import IGNORE, Input, Task, View
from edgekit.errors import BadInput
from edgekit.schema import canonical, sha256

T = TypeVar("T")
R = TypeVar("R")

OnError = Literal["stop", "skip"]
# (iterable, what it is about, how many items) -> the same items, shown to the user on their way through.
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
# (x, truths, indices); the truths are an array or, for detection, a list of one a picture: see Samples.batches.
Batch = tuple[np.ndarray, Any, list[int]]

WORKERS = min(8, os.cpu_count() or 1)
NO_LABEL = -1


def no_progress(iterable: Iterable[T], label: str, total: int) -> Iterable[T]:  # noqa: ARG001
    return iterable


def in_order(function: Callable[[T], R], items: Iterable[T], ahead: int, workers: int = WORKERS) -> Iterator[R]:
    """`map` in a few threads, at most `ahead` results before their turn."""
    waiting: collections.deque[Future[R]] = collections.deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Not waited for: what nobody reads to its end may be closed by the garbage collector, in whichever thread.
        pool.shutdown(wait=False, cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a picture shows, where one class for all of it does not say it.

    task: "segment" or "detect".
    name: stands in errors, such as the path of the mask.
    read: for "segment" the class of each pixel, uint8 (H, W), IGNORE where it has none; for "detect" boxes, float
        (n, 5) of x1, y1, x2, y2, class in pixels of the picture. A class ~c, below 0, is a crowd of class c: what is
        found in it is neither right nor wrong.
    """

    task: Task
    name: str
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)
    sha256: str

    def renumbered(self, numbers: Sequence[int]) -> Truth:
        """Boxes with class numbers[c] instead of c."""

        def read() -> np.ndarray:
            boxes = np.array(self.read())
            classes = boxes[:, 4].astype(np.int64)
            new = np.array(numbers)[np.where(classes < 0, ~classes, classes)]
            boxes[:, 4] = np.where(classes < 0, ~new, new)
            return boxes

        return dataclasses.replace(self, read=read, sha256=sha256(canonical([self.sha256, list(numbers)])))


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture and its class. `read` decodes it: uint8 (H, W) or (H, W, C); BadInput if it cannot.

    label: the class; NO_LABEL where `truth` says what the picture shows, or where nobody knows.
    sha256: of the encoded file's bytes, or of the array's where the source holds arrays. Of the picture alone, so that
        the same one is found in two roles even if its masks or boxes differ.
    """

    id: str
    label: int
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)
    sha256: str
    truth: Truth | None = None

    @property
    def content(self) -> tuple[str | int, ...]:
        """What the sample is: id, picture, and label or truth."""
        if self.truth is None:
            return self.id, self.sha256, self.label
        return self.id, self.sha256, self.truth.task, self.truth.sha256


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples of one role, sorted by id. `classes` names the labels where the source or the recipe does."""

    items: tuple[Sample, ...]
    classes: tuple[str, ...] | None = None
    on_error: OnError = "stop"

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return self.items[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.items)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(sample.id for sample in self.items)

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,), read-only."""
        labels = np.array([sample.label for sample in self.items], np.int64)
        labels.flags.writeable = False
        return labels

    @functools.cached_property
    def sha256(self) -> str:
        """One hash over every id, picture, and label or truth."""
        return sha256(canonical([sample.content for sample in self.items]))

    @property
    def task(self) -> Task:
        """What the samples can be used for; a source gives all of them for one task."""
        truth = self.items[0].truth if self.items else None
        return "classify" if truth is None else truth.task

    @property
    def labelled(self) -> bool:
        """Whether it is known what the pictures show; a source knows it of all of them or of none."""
        return not self.items or self.items[0].truth is not None or self.items[0].label != NO_LABEL

    def subset(self, n: int, seed: int) -> Samples:
        """At most `n` samples drawn by `seed`, in the order of the ids; a smaller draw is part of a larger one.

        Raises:
            BadInput: `n` is not positive.
        """
        if n < 1:
            raise BadInput(f"a subset of {n} samples: at least 1 is needed")
        # By hash rather than by a generator, whose stream may change between NumPy's versions.
        drawn = sorted(self.items, key=lambda sample: sha256(f"{seed}/{sample.id}/{sample.sha256}".encode()))[:n]
        return dataclasses.replace(self, items=tuple(sorted(drawn, key=lambda sample: sample.id)))

    def batches(
        self, input: Input, batch_size: int, order: Sequence[int] | None = None, on_error: OnError | None = None
    ) -> Batches:
        """Float32 batches (B, C, H, W) with what they show and indices into self; the last may be smaller.

        What they show is, by task: "classify" labels int64 (B,); "segment" classes int64 (B, H, W), IGNORE where a
        pixel has none; "detect" a list of float64 (n, 5), x1, y1, x2, y2, class (see Truth) in the input's pixels.

        Args:
            order: which samples, in which order; all of them as they stand if None.
            on_error: "stop" at a picture that cannot be decoded, or "skip" it and note its index in `Batches.skipped`;
                as the samples were loaded if None.

        Raises:
            BadInput: a wrong `batch_size` or `order`; while iterating, a picture that cannot be used.
        """
        order = range(len(self)) if order is None else [int(index) for index in order]
        if batch_size < 1:
            raise BadInput(f"batch_size = {batch_size} must be at least 1")
        for index in order:
            if not 0 <= index < len(self):
                raise BadInput(f"there is no sample {index}; there are {len(self)}")
        return Batches(self, input, batch_size, order, on_error or self.on_error)


class Batches(Iterator[Batch]):
    """An iterator of (x float32 (B, C, H, W), truths, indices). `skipped` grows while it runs."""

    def __init__(
        self, samples: Samples, input: Input, batch_size: int, order: Sequence[int], on_error: OnError
    ) -> None:
        self.skipped: list[int] = []
        # The generator knows nothing of this object, so that it ends with it and not at the next garbage collection.
        self._batches = _batches(samples, input, batch_size, order, on_error, self.skipped)

    def __next__(self) -> Batch:
        return next(self._batches)


def _batches(
    samples: Samples, input: Input, batch_size: int, order: Sequence[int], on_error: OnError, skipped: list[int]
) -> Iterator[Batch]:
    fitted: list[_Fitted] = []
    indices: list[int] = []
    decode = functools.partial(_decoded, samples, input, on_error)
    for index, one in zip(order, in_order(decode, order, ahead=max(batch_size, WORKERS))):
        if one is None:
            skipped.append(index)
            continue
        fitted.append(one)
        indices.append(index)
        if len(fitted) == batch_size:
            yield _batch(samples, input, fitted, indices)
            fitted, indices = [], []
    if fitted:
        yield _batch(samples, input, fitted, indices)


def _batch(samples: Samples, input: Input, fitted: list[_Fitted], indices: list[int]) -> Batch:
    x = input.normalised(np.stack([picture for picture, _ in fitted]))
    truths = [truth for _, truth in fitted if truth is not None]
    if samples.task == "classify":
        return x, samples.labels[indices], indices
    return x, np.stack(truths).astype(np.int64) if samples.task == "segment" else truths, indices


def _decoded(samples: Samples, input: Input, on_error: OnError, index: int) -> _Fitted | None:
    """The picture and its truth in the input's geometry, or None for a picture to skip."""
    sample = samples[index]
    try:
        image = sample.read()
        truth = None if sample.truth is None else sample.truth.read()
    except BadInput:
        if on_error == "skip":
            return None
        raise
    return fitted(sample, image, truth, input)


# A picture uint8 (C, H, W), and its classes uint8 (H, W) or boxes float64 (n, 5).
_Fitted = tuple[np.ndarray, np.ndarray | None]


def fitted(
    sample: Sample, image: np.ndarray, truth: np.ndarray | None, input: Input, view: View | None = None
) -> _Fitted:
    """A decoded picture and what it shows in the input's geometry; with `view` (not for boxes) as that looks at it.

    Raises:
        BadInput: it does not fit. That is the recipe's mistake and not the file's, so it is never skipped.
    """
    try:
        return input.resized(image, view), _fitted_truth(sample.truth, truth, image, input, view)
    except BadInput as error:
        raise BadInput(f"{sample.id}: {error}") from None


def _fitted_truth(
    truth: Truth | None, content: np.ndarray | None, image: np.ndarray, input: Input, view: View | None
) -> np.ndarray | None:
    """A mask or boxes of the picture where `input` puts that picture."""
    if truth is None or content is None:
        return None
    height, width = image.shape[:2]
    if truth.task == "detect":
        return input.resized_boxes(content, height, width)
    if content.shape != (height, width):
        raise BadInput(f"{truth.name}: is {content.shape[0]}×{content.shape[1]}, its picture {height}×{width}")
    return input.resized_mask(content, view)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a source holds: makers of samples, which read and hash when called, under its own roles or under None."""

    parts: Mapping[str | None, list[Callable[[], Sample]]]
    classes: tuple[str, ...] | None = None


def check_labels(samples: Samples, classes: int) -> None:
    """That every label is a class of a network with `classes` outputs (its class offset not counted).

    Raises:
        BadInput: a label is outside them, the samples have masks or boxes instead, or the data names another number
            of classes, so that its labels would mean other outputs than the network's.
    """
    check_task(samples, "classify")
    for sample in samples:
        if not 0 <= sample.label < classes:
            raise BadInput(
                f"{sample.id}: label {sample.label} is outside the {classes} classes 0 to {classes - 1}; "
                "correct it, or see [output] classes and class_offset"
            )
    check_names(samples, classes)


def check_names(samples: Samples, classes: int) -> None:
    """That class names, where the data has them, are as many as the network's classes.

    Raises:
        BadInput: they are not.
    """
    if samples.classes is not None and len(samples.classes) != classes:
        raise BadInput(
            f"the data names {len(samples.classes)} classes and the network has {classes}; write [output] labels, "
            "the classes' names in the order of the network's outputs"
        )


def check_task(samples: Samples, task: Task) -> None:
    """That the samples say what a network for `task` should answer.

    Raises:
        BadInput: they are for another task, or say nothing.
    """
    if not samples.labelled:
        raise BadInput(f"{samples[0].id}: has no label ({NO_LABEL}); such pictures are for calibration only")
    sources = {"classify": "folder:, csv:, npz: or wds:", "segment": "masks:PATH", "detect": "coco:FILE"}
    if samples.task != task:
        raise BadInput(
            f"{samples[0].id}: the data is for {samples.task!r} and [output] task = {task!r}; "
            f"give --data {sources[task]}, or write task = {samples.task!r}"
        )


def check_masks(samples: Samples, masks: np.ndarray, indices: Sequence[int], classes: int) -> None:
    """That masks int64 (B, H, W), those of samples[indices], hold no class but 0 to classes - 1 and IGNORE.

    Raises:
        BadInput: one does; the message names its file.
    """
    wrong = (masks >= classes) & (masks != IGNORE)
    if wrong.any():
        sample = samples[indices[int(wrong.any(axis=(1, 2)).argmax())]]
        name = sample.truth.name if sample.truth else sample.id
        raise BadInput(
            f"{name}: class {masks[wrong][0]} is outside the {classes} classes 0 to {classes - 1}; "
            f"correct it, or write {IGNORE} where a pixel is to be ignored"
        )
