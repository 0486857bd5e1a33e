"""The source wds: pictures in tar shards, how they are found, and every shard that cannot be used."""

import concurrent.futures
import functools
import gzip
import io
import json
import multiprocessing
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekit import data
from edgekit.data import shards
from edgekit.errors import BadInput
from tests.test_data import PLAIN, class_folders, picture

Member = tuple[str, bytes]


@functools.cache
def encoded(seed: int, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(seed)).save(file, format)
    return file.getvalue()


def shard(*members: Member | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=format) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            tar.addfile(info, io.BytesIO(member[1]))
    return file.getvalue()


def write(path: Path, *members: Member | tarfile.TarInfo, format: int = tarfile.PAX_FORMAT) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shard(*members, format=format))
    return f"test=wds:{path}"


def pair(seed: int, key: str | None = None) -> list[Member]:
    key = f"{seed:04}" if key is None else key
    return [(f"{key}.cls", str(seed % 3).encode()), (f"{key}.png", encoded(seed))]


def load(spec: str, **options) -> data.Samples:
    return data.load([spec], **options).role("test")


def content(samples: data.Samples) -> list[tuple]:
    return [(*sample.content, sample.read().tobytes()) for sample in samples]


# What is there


def test_a_shard_is_its_pictures_and_classes(tmp_path):
    note = tarfile.TarInfo("notes")
    note.type = tarfile.DIRTYPE
    spec = write(
        tmp_path / "train-000.tar",
        note,
        ("a.jpg", encoded(0, "JPEG")),
        ("a.json", b"not read beside a .cls"),
        ("b/x.v2/0.PNG", encoded(1)),
        ("b/x.v2/0.cls", b" 12\n"),
        ("b/x.v2/0.seg.png", b"no picture of the sample"),
        ("a.cls", b"7"),
        ("./c.webp", encoded(2, "WEBP")),
        ("c.json", json.dumps({"label": 3, "url": "here"}).encode()),
        ("d.bmp", encoded(3, "BMP")),
        ("d.json", b'{"cls": 4, "label": 4}'),
        *[(name, b"no part of the data") for name in ("._a.jpg", "__info__.json", "README", "e.txt", ".png")],
    )
    samples = load(spec)
    assert samples.ids == tuple(f"train-000/{key}" for key in ("a", "b/x.v2/0", "c", "d"))
    assert samples.labels.tolist() == [7, 12, 3, 4] and samples.classes is None
    np.testing.assert_array_equal(samples[1].read(), picture(1))
    np.testing.assert_array_equal(samples[3].read(), picture(3))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar(tmp_path, format):
    long = "/".join(["folder" * 10] * (2 if format == tarfile.USTAR_FORMAT else 6))
    keys = ["0", long] if format == tarfile.USTAR_FORMAT else ["0", "ü", long]
    members = [member for seed, key in enumerate(keys) for member in pair(seed, key)]
    samples = load(write(tmp_path / "s.tar", *members, format=format))
    assert samples.ids == tuple(sorted(f"s/{key}" for key in keys))
    assert [sample.label for sample in sorted(samples, key=lambda sample: keys.index(sample.id[2:]))] == [0, 1, 2][
        : len(keys)
    ]


def test_the_same_pictures_as_a_folder(tmp_path):
    root = class_folders(tmp_path / "folder", 60)
    files = sorted(root.rglob("*.png"))
    members = []
    for file in files:
        key = file.relative_to(root).with_suffix("").as_posix()
        members += [(f"{key}.png", file.read_bytes()), (f"{key}.cls", str(int(file.parent.name == "dog")).encode())]
    write(tmp_path / "a-0.tar", *members[:50])
    write(tmp_path / "a-1.tar", *members[50:])
    ours, theirs = data.load([f"wds:{tmp_path}/a-?.tar"]), data.load([f"folder:{root}"])
    assert set(ours.roles) == set(theirs.roles) == set(data.ROLES)
    for role in data.ROLES:
        rows = [sorted((s.sha256, s.label, s.read().tobytes()) for s in loaded.role(role)) for loaded in (ours, theirs)]
        assert rows[0] == rows[1]
    with pytest.raises(BadInput, match="samples of train are in test too"):
        data.load([f"train=wds:{tmp_path}/a-0.tar", f"test=folder:{root}"])


