"""Tokens and keys: from a file or the environment, never from the command line, where every process can read them."""

from __future__ import annotations

import os
from pathlib import Path

from edgekit.errors import BadInput
from edgekit.split.packet import LEAST_KEY_BYTES

TOKEN_VARIABLE = "EDGEKIT_SPLIT_TOKEN"
KEY_VARIABLE = "EDGEKIT_SPLIT_KEY"
LEAST_TOKEN_LETTERS = 16


def tokens(file: Path | None) -> tuple[bytes, ...]:
    """The bearer tokens, one a line; several, so that they can be changed without a break. None at all: ().

    Raises:
        BadInput: the file cannot be read or is empty, or a token is short or has spaces or letters beyond ASCII.
    """
    text, where = _text(file, TOKEN_VARIABLE)
    found = text.split("\n")
    for token in filter(None, found):
        if len(token) < LEAST_TOKEN_LETTERS or not token.isascii() or not token.isprintable() or " " in token:
            raise BadInput(
                f"{where}: a token must be at least {LEAST_TOKEN_LETTERS} printable ASCII letters without spaces, "
                "such as `openssl rand -hex 32` makes"
            )
    return tuple(token.encode() for token in found if token)


def key(file: Path | None) -> bytes | None:
    """The key of the packets' HMAC, in hex; None where there is none.

    Raises:
        BadInput: the file cannot be read or is empty, or is no hex, or is short.
    """
    text, where = _text(file, KEY_VARIABLE)
    if not text:
        return None
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) < LEAST_KEY_BYTES:
        raise BadInput(
            f"{where}: a key must be at least {LEAST_KEY_BYTES} bytes in hex; `openssl rand -hex 32` makes one"
        )
    return found


def _text(file: Path | None, variable: str) -> tuple[str, str]:
    """What a file or a variable of the environment holds, and which of the two."""
    if file is None:
        return os.environ.get(variable, "").strip(), f"${variable}"
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file}: cannot be read ({error})") from None
    if not text:
        raise BadInput(f"{file}: is empty")
    return text, str(file)
