"""The plots as Vega-Lite specifications (Satyanarayan et al., Vega-Lite: A Grammar of Interactive Graphics, 2017), and
PNG and SVG of each.

A specification is a plain dict. The same one is drawn by the page, which fills in the rows that are chosen there, and
by `write_plots`, through vl-convert: Vega without a browser. Colours are those of Okabe and Ito, which remain distinct
to the colour-blind and on light and dark ground; wherever points differ in colour they differ in shape.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput
from edgekit.files import write_bytes
from edgekit.report.documents import xml_text
from edgekit.report.entries import Entry, cost_points
from edgekit.report.extra import extra
from edgekit.report.layers import LAYER_METRICS, LayerMetric
from edgekit.report.metrics import SHARES
from edgekit.report.rows import METRICS as TASK_METRICS
from edgekit.report.tradeoff import costs
from edgekit.vocabulary import METRICS, Metric

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
VEGA_LITE = "6.4"
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072b2 #e69f00 #009e73 #d55e00 #cc79a7 #56b4e9 #999999".split()
)  # fmt: skip
KINDS = {
    "uncompressed": (PURPLE, "square"),
    "fp32": (BLUE, "circle"),
    "fp16": (ORANGE, "diamond"),
    "int8": (RED, "triangle-up"),
}
LAYERS = {
    "convolution": (BLUE, "circle"),
    "pointwise": (SKY, "square"),
    "depthwise": (RED, "triangle-up"),
    "grouped": (PURPLE, "diamond"),
    "linear": (GREEN, "cross"),
    "other": (GREY, "stroke"),
}
SERIES = dict(
    zip(
        SHARES,
        ((BLUE, "circle"), (GREEN, "square"), (RED, "triangle-up"), (ORANGE, "diamond"), (PURPLE, "cross")),
        strict=True,
    )
)
CONFIG: Spec = {
    "font": "system-ui, sans-serif",
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "gridOpacity": 0.5, "tickSize": 3},
    "legend": {"labelFontSize": 11, "title": None, "orient": "top", "symbolSize": 80, "columns": 4},
    "view": {"stroke": None},
}


def write_plots(entries: Sequence[Entry], folder: Path) -> list[Path]:
    """Draw every plot of a report as SVG and PNG into a new folder; returns the files.

    Raises:
        BadInput: vl-convert is not installed, the folder holds something, or there is nothing to draw.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder}: is not empty; give another --plots")
    named = ((folder / re.sub(r"[^\w.-]", "_", name), spec, rows) for name, spec, rows in figures(entries))
    return [file for path, spec, rows in named for file in draw(path, spec, rows)]


def draw(path: Path, spec: Spec, rows: Rows) -> list[Path]:
    """Draw one plot of the rows as `path`.svg and `path`.png; returns the two.

    Raises:
        BadInput: vl-convert is not installed.
    """
    drawn = extra("vl_convert")
    whole = {**spec, "data": {"values": tidy(rows)}, "width": 640}
    made = {
        "svg": drawn.vegalite_to_svg(whole, VEGA_LITE).encode(),
        "png": drawn.vegalite_to_png(whole, VEGA_LITE, scale=2),
    }
    files = {suffix: path.with_name(f"{path.name}.{suffix}") for suffix in made}
    for suffix, content in made.items():
        write_bytes(files[suffix], content)
    return list(files.values())


def figures(entries: Sequence[Entry]) -> Iterator[tuple[str, Spec, Rows]]:
    """The name, specification and rows of every plot that there are figures for."""
    points = cost_points(entries)
    for task in dict.fromkeys(item["task"] for item in points if item["accuracy"] is not None):
        for cost in costs([item for item in points if item["task"] == task]):
            yield f"tradeoff.{task}.{cost}", tradeoff(cost, task, points), points
    for entry in entries:
        if entry.shares:
            yield f"{entry.name}.stages", stages(entry.shares), entry.shares
        for series in entry.series:
            yield f"{entry.name}.training.{series}", training(series), entry.training
        for file, rows in entry.layers.items():
            for metric in held(rows):
                yield f"{entry.name}.{file}.layers.{metric.key}", layer_bars(metric, rows), rows
            if any("gmacs_per_s" in row and "intensity" in row for row in rows):
                roofs = entry.roofs.get(file, [])
                yield f"{entry.name}.{file}.roofline", roofline(rows, bool(roofs)), [*rows, *roofs]


