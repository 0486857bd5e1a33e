"""Progress bars on stderr: label, bar, count, time left. None where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], label: str, total: int | None = None, status: Callable[[], str] | None = None
) -> Iterable[T]:
    """The same items, shown while they are worked through; `status` gives a word on how it goes."""
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    def run() -> Iterable[T]:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(label, total=total)
            for item in items:
                yield item
                bars.update(task, advance=1, description=f"{label}  {status()}" if status else label)

    return run()
