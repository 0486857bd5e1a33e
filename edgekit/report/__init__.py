"""What was measured, for people and programs: tables, Markdown, JUnit, and one HTML file with plots."""

from edgekit.report.card import card_markdown
from edgekit.report.documents import document, junit, verdicts_json
from edgekit.report.entries import bundle_entries, comparison_entry, names
from edgekit.report.page import write_page, write_reports
from edgekit.report.plots import write_plots
from edgekit.report.rows import METRICS, base_row, device_rows, judged, newest_verdicts, rows, shipped, task
from edgekit.report.text import (
    SIZES,
    cells,
    columns,
    markdown,
    notes,
    plain_markdown,
    predictions,
    size_rows,
    size_table,
    slower,
    stand_ins,
    table,
    verdict_line,
    verdicts_markdown,
)

__all__ = [
    "METRICS",
    "SIZES",
    "base_row",
    "bundle_entries",
    "card_markdown",
    "cells",
    "columns",
    "comparison_entry",
    "device_rows",
    "document",
    "judged",
    "junit",
    "markdown",
    "names",
    "newest_verdicts",
    "notes",
    "plain_markdown",
    "predictions",
    "rows",
    "shipped",
    "size_rows",
    "size_table",
    "slower",
    "stand_ins",
    "table",
    "task",
    "verdict_line",
    "verdicts_json",
    "verdicts_markdown",
    "write_page",
    "write_plots",
    "write_reports",
]
