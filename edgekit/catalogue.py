"""The zoo as `edgekit models` lists it: data only, so that it answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgekit.cards import card, cards
from edgekit.terminal import make, si

if TYPE_CHECKING:
    from rich.table import Table


def model_rows() -> list[dict[str, Any]]:
    """A record per variant of every card: its name as MODEL takes it, counts and published figures."""
    rows = []
    for name in cards():
        for variant in card(name).get("variants", []):
            query = "&".join(f"{key}={value}" for key, value in variant.get("args", {}).items())
            counts = {key: variant.get(key) for key in ("params", "macs", "cio")}
            published = variant.get("published", [])
            rows.append({"name": f"{name}?{query}" if query else name, **counts, "published": published})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    made = make("model", "params", "MACs", "CIO", "top-1", "source")
    for row in rows:
        top1 = next((item for item in row["published"] if item["metric"] == "top1"), None)
        figures = (str(top1["value"]), top1["source"]) if top1 else ("–", "")
        made.add_row(row["name"], si(row["params"]), si(row["macs"]), si(row["cio"]), *figures)
    made.columns[-1].justify = "left"
    return made
