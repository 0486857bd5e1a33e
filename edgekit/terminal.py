"""Short texts for numbers, and plain tables that fit 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

INTERVAL = "[95 %]"


def show(item: Any) -> None:
    from rich.console import Console

    Console(highlight=False, markup=False).print(item)


def make(*columns: str, title: str | None = None) -> Table:
    """A plain table whose first column is text and whose other columns are numbers."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for index, column in enumerate(columns):
        # An interval is read in one piece: where room is short, other columns fold.
        whole = column.endswith(INTERVAL)
        made.add_column(column, justify="left" if index == 0 else "right", overflow="fold", no_wrap=whole)
    return made


def si(value: float | None) -> str:
    """Three digits and a decimal prefix: 1234567 -> 1.23M."""
    if value is None:
        return "–"
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def digits(value: float | None) -> str:
    """Three digits or more: 0.0123, 1.23, 12.34, 123, 1234."""
    if value is None:
        return "–"
    return f"{value:.3g}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def latency(value: dict[str, float] | None) -> str:
    return "–" if value is None else f"{digits(value['median'])} [{digits(value['low'])}, {digits(value['high'])}]"


def megabytes(value: float | None) -> str:
    """Bytes in MB of 10⁶, to the nearest kB below 10 MB: 1234567 -> 1.235."""
    return "–" if value is None else f"{value / 1e6:.{3 if value < 10e6 else 1}f}"


def joules(value: dict[str, float]) -> str:
    return f"{value['median']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def decibel(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
