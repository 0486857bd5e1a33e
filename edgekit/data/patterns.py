"""One pattern for many files: globs, and braces as WebDataset's users write them."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from edgekit.errors import BadInput

LARGEST = 1_000_000  # names that a pattern's braces may stand for
BRACES = re.compile(r"(\{(?:[0-9]{1,18}\.\.[0-9]{1,18}|[^{}]*,[^{}]*)\})")


def matching(text: str, form: str) -> list[Path]:
    """The files that a path, a glob, or braces ({000..009} or {a,b}, not nested) name; `form` stands in errors.

    Raises:
        BadInput: a name that no file has, or braces that stand for more than a million names.
    """
    found: list[Path] = []
    for name in _expanded(os.path.expanduser(text)):
        # A name as it stands comes first: files may have brackets in theirs.
        matches = [name] if os.path.lexists(name) else glob.glob(name)
        if not matches:
            raise BadInput(f"{name or 'nothing'}: no such file; write {form}")
        found += map(Path, matches)
    for path in found:
        if not path.is_file():
            raise BadInput(f"{path}: is no file; write {form}")
    return found


def _expanded(pattern: str) -> list[str]:
    """The names that braces stand for, as in a shell; braces of another form stay as they are."""
    choices = [_choices(part) for part in BRACES.split(pattern)]
    if math.prod(map(len, choices)) > LARGEST:
        raise BadInput(f"{pattern}: stands for more than {LARGEST} names; write a smaller range")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(part: str) -> Sequence[str]:
    if not BRACES.fullmatch(part):
        return [part]
    if "," in part:
        return part[1:-1].split(",")
    first, _, last = part[1:-1].partition("..")
    low, high = sorted((int(first), int(last)))
    padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
    width = max(len(first), len(last)) if padded else 0
    # One more than too many is too many as well, and fits the memory.
    return [f"{number:0{width}}" for number in range(low, min(high, low + LARGEST) + 1)]
