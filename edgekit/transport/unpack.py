"""The decoder of edgekit's transport form `.ekz`. This one file, numpy and constriction are all that a device needs:

    python unpack.py model.ekz model.onnx [--base old.onnx]

An `.ekz` says how to put an ONNX file together again, byte by byte, without knowing what ONNX is: some runs of bytes
(`parts`: the tensors) are decoded, the rest (`literals`: names, shapes, nodes) stands between them as it is. In a delta
a part may be coded as the difference to a run of bytes of the base file; an unchanged run is a difference of zeros.

    magic, version, CRC-32 of all that follows                                   12 bytes
    sizes, SHA-256 of the ONNX file and of the base file (zeros: none)           Header
    directory, LZMA: parts, groups, streams, tables, literals                    numbers as byte planes of uint32
    stored bytes: planes whose bytes are as good as random, groups as LZMA       in the order of the groups
    32-bit words of one ANS coder, little-endian                                 all other planes, in the same order

Parts with similar values form a `group` and share its tables. A group of width 2, 4 or 8 is decoded plane by plane
(first the lowest byte of every value), one of width 1 is its only plane, one of width 0 holds two 4-bit values a byte,
low first. A plane is a `stream`: stored, constant, or coded with one static table of up to 256 frequencies.

A frequency is written as a float of 2 bits after the leading one, and the table is scaled to 2^24 in integers. The
coder is asked for exactly those: it gives every symbol 1/2^24 and shares out the rest in proportion, so it is handed
the frequencies less one, which sum to the rest; its only factor is then 1 and its sums are of integers below 2^24,
exact in float32. So all machines agree. Duda et al. 2015, "The use of asymmetric numeral systems" (PCS); Bamler 2022,
"Understanding entropy coding with ANS" (arXiv 2201.01741), whose library constriction this is.

Nothing is decoded before the checksum is right, nothing is allocated before its size was compared with the limit, and
nothing is given out whose SHA-256 is not that of the packed file.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import lzma
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import constriction
import numpy as np

MAGIC = b"\x89EKZ"
VERSION = 1
LIMIT = 2**30
"""The largest ONNX file, in bytes, that is unpacked unless the caller allows more."""
MOST_PARTS = 2**20
MOST_MEMORY = 4
"""What decoding holds at once beside its arguments, in sizes of the result, and some MiB that do not depend on it."""

PREFIX = struct.Struct("<4sII")
HEADER = struct.Struct("<QQ32s32sII")
COUNTS = struct.Struct("<III")
NO_BASE = bytes(32)
FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 9, "dict_size": 2**22, "lc": 3, "lp": 0, "pb": 0}]

PRECISION = 24
MOST_CODE = 83
WIDTHS = (0, 1, 2, 4, 8)
STEPS = (1, 2, 4, 8)
CHUNK = 2**18


class UnpackError(ValueError):
    """A file that is no `.ekz`, is damaged, is too large or too new, or a base that is not the one it was made for."""


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise UnpackError(f"is damaged ({problem}); fetch it again")


@dataclasses.dataclass(frozen=True)
class Header:
    """What an `.ekz` says of itself. Sizes in bytes."""

    size: int
    stored_size: int
    sha256: bytes
    base_sha256: bytes
    directory_size: int
    """Of the directory as it stands in the file."""
    directory_full_size: int


def read_header(content: bytes) -> Header:
    """The header, after version and checksum.

    Raises:
        UnpackError: no `.ekz`, a newer version, truncated, or any byte altered.
    """
    if content[: len(MAGIC)] != MAGIC:
        raise UnpackError("is no .ekz file")
    _require(len(content) >= PREFIX.size + HEADER.size, "truncated")
    _, version, checksum = PREFIX.unpack_from(content)
    if version != VERSION:
        raise UnpackError(f"has version {version} of the format; this decoder reads {VERSION}. Install a newer edgekit")
    _require(zlib.crc32(memoryview(content)[PREFIX.size :]) == checksum, "truncated or altered: its checksum is wrong")
    return Header(*HEADER.unpack_from(content, PREFIX.size))


def unpack(content: bytes, base: bytes | None = None, limit: int = LIMIT) -> bytes:
    """The ONNX file that was packed, identical in every byte.

    Args:
        base: the ONNX file that a delta was made against.
        limit: the largest result in bytes; decoding holds `MOST_MEMORY` times as much.

    Raises:
        UnpackError: as `read_header`; over the limit; a base that is missing, not needed or not the right one; or what
            is decoded is not the file that was packed.
    """
    header = read_header(content)
    if header.size > limit:
        raise UnpackError(f"unpacks to {header.size:,} bytes; the limit is {limit:,}")
    _check_base(header, base)
    _require(header.directory_full_size <= 2 * header.size + 2**16, "its directory is too large")
    sections = memoryview(content)[PREFIX.size + HEADER.size :]
    _require(header.directory_size + header.stored_size <= len(sections), "its sections are longer than the file")
    directory, rest = sections[: header.directory_size], sections[header.directory_size :]
    plan = Plan.parse(decompress(directory, header.directory_full_size), header.size, len(base or b""))
    result = _decoded(plan, rest[: header.stored_size], rest[header.stored_size :], base or b"")
    _require(hashlib.sha256(result.data).digest() == header.sha256, "the result is not the file that was packed")
    return result.tobytes()


def _check_base(header: Header, base: bytes | None) -> None:
    wanted = header.base_sha256
    if wanted == NO_BASE:
        if base is not None:
            raise UnpackError("is no delta: it needs no base")
        return
    if base is None:
        raise UnpackError(f"is a delta: give the ONNX file of SHA-256 {wanted.hex()} as its base")
    if (found := hashlib.sha256(base).digest()) != wanted:
        raise UnpackError(f"is a delta against the file of SHA-256 {wanted.hex()}; the base given has {found.hex()}")


def compress(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=FILTERS)


def decompress(data: bytes | memoryview, size: int) -> bytes:
    """Exactly `size` bytes, whatever the data would expand to. Raises UnpackError."""
    try:
        found = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS).decompress(data, max_length=size)
    except (lzma.LZMAError, EOFError) as error:
        raise UnpackError(f"is damaged ({error}); fetch it again") from None
    _require(len(found) == size, "a compressed section is too short")
    return found


@dataclasses.dataclass(frozen=True)
class Plan:
    """The directory: how the file is put together. Columns of int64, one entry a part, a group or a stream."""

    start: np.ndarray
    """Where each part begins in the result, rising."""
    size: np.ndarray
    group: np.ndarray
    reference: np.ndarray
    """Where a part's counterpart begins in the base; 0 in groups without."""
    width: np.ndarray
    has_base: np.ndarray
    lzma_size: np.ndarray
    """Bytes of the group as LZMA; 0 where it has streams."""
    count: np.ndarray
    """Symbols in the table of a stream: 0 for a stored one, 1 for a constant one."""
    first: np.ndarray
    """The table is for the symbols from here on, modulo the size of the alphabet."""
    step: np.ndarray
    """How many neighbouring symbols share a frequency."""
    codes: bytes
    """All tables, one after the other, each entry a coded frequency."""
    literals: bytes

    @classmethod
    def parse(cls, directory: bytes, size: int, base_size: int) -> Plan:
        """Raises UnpackError unless it describes every one of the `size` bytes, once, within its base."""
        _require(len(directory) >= COUNTS.size, "its directory is too short")
        parts, groups, streams = COUNTS.unpack_from(directory)
        _require(max(parts, groups, streams) <= MOST_PARTS, "too many parts")
        end = COUNTS.size + 4 * (4 * parts + 3 * groups + 3 * streams)
        _require(len(directory) >= end, "its directory is too short")
        numbers = memoryview(directory)[COUNTS.size : end]
        gap, sizes, group, reference = read_columns(numbers[: 16 * parts], 4)
        width, has_base, lzma_size = read_columns(numbers[16 * parts : 16 * parts + 12 * groups], 3)
        count, first, step = read_columns(numbers[16 * parts + 12 * groups :], 3)
        literals = end + int(count.sum())
        _require(
            len(directory) - literals == size - int(sizes.sum()) >= int(gap.sum()), "its sizes contradict each other"
        )
        start = np.cumsum(gap + sizes) - sizes
        plan = cls(start, sizes, group, reference, width, has_base, lzma_size, count, first, step,
                   directory[end:literals], directory[literals:])  # fmt: skip
        plan._check(base_size)
        return plan

    def _check(self, base_size: int) -> None:
        _require(bool((self.size > 0).all() and (self.group < len(self.width)).all()), "a part without bytes or group")
        _require(bool(np.isin(self.width, WIDTHS).all() and (self.has_base <= 1).all()), "an unknown kind of group")
        delta = self.has_base[self.group] == 1
        _require(bool((self.reference + self.size <= base_size)[delta].all()), "a part outside the base")
        _require(int(self.planes.sum()) == len(self.count), "another number of streams than its groups have")
        _require(
            bool((self.count <= 256).all() and (self.first < 256).all() and np.isin(self.step, STEPS).all()),
            "a table outside its alphabet",
        )
        _require(max(self.codes, default=0) <= MOST_CODE, "a frequency that is too large")
        whole = self.group_size % np.maximum(self.width, 1) == 0
        _require(bool(whole.all()), "a group with a broken value")

    @property
    def planes(self) -> np.ndarray:
        """Streams of each group."""
        return np.where(self.lzma_size > 0, 0, np.maximum(self.width, 1))

    @property
    def group_size(self) -> np.ndarray:
        """Bytes of each group."""
        total = np.zeros(len(self.width), np.int64)
        np.add.at(total, self.group, self.size)
        return total


