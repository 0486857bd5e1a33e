"""Task metrics, a task a file. Each adds up batch by batch and keeps no pictures and no outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from edgekit.data import Output, Samples
from edgekit.metrics.classify import Classify, classify_hits, classify_metrics
from edgekit.metrics.detect import Detect
from edgekit.metrics.segment import Segment

__all__ = [
    "METRICS",
    "Classify",
    "Detect",
    "Metric",
    "Segment",
    "classify_hits",
    "classify_metrics",
]


class Metric(Protocol):
    """What a network for one task got right so far."""

    def add(self, outputs: Any, truths: Any, indices: Sequence[int]) -> None:
        """Count a batch of the network's outputs against what samples[indices] show (see Samples.batches).

        Raises:
            BadInput: they do not fit together.
        """

    @property
    def counts(self) -> Any:
        """Everything counted so far, as plain data."""

    def merge(self, counts: Any) -> None:
        """Count in addition what another metric of the same kind has counted of other samples."""

    def result(self) -> dict[str, float]:
        """Each metric in percent, the task's main one first. Raises BadInput where there is nothing to score."""

    @property
    def correct(self) -> tuple[bool, ...]:
        """For each sample whether it was right, where that can be said; else ()."""

    def resampled(self) -> dict[str, np.ndarray]:
        """Metrics in percent of each resample, float64 (RESAMPLES,), see resample.py: of all whose drop `correct` does
        not give. {} where there are so few samples that a resample holds none."""


# Task -> a metric of samples and of a network with that [output].
METRICS: dict[str, Callable[[Samples, Output], Metric]] = {"classify": Classify, "segment": Segment, "detect": Detect}
