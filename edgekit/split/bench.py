"""`edgekit split bench`: what each way of answering a picture costs over links of several kinds, end to end.

The server is a process of its own and everything goes through real sockets; the link is a proxy that shapes
(`link.py`). What a way answers does not depend on the link, so accuracy and bytes are measured once, on all pictures
and without shaping; times on a few pictures, one after the other, over each link.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.data import Progress, Samples
from edgekit.errors import BadInput
from edgekit.metrics import METRICS
from edgekit.split.client import Answered, answer_here, answer_there, summary
from edgekit.split.credentials import KEY_VARIABLE, TOKEN_VARIABLE
from edgekit.split.device import Device, Way, latent_way, picture_way
from edgekit.split.link import Link, Shaped, shaped
from edgekit.split.policy import DEVICE
from edgekit.split.remote import Address, Remote

MODEL = "bench"
START_S = 60.0
ONE_AT_LEAST = 3
Answer = Callable[[np.ndarray], Answered]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared.

    links: over which; qualities: of JPEG and of WebP.
    images: pictures of a time over a link; seconds: after how long of one way over one link no further is begun.
    """

    links: tuple[Link, ...]
    qualities: tuple[int, ...] = (10, 30, 50, 70, 90)
    images: int = 30
    seconds: float = 20.0


@contextlib.contextmanager
def server(bundle: Path, key: bytes | None, threads: int) -> Iterator[str]:
    """A server of the bundle in a process of its own; yields its address.

    Raises:
        BadInput: it did not start; what it said is passed on.
    """
    command = [sys.executable, "-m", "edgekit", "split", "serve", f"{MODEL}={bundle}", "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    if key is not None:
        environment[KEY_VARIABLE] = key.hex()
    with subprocess.Popen(
        [*command, "--threads", str(threads)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            url = process.stdout.readline().strip() if process.stdout else ""
            if not url:
                said = process.stderr.read()[-2000:] if process.stderr else ""
                raise BadInput(f"the server did not start: {said.strip()}")
            Remote(Address(url, MODEL, timeout_s=START_S)).round_trip_ms()
            yield url
        finally:
            process.terminate()


def ways(device: Device, qualities: Sequence[int]) -> list[Way]:
    """All ways over the wire; pictures only where the bundle has the whole network that takes them."""
    pictures = [picture_way(device, form, quality) for form in ("JPEG", "WEBP") for quality in qualities]
    return [latent_way(device), latent_way(device, stored=True), *(pictures if device.whole is not None else [])]


def bench(
    device: Device, bundle: Path, samples: Samples, plan: Plan, threads: int, progress: Progress
) -> dict[str, Any]:
    """Measure; a row for each way, and one for each way over each link.

    Raises:
        BadInput: the server does not start, or refuses what the device sends.
    """
    sent = ways(device, plan.qualities)
    with server(bundle, device.wire.key, threads) as url:
        accuracy = _accuracies(device, url, sent, samples, progress)
        latency = []
        for link in progress(plan.links, "links", len(plan.links)):
            with shaped(link, url) as through:
                remote = Remote(Address(through.url, MODEL, timeout_s=120.0))
                for way in sent:
                    latency.append(_timed(link, through, remote, way, _pixels(device, samples, plan), plan))
        if device.whole is not None:
            latency.append(_timed_here(device, _pixels(device, samples, plan)))
    return {"links": [dataclasses.asdict(link) for link in plan.links], "ways": accuracy, "rows": latency}


def _pixels(device: Device, samples: Samples, plan: Plan) -> list[np.ndarray]:
    """The first pictures, uint8 (1, H, W, C) each."""
    camera = dataclasses.replace(device.input, form="uint8_nhwc")
    order = range(min(plan.images, len(samples)))
    return [pixels for pixels, _, _ in samples.batches(camera, 1, order)]


def _there(remote: Remote, way: Way) -> Answer:
    def answer(pixels: np.ndarray) -> Answered:
        return answer_there(remote, way, *way.prepare(pixels))

    return answer


def _accuracies(
    device: Device, url: str, sent: Iterable[Way], samples: Samples, progress: Progress
) -> list[dict[str, Any]]:
    remote = Remote(Address(url, MODEL))
    answers: dict[str, Answer] = {way.name: _there(remote, way) for way in sent}
    if device.whole is not None:
        answers[DEVICE] = lambda pixels: answer_here(device, pixels)
    return [{"way": name, **_score(device, answer, samples, name, progress)} for name, answer in answers.items()]


def _score(device: Device, answer: Answer, samples: Samples, name: str, progress: Progress) -> dict[str, Any]:
    metric = METRICS[device.output.task](samples, device.output) if samples.labelled else None
    camera, sent_bytes = dataclasses.replace(device.input, form="uint8_nhwc"), []
    for pixels, truths, indices in progress(samples.batches(camera, 1), name, len(samples)):
        answered = answer(pixels)
        sent_bytes.append(answered.sent_bytes)
        if metric is not None:
            metric.add(answered.output, truths, indices)
    metrics = metric.result() if metric is not None else {}
    return {"n": len(sent_bytes), "sent_bytes": float(np.mean(sent_bytes)), "metrics": metrics}


def _timed(
    link: Link, through: Shaped, remote: Remote, way: Way, pictures: Sequence[np.ndarray], plan: Plan
) -> dict[str, Any]:
    answer = _there(remote, way)
    answer(pictures[0])  # connects, and warms both ends up
    up, down = through.up_bytes, through.down_bytes
    began, answers = time.monotonic(), []
    for pixels in pictures:
        answers.append(answer(pixels))
        if len(answers) >= ONE_AT_LEAST and time.monotonic() - began > plan.seconds:
            break
    n = len(answers)
    counted = {"up_bytes": (through.up_bytes - up) / n, "down_bytes": (through.down_bytes - down) / n}
    return {"link": link.name, "way": way.name, **summary(answers), **counted}


def _timed_here(device: Device, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    answer_here(device, pictures[0])
    answers = [answer_here(device, pixels) for pixels in pictures]
    return {"link": None, "way": DEVICE, **summary(answers), "up_bytes": 0.0, "down_bytes": 0.0}