def specs(entries: Sequence[Entry]) -> dict[str, Spec]:
    """The specifications that a page of these entries draws by, under the names that page.js asks for."""
    points = cost_points(entries)
    series = dict.fromkeys(name for entry in entries for name in entry.series)
    layers = [row for entry in entries for rows in entry.layers.values() for row in rows]
    return {
        **{f"tradeoff {task} {cost}": tradeoff(cost, task, points) for task in TASK_METRICS for cost in costs(points)},
        **{f"layers {metric.key}": layer_bars(metric, layers) for metric in LAYER_METRICS},
        **{f"training {name}": training(name) for name in series},
        "roofline": roofline(layers, True),
        "roofline without roofs": roofline(layers, False),
        "stages": stages([row for entry in entries for row in entry.shares]),
    }


def held(rows: Rows) -> list[LayerMetric]:
    """The metrics that at least one layer has."""
    return [metric for metric in LAYER_METRICS if any(row.get(metric.key) is not None for row in rows)]


def tidy(value: Any) -> Any:
    """A value as JSON that any reader takes: five digits, nothing that is not finite, no control characters."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, str):
        return xml_text(value)
    if isinstance(value, Mapping):
        return {str(key): tidy(item) for key, item in value.items()}
    return [tidy(item) for item in value] if isinstance(value, (list, tuple)) else value


def tradeoff(cost: str, task: str, points: Rows) -> Spec:
    """Accuracy against one cost: a point per file, 95 % intervals where the cost has one, the Pareto front as steps."""
    metric, title = METRICS[cost], TASK_METRICS[task][1]
    known = [item[cost] for item in points if item[cost]]
    scale = {"type": "log" if known and max(known) > 10 * min(known) else "linear", "zero": False, "nice": True}
    x = {"field": cost, "type": "quantitative", "title": axis_title(metric), "scale": scale, "axis": _si_axis(metric)}
    y_scale = {"zero": False, "nice": True}
    y = {"field": "accuracy", "type": "quantitative", "title": f"{title} [%]", "scale": y_scale}
    has_interval = any(item.get(f"{cost}_low") is not None for item in points)
    on_front = f"isValid(datum.front['{cost}'])"
    aside = f"datum.front['{cost}'] % 2 ? -12 : 14"  # names of neighbours below and above by turns
    ends = {"x": {**x, "field": f"{cost}_low"}, "x2": {"field": f"{cost}_high"}, "y": y}
    layers: list[Spec] = [
        {
            "transform": [{"filter": on_front}],
            "mark": {"type": "line", "interpolate": "step-after", "color": GREEN, "strokeWidth": 2, "opacity": 0.7},
            "encoding": {"x": x, "y": y, "order": {"field": cost}},
        },
        *([{"mark": {"type": "rule", "color": GREY}, "encoding": ends}] if has_interval else []),
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.9},
            "encoding": {"x": x, "y": y, **_by_kind(KINDS, points), "tooltip": _tooltip(_point_fields(metric, title))},
        },
        {
            "transform": [{"filter": on_front}],
            "mark": {"type": "text", "align": "left", "dx": 6, "dy": {"expr": aside}, "fontSize": 11, "limit": 150},
            "encoding": {"x": x, "y": y, "text": {"field": "label"}},
        },
    ]
    valid = [{"filter": f"isValid(datum['{cost}']) && isValid(datum.accuracy) && datum.task == '{task}'"}]
    return plot(f"{title} against {metric.title}", layer=layers, transform=valid, height=340)


def layer_bars(metric: LayerMetric, rows: Rows) -> Spec:
    """A bar per layer, in the order of the rows."""
    title = f"{metric.title} [{metric.unit}]" if metric.unit else metric.title
    axis: Spec = {"labels": False, "ticks": False, "title": None, "grid": False}
    encoding = {
        "x": {"field": "place", "type": "ordinal", "axis": axis},
        "y": {"field": metric.key, "type": "quantitative", "title": title, "axis": {"format": "~s", "tickCount": 4}},
        **_by_kind(LAYERS, rows, shapes=False),
        "tooltip": _tooltip([("layer", "layer"), ("kind", "kind"), (metric.key, title)]),
    }
    return plot(f"{metric.title} of each layer", mark={"type": "bar"}, encoding=encoding, height=110)


def roofline(rows: Rows, roofed: bool) -> Spec:
    """Speed against intensity of each layer, with the two roofs of a board, which the rows named "roof" give."""
    x: Spec = {"field": "intensity", "type": "quantitative", "title": "MACs a byte of modelled traffic"}
    y: Spec = {"field": "gmacs_per_s", "type": "quantitative", "title": "10⁹ MACs a second, measured"}
    log = {"scale": {"type": "log", "nice": True}, "axis": {"format": "~g", "tickCount": 5}}
    x, y = {**x, **log}, {**y, **log}
    fields = [("layer", "layer"), ("kind", "kind"), ("intensity", "MACs a byte"), ("gmacs_per_s", "10⁹ MACs a second")]
    points = {
        "transform": [{"filter": "!datum.roof"}],
        "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0.85},
        "encoding": {"x": x, "y": y, **_by_kind(LAYERS, rows), "tooltip": _tooltip(fields)},
    }
    roofs = {
        "transform": [{"filter": "datum.roof"}],
        "mark": {"type": "line", "color": GREEN, "strokeWidth": 2},
        "encoding": {"x": x, "y": y},
    }
    label = {
        "transform": [{"filter": "datum.roof"}],
        "mark": {"type": "text", "align": "left", "dy": -8, "fontSize": 11, "color": GREEN},
        "encoding": {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}},
    }
    drawn = [roofs, points, label] if roofed else [points]
    return plot("Roofline: speed of each layer against its intensity", layer=drawn, height=300)


def training(series: str) -> Spec:
    """One column of the training logs over the steps, raw and smoothed."""
    x = {"field": "step", "type": "quantitative", "title": "step"}
    y = {"type": "quantitative", "title": series, "scale": {"zero": False, "type": "linear"}}
    color = {"field": "pass", "type": "nominal", "scale": {"range": [BLUE, RED, GREEN, PURPLE]}}
    tooltip = _tooltip([("pass", "pass"), ("step", "step"), ("value", series)])
    raw = {
        "mark": {"type": "line", "opacity": 0.3, "point": False},
        "encoding": {"x": x, "y": {**y, "field": "value"}, "color": color},
    }
    smooth = {
        "transform": [
            {"window": [{"op": "mean", "field": "value", "as": "smooth"}], "frame": [-5, 5], "groupby": ["pass"]}
        ],
        "mark": {"type": "line", "point": series != "loss"},
        "encoding": {
            "x": x,
            "y": {**y, "field": "smooth" if series == "loss" else "value"},
            "color": color,
            "strokeDash": {"field": "pass", "type": "nominal", "legend": None},
            "tooltip": tooltip,
        },
    }
    chosen = [{"filter": f"datum.series == {json.dumps(series)}"}]
    return plot(f"{series} while training", layer=[raw, smooth], transform=chosen, height=200)


def stages(rows: Rows) -> Spec:
    """What each stage left of the uncompressed network."""
    fields = [("stage", "stage"), ("series", "of"), ("share", "share of the uncompressed")]
    named = {METRICS[key].title: value for key, value in SERIES.items()}
    encoding = {
        "x": {"field": "stage", "type": "ordinal", "sort": None, "title": None, "axis": {"labelAngle": 0}},
        "y": {"field": "share", "type": "quantitative", "title": "share of the uncompressed", "axis": {"format": "~p"}},
        **_by_kind(named, rows, "series"),
        "tooltip": _tooltip(fields),
    }
    mark = {"type": "line", "point": {"filled": True, "size": 70}}
    return plot("What each stage left", mark=mark, encoding=encoding, height=220)


def plot(title: str, **parts: Any) -> Spec:
    """A specification in the style of all plots; `parts` are Vega-Lite's."""
    schema = f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE.partition('.')[0]}.json"
    return {"$schema": schema, "description": title, "width": "container", "config": CONFIG, **parts}


