"""Files written whole or not at all, and hashes of files."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edgekit.errors import BadInput


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name beside `path`, flush it to the disk, then rename.

    Raises:
        BadInput: the disk is full or the folder cannot be written; `path` is then as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BadInput(
                f"{path}: the disk is full; nothing was written there. Free some space and run again"
            ) from error
        raise BadInput(f"{path}: cannot be written ({error.strerror or error})") from error


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    return text.getvalue().encode()


def write_json(path: Path, value: object) -> None:
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path, schema: str) -> dict:
    """The JSON object in `path`, whose `schema` is `schema/N` with N at most the version this edgekit knows.

    Raises:
        BadInput: no such file, no JSON, another kind of document, or a newer version.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: is no readable JSON ({error})") from None
    kind, _, version = str(document.get("schema") if isinstance(document, dict) else None).rpartition("/")
    known_kind, _, known_version = schema.rpartition("/")
    if kind != known_kind or not version.isdigit():
        raise BadInput(f"{path}: its schema is not {known_kind}")
    if int(version) > int(known_version):
        raise BadInput(f"{path}: has {kind}/{version}; this edgekit reads up to {schema}. Install a newer edgekit")
    return document


def cache_folder() -> Path:
    """Where edgekit keeps what it can make again: `EDGEKIT_CACHE`, or `edgekit` in the system's place for caches."""
    if chosen := os.environ.get("EDGEKIT_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "edgekit" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgekit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_toml(path: Path) -> dict[str, Any]:
    """Raises BadInput where the file is missing or is no TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{path}: {error}") from None
