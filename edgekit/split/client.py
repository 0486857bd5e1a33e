"""`edgekit split run`: the device side, from pictures to answers.

While one picture is on the wire the device works on the next: head and coding in the caller's thread, transfers in a
few others, answers in the pictures' order.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from edgekit.data import Progress, Samples, no_progress
from edgekit.data.samples import in_order
from edgekit.errors import BadInput
from edgekit.metrics import METRICS
from edgekit.split.device import Device, Way, latent_way, picture_way
from edgekit.split.models import WHOLE
from edgekit.split.policy import DEVICE, Cost, Link, choose
from edgekit.split.remote import Away, Remote
from edgekit.statistics import interval

Policy = Literal["auto", "split", "device", "jpeg"]
PROBE_EVERY = 50
"""With "auto", every so many pictures one takes the next way in turn, whatever is predicted, and the round trip is
measured anew."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How pictures are answered.

    policy: "split", "device" or "jpeg", always that way; "auto", whichever is predicted to take least.
    quality: of the JPEG. in_flight: pictures on the wire at once.
    alone_s: how long the device answers by itself before it asks a server again that was away.
    """

    policy: Policy = "auto"
    quality: int = 90
    in_flight: int = 2
    alone_s: float = 5.0


class Answered(NamedTuple):
    """output: the network's first, (1, …). parts: milliseconds by what took them. fell_back: the server was away."""

    output: np.ndarray
    way: str
    parts: dict[str, float]
    sent_bytes: int = 0
    tries: int = 1
    fell_back: bool = False


class _Job(NamedTuple):
    way: str
    pixels: np.ndarray
    truths: Any
    indices: list[int]
    content: bytes
    parts: dict[str, float]
    probe: bool


def answer_here(device: Device, pixels: np.ndarray, fell_back: bool = False) -> Answered:
    """The whole network on the device. Raises BadInput where the bundle has none."""
    began = time.perf_counter()
    output = device.answer(pixels)
    return Answered(output, DEVICE, {"run_ms": 1e3 * (time.perf_counter() - began)}, fell_back=fell_back)


def answer_there(remote: Remote, way: Way, content: bytes, parts: dict[str, float]) -> Answered:
    """What the server answers to what was prepared. Raises as `Remote.infer`."""
    reply = remote.infer(content, way.suffix)
    if not reply.outputs:
        raise BadInput("the server answered without any output")
    there = {"wire_ms": reply.wire_ms, "queue_ms": reply.queue_ms, "run_ms": reply.run_ms}
    return Answered(next(iter(reply.outputs.values())), way.name, parts | there, len(content), reply.tries)


