"""Samples with labels: decoded lazily, hashed by content, served in batches."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import numpy as np

from edgekit.data.input import Input
from edgekit.errors import BadInput
from edgekit.schema import canonical, sha256

T = TypeVar("T")
R = TypeVar("R")

OnError = Literal["stop", "skip"]
# (iterable, what it is about, how many items) -> the same items, shown to the user on their way through.
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
Batch = tuple[np.ndarray, np.ndarray, list[int]]

WORKERS = min(8, os.cpu_count() or 1)


def no_progress(iterable: Iterable[T], label: str, total: int) -> Iterable[T]:  # noqa: ARG001
    return iterable


def in_order(function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`map` in a few threads, at most `ahead` results before their turn."""
    waiting: collections.deque[Future[R]] = collections.deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One picture and its class. `read` decodes it: uint8 (H, W) or (H, W, C); BadInput if it cannot.

    sha256: of the encoded file's bytes, or of the array's where the source holds arrays.
    """

    id: str
    label: int
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False, compare=False)
    sha256: str


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
        """One hash over every id, content and label."""
        return sha256(canonical([(sample.id, sample.sha256, sample.label) for sample in self.items]))

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
        """Float32 batches (B, C, H, W) with labels int64 (B,) and indices into self; the last may be smaller.

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
    """An iterator of (x float32 (B, C, H, W), labels int64 (B,), indices). `skipped` grows while it runs."""

    def __init__(
        self, samples: Samples, input: Input, batch_size: int, order: Sequence[int], on_error: OnError
    ) -> None:
        self.skipped: list[int] = []
        self._samples = samples
        self._input = input
        self._on_error = on_error
        self._batches = self._run(batch_size, order)

    def __next__(self) -> Batch:
        return next(self._batches)

    def _run(self, batch_size: int, order: Sequence[int]) -> Iterator[Batch]:
        pictures: list[np.ndarray] = []
        indices: list[int] = []
        for index, picture in zip(order, in_order(self._decode, order, ahead=max(batch_size, WORKERS))):
            if picture is None:
                self.skipped.append(index)
                continue
            pictures.append(picture)
            indices.append(index)
            if len(pictures) == batch_size:
                yield self._batch(pictures, indices)
                pictures, indices = [], []
        if pictures:
            yield self._batch(pictures, indices)

    def _batch(self, pictures: list[np.ndarray], indices: list[int]) -> Batch:
        return self._input.normalised(np.stack(pictures)), self._samples.labels[indices], indices

    def _decode(self, index: int) -> np.ndarray | None:
        """uint8 (C, H, W), or None for a picture to skip."""
        sample = self._samples[index]
        try:
            image = sample.read()
        except BadInput:
            if self._on_error == "skip":
                return None
            raise
        # A picture that decodes but does not fit is the recipe's mistake, not the file's: never skipped.
        try:
            return self._input.resized(image)
        except BadInput as error:
            raise BadInput(f"{sample.id}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Found:
    """What a source holds: makers of samples, which read and hash when called, under its own roles or under None."""

    parts: Mapping[str | None, list[Callable[[], Sample]]]
    classes: tuple[str, ...] | None = None


def check_labels(samples: Samples, classes: int) -> None:
    """That every label is a class of a network with `classes` outputs (its class offset not counted).

    Raises:
        BadInput: a label is outside them, or the data names another number of classes, so that its labels would
            mean other outputs than the network's.
    """
    for sample in samples:
        if not 0 <= sample.label < classes:
            raise BadInput(
                f"{sample.id}: label {sample.label} is outside the {classes} classes 0 to {classes - 1}; "
                "correct it, or see [output] classes and class_offset"
            )
    if samples.classes is not None and len(samples.classes) != classes:
        raise BadInput(
            f"the data names {len(samples.classes)} classes and the network has {classes}; write [output] labels, "
            "the classes' names in the order of the network's outputs"
        )
