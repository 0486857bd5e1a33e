"""Clients without a pause for a server of a cut network, and what they saw. Bounded in number and time."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import urllib3

from edgekit.split.protocol import HEAD_LENGTH, headers, read_answer
from edgekit.split.remote import Address, Away, Remote
from edgekit.statistics import tails

TOLERANCE = 1e-4
AGAIN = (429, 503)
KILL_EVERY_S = 5.0


@dataclasses.dataclass(frozen=True)
class Ask:
    """A packet and what the tail answers to it."""

    packet: bytes
    expected: np.ndarray

    def answered(self, outputs: dict[str, np.ndarray]) -> bool:
        (found,) = outputs.values()
        scale = float(np.abs(self.expected).max())
        return found.shape == self.expected.shape and np.allclose(found, self.expected, rtol=0, atol=TOLERANCE * scale)


@contextlib.contextmanager
def started(bundle: Path, workers: int = 1) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process of its own; yields it and its address."""
    command = [sys.executable, "-m", "edgekit", "split", "serve", f"bench={bundle}", "--port", "0"]
    with subprocess.Popen([*command, "--workers", str(workers)], stdout=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            Remote(Address(url, "bench", timeout_s=60)).versions()
            yield process, url
        finally:
            process.terminate()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclasses.dataclass
class Seen:
    """What one client saw."""

    latency_ms: list[float] = dataclasses.field(default_factory=list)
    again: int = 0
    wrong: int = 0
    failed: int = 0


def _client(url: str, known: Sequence[Ask], until_s: float, first: int) -> Seen:
    """Ask without a pause; 429 and 503 with Retry-After are no failure but are counted."""
    seen, pool, number = Seen(), urllib3.PoolManager(retries=False, timeout=30), first
    while time.monotonic() < until_s:
        ask = known[number % len(known)]
        began = time.perf_counter()
        try:
            answer = pool.request("POST", f"{url}/v2/models/bench/infer", body=ask.packet, headers=headers(str(number)))
        except urllib3.exceptions.HTTPError:
            seen.failed += 1
            continue
        number += 1
        if answer.status in AGAIN and "Retry-After" in answer.headers:
            seen.again += 1
            time.sleep(float(answer.headers["Retry-After"]))
        elif answer.status != 200:
            seen.failed += 1
        else:
            seen.latency_ms.append(1e3 * (time.perf_counter() - began))
            seen.wrong += not ask.answered(read_answer(answer.data, answer.headers[HEAD_LENGTH])[1])
    return seen


def load(bundle: Path, known: Sequence[Ask], clients: int, seconds: float) -> dict:
    """So many clients for so long at one worker; the server's memory is looked at ten times a fifth."""
    with started(bundle) as (process, url), ThreadPoolExecutor(clients) as pool:
        until_s = time.monotonic() + seconds
        running = [pool.submit(_client, url, known, until_s, 7 * number) for number in range(clients)]
        memory = []
        while time.monotonic() < until_s:
            memory.append(resident_bytes(process.pid))
            time.sleep(seconds / 50)
        seen = [one.result() for one in running]
    latency = sorted(value for one in seen for value in one.latency_ms)
    fifth = max(1, len(memory) // 5)
    early, late = (float(np.median(part)) for part in (memory[fifth : 2 * fifth], memory[-fifth:]))
    return {
        "clients": clients,
        "seconds": seconds,
        "answered": len(latency),
        "per_s": len(latency) / seconds,
        "told_to_come_again": sum(one.again for one in seen),
        "wrong": sum(one.wrong for one in seen),
        "failed": sum(one.failed for one in seen),
        "latency_ms": {"p50": float(np.median(latency)), **tails(latency), "max": latency[-1]},
        "early_bytes": early,
        "late_bytes": late,
        "growth": late / early - 1,
    }


def killed(bundle: Path, known: Sequence[Ask], clients: int, seconds: float) -> dict:
    """Two workers, of which one after the other is killed while clients ask and ask again."""
    over, kills = threading.Event(), 0
    with started(bundle, workers=2) as (process, url), ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(_stubborn, url, known, over, 7 * number) for number in range(clients)]
        until_s = time.monotonic() + seconds
        while time.monotonic() + KILL_EVERY_S / 2 < until_s or not kills:
            time.sleep(min(KILL_EVERY_S, seconds) / 2)
            kills += _kill_one(process.pid)
            time.sleep(min(KILL_EVERY_S, seconds) / 2)
        over.set()
        seen = [one.result() for one in running]
    return {
        "clients": clients,
        "seconds": seconds,
        "kills": kills,
        "answered": sum(len(one.latency_ms) for one in seen),
        "tried_again": sum(one.again for one in seen),
        "wrong": sum(one.wrong for one in seen),
        "failed": sum(one.failed for one in seen),
    }


def _stubborn(url: str, known: Sequence[Ask], over: threading.Event, first: int) -> Seen:
    """Ask as the device side does, with its retries."""
    seen, remote, number = Seen(), Remote(Address(url, "bench")), first
    while not over.is_set():
        ask = known[number % len(known)]
        number += 1
        try:
            reply = remote.infer(ask.packet)
        except Away:
            seen.failed += 1
            continue
        seen.latency_ms.append(reply.wire_ms + reply.queue_ms + reply.run_ms)
        seen.again += reply.tries > 1
        seen.wrong += not ask.answered(reply.outputs)
    return seen


def _kill_one(pid: int) -> int:
    """kill -9 the first worker of a server; how many were killed."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    workers = [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    for worker in workers[:1]:
        os.kill(worker, signal.SIGKILL)
    return len(workers[:1])
