"""Model cards: `models/<name>.toml`, what a network is, its counts, its published figures and its licence."""

import functools
import tomllib
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput, unknown


def package_data(kind: str) -> Path:
    """The folder of `recipes` or `models`: inside the installed package, or at the top of a checkout."""
    inside = Path(__file__).parent / kind
    return inside if inside.is_dir() else Path(__file__).parent.parent / kind


@functools.cache
def cards() -> dict[str, Path]:
    """Every model card by name."""
    return {path.stem: path for path in sorted(package_data("models").glob("*.toml"))}


@functools.cache
def card(name: str) -> dict[str, Any]:
    """The card of one network.

    Raises:
        BadInput: there is no such card, or it is no TOML.
    """
    if name not in cards():
        raise unknown("model", name, cards())
    try:
        return tomllib.loads(cards()[name].read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{cards()[name]}: {error}") from None
