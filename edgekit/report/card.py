"""The model card of a bundle: what it is, whence, for what, how good it was measured to be, and what is not known."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgekit.bundle import Bundle
from edgekit.cards import card, cards
from edgekit.report.reproduce import machine_text, model
from edgekit.report.rows import rows, task
from edgekit.report.text import plain_markdown, stand_ins
from edgekit.vocabulary import METRICS, point

TASKS = {"classify": "image classification", "segment": "semantic segmentation", "detect": "object detection"}


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    lines: tuple[str, ...]


def card_markdown(bundle: Bundle) -> str:
    """The card as Markdown, for a README or a model hub."""
    parts = [f"# {plain_markdown(title(bundle))}"]
    for section in card_sections(bundle):
        parts += [f"## {section.title}", "\n".join(f"- {plain_markdown(line)}" for line in section.lines)]
    return "\n\n".join(parts) + "\n"


def title(bundle: Bundle) -> str:
    steps = [row["stage"] for row in bundle.manifest["steps"] if row["stage"] not in ("base", "export")]
    made = f", after {', '.join(dict.fromkeys(steps))}" if steps else ""
    return f"{model(bundle.manifest['source'])}{made}"


def card_sections(bundle: Bundle) -> list[Section]:
    """The card in parts, each a list of sentences."""
    known = _zoo_card(bundle)
    return [
        Section("Network", _network(bundle, known)),
        Section("Licence and provenance", _provenance(bundle, known)),
        Section("Intended input and output", _intended(bundle)),
        Section("Measured accuracy", _accuracy(bundle, known)),
        Section("Known limits", _limits(bundle)),
    ]


def _zoo_card(bundle: Bundle) -> dict[str, Any]:
    """The card of a network of the zoo; empty for a source of the user's own."""
    source = bundle.manifest["source"]
    name = (source.get("weights") or {}).get("card", source["name"])
    return card(name) if source["kind"] == "zoo" and name in cards() else {}


def _network(bundle: Bundle, known: dict[str, Any]) -> tuple[str, ...]:
    source = bundle.manifest["source"]
    lines = [f"{known['title']}."] if "title" in known else []
    lines += [f"Source: {source['kind']} {model(source)}."]
    lines += [f"Paper: {known['paper']}."] if "paper" in known else []
    done = ", ".join(row["stage"] for row in bundle.manifest["steps"] if row["stage"] != "base")
    return (*lines, f"Steps: {done or 'none'}; {len(bundle.manifest['edits'])} edits of the structure.")


def _provenance(bundle: Bundle, known: dict[str, Any]) -> tuple[str, ...]:
    source = bundle.manifest["source"]
    weights = source.get("weights") or {}
    data = bundle.manifest.get("data", {})
    if "card" in weights:
        lines = [
            f"Licence of the weights: {known.get('licence', 'not recorded')}.",
            " ".join(known.get("provenance", "Provenance not recorded.").split()),
        ]
    elif source["kind"] == "zoo" and not weights:
        lines = ["The network was initialised at random here and has no earlier weights.", "Licence: its maker's."]
    else:
        origin = weights.get("file") or source["name"]
        lines = [f"Licence and training data of {origin} are not recorded: ask whoever made it."]
    hashed = weights.get("sha256") or source.get("sha256")
    lines += [f"SHA-256 of the source: {hashed}."] if hashed else []
    used = "; ".join(f"{role} {item['n']:,} samples" for role, item in data.items())
    return (*lines, f"Data of this compression: {used or 'not recorded'}.")


def _intended(bundle: Bundle) -> tuple[str, ...]:
    given, output = bundle.manifest["input"], bundle.manifest["output"]
    size = given.get("size")
    edges = f"{size} × {size}" if isinstance(size, int) else " × ".join(map(str, size or ("?", "?")))
    mean, std = (", ".join(f"{value:g}" for value in given.get(key, ())) for key in ("mean", "std"))
    taken = f"{given.get('channels', 'rgb')}, {given.get('resize', '?')} resizing"
    classes = f" of {output['classes']} classes" if output.get("classes") else ""
    return (
        f"Pictures of {edges} pixels, {taken}; mean {mean}, standard deviation {std}.",
        f"Output: {TASKS[task(bundle)]}{classes}.",
        "Other kinds of pictures than those it was scored on were not tried.",
    )


def _accuracy(bundle: Bundle, known: dict[str, Any]) -> tuple[str, ...]:
    cpu = machine_text(bundle.manifest.get("runs", {}).get("machine", {}))
    names = {"base.": "uncompressed", "model": "ships"}
    lines = []
    for row in rows(bundle):
        if kind := names.get(row["file"][:5]):
            values = (f"{METRICS[key].title} {METRICS[key].text(row[key])}" for key in row["metrics"] if key in METRICS)
            where = f"{row.get('n', '?')} test samples in {row.get('engine', '?')} {row.get('engine_version', '')}"
            lines.append(f"{row['file']} ({kind}): {', '.join(values)} on {where}, on {cpu}.")
    for item in known.get("measured", []):
        named = METRICS[item["metric"]].text(item["value"])
        lines.append(f"Before compression by its card: {named} on {item['n']} of {item['data']}, {item['runtime']}.")
    return tuple(lines)


def _limits(bundle: Bundle) -> tuple[str, ...]:
    lines = [f"{line[0].upper()}{line[1:]}." for line in stand_ins(bundle)]
    if any(row["precision"] == "int8" for row in bundle.manifest["steps"]):
        lines.append("int8 answers depend on the processor: score the file again on the one that will run it.")
    if skipped := max((row.get("skipped") or 0 for row in bundle.manifest["steps"]), default=0):
        lines.append(f"{skipped} test images could not be decoded and were left out.")
    if not any(point(row.get("latency_ms")) for row in rows(bundle)):
        lines.append("Latency was not measured.")
    return (*lines, "Fairness, robustness to attack and behaviour on other data were not examined.")