def test_patterns_name_shards(tmp_path):
    for index in range(8, 12):
        write(tmp_path / f"s-{index:03}.tar", *pair(index))
    ids = [f"s-{index:03}/{index:04}" for index in range(8, 12)]
    for pattern, expected in {
        "s-{008..011}.tar": ids,
        "s-{011..008}.tar": ids,
        "s-0{09,11}.tar": [ids[1], ids[3]],
        "s-0{08..09}.tar": ids[:2],
        "s-0{1,0}{0,8}.tar": "s-018.tar: no such file",
        "{s,s}-008.tar": "has the name of",
        "s-*.tar": ids,
        "s-{00*,01*}.tar": ids,
        "s-{*1,011}.tar": "has the name of",
        "s-{8..11}.tar": "s-8.tar: no such file",
        "s-{008...011}.tar": "no such file",
        "t-*.tar": r"t-\*.tar: no such file; write wds:PATTERN",
        "s-{0..9999999}.tar": "stands for more than",
        "{0..9999}{0..9999}": "stands for more than",
        "": "is no file",
    }.items():
        if isinstance(expected, list):
            assert list(load(f"test=wds:{tmp_path}/{pattern}").ids) == expected, pattern
        else:
            with pytest.raises(BadInput, match=expected):
                load(f"test=wds:{tmp_path}/{pattern}")
    with pytest.raises(BadInput, match="nothing: no such file; write wds:PATTERN"):
        load("test=wds:")


def test_names_with_braces_and_brackets_are_found(tmp_path):
    for name in ("{x}.tar", "[y].tar"):
        assert len(load(write(tmp_path / name, *pair(0)))) == 1


def test_two_shards_of_one_name(tmp_path):
    write(tmp_path / "a" / "0.tar", *pair(0))
    write(tmp_path / "b" / "0.tar", *pair(1))
    with pytest.raises(BadInput, match=r"b/0.tar: has the name of .*a/0.tar"):
        load(f"test=wds:{tmp_path}/{{a,b}}/0.tar")
    assert (
        len(
            data.load(
                [f"{role}=wds:{tmp_path}/{folder}/0.tar" for role, folder in (("test", "a"), ("train", "b"))]
            ).roles
        )
        == 2
    )


def test_order_does_not_matter(tmp_path):
    members = [member for seed in range(5) for member in pair(seed)]
    whole = content(load(write(tmp_path / "s.tar", *members)))
    assert content(load(write(tmp_path / "s.tar", *members[::-1]))) == whole
    assert content(load(write(tmp_path / "s.tar", *members[::2], *members[1::2]))) == whole


def read_in_a_fork(samples: data.Samples, queue) -> None:
    queue.put(content(samples))


