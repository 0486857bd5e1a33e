"""The results of split computing on a terminal."""

from __future__ import annotations

from typing import Any

from edgekit.split.policy import DEVICE
from edgekit.terminal import digits, latency, make, show

PLACES = {"device [ms]": ("head_ms", "code_ms"), "wire [ms]": ("wire_ms",), "server [ms]": ("queue_ms", "run_ms")}


def show_run(found: dict[str, Any]) -> None:
    made = make("way", "pictures", "bytes", "latency [ms] [95 %]", *PLACES, title=f"{found['n']} pictures")
    for way, row in found["ways"].items():
        cells = str(row["n"]), f"{row['sent_bytes']:,.0f}", latency(row["latency_ms"])
        made.add_row(way, *cells, *_places(way, row["parts"]))
    show(made)
    for name, value in (found["metrics"] or {}).items():
        print(f"{name} {value:.2f} %")
    print(f"{digits(found['images_per_s'])} pictures/s; {found['retried']} sent again, {found['fell_back']} fell back")


def show_bench(found: dict[str, Any]) -> None:
    made = make("way", "bytes", *(f"{name} [%]" for name in found["ways"][0]["metrics"]))
    for row in found["ways"]:
        made.add_row(row["way"], f"{row['sent_bytes']:,.0f}", *(f"{value:.2f}" for value in row["metrics"].values()))
    show(made)
    made = make("link", "way", "latency [ms] [95 %]", *PLACES)
    for row in found["rows"]:
        made.add_row(row["link"] or "none", row["way"], latency(row["latency_ms"]), *_places(row["way"], row["parts"]))
    show(made)


def _places(way: str, parts: dict[str, float]) -> list[str]:
    """Milliseconds on the device, on the wire and at the server."""
    if way == DEVICE:
        return [digits(parts["run_ms"]), "", ""]
    return [digits(sum(parts.get(name, 0.0) for name in names)) for names in PLACES.values()]
