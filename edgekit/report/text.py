"""The table of stages and the verdicts of gates, for a terminal and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.bundle import Bundle
from edgekit.gate import Verdict
from edgekit.report.rows import METRICS, base_row, device_rows, rows, shipped, task
from edgekit.targets import target
from edgekit.terminal import latency, make, megabytes, si

if TYPE_CHECKING:
    from rich.table import Table


def columns(task: str) -> tuple[str, ...]:
    """The titles of `cells`."""
    title = METRICS[task][1]
    return ("stage", "params", "MACs", "file", "CIO", f"{title} torch", f"{title} file", "latency ms [95 %]")


def cells(row: dict[str, Any], task: str = "classify") -> tuple[str, ...]:
    """One stage as short texts, in the order of `columns`."""
    metric = METRICS[task][0]
    torch_metrics = row.get("metrics_torch") or {}
    return (
        row["stage"],
        si(row["params"]),
        si(row["macs"]),
        si(row["size_bytes"]) + "B",
        si(row["cio"]),
        _percent(torch_metrics.get(metric)),
        _percent(row.get(metric)),
        latency(row.get("latency_ms")),
    )


SIZES = ("file", "packed", "bits a weight", "weights", "activ.", "arena", "loaded", "running")


def size_rows(bundle: Bundle) -> list[tuple[str, ...]]:
    """For each file of a bundle its stage and what `SIZES` names: the file and its transport form, bits a weight of the
    uncompressed network, weights and activations at once by the file, and by the runtime the arena and the resident set
    after loading and while running."""
    return [_size_cells(row) for row in rows(bundle) if "transport_bytes" in row]


def _size_cells(row: dict[str, Any]) -> tuple[str, ...]:
    keys = "weight_bytes peak_bytes arena_bytes resident_load_bytes resident_run_bytes".split()
    taken = [megabytes(row.get(key)) for key in keys]
    return row["stage"], megabytes(row["size_bytes"]), megabytes(row["transport_bytes"]), f"{row['bits']:.2f}", *taken


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def table(bundle: Bundle) -> Table:
    made = make(*columns(task(bundle)))
    for row in rows(bundle):
        made.add_row(*cells(row, task(bundle)))
    return made


def size_table(bundle: Bundle) -> Table | None:
    """`size_rows` in MB, or None for a bundle from before they were measured."""
    found = size_rows(bundle)
    made = make("MB", *SIZES)
    for row in found:
        made.add_row(*row)
    return made if found else None


def stand_ins(bundle: Bundle) -> list[str]:
    """A line for each engine that scored files in another's place, or on another processor than theirs."""
    found: dict[str, list[str]] = {}
    for row in bundle.manifest["steps"]:
        wanted = target(row["target"]).engine
        if row.get("stand_in") or row.get("engine", wanted) != wanted:
            why = f": {row['stand_in']}" if row.get("stand_in") else ""
            line = f"scored in {row['engine']}, which stands in for {row['target']}{why}"
            found.setdefault(line, []).append(row["file"])
    return [f"{what} ({', '.join(names)})" for what, names in found.items()]


def predictions(bundle: Bundle) -> list[str]:
    """A line for each stage of a recipe that budgets latency: the share that was predicted, and the measured one."""
    base = (base_row(bundle).get("latency_ms") or {}).get("median")
    found = []
    for row in rows(bundle):
        if "latency_predicted" in row and row["file"] != bundle.base.name:
            median = (row.get("latency_ms") or {}).get("median")
            measured = f"{median / base:.3f} measured" if base and median else "not measured"
            told = f"by {row['latency_table']}" if "latency_table" in row else measured  # which is of another machine
            found.append(f"latency of {row['stage']}: {row['latency_predicted']:.3f} of the base's predicted, {told}")
    return found


def slower(bundle: Bundle) -> list[str]:
    """A line for each file of fewer bits that is slower here than the float32 file of its target, beyond doubt."""
    timed = [row for row in shipped(bundle) if row.get("latency_ms")]
    floats = {row["target"]: row["latency_ms"] for row in timed if row["precision"] == "fp32"}
    found = []
    for row in timed:
        of, against = row["latency_ms"], floats.get(row["target"])
        if row["precision"] != "fp32" and against and of["low"] > against["high"]:
            ratio = of["median"] / against["median"]
            found.append(f"{row['file']} is slower on this machine than its float32 file: {ratio:.2f} of its latency")
    return found


UNKNOWN = {
    "traffic_unknown": "modelled traffic",
    "peak_unknown": "activations at once",
    "layers_unknown": "times of layers",
    "traffic_layers_unknown": "modelled traffic of layers",
}
"""What a row says instead of a figure that could not be had."""


def unknown(bundle: Bundle) -> list[str]:
    """A line for each figure that could not be had, and why."""
    return [
        f"{row['file']}: {what} not known: {row[key]}"
        for row in rows(bundle)
        for key, what in UNKNOWN.items()
        if key in row
    ]


def on_devices(bundle: Bundle) -> list[str]:
    """A line for each file on each device that it was measured on."""
    return [
        f"{row['file']} on {row['device']} ({row['cpu']}): {latency(row['latency_ms'])} ms, "
        f"{latency(row['latency_ratio'])} of {row['ratio_to']}{'; unstable' if row['unstable'] else ''}"
        for row in device_rows(bundle)
    ]


def notes(bundle: Bundle) -> list[str]:
    """What belongs below the table."""
    return [*stand_ins(bundle), *predictions(bundle), *slower(bundle), *on_devices(bundle), *unknown(bundle)]


def verdict_line(verdict: Verdict) -> str:
    mark = {"pass": "pass", "fail": "FAIL", "inconclusive": "????"}[verdict.outcome]
    return f"{mark}  {verdict.metric} {verdict.rule} {verdict.limit:g}: {measured_text(verdict)}  {verdict.file}"


def measured_text(verdict: Verdict) -> str:
    """The value with its interval, or why there is none."""
    if verdict.value is None:
        return verdict.reason
    if verdict.reason:
        return f"{verdict.value:.4g} ({verdict.reason})"
    spread = f" [{verdict.low:.4g}, {verdict.high:.4g}]" if verdict.low != verdict.high else ""
    return f"{verdict.value:.4g}{spread}"


def markdown(bundle: Bundle, verdicts: Sequence[Verdict] = ()) -> str:
    lines = _markdown_table(columns(task(bundle)), [cells(row, task(bundle)) for row in rows(bundle)])
    lines += ["", *_markdown_table(("MB", *SIZES), sized)] if (sized := size_rows(bundle)) else []
    lines += ["", *map(plain_markdown, below)] if (below := notes(bundle)) else []
    return "\n".join([*lines, *(["", verdicts_markdown(verdicts)] if verdicts else [])]) + "\n"


def _markdown_table(titles: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = "|" + "---|" * len(titles)
    return [_markdown_row(titles), rule, *map(_markdown_row, body)]


def verdicts_markdown(verdicts: Sequence[Verdict]) -> str:
    body = []
    for verdict in verdicts:
        limit = f"{verdict.limit:g}"
        body.append((verdict.outcome, verdict.metric, verdict.rule, limit, measured_text(verdict), verdict.file))
    return "\n".join(_markdown_table(("outcome", "metric", "rule", "limit", "measured", "file"), body))


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(plain_markdown, cells)) + " |"


def plain_markdown(text: str) -> str:
    """Text as Markdown that shows it: names come from files, and must neither end a cell nor become HTML."""
    return re.sub(r"[\\`|<>*]|\](?=\()", r"\\\g<0>", " ".join(text.split()))
