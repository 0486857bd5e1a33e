"""Requests in, batches out: what waits when the model becomes free is run together.

Without a delay nothing waits for company while the model is idle, so a lone request costs no more than without
batching; with one, the first of a batch waits for others at most that long.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
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
    """Runs items through `run` in batches, one batch at a time, in a thread of `executor`.

    Args:
        run: a list of items -> as many results, in their order.
        most_batch: items of one batch.
        most_waiting: items that may wait; more are refused.
        delay_s: how long the first of a batch may wait for others.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Any]], Sequence[Any]],
        executor: Executor,
        most_batch: int,
        most_waiting: int,
        delay_s: float = 0.0,
    ) -> None:
        self._run, self._executor, self._most_batch, self._delay_s = run, executor, most_batch, delay_s
        self._most_waiting = most_waiting
        self._waiting: collections.deque[_Waiting] = collections.deque()
        self._closing = False
        self._came, self._full = asyncio.Event(), asyncio.Event()
        self._worker = asyncio.create_task(self._work())

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return len(self._waiting)

    async def submit(self, item: Any) -> Answer:
        """What `run` gives for the item.

        Raises:
            Busy: too many wait, or nothing is taken in any more.
            Exception: whatever `run` raised for the whole batch.
        """
        if self._closing or len(self._waiting) >= self._most_waiting:
            raise Busy
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(item, answer, time.perf_counter()))
        self._came.set()
        if len(self._waiting) >= self._most_batch:
            self._full.set()
        return await answer

    async def close(self) -> None:
        """Take nothing in any more, answer everything that was, then end."""
        self._closing = True
        self._came.set()
        await self._worker

    async def _work(self) -> None:
        while self._waiting or not self._closing:
            if not self._waiting:
                self._came.clear()
                await self._came.wait()
                continue
            await self._company()
            batch = self._take()
            if batch:
                await self._answer(batch)

    async def _company(self) -> None:
        """Wait for a full batch, no longer than the first may wait."""
        left_s = self._waiting[0].since_s + self._delay_s - time.perf_counter()
        if left_s > 0 and len(self._waiting) < self._most_batch:
            self._full.clear()
            try:
                await asyncio.wait_for(self._full.wait(), left_s)
            except TimeoutError:
                return

    def _take(self) -> list[_Waiting]:
        """The next batch, without those whose clients no longer wait."""
        taken = [self._waiting.popleft() for _ in range(min(self._most_batch, len(self._waiting)))]
        return [one for one in taken if not one.answer.done()]

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        began_s = time.perf_counter()
        try:
            items = [one.item for one in batch]
            values = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, items)
        except Exception as error:
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        run_ms = 1e3 * (time.perf_counter() - began_s)
        for one, value in zip(batch, values):
            if not one.answer.done():
                one.answer.set_result(Answer(value, 1e3 * (began_s - one.since_s), run_ms, len(batch)))
