"""The results of split computing on a terminal."""

from __future__ import annotations

from typing import Any

from edgekit.terminal import digits, latency, make, show


def show_run(found: dict[str, Any]) -> None:
    made = make("way", "pictures", "bytes", "latency [ms] [95 %]", "of which [ms]", title=f"{found['n']} pictures")
    for way, row in found["ways"].items():
        parts = ", ".join(f"{name.removesuffix('_ms')} {digits(value)}" for name, value in row["parts"].items())
        made.add_row(way, str(row["n"]), f"{row['sent_bytes']:,.0f}", latency(row["latency_ms"]), parts)
    show(made)
    for name, value in (found["metrics"] or {}).items():
        print(f"{name} {value:.2f} %")
    print(f"{digits(found['images_per_s'])} pictures/s; {found['retried']} sent again, {found['fell_back']} fell back")
