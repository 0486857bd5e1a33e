"""Where an ONNX file can be cut: the bytes of its tensors, and the edges of its nodes and other records.

The file is walked in protobuf's wire format, which is all that it takes: a message is a row of fields, each a number, a
kind and a value, and every offset is known. Only messages that can hold tensors are entered. What is met that is not
expected is left whole: it costs bytes, never correctness.
https://protobuf.dev/programming-guides/encoding/, field numbers from onnx.proto.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from edgekit.onnx_data import PACKED_BITS

INSIDE = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
}
DATA_TYPE, FLOAT_DATA, NAME, RAW_DATA = 2, 4, 8, 9
VARINT, BYTES = 0, 2
FIXED_SIZE = {1: 8, 5: 4}


@dataclasses.dataclass(frozen=True)
class Payload:
    """The bytes of a tensor within the file."""

    start: int
    stop: int
    name: str
    dtype: str
    """Lower case, as onnx names it: `float`, `int8`, `uint4`."""
    width: int
    """Bytes of a value; 0 where two share a byte."""

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclasses.dataclass(frozen=True)
class _Field:
    number: int
    kind: int
    start: int
    value: int
    """The number itself, or where the value's bytes begin."""
    stop: int


def cut(content: bytes) -> tuple[list[Payload], list[int]]:
    """The payloads of an ONNX file in order, and the edges between its records, payloads included."""
    payloads: list[Payload] = []
    edges = {0, len(content)}
    for found in _walk(content, "model", 0, len(content)):
        if isinstance(found, Payload):
            payloads.append(found)
            edges |= {found.start, found.stop}
        else:
            edges.add(found)
    return payloads, sorted(edges)


def _walk(content: bytes, message: str, start: int, stop: int) -> Iterator[Payload | int]:
    """Payloads, and where the fields of graphs begin."""
    if message == "tensor":
        yield from _tensor(content, start, stop)
        return
    for field in _fields(content, start, stop):
        if message in ("model", "graph"):
            yield field.start
        inner = INSIDE[message].get(field.number)
        if inner and field.kind == BYTES:
            yield from _walk(content, inner, field.value, field.stop)


def _tensor(content: bytes, start: int, stop: int) -> Iterator[Payload]:
    from onnx import TensorProto, helper

    fields = {field.number: field for field in _fields(content, start, stop)}
    data = fields.get(RAW_DATA) or fields.get(FLOAT_DATA)
    if data is None or data.kind != BYTES or DATA_TYPE not in fields:
        return
    number = fields[DATA_TYPE].value
    dtype = TensorProto.DataType.Name(number) if number in TensorProto.DataType.values() else "UNDEFINED"
    if dtype in ("UNDEFINED", "STRING"):
        return
    width = 0 if PACKED_BITS.get(dtype) == 4 else helper.tensor_dtype_to_np_dtype(number).itemsize
    named = fields.get(NAME)
    name = content[named.value : named.stop].decode(errors="replace") if named else ""
    width = min(width, 8) if (data.stop - data.value) % max(1, width) == 0 else 1
    yield Payload(data.value, data.stop, name, dtype.lower(), width)


def _fields(content: bytes, start: int, stop: int) -> Iterator[_Field]:
    """The fields of a message, up to the first that is none."""
    position = start
    while position < stop:
        key, value = _varint(content, position)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, end = _varint(content, value)
        elif kind == BYTES:
            length, value = _varint(content, value)
            end = value + length
        elif kind in FIXED_SIZE:
            end = value + FIXED_SIZE[kind]
        else:
            return
        if end > stop:
            return
        yield _Field(number, kind, position, value, end)
        position = end


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """The number there, and where it ends; past the end of the file where it is cut off."""
    value = shift = 0
    for index in range(position, min(position + 10, len(content))):
        value |= (content[index] & 127) << shift
        if content[index] < 128:
            return value, index + 1
        shift += 7
    return 0, len(content) + 1
