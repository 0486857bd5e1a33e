"""Requests in, batches out: what waits when the model becomes free is run together.

Without a delay nothing waits for company while the model is idle, so a lone request costs no more than without
batching; with one, the first of a batch waits for others at most that long. Each model has a thread of its own, woken
once for a batch, that wakes the event loop once: half the time of going through an executor, which counts where a tail
takes less than a millisecond.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Busy(Exception):
    """As many requests wait as may; this one was not taken in."""


class Answer(NamedTuple):
    """value: what `run` gave for the item."""

    value: Any
    queue_ms: float
    run_ms: float
    batch: int


class _Waiting(NamedTuple):
    item: Any
    answer: asyncio.Future[Answer]
    since_s: float


class Batcher:
    """Runs items through `run` in batches, one at a time, for one event loop.

    Args:
        run: a list of items -> as many results, in their order.
        most_batch: items of one batch.
        most_waiting: items that may wait; more are refused.
        delay_s: how long the first of a batch may wait for others.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        most_batch: int,
        most_waiting: int,
        delay_s: float = 0.0,
    ) -> None:
        self._run, self._most_batch, self._most_waiting, self._delay_s = run, most_batch, most_waiting, delay_s
        self._loop, self._closing = asyncio.get_running_loop(), False
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    async def submit(self, item: Any) -> Answer:
        """What `run` gives for the item.

        Raises:
            Busy: too many wait, or nothing is taken in any more.
            Exception: whatever `run` raised for the whole batch.
        """
        if self._closing or self._waiting.qsize() >= self._most_waiting:
            raise Busy
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting.put(_Waiting(item, answer, time.perf_counter()))
        return await answer

    async def close(self) -> None:
        """Take nothing in any more, answer everything that was, then end."""
        self._closing = True
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        over = False
        while not over:
            batch, over = self._batch()
            batch = [one for one in batch if not one.answer.done()]  # the others' clients no longer wait
            if batch:
                self._loop.call_soon_threadsafe(_deliver, batch, self._answers(batch))

    def _batch(self) -> tuple[list[_Waiting], bool]:
        """The next batch, and whether it is the last."""
        first = self._waiting.get()
        if first is None:
            return [], True
        batch = [first]
        while len(batch) < self._most_batch:
            left_s = first.since_s + self._delay_s - time.perf_counter()
            try:
                one = self._waiting.get(timeout=left_s) if left_s > 0 else self._waiting.get_nowait()
            except queue.Empty:
                break
            if one is None:
                return batch, True
            batch.append(one)
        return batch, False

    def _answers(self, batch: Sequence[_Waiting]) -> list[Answer] | Exception:
        began_s = time.perf_counter()
        try:
            values = self._run([one.item for one in batch])
        except Exception as error:
            return error
        run_ms = 1e3 * (time.perf_counter() - began_s)
        return [Answer(value, 1e3 * (began_s - one.since_s), run_ms, len(batch)) for one, value in zip(batch, values)]


def _deliver(batch: Sequence[_Waiting], answers: list[Answer] | Exception) -> None:
    for index, one in enumerate(batch):
        if one.answer.done():
            continue
        if isinstance(answers, Exception):
            one.answer.set_exception(answers)
        else:
            one.answer.set_result(answers[index])