def test_reading_in_threads_and_forks(tmp_path):
    samples = load(write(tmp_path / "s.tar", *[member for seed in range(40) for member in pair(seed)]))
    alone = content(samples)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(one == alone for one in pool.map(lambda _: content(samples), range(8)))
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    processes = [fork.Process(target=read_in_a_fork, args=(samples, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [alone, alone]
    for process in processes:
        process.join()


def test_a_sample_holds_no_bytes(tmp_path):
    sample = load(write(tmp_path / "s.tar", *pair(0)))[0]
    assert not any(isinstance(held, (bytes, np.ndarray)) for held in sample.read.args)


# What one sample may lack


def linked(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


PNG, CLS = ("a.png", encoded(0)), ("a.cls", b"1")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([PNG], "a: has no class; add KEY.cls"),
        ([CLS], "a: has no picture; add one KEY with .jpg"),
        ([PNG, ("a.jpg", encoded(1, "JPEG")), CLS], "a: has 2 members for its picture, a.png, a.jpg; keep one"),
        ([PNG, CLS, PNG], "a: has 2 members for its picture, a.png, a.png"),
        ([PNG, CLS, ("./a.cls", b"2")], "a: has 2 members for its class"),
        *[
            ([PNG, ("a.cls", text)], "a.cls: .* gives no class, a whole number from 0; write KEY.cls")
            for text in (b"", b"-1", b"1.0", b"cat", b"1 2", b"\xff", "١".encode(), b"9" * 19, b"1_0", b"+1")
        ],
        *[
            ([PNG, ("a.json", text)], "a.json: .* gives no class")
            for text in (
                *(b"", b"3", b"{}", b"\xff", b"[" * 60000, b"{" * 9, b'{"label": "3"}', b'{"label": 3.0}'),
                *(b'{"label": true}', b'{"label": -1}', b'{"label": 1, "cls": 2}', b'{"label": ' + b"9" * 5000 + b"}"),
            )
        ],
        ([PNG, ("a.cls", b"1" + b" " * 2**16)], "a.cls: has 65537 bytes; the limit is 65536"),
        ([("a.png", bytes(2**26 + 1)), CLS], "a.png: has 67108865 bytes; the limit is 67108864"),
        *[
            ([linked("a.png", kind), CLS], "a.png: is a link, a device or a sparse file")
            for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE)
        ],
    ],
)
def test_a_sample_that_cannot_be_used(tmp_path, members, message):
    spec = write(tmp_path / "s.tar", *members, *pair(5, "whole"))
    with pytest.raises(BadInput, match=rf"s.tar: {message}"):
        load(spec)
    loaded = data.load([spec], on_error="skip")
    assert loaded.role("test").ids == ("s/whole",) and len(loaded.skipped) == 1


def test_a_picture_that_cannot_be_decoded(tmp_path):
    spec = write(tmp_path / "s.tar", ("a.png", encoded(0)[:-40]), CLS, *pair(5, "whole"))
    with pytest.raises(BadInput, match=r"s.tar: a.png: cannot be decoded as an image"):
        list(load(spec).batches(PLAIN, 2))
    batches = load(spec, on_error="skip").batches(PLAIN, 2)
    assert [indices for _, _, indices in batches] == [[1]] and batches.skipped == [0]


# What a whole shard may be


def claiming(raw: bytes, size: int) -> bytes:
    """`raw` with another size in its first header, whose checksum is right."""
    header = bytearray(raw[:512])
    header[124:136] = bytes([0xFF if size < 0 else 0x80]) + size.to_bytes(11, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + raw[512:]


WHOLE = shard(*pair(0), *pair(1))
END = WHOLE.rindex(b"IEND") // 512 * 512 + 512  # where the end of archive begins
LONG = shard(*pair(0, "long" * 50), format=tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is no tar file, damaged or cut short after its start .empty file"),
        (b"no tar at all" * 99, "is no tar file"),
        (bytes(10240), "holds no samples"),
        (shard(("readme.txt", b"")), "holds no samples; a sample is a picture"),
        (gzip.compress(WHOLE), "is compressed, .* decompress it to a .tar"),
        (WHOLE[:END], "cut short after '0001.png' .no end of archive"),
        (WHOLE[: END + 100], "cut short after '0001.png' .no end of archive"),
        (WHOLE[: END - 512], "cut short after '0001.cls' .*; write it anew"),
        (WHOLE[:1024], "cut short after '0000.cls' .no end of archive"),
        (WHOLE[:1024] + b"x" + WHOLE[1025:], "cut short after '0000.cls' .a broken header"),
        (WHOLE + WHOLE, "more data behind the end of archive"),
        (claiming(WHOLE, -1024), "is no tar file"),
        (
            WHOLE[:1024] + claiming(WHOLE[1024:], -512),
            "cut short after '0000.cls' .'0000.png' claims -512",
        ),  # round and round
        (claiming(WHOLE, 2**40), "cut short after its start"),
        (claiming(LONG, 2**40), "a header claims 1099511627776 bytes of headers"),
        (claiming(LONG, -512), "is no tar file"),
        (LONG[:1024] * 600 + LONG, "is no tar file"),  # names upon names
        (shard(("\udcfc.png", encoded(0)), format=tarfile.GNU_FORMAT), r"the name '\\udcfc.png' is not UTF-8"),
    ],
)
def test_shards_that_are_none(tmp_path, raw, message):
    path = tmp_path / "s.tar"
    path.write_bytes(raw)
    with pytest.raises(BadInput, match=rf"s.tar: .*{message}"):
        load(f"test=wds:{path}", on_error="skip")


def test_a_shard_that_is_no_file(tmp_path):
    (tmp_path / "s.tar").mkdir()
    os.mkfifo(tmp_path / "t.tar")
    for name in ("s.tar", "?.tar", "t.tar"):
        with pytest.raises(BadInput, match=r"[st].tar: is no file; write wds:PATTERN"):
            load(f"test=wds:{tmp_path}/{name}")


def changed(path: Path, how: str) -> None:
    stat = path.stat()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        os.truncate(path, 600)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        write(path, *pair(3, "0000"), *pair(4, "0001"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        assert path.stat().st_size == stat.st_size


@pytest.mark.parametrize("how", ["gone", "cut", "other"])
def test_a_shard_that_changes_after_its_index(tmp_path, how):
    path = tmp_path / "s.tar"
    spec = write(path, *pair(0), *pair(1))
    sample, makers = load(spec)[1], shards.wds(str(path)).parts[None]
    changed(path, how)
    message = "cannot be read" if how == "gone" else "the shard changed after it was indexed"
    with pytest.raises(BadInput, match=rf"s.tar: 0001.png: {message}"):
        sample.read()
    with pytest.raises(BadInput, match=rf"s.tar: 0000.cls: {message}"):
        makers[0]()


# Any damage

MEMBERS = [*pair(0), *pair(1, "d/" + "long" * 40), ("2.png", encoded(2)), ("2.json", b'{"label": 2}')]
RAW = {format: shard(*MEMBERS, format=format) for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)}
ANY = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def by_id(path: Path, raw: bytes) -> dict[str, tuple] | None:
    """What can be read of a shard; None if it is refused as a whole."""
    path.write_bytes(raw)
    try:
        samples = load(f"test=wds:{path}")
    except BadInput:
        return None
    found = {}
    for sample in samples:
        try:
            found[sample.id] = (*sample.content, sample.read().tobytes())
        except BadInput:
            found[sample.id] = ()
    return found


def owner(raw: bytes, position: int) -> str | None:
    """The id of the sample whose bytes, not its headers, stand at `position`."""
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for info in tar:
            if info.offset_data <= position < info.offset_data + info.size:
                return "s/" + info.name.partition(".")[0]
    return None


@ANY
@given(st.sampled_from(list(RAW)), st.data())
def test_a_cut_shard_is_whole_or_refused(tmp_path, format, draw):
    raw = RAW[format]
    keep = draw.draw(st.integers(0, len(raw) - 1))
    found = by_id(tmp_path / "s.tar", raw[:keep])
    assert found is None or (found == by_id(tmp_path / "s.tar", raw) and raw[keep:].strip(b"\0") == b"")


@ANY
@given(st.sampled_from(list(RAW)), st.integers(1, 255), st.data())
def test_a_flipped_byte_changes_nothing_but_its_own_sample(tmp_path, format, flip, draw):
    raw = RAW[format]
    position = draw.draw(st.integers(0, len(raw) - 1))
    whole = by_id(tmp_path / "s.tar", raw)
    found = by_id(tmp_path / "s.tar", raw[:position] + bytes([raw[position] ^ flip]) + raw[position + 1 :])
    if found is not None:
        own = owner(raw, position)
        assert found.keys() == whole.keys()
        assert [id for id in whole if id != own and found[id] != whole[id]] == []