class Client:
    """A device that asks a server; `say` is told when it falls back to answering by itself, and when it no longer does.

    Raises:
        BadInput: the policy wants what the bundle or the server has not.
        Away: the server is away and the bundle has no whole network.
    """

    def __init__(self, device: Device, remote: Remote, plan: Plan, say: Callable[[str], Any]) -> None:
        self._device, self._remote, self._plan, self._say = device, remote, plan, say
        self._lock, self._alone_until_s = threading.Lock(), 0.0
        self._ways = {"split": latent_way(device), "jpeg": picture_way(device, "JPEG", plan.quality)}
        self.link = Link()
        self.costs = {name: Cost() for name in self._possible()}
        self._count = 0

    def _possible(self) -> list[str]:
        """The ways to choose from."""
        policy, here = self._plan.policy, self._device.whole is not None
        if policy == DEVICE:
            if not here:
                raise BadInput("--policy device: the bundle has no whole network; choose split")
            return [DEVICE]
        ways: list[str] = ["split", *([DEVICE] if here else [])] if policy == "auto" else [policy]
        try:
            self.link.note_round_trip(self._remote.round_trip_ms())
            return ways + (self._jpeg() if policy == "auto" else [])
        except Away as error:
            self._stand_alone(error)
            return ways

    def _jpeg(self) -> list[str]:
        """The way of sending pictures, where the server takes them."""
        try:
            self._remote.versions(WHOLE)
        except BadInput:
            return []
        return ["jpeg"]

    def _stand_alone(self, error: Away) -> None:
        """Answer on the device for a while. Raises the error where that cannot be."""
        if self._device.whole is None:
            raise error
        with self._lock:
            if self._alone_until_s == 0.0:
                self._say(f"{error}; the device answers by itself")
            self._alone_until_s = time.monotonic() + self._plan.alone_s

    def _back(self) -> None:
        with self._lock:
            if self._alone_until_s:
                self._say("the server answers again")
            self._alone_until_s = 0.0

    def answers(self, batches: Iterable[Any]) -> Iterator[tuple[Answered, Any, list[int]]]:
        """Answers with their truths and indices, in the order of `batches`, each of one picture's pixels (1, H, W, C).

        Raises:
            Away: the server went away and the device cannot answer by itself.
            BadInput: the server refuses what the device sends.
        """
        jobs = (self._job(*batch) for batch in batches)
        yield from in_order(self._finished, jobs, self._plan.in_flight, self._plan.in_flight)

    def _job(self, pixels: np.ndarray, truths: Any, indices: list[int]) -> _Job:
        name, probe = self._next_way()
        if name == DEVICE:
            return _Job(name, pixels, truths, indices, b"", {}, probe)
        content, parts = self._ways[name].prepare(pixels)
        return _Job(name, pixels, truths, indices, content, parts, probe)

    def _next_way(self) -> tuple[str, bool]:
        """The next picture's way, and whether the link is measured anew with it."""
        self._count += 1
        if time.monotonic() < self._alone_until_s:
            return DEVICE, False
        if self._count % PROBE_EVERY:
            return choose(self.costs, self.link), False
        return list(self.costs)[self._count // PROBE_EVERY % len(self.costs)], self._plan.policy == "auto"

    def _finished(self, job: _Job) -> tuple[Answered, Any, list[int]]:
        answered = self._answered(job)
        if job.way in self.costs and not answered.fell_back:
            here_ms = sum(job.parts.values()) if job.content else answered.parts["run_ms"]
            there_ms = answered.parts["run_ms"] + answered.parts["queue_ms"] if job.content else 0.0
            self.costs[job.way].note(here_ms, answered.sent_bytes, there_ms)
        return answered, job.truths, job.indices

    def _answered(self, job: _Job) -> Answered:
        if job.way == DEVICE:
            return answer_here(self._device, job.pixels)
        try:
            answered = answer_there(self._remote, self._ways[job.way], job.content, job.parts)
            if job.probe:
                self.link.note_round_trip(self._remote.round_trip_ms())
        except Away as error:
            self._stand_alone(error)
            return answer_here(self._device, job.pixels, fell_back=True)
        self._back()
        if answered.tries == 1:
            self.link.note(answered.sent_bytes, answered.parts["wire_ms"])
        return answered


def stream(client: Client, device: Device, samples: Samples, progress: Progress = no_progress) -> dict[str, Any]:
    """Answer all samples; what came of it, by way, and the score where the samples are labelled."""
    metric = METRICS[device.output.task](samples, device.output) if samples.labelled else None
    camera = dataclasses.replace(device.input, form="uint8_nhwc")
    batches = progress(samples.batches(camera, 1), "answering", len(samples))
    seen: list[Answered] = []
    began = time.perf_counter()
    for answered, truths, indices in client.answers(batches):
        if metric is not None:
            metric.add(answered.output, truths, indices)
        seen.append(answered._replace(output=np.empty(0)))
    seconds = time.perf_counter() - began
    ways = sorted({one.way for one in seen})
    return {
        "n": len(seen),
        "images_per_s": len(seen) / seconds,
        "metrics": metric.result() if metric is not None else None,
        "retried": sum(one.tries > 1 for one in seen),
        "fell_back": sum(one.fell_back for one in seen),
        "ways": {way: summary([one for one in seen if one.way == way]) for way in ways},
    }


def summary(answers: list[Answered]) -> dict[str, Any]:
    """Pictures that took one way: how many, their time from pixels to answer without waiting for other pictures, the
    medians of its parts, and the mean of the bytes sent."""
    names = list(dict.fromkeys(name for one in answers for name in one.parts))
    return {
        "n": len(answers),
        "latency_ms": interval([sum(one.parts.values()) for one in answers]),
        "parts": {name: float(np.median([one.parts.get(name, 0.0) for one in answers])) for name in names},
        "sent_bytes": float(np.mean([one.sent_bytes for one in answers])),
    }
