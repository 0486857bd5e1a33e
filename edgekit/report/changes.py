"""Which edits were made where: for each layer of the uncompressed network, what it became."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgekit.terminal import si

Layer = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Change:
    """One layer before and after, in words: "96 → 64". Dropped layers have nothing after."""

    layer: str
    what: tuple[str, ...]
    channels_in: str
    channels_out: str
    weights: str


def changes(edits: Sequence[Mapping[str, Any]], before: Sequence[Layer], after: Sequence[Layer]) -> list[Change]:
    """A record for each layer that an edit names or whose shape is another; the layers as `file_layers` gives them."""
    found = []
    for layer in before:
        name = layer["layer"]
        became = [item for item in after if _within(item["layer"], name)]
        what = tuple(dict.fromkeys(_words(edit, name) for edit in edits if _concerns(edit, name)))
        if what or not _same_shape(layer, became):
            found.append(_change(layer, became, what))
    return found


def beyond(edits: Sequence[Mapping[str, Any]], before: Sequence[Layer]) -> int:
    """How many edits name no layer of the file: norms, which are folded, and what the graph calls otherwise."""
    return sum(not any(_concerns(edit, layer["layer"]) for layer in before) for edit in edits)


def _within(name: str, whole: str) -> bool:
    return name == whole or name.startswith(f"{whole}.")


def _concerns(edit: Mapping[str, Any], layer: str) -> bool:
    named = str(edit.get("layer", ""))
    return _within(named, layer) or (edit.get("edit") == "drop_block" and _within(layer, named))


def _words(edit: Mapping[str, Any], layer: str) -> str:
    inner = str(edit.get("layer", "")).removeprefix(layer).lstrip(".")
    try:
        text = WORDS[edit["edit"]](edit)
    except KeyError:  # an edit that this table does not know is shown by its name
        text = str(edit.get("edit"))
    return f"{text} (part {inner})" if inner and text != DROPPED else text


DROPPED = "dropped with its block"
WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "keep_channels": lambda edit: f"{'outputs' if edit['dim'] == 'out' else 'inputs'} removed",
    "drop_block": lambda _edit: DROPPED,
    "factorise": lambda edit: f"low rank, {edit['form']} form, rank {' × '.join(map(str, edit['ranks']))}",
    "code_weight": lambda edit: f"codebook of {edit['k']} × {edit.get('m', 1)}",
    "shift_weight": lambda edit: f"powers of two, {edit['method']}, {edit['bits']} bits",
    "mask_weight": lambda _edit: "weights held at 0",
    "project_weight": lambda edit: f"subvectors of {edit['m']} in {edit['d']} dimensions",
}


def _same_shape(layer: Layer, became: Sequence[Layer]) -> bool:
    keys = ("channels_in", "channels_out", "weights")
    return len(became) == 1 and all(layer.get(key) == became[0].get(key) for key in keys)


def _change(layer: Layer, became: Sequence[Layer], what: tuple[str, ...]) -> Change:
    after = {
        "channels_in": became[0].get("channels_in") if became else 0,
        "channels_out": became[-1].get("channels_out") if became else 0,
        "weights": sum(item.get("weights") or 0 for item in became),
    }
    pairs = {key: _arrow(layer.get(key), value) for key, value in after.items()}
    return Change(layer["layer"], what or ("follows its neighbours",), **pairs)


def _arrow(before: int | None, after: int | None) -> str:
    return si(before) if before == after else f"{si(before)} → {si(after)}"
