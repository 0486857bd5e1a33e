"""The metrics by name, as bundles, gates and reports call them: title, unit, and which way is better.

A bundle holds some of them; what it lacks is said to be not measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from edgekit.terminal import si

Unit = Literal["", "B", "ms", "%", "dB", "J", "bits"]


@dataclasses.dataclass(frozen=True)
class Metric:
    """`key` is the name in a row; the value is a number or an interval {"median", "low", "high", …}."""

    key: str
    title: str
    unit: Unit = ""
    better: Literal["less", "more"] = "less"

    @property
    def accuracy(self) -> bool:
        return self.unit == "%"

    @property
    def noisy(self) -> bool:
        """Whether it varies from run to run, so that one run alone proves nothing."""
        return self.key.startswith("latency_") or self.unit == "J"

    def text(self, value: Any) -> str:
        """The value with its unit, an interval with its ends; "not measured" where there is none."""
        if (found := point(value)) is None:
            return "not measured"
        if not isinstance(value, Mapping) or value["low"] == value["high"]:
            return self._one(found)
        low, high = (NUMBERS[self.unit](value[end]) for end in ("low", "high"))
        return f"{self._one(found)} [{low}, {high}]"

    def _one(self, value: float) -> str:
        number = NUMBERS[self.unit](value)
        if self.unit == "B" and number[-1].isalpha():
            return f"{number[:-1]} {number[-1]}B"
        return f"{number} {self.unit}".rstrip()


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits}f}"


NUMBERS: dict[Unit, Callable[[float], str]] = {
    "": si,
    "B": si,
    "ms": lambda value: f"{value:.3g}" if value < 10 else f"{value:.1f}",
    "%": _fixed(2),
    "dB": _fixed(1),
    "J": lambda value: f"{value:.3g}",
    "bits": _fixed(2),
}

METRICS = {
    metric.key: metric
    for metric in (
        Metric("top1", "top-1", "%", "more"),
        Metric("top5", "top-5", "%", "more"),
        Metric("miou", "mIoU", "%", "more"),
        Metric("pixel_accuracy", "pixel accuracy", "%", "more"),
        Metric("map", "mAP", "%", "more"),
        Metric("map50", "mAP at IoU 0.5", "%", "more"),
        Metric("params", "parameters"),
        Metric("macs", "MACs"),
        Metric("cio", "CIO"),
        Metric("cio_paper", "CIO as the paper counts"),
        Metric("size_bytes", "file", "B"),
        Metric("transport_bytes", "packed for transport", "B"),
        Metric("latent_bytes", "a picture on the wire", "B"),
        Metric("bits", "bits a weight, packed", "bits"),
        Metric("latency_ms", "latency", "ms"),
        Metric("latency_p90_ms", "latency p90", "ms"),
        Metric("latency_p99_ms", "latency p99", "ms"),
        Metric("load_ms", "load time", "ms"),
        Metric("traffic_model_bytes", "modelled traffic", "B"),
        Metric("traffic_measured_bytes", "measured traffic", "B"),
        Metric("weight_bytes", "weights", "B"),
        Metric("peak_bytes", "activations at once", "B"),
        Metric("arena_bytes", "arena", "B"),
        Metric("resident_load_bytes", "resident after loading", "B"),
        Metric("resident_run_bytes", "resident while running", "B"),
        Metric("energy_j", "energy", "J"),
        Metric("parity_db", "closeness to float", "dB", "more"),
        Metric("int8_convs", "int8 convolutions", "", "more"),
        Metric("isa_safe", "int8 sums fit x86 without VNNI", "", "more"),
        Metric("instructions", "instructions"),
        Metric("l1_misses", "L1 misses"),
        Metric("llc_misses", "last-level misses"),
    )
}


def point(value: Any) -> float | None:
    """A value or an interval's median; None where there is none or it is not finite."""
    found = value.get("median") if isinstance(value, Mapping) else value
    return found if isinstance(found, (int, float)) and math.isfinite(found) else None
