"""JSON and TOML tables to frozen dataclasses and back, with errors that say where and what to write instead."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from edgekit.errors import BadInput, unknown

T = TypeVar("T")


def parse(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls` from `table`.

    Raises:
        BadInput: a name, type or value is wrong; the message holds `where`, the key, what was found and what may stand.
    """
    fields = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    for key in table:
        if key not in fields:
            raise unknown("key", key, fields, where)
    try:
        return TypeAdapter(cls).validate_python(dict(table))
    except ValidationError as error:
        raise BadInput("\n".join(_explain(item, where) for item in error.errors())) from None


def chosen(registry: Mapping[str, type], default: str) -> Callable[[Any], Any]:
    """A validator for a field that holds one of several dataclasses: a name, or a table of a name and fields.

    Raises:
        ValueError: an unknown name, or fields that do not fit it.
    """

    def validate(value: Any) -> Any:
        if isinstance(value, tuple(registry.values())):
            return value
        table = {"name": value} if isinstance(value, str) else value
        if not isinstance(table, Mapping):
            raise ValueError(f'write "{default}", or {{ name = "{default}", … }}')
        name = table.get("name", default)
        try:
            if name not in registry:
                raise unknown("name", str(name), registry)
            return parse(registry[name], {**table, "name": name}, str(name))
        except BadInput as error:
            raise ValueError(str(error)) from None

    return validate


def _explain(item: Any, where: str) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f"{where}: {key} is missing"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {key} = {item['input']!r}: {message}" if key else f"{where}: {message}"


def to_json(value: object) -> Any:
    """Dataclasses, tuples and paths as plain JSON values; fields that are None are left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: to_json(item) for name, item in pairs if item is not None}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def canonical(value: object) -> bytes:
    """One byte string for equal values: sorted keys, no spaces, no NaN."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
