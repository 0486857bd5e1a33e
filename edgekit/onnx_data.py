"""The tensors of an ONNX file that a stranger wrote: their bytes are counted before anything is allocated, and those
that lie in other files are loaded only from plain files in the model's own folder.

A location may neither leave the folder nor be a symbolic link, and the file may have no second name: a hard link to
another file of this machine would pass every check of its path.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import BadInput

if TYPE_CHECKING:
    import onnx

LARGEST_BYTES = 2**31
"""What protobuf can hold, and so the most that a file and the data beside it may come to."""

PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
UNREAD = ("UNDEFINED", "FLOAT6E2M3", "FLOAT6E3M2")


def tensors(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every constant with a name to call it by: initialisers, and attributes of nodes, of inner graphs too."""
    yield from ((init.name, init) for init in graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            name = f"{node.name or node.op_type}.{attribute.name}"
            yield from ((name, tensor) for tensor in attribute.tensors)
            if attribute.HasField("t"):
                yield name, attribute.t
            for inner in inner_graphs(attribute):
                yield from tensors(inner)


def inner_graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """The branches and loop bodies that an attribute holds."""
    return [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]


def is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.external_data) or tensor.data_location == tensor.EXTERNAL


def take_in(model: onnx.ModelProto, path: Path) -> None:
    """Check the size of every tensor of the model in file `path`, and load those that lie in other files.

    Raises:
        BadInput: naming the tensor: bytes that do not fit its shape, or a place that may not be read.
    """
    if model.graph.sparse_initializer:
        raise BadInput(f"{path}: holds sparse initialisers, which cannot be read; write them densely")
    total = path.stat().st_size
    for name, tensor in tensors(model.graph):
        where = f"{path}: {name!r}"
        size = _checked_size(tensor, where)
        if not is_external(tensor):
            continue
        total += size
        if total >= LARGEST_BYTES:
            raise BadInput(f"{where} brings the file and its external data to 2 GiB and more, which cannot be read")
        places = {item.key: item.value for item in tensor.external_data}
        tensor.raw_data = _external_bytes(path, places, size, where)
        tensor.ClearField("external_data")
        tensor.data_location = tensor.DEFAULT


def type_bytes(kind: int, count: int) -> int:
    """What `count` values of an ONNX element type take; types of less than a byte are packed."""
    from onnx import TensorProto, helper

    bits = PACKED_BITS.get(TensorProto.DataType.Name(kind))
    return count * helper.tensor_dtype_to_np_dtype(kind).itemsize if bits is None else -(-count * bits // 8)


def weight_bytes(graph: onnx.GraphProto) -> int:
    """What the constants of a graph take, coded weights as codes and tables."""
    return sum(type_bytes(tensor.data_type, math.prod(tensor.dims)) for _, tensor in tensors(graph))


def _checked_size(tensor: onnx.TensorProto, where: str) -> int:
    """The bytes that a tensor's shape asks for. Raises BadInput where it holds another number."""
    from onnx import TensorProto

    kind = TensorProto.DataType.Name(tensor.data_type) if tensor.data_type in TensorProto.DataType.values() else "?"
    if kind in ("?", *UNREAD):
        raise BadInput(f"{where} is of type {tensor.data_type} ({kind}), which cannot be read")
    if any(size < 0 for size in tensor.dims):
        raise BadInput(f"{where} has the shape {list(tensor.dims)}")
    count = math.prod(tensor.dims)
    if kind == "STRING":
        wanted = found = 0 if is_external(tensor) else len(tensor.string_data) - count
    else:
        wanted = type_bytes(tensor.data_type, count)
        found = wanted if is_external(tensor) else _held(tensor, kind, wanted if kind in PACKED_BITS else count, wanted)
    if found != wanted:
        raise BadInput(f"{where} holds {found} bytes where its shape {list(tensor.dims)} needs {wanted}")
    return wanted


def _held(tensor: onnx.TensorProto, kind: str, entries: int, wanted: int) -> int:
    """The bytes that a tensor holds, as raw data or as that many entries of a typed field."""
    from onnx import helper

    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    entries *= 2 if kind.startswith("COMPLEX") else 1  # real and imaginary part
    held = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    return wanted if held == entries else wanted * held // max(1, entries)


def _external_bytes(path: Path, places: Mapping[str, str], size: int, where: str) -> bytes:
    file = _plain_file(path, places.get("location", ""), where)
    try:
        offset, length = int(places.get("offset") or 0), int(places.get("length") or size)
    except ValueError:
        raise BadInput(f"{where}: its external data has no numbers for offset and length") from None
    if length != size:
        raise BadInput(f"{where}: its external data is {length} bytes long where its shape needs {size}")
    # No link is followed even if one was put there since the check above.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb") as opened:
        found = os.fstat(opened.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise BadInput(f"{where}: its external data {file.name} must be a plain file without a second (hard) link")
        if not 0 <= offset <= found.st_size - size:
            raise BadInput(
                f"{where}: its external data would be bytes {offset} to {offset + size} of {file.name}, "
                f"which has {found.st_size}"
            )
        opened.seek(offset)
        return opened.read(size)


def _plain_file(path: Path, location: str, where: str) -> Path:
    """The file of external data. Raises BadInput where it is not below the model's folder by a path without links."""
    folder = path.resolve().parent
    file = folder / location
    # A path with "..", or with a link on its way, is not what it resolves to; an absolute one takes the folder's place.
    if not location or "\0" in location or file.resolve() != file or folder not in file.parents:
        raise BadInput(
            f"{where}: its external data lies at {location!r}; only a file in the model's own folder is read, no link"
        )
    if not file.is_file():
        raise BadInput(f"{where}: its external data {location!r} is missing or is no file")
    return file
