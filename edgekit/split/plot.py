"""The two plots of a benchmark: accuracy against bytes, and the parts of a picture's time over each link."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit.errors import BadInput
from edgekit.report.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, Spec, draw, plot
from edgekit.split.policy import DEVICE

PARTS = dict(zip(("head", "code", "wire", "queue", "run"), (BLUE, SKY, ORANGE, GREY, GREEN)))
FAMILIES = {
    "split": (BLUE, "circle"),
    "latent8": (SKY, "square"),
    "jpeg": (ORANGE, "triangle-up"),
    "webp": (PURPLE, "diamond"),
    DEVICE: (RED, "cross"),
}


def write_plots(found: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a benchmark's plots as SVG and PNG into a folder; returns the files.

    Raises:
        BadInput: vl-convert is not installed, or the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: is not empty; give another --plots")
    times, scores = time_rows(found), accuracy_rows(found)
    written = draw(folder / "split.latency", latency(), times)
    return written + (draw(folder / "split.accuracy", accuracy(scores[0]["metric"]), scores) if scores else [])


def time_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each part of each way's time over each link; the device's own time stands beside every link's."""
    links, order = [link["name"] for link in found["links"]], list(PARTS)
    rows = []
    for row in found["rows"]:
        parts = {name.removesuffix("_ms"): value for name, value in row["parts"].items()}
        for link in [row["link"]] if row["link"] else links:
            cell = {"link": link, "way": row["way"]}
            rows += [{**cell, "part": name, "ms": ms, "order": order.index(name)} for name, ms in parts.items()]
    return rows


def accuracy_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each way with its task's main metric; none where the pictures had no labels."""
    rows = []
    for row in found["ways"]:
        for metric, value in list(row["metrics"].items())[:1]:
            family = row["way"].partition("-")[0]
            rows.append(
                {"way": row["way"], "family": family, "bytes": row["sent_bytes"], "metric": metric, "value": value}
            )
    return rows


def latency() -> Spec:
    """Bars of parts for each way, a row of them for each link, each with a scale of its own."""
    colour = {"domain": list(PARTS), "range": list(PARTS.values())}
    encoding = {
        "row": {"field": "link", "type": "nominal", "sort": None, "title": None},
        "y": {"field": "way", "type": "nominal", "sort": None, "title": None},
        "x": {"field": "ms", "type": "quantitative", "title": "median time of a picture [ms]"},
        "color": {"field": "part", "type": "nominal", "scale": colour},
        "order": {"field": "order"},
    }
    resolve = {"scale": {"x": "independent"}}
    return plot("Where a picture's time goes", mark={"type": "bar"}, encoding=encoding, resolve=resolve)


def accuracy(metric: str) -> Spec:
    """Accuracy against the mean bytes of a picture; the network on the device, which sends none, as a line."""
    colour = {"domain": list(FAMILIES), "range": [colour for colour, _ in FAMILIES.values()]}
    shape = {"domain": list(FAMILIES), "range": [form for _, form in FAMILIES.values()]}
    y = {"field": "value", "type": "quantitative", "title": f"{metric} [%]", "scale": {"zero": False, "nice": True}}
    x = {"field": "bytes", "type": "quantitative", "title": "bytes a picture", "scale": {"type": "log", "nice": True}}
    kinds = {"color": {"field": "family", "type": "nominal", "scale": colour}}
    shapes = {"shape": {"field": "family", "type": "nominal", "scale": shape}}
    sent = [{"filter": "datum.bytes > 0"}]
    layers = [
        {"transform": sent, "mark": {"type": "line", "opacity": 0.5}, "encoding": {"x": x, "y": y, **kinds}},
        {"transform": sent, "mark": {"type": "point", "filled": True, "size": 80},
         "encoding": {"x": x, "y": y, **kinds, **shapes}},
        {"transform": [{"filter": "datum.bytes == 0"}], "mark": {"type": "rule", "strokeDash": [4, 4]},
         "encoding": {"y": y, **kinds}},
    ]  # fmt: skip
    return plot("Accuracy against bytes on the wire", layer=layers, height=320)
