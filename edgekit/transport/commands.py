"""What `edgekit pack` and `edgekit unpack` do: choose the file, code or decode it, write the result."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgekit.bundle import open_bundle
from edgekit.errors import BadInput
from edgekit.files import write_bytes
from edgekit.onnx_data import is_external, tensors
from edgekit.onnx_file import read
from edgekit.transport import unpack as decoder
from edgekit.transport.pack import pack


def pack_file(
    source: Path, out: Path, target: str | None = None, precision: str | None = None, base: Path | None = None
) -> dict[str, Any]:
    """Write the transport form of a bundle's file, or of an ONNX file; returns what each kind of content takes.

    Args:
        target, precision: which of a bundle's files, where it has several.
        base: the bundle or ONNX file that the device has; of a bundle, the file of the same name.

    Raises:
        BadInput: `out` exists, no file or several fit, or one is no ONNX file that stands by itself.
    """
    _check_new(out)
    file = _chosen(source, target, precision)
    base_file = None if base is None else _same_name(base, file)
    content, base_content = _read(file), None if base_file is None else _read(base_file)
    packed = pack(content, base_content)
    decoder.unpack(packed.content, base_content)  # nothing is written that would not unpack
    write_bytes(out, packed.content)
    return {
        "schema": "edgekit/transport/1",
        "file": str(file),
        "base": base_file and str(base_file),
        "size_bytes": len(content),
        "transport_bytes": len(packed.content),
        "rows": [dataclasses.asdict(row) for row in packed.rows],
    }


def unpack_file(path: Path, out: Path, base: Path | None = None) -> int:
    """Write the ONNX file that was packed; returns its size in bytes.

    Args:
        base: for a delta, the ONNX file it was made against, or a bundle that holds it.

    Raises:
        BadInput: `out` exists, `path` is no whole and unaltered `.ekz`, or the base is not the right one.
    """
    _check_new(out)
    try:
        packed = decoder.read(path)
        wanted = decoder.read_header(packed).base_sha256
        content = decoder.unpack(packed, None if base is None else _base(base, wanted))
    except FileNotFoundError as error:
        raise BadInput(f"{error.filename}: no such file") from None
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}") from None
    except decoder.UnpackError as error:
        raise BadInput(f"{path}: {error}") from None
    write_bytes(out, content)
    return len(content)


def _check_new(out: Path) -> None:
    if out.exists():
        raise BadInput(f"{out}: exists; give another --out")


def _chosen(source: Path, target: str | None, precision: str | None) -> Path:
    if not source.is_dir():
        if target or precision:
            raise BadInput(f"{source}: is one file; --target and --precision choose among those of a bundle")
        return source
    models = open_bundle(source).models
    fitting = [path for path in models if _fits(path.name, target, precision)]
    if len(fitting) != 1:
        found = "several of its files fit" if fitting else "none of its files fits"
        names = ", ".join(path.name for path in models)
        raise BadInput(f"{source}: {found}; choose one with --target and --precision: {names}")
    return fitting[0]


def _fits(name: str, target: str | None, precision: str | None) -> bool:
    return all(wanted in (None, found) for wanted, found in zip((target, precision), name.split(".")[1:]))


def _same_name(base: Path, file: Path) -> Path:
    if not base.is_dir():
        return base
    models = open_bundle(base).models
    if base / file.name not in models:
        names = ", ".join(path.name for path in models)
        raise BadInput(f"{base}: has no {file.name}; give the ONNX file itself as --base. It has {names}")
    return base / file.name


def _base(base: Path, wanted: bytes) -> bytes:
    """The base file, or that of a bundle whose SHA-256 is `wanted`."""
    if not base.is_dir():
        return base.read_bytes()
    if wanted == decoder.NO_BASE:
        return b""  # the decoder refuses any
    files = open_bundle(base).manifest["files"]
    name = next((name for name, sealed in files.items() if sealed["sha256"] == wanted.hex()), None)
    if name is None:
        raise BadInput(f"{base}: holds no file of SHA-256 {wanted.hex()}, which the delta was made against")
    return (base / name).read_bytes()


def _read(path: Path) -> bytes:
    """The bytes of a valid ONNX file. Raises BadInput where some of its tensors lie in other files."""
    import onnx

    read(path)
    content = path.read_bytes()
    if len(content) > decoder.LIMIT:
        raise BadInput(f"{path}: has {len(content):,} bytes; what unpacks to more than {decoder.LIMIT:,} is refused")
    outside = next(
        (name for name, tensor in tensors(onnx.load_from_string(content).graph) if is_external(tensor)), None
    )
    if outside is not None:
        raise BadInput(
            f"{path}: {outside!r} lies in another file; only one file can be packed. "
            f"Write it whole, with onnx.save(onnx.load({path.name!r}), OUT)"
        )
    return content
