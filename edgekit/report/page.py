"""The report as one HTML file that needs nothing else: no network, no folder beside it.

Every name comes from a file and is hostile until escaped: Jinja escapes all text, JSON holds no `<`, and the page's
policy (Content-Security-Policy) lets only the two scripts run that were written here, by their hashes, and lets none
load anything.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit import __version__
from edgekit.bundle import Bundle
from edgekit.errors import BadInput
from edgekit.files import write_bytes
from edgekit.report.card import card_markdown
from edgekit.report.entries import Entry, bundle_entries, cost_points
from edgekit.report.extra import extra
from edgekit.report.layers import LAYER_METRICS
from edgekit.report.metrics import measured, unmeasured
from edgekit.report.plots import VEGA_LITE, axis_title, held, specs, tidy, write_plots
from edgekit.report.rows import METRICS as TASK_METRICS
from edgekit.report.strips import strip
from edgekit.report.text import measured_text
from edgekit.report.tradeoff import costs
from edgekit.vocabulary import METRICS, point

HERE = Path(__file__).parent
MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?"}
BAD = ("fail", "inconclusive", "pass")
"""Outcomes, the one that decides first."""


def write_page(entries: Sequence[Entry], out: Path) -> None:
    """Write the report of these entries.

    Raises:
        BadInput: vl-convert or jinja2 is not installed.
    """
    write_bytes(out, page(entries).encode())


def write_reports(bundles: Sequence[Bundle], out: Path | None, plots: Path | None, card: Path | None) -> list[str]:
    """Write what was asked for of the page, the folder of plots and the model card; returns a line for each.

    Raises:
        BadInput: what is to be written exists, a card is asked of several bundles, or see `bundle_entries`.
    """
    for path, option in ((out, "--out"), (card, "--card")):
        if path is not None and path.exists():
            raise BadInput(f"{path}: exists; give another {option}")
    if card is not None and len(bundles) != 1:
        raise BadInput(f"--card takes one bundle, not {len(bundles)}")
    said = []
    if card is not None:
        write_bytes(card, card_markdown(bundles[0]).encode())
        said.append(f"{card}: the model card")
    entries = bundle_entries(bundles) if out or plots else []
    if out is not None:
        write_page(entries, out)
        said.append(f"{out}: {out.stat().st_size / 1e6:.1f} MB, opens in any browser")
    if plots is not None:
        said.append(f"{plots}: {len(write_plots(entries, plots))} files")
    return said


def page(entries: Sequence[Entry]) -> str:
    """The report as HTML; the same for the same entries."""
    vega, script = (
        _script(extra("vl_convert").javascript_bundle(vl_version=VEGA_LITE)),
        _script((HERE / "page.js").read_text()),
    )
    return _template().render(
        entries=entries,
        summary=[line for entry in entries for line in _summary(entry)],
        tiles={entry.name: _tiles(entry) for entry in entries},
        warnings=comparability(entries),
        data=_data(entries),
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        scripts=(vega, script),
        hashes=" ".join(f"'sha256-{_hash(text)}'" for text in (vega, script)),
        version=__version__,
    )


def _template() -> Any:
    jinja2 = extra("jinja2")
    loader = jinja2.FileSystemLoader(HERE)
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    made.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    made.globals |= {"METRICS": METRICS, "MARKS": MARKS, "TASK_METRICS": TASK_METRICS}
    made.globals |= {"measured": measured, "unmeasured": unmeasured, "held": held, "strip": strip}
    made.globals |= {"measured_text": measured_text}
    made.globals |= {"LAYER_METRICS": LAYER_METRICS}
    return made.get_template("page.html")


@functools.cache
def _vega() -> str:
    """Vega, Vega-Lite and vega-embed as one script (each under the licence BSD-3-Clause)."""
    return _script(extra("vl_convert").javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE))


def _script(text: str) -> str:
    """JavaScript as it may stand within <script>."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _data(entries: Sequence[Entry]) -> dict[str, Any]:
    """What page.js draws from."""
    points = cost_points(entries)
    tasks = dict.fromkeys(item["task"] for item in points if item["accuracy"] is not None)
    return tidy(
        {
            "specs": specs(entries),
            "points": points,
            "tasks": {task: TASK_METRICS[task][1] for task in tasks},
            "costs": {
                task: {cost: axis_title(METRICS[cost]) for cost in costs([p for p in points if p["task"] == task])}
                for task in tasks
            },
            "layerMetrics": [{"key": item.key, "title": item.title, "unit": item.unit} for item in LAYER_METRICS],
            "entries": [_entry_data(entry) for entry in entries],
        }
    )