def read_columns(data: bytes | memoryview, columns: int) -> np.ndarray:
    """Columns of int64 (columns, n) from byte planes of uint32."""
    planes = np.frombuffer(data, np.uint8).reshape(columns, 4, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(planes).view("<u4")[..., 0].astype(np.int64)


def write_columns(columns: Sequence[Sequence[int]]) -> bytes:
    """The inverse of `read_columns`: the high bytes, nearly all zero, stand together."""
    numbers = np.array(columns, "<u4").reshape(len(columns), -1, 1)
    return numbers.view(np.uint8).transpose(0, 2, 1).tobytes()


def frequencies(codes: bytes, step: int = 1) -> np.ndarray:
    """The frequencies less one of n symbols, `step` to a code: float32 (n,), integers that sum to 2^24 - n.

    Raises:
        UnpackError: the table is empty of frequencies.
    """
    code = np.frombuffer(codes, np.uint8).astype(np.int64)
    weight = np.where(code > 0, (4 + code % 4) << (code // 4), 0)
    _require(int(weight.sum()) > 0, "an empty table")
    weight = np.repeat(weight, step)[:256]
    free = 2**PRECISION - len(weight)
    shares = weight * free // weight.sum()
    shares[shares.argmax()] += free - shares.sum()
    return shares.astype(np.float32)


def model(codes: bytes, step: int) -> constriction.stream.model.Categorical:
    """The coder's model of a table of at least two symbols."""
    return constriction.stream.model.Categorical(frequencies(codes, step), perfect=False)


@dataclasses.dataclass
class _Reader:
    """What is left of the two sections that groups take their bytes from."""

    stored: memoryview
    coder: constriction.stream.stack.AnsCoder

    def take(self, size: int) -> memoryview:
        _require(size <= len(self.stored), "its stored bytes are too few")
        taken, self.stored = self.stored[:size], self.stored[size:]
        return taken

    def stream(self, n: int, codes: bytes, first: int, step: int) -> Iterator[np.ndarray]:
        """The next `n` symbols, in runs of bytes."""
        constant = len(codes) * step == 1
        table = model(codes, step) if codes and not constant else None
        for begin in range(0, n, CHUNK):
            size = min(CHUNK, n - begin)
            if table is not None:
                yield (self.coder.decode(table, size) + first).astype(np.uint8)
            elif constant:
                yield np.full(size, first, np.uint8)
            else:
                yield np.frombuffer(self.take(size), np.uint8)

    def group(self, size: int, width: int, streams: Sequence[tuple[bytes, int, int]]) -> np.ndarray:
        """The bytes of a group from its streams (table, first symbol, step)."""
        values = np.empty((size // max(1, width), max(1, width)), np.uint8)
        for plane, stream in enumerate(streams):
            end = 0
            for symbols in self.stream(len(values) if width else 2 * size, *stream):
                run = symbols if width else symbols[0::2] & 15 | symbols[1::2] << 4
                begin, end = end, end + len(run)
                values[begin:end, plane] = run
        return values.reshape(-1)


def _decoded(plan: Plan, stored: memoryview, words: memoryview, base: bytes) -> np.ndarray:
    _require(len(words) % 4 == 0, "its last word is not whole")
    try:
        coder = constriction.stream.stack.AnsCoder(np.frombuffer(words, "<u4").astype(np.uint32))
    except ValueError:
        raise UnpackError("is damaged (no words of an ANS coder); fetch it again") from None
    reader = _Reader(stored, coder)
    result = np.empty(len(plan.literals) + int(plan.size.sum()), np.uint8)
    _place_literals(plan, result)
    reference = np.frombuffer(base, np.uint8)
    members = _members(plan.group, len(plan.width))
    streams = _streams(plan)
    for number, size in enumerate(plan.group_size.tolist()):
        width, lzma_size = int(plan.width[number]), int(plan.lzma_size[number])
        if lzma_size:
            data = np.frombuffer(decompress(reader.take(lzma_size), size), np.uint8)
        else:
            data = reader.group(size, width, [next(streams) for _ in range(max(width, 1))])
        for part in members[number]:
            run, data = data[: plan.size[part]], data[plan.size[part] :]
            if plan.has_base[number]:
                begin = plan.reference[part]
                run = with_base(run, reference[begin : begin + len(run)], width)
            result[plan.start[part] : plan.start[part] + len(run)] = run
    _require(coder.is_empty() and not reader.stored, "bytes are left over")
    return result


def _place_literals(plan: Plan, result: np.ndarray) -> None:
    literals, used, end = np.frombuffer(plan.literals, np.uint8), 0, 0
    for start, size in zip([*plan.start.tolist(), len(result)], [*plan.size.tolist(), 0]):
        result[end:start] = literals[used : used + start - end]
        used, end = used + start - end, start + size


def _members(group: np.ndarray, groups: int) -> list[np.ndarray]:
    """The parts of each group, in the order of the file."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.searchsorted(group[order], np.arange(1, groups))) if groups else []


def _streams(plan: Plan) -> Iterator[tuple[bytes, int, int]]:
    """Table, first symbol and step of each stream."""
    end = 0
    for count, first, step in zip(plan.count.tolist(), plan.first.tolist(), plan.step.tolist()):
        begin, end = end, end + count
        yield plan.codes[begin:end], first, step


def with_base(difference: np.ndarray, base: np.ndarray, width: int) -> np.ndarray:
    """The bytes whose difference to the base's is given: modulo 16 a nibble, modulo 256, or bit by bit."""
    if width == 0:
        return (difference + (base & 15) & 15) | (difference & 240) + (base & 240)
    return difference + base if width == 1 else difference ^ base


def read(path: Path, limit: int = LIMIT) -> bytes:
    """The bytes of an `.ekz`.

    Raises:
        UnpackError: it is longer than one that unpacks to `limit` bytes can be; it is not read then.
        OSError: it cannot be read.
    """
    if path.stat().st_size > limit + 2**16:
        raise UnpackError(f"has {path.stat().st_size:,} bytes; the limit is {limit:,}")
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Unpack an .ekz file to the ONNX file that was packed.")
    parser.add_argument("path", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, help="the ONNX file that a delta was made against")
    parser.add_argument("--limit", type=int, default=LIMIT, help="the largest result in bytes (default %(default)s)")
    given = parser.parse_args()
    try:
        base = given.base.read_bytes() if given.base else None
        content = unpack(read(given.path, given.limit), base, given.limit)
        _write(given.out, content)
    except (UnpackError, OSError) as error:
        print(f"error: {given.path}: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
