"""What a server counts, for Prometheus."""

from __future__ import annotations

import os

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The folder through which several workers add their counts up; set before this file is imported."""
SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts of one server; those of several workers are added up where they share a folder."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        prefix, registry = "edgekit_split", self._registry
        self._requests = Counter(
            f"{prefix}_requests", "Requests answered, by model and status.", ["model", "status"], registry=registry
        )
        self._received = Counter(
            f"{prefix}_received_bytes", "Bytes of packets and pictures.", ["model"], registry=registry
        )
        self._seconds = Histogram(
            f"{prefix}_seconds",
            "Where the time of answered requests went: queue, run.",
            ["model", "part"],
            registry=registry,
            buckets=SECONDS,
        )
        self._batch = Histogram(
            f"{prefix}_batch", "Requests of one inference.", ["model"], registry=registry, buckets=BATCHES
        )

    def request(self, model: str, status: int) -> None:
        """A request for inference was answered; `model` is "" where there is no such model."""
        self._requests.labels(model, str(status)).inc()

    def inference(self, model: str, received_bytes: int, queue_ms: float, run_ms: float, batch: int) -> None:
        """A request got its outputs."""
        self._received.labels(model).inc(received_bytes)
        self._seconds.labels(model, "queue").observe(queue_ms / 1e3)
        self._seconds.labels(model, "run").observe(run_ms / 1e3)
        self._batch.labels(model).observe(batch)

    def exposition(self) -> bytes:
        """The counts in Prometheus's text form."""
        if SHARED not in os.environ:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)
        return generate_latest(shared)