def _entry_data(entry: Entry) -> dict[str, Any]:
    return {
        "layers": {file: _columns(rows) for file, rows in entry.layers.items()},
        "roofs": entry.roofs,
        "training": _columns(entry.training),
        "series": entry.series,
        "shares": entry.shares,
    }


def _columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Records by column, which repeats no keys."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in keys}


def comparability(entries: Sequence[Entry]) -> list[str]:
    """What forbids to compare these entries with each other, in words."""
    found = []
    if len({entry.task for entry in entries}) > 1:
        found.append("The bundles are of different tasks: each task has a plot and a front of its own.")
    elif len({entry.data for entry in entries if entry.data}) > 1:
        found.append("The bundles were scored on different test samples: their accuracies cannot be compared exactly.")
    if len({entry.cpu for entry in entries if entry.cpu}) > 1:
        found.append("The bundles were timed on different processors: their latencies cannot be compared.")
    elif len(entries) > 1:
        found.append("Each bundle was timed in a run of its own; to compare two fairly, run edgekit compare.")
    return found


def _summary(entry: Entry) -> list[dict[str, Any]]:
    """A line for each file that ships: what it is, against the uncompressed network."""
    base, metric = entry.rows[0], METRICS[TASK_METRICS[entry.task][0]]
    lines = []
    for row in entry.shipped:
        outcomes = [verdict.outcome for verdict in entry.verdicts if verdict.file == row["file"]]
        lines.append(
            {
                "entry": entry.name,
                "file": row["file"],
                "accuracy": f"{metric.title} {metric.text(row.get(metric.key))}",
                "drop": _drop(row.get(metric.key), base.get(metric.key)),
                "size": METRICS["size_bytes"].text(row.get("size_bytes")),
                "smaller": _times(row, base, "size_bytes", "smaller", "larger"),
                "latency": METRICS["latency_ms"].text(row.get("latency_ms")),
                "faster": _times(row, base, "latency_ms", "faster", "slower"),
                "outcome": min(outcomes, key=BAD.index, default=None),
            }
        )
    return lines


def _tiles(entry: Entry) -> list[tuple[str, str]]:
    """The smallest file that ships, in a few large words."""
    if not entry.shipped:
        return []
    row, base = min(entry.shipped, key=lambda row: row["size_bytes"]), entry.rows[0]
    metric = METRICS[TASK_METRICS[entry.task][0]]
    drop = _drop(row.get(metric.key), base.get(metric.key))
    found = [
        (metric.text(row.get(metric.key)), f"{metric.title}, {drop}" if drop else metric.title),
        (METRICS["size_bytes"].text(row["size_bytes"]), _times(row, base, "size_bytes", "smaller", "larger")),
        (METRICS["latency_ms"].text(point(row.get("latency_ms"))), _times(row, base, "latency_ms", "faster", "slower")),
        (METRICS["macs"].text(row.get("macs")), _times(row, base, "macs", "fewer MACs", "more MACs")),
    ]
    return [(value, words or "latency") for value, words in found]


def _drop(value: float | None, base: float | None) -> str:
    if point(value) is None or point(base) is None:
        return ""
    return f"{point(value) - point(base):+.2f} points".replace("-", "−")  # type: ignore[operator]


def _times(row: dict[str, Any], base: dict[str, Any], key: str, less: str, more: str) -> str:
    """A ratio in words: 4.5× smaller."""
    value, of = point(row.get(key)), point(base.get(key))
    if not value or not of:
        return ""
    return f"{of / value:.2f}× {less}" if value <= of else f"{value / of:.2f}× {more}"
