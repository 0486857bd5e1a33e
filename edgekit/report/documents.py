"""Verdicts and tables for programs: JUnit XML and JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle
from edgekit.gate import Verdict
from edgekit.report.rows import rows
from edgekit.report.text import verdict_line
from edgekit.schema import to_json

NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """The text with what XML 1.0 cannot hold replaced by �; names come from files and may hold anything."""
    return NOT_XML.sub("\ufffd", text)


def junit(verdicts: Sequence[Verdict]) -> bytes:
    """JUnit XML: a test case per gate; an inconclusive one is an error, never a pass."""
    from xml.etree import ElementTree

    failed = sum(verdict.outcome == "fail" for verdict in verdicts)
    undecided = sum(verdict.outcome == "inconclusive" for verdict in verdicts)
    counts = {"tests": str(len(verdicts)), "failures": str(failed), "errors": str(undecided)}
    suite = ElementTree.Element("testsuite", {"name": "edgekit gate", **counts})
    for verdict in verdicts:
        name = f"{verdict.metric} {verdict.rule} {verdict.limit:g}"
        case = ElementTree.SubElement(suite, "testcase", classname=xml_text(verdict.file), name=xml_text(name))
        if verdict.outcome != "pass":
            kind = "failure" if verdict.outcome == "fail" else "error"
            ElementTree.SubElement(case, kind, message=xml_text(verdict_line(verdict)))
    return ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)


def document(bundle: Bundle) -> dict[str, Any]:
    """The report of one bundle as one JSON document."""
    return {
        "schema": "edgekit/report/1",
        "bundle": str(Path(bundle.path).name),
        "seal": bundle.seal,
        "rows": rows(bundle),
        "gates": (bundle.latest("gates") or {}).get("verdicts", []),
    }


def verdicts_json(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    return [to_json(verdict) for verdict in verdicts]
