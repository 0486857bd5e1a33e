"""A source of WebDataset shards: `wds:PATTERN`, tar files that are read where they lie and never unpacked."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from edgekit.data.images import EXTENSIONS, decode_from
from edgekit.data.patterns import matching
from edgekit.data.samples import Found, Sample
from edgekit.errors import BadInput

FORM = "wds:PATTERN of .tar files, such as wds:train-{000..009}.tar or wds:train-*.tar"
CLASS_FORM = 'KEY.cls with the class number as text, or KEY.json with {"label": NUMBER}'
LARGEST_PICTURE_BYTES = 64 * 2**20
LARGEST_CLASS_BYTES = 64 * 2**10
LARGEST_HEADERS_BYTES = 2**20  # of one member: long names and pax records
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # gzip bzip2 xz zstd lz4


class _Member(NamedTuple):
    """A picture or a class. `plain` is false of a link, a device or a sparse file: its bytes are not its content."""

    name: str
    ending: str
    offset: int
    size: int
    plain: bool


class _Shard(NamedTuple):
    """A tar file as it was when its index was made. It is opened for each read, so threads and forks share nothing."""

    path: Path
    size: int
    mtime_ns: int

    def read(self, member: _Member, limit: int) -> bytes:
        where = f"{self.path}: {member.name}"
        if not member.plain:
            raise BadInput(f"{where}: is a link, a device or a sparse file; store a plain file instead")
        if member.size > limit:
            raise BadInput(f"{where}: has {member.size} bytes; the limit is {limit}. Store a smaller file")
        try:
            with open(self.path, "rb") as file:
                file.seek(member.offset)
                data = file.read(member.size)
                stat = os.fstat(file.fileno())  # after reading, so that a change meanwhile shows
        except OSError as error:
            raise BadInput(f"{where}: cannot be read ({error.strerror})") from error
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime_ns) or len(data) != member.size:
            raise BadInput(f"{where}: the shard changed after it was indexed; run again, and let nothing write it")
        return data


def wds(text: str) -> Found:
    """`wds:PATTERN`: WebDataset shards, by path, glob and braces ({000..009} or {a,b}); uncompressed .tar only.

    Members are one sample if their paths agree up to the first dot of the file name, the key: a picture, and KEY.cls
    (the class number as text) or else KEY.json with a whole number "label" or "cls". Others, hidden ones and
    __NAME__.* are none of the data. Ids are SHARD/KEY, SHARD without .tar.

    Raises:
        BadInput: no such shard, two of one name, one that is compressed, damaged, cut short, or without samples. What
            is wrong with one sample is reported when it is read.
    """
    shards = _by_stem(matching(text, FORM))
    return Found({None: [maker for stem in sorted(shards) for maker in _in_shard(shards[stem])]})


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise BadInput(
                f"{path}: has the name of {found[path.stem]}, and ids begin with it; "
                "name each shard once, or rename one"
            )
        found[path.stem] = path
    return found


class _Headers:
    """A file for tarfile, which would read as much as a header claims: at most LARGEST_HEADERS_BYTES a member."""

    def __init__(self, file: BinaryIO) -> None:
        self.left = LARGEST_HEADERS_BYTES
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self.left:
            raise tarfile.ReadError(f"a header claims {size} bytes of headers")
        self.left -= size
        return self._read(size)


def _in_shard(path: Path) -> list[Callable[[], Sample]]:
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            samples = _indexed(file, path, stat.st_size)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    if not samples:
        raise BadInput(f"{path}: holds no samples; a sample is a picture ({', '.join(EXTENSIONS)}) and {CLASS_FORM}")
    shard = _Shard(path, stat.st_size, stat.st_mtime_ns)
    return [functools.partial(_sample, shard, key, members) for key, members in samples.items()]


def _indexed(file: BinaryIO, path: Path, size: int) -> dict[str, list[_Member]]:
    """The pictures and classes of a shard by key; only headers are read."""
    samples: dict[str, list[_Member]] = {}
    headers, last, end = _Headers(file), "its start", 0
    try:
        tar = tarfile.TarFile(fileobj=headers, encoding="utf-8")  # type: ignore[arg-type]  # all that it calls is there
        while (info := tar.next()) is not None:
            # A negative size would lead back, and round for ever.
            if tar.offset <= end or info.size < 0 or (_is_plain(info) and info.offset_data + info.size > size):
                raise tarfile.ReadError(f"{info.name!r} claims {info.size} bytes")
            end, last, headers.left = tar.offset, ascii(info.name), LARGEST_HEADERS_BYTES
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            _add(samples, info, path)
        _check_end(file, tar.offset)
    except (MemoryError, OSError, BadInput):
        raise
    except Exception as error:  # tarfile documents its own errors; a broken header also raises others, as ValueError
        file.seek(0)
        if file.read(6).startswith(COMPRESSED):
            raise BadInput(f"{path}: is compressed, which allows no random access; decompress it to a .tar") from None
        raise BadInput(f"{path}: is no tar file, damaged or cut short after {last} ({error}); write it anew") from error
    return samples


def _check_end(file: BinaryIO, offset: int) -> None:
    """That the zeros of an archive's end stand at `offset`: tarfile takes a broken header for the end as well."""
    file.seek(offset)
    if (block := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("a broken header" if len(block) == tarfile.BLOCKSIZE else "no end of archive")
    while chunk := file.read(2**20):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("more data behind the end of archive; give joined archives as a shard each")


def _add(samples: dict[str, list[_Member]], info: tarfile.TarInfo, path: Path) -> None:
    name = info.name.removeprefix("./")
    folder, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    ending = dot + ending.lower()
    if info.isdir() or ending not in (*EXTENSIONS, ".cls", ".json") or re.fullmatch("|__.*__", stem):
        return
    if not name.isascii() and re.search("[\ud800-\udfff]", name):
        raise BadInput(f"{path}: the name {name!a} is not UTF-8; rename it")  # an id must be text
    member = _Member(name, sys.intern(ending), info.offset_data, info.size, _is_plain(info))
    samples.setdefault(folder + slash + stem, []).append(member)


def _is_plain(info: tarfile.TarInfo) -> bool:
    return info.isreg() and not info.issparse()


def _sample(shard: _Shard, key: str, members: list[_Member]) -> Sample:
    where = f"{shard.path}: {key}"
    pictures = [member for member in members if member.ending in EXTENSIONS]
    # Beside KEY.cls, KEY.json often holds only where the picture came from.
    classes = [member for member in members if member.ending == ".cls"]
    classes = classes or [member for member in members if member.ending == ".json"]
    picture = _only(pictures, "picture", f"one KEY with {', '.join(EXTENSIONS)}", where)
    label = _label(shard, _only(classes, "class", CLASS_FORM, where))
    digest = hashlib.sha256(shard.read(picture, LARGEST_PICTURE_BYTES)).hexdigest()
    return Sample(f"{shard.path.stem}/{key}", label, functools.partial(_decoded, shard, picture), digest)


def _only(members: list[_Member], what: str, form: str, where: str) -> _Member:
    if not members:
        raise BadInput(f"{where}: has no {what}; add {form}")
    if len(members) > 1:
        names = ", ".join(member.name for member in members)
        raise BadInput(
            f"{where}: has {len(members)} members for its {what}, {names}; keep one, or give each its own key"
        )
    return members[0]


def _label(shard: _Shard, member: _Member) -> int:
    data = shard.read(member, LARGEST_CLASS_BYTES)
    label = _text_label(data) if member.ending == ".cls" else _json_label(data)
    if label is None or not 0 <= label < 10**18:
        raise BadInput(
            f"{shard.path}: {member.name}: {data[:40].decode('ascii', 'replace')!r} gives no class, a whole number "
            f"from 0; write {CLASS_FORM}"
        )
    return label


def _text_label(data: bytes) -> int | None:
    return int(data) if re.fullmatch(rb"\s*[0-9]{1,18}\s*", data) else None


def _json_label(data: bytes) -> int | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    found = [document[name] for name in ("label", "cls") if name in document] if isinstance(document, dict) else []
    # By type, as true is an int to Python.
    return found[0] if found and all(type(one) is int and one == found[0] for one in found) else None


def _decoded(shard: _Shard, picture: _Member) -> np.ndarray:
    return decode_from(io.BytesIO(shard.read(picture, LARGEST_PICTURE_BYTES)), f"{shard.path}: {picture.name}")