def _by_kind(table: Mapping[str, tuple[str, str]], rows: Rows, field: str = "kind", shapes: bool = True) -> Spec:
    """Colour, and where marks are points shape, by a column, both in one legend of what the rows hold."""
    held = {row.get(field) for row in rows}
    names = [name for name in table if name in held]
    colours, forms = ([table[name][index] for name in names] for index in (0, 1))
    made = {"color": {"field": field, "type": "nominal", "scale": {"domain": names, "range": colours}}}
    shape = {"field": field, "type": "nominal", "scale": {"domain": names, "range": forms}}
    return {**made, "shape": shape} if shapes else made


def _point_fields(metric: Metric, title: str) -> list[tuple[str, str]]:
    return [
        ("bundle", "bundle"),
        ("stage", "stage"),
        ("accuracy", f"{title} [%]"),
        (f"{metric.key}_text", metric.title),
    ]


def _tooltip(fields: Sequence[tuple[str, str]]) -> list[Spec]:
    return [{"field": field, "title": title} for field, title in fields]


def axis_title(metric: Metric) -> str:
    return f"{metric.title} [{metric.unit}]" if metric.unit else metric.title


def _si_axis(metric: Metric) -> Spec:
    return {"tickCount": 6, **({"format": "~s"} if metric.unit in ("", "B") else {})}
