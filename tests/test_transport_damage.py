"""Damaged, malicious and mismatched transport files: a clear error, little memory, never a wrong model; commands."""

import contextlib
import dataclasses
import struct
import tracemalloc
import zlib
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgekit.errors import BadInput
from edgekit.files import file_sha256
from edgekit.transport import unpack as form
from edgekit.transport.commands import pack_file, unpack_file
from edgekit.transport.pack import pack
from edgekit.transport.unpack import UnpackError, unpack
from tests.test_cli import run
from tests.transport_files import codes, floats, laplace, model, raw, small, two_a_byte

CONTENT, BASE = small(), small(seed=1)
PACKED, DELTA = pack(CONTENT).content, pack(CONTENT, BASE).content
SMALL = 2**23
"""LZMA's window is half of it."""
PREFIX, HEADER = form.PREFIX.size, form.HEADER.size


def sealed(rest: bytes) -> bytes:
    """A file whose checksum is right."""
    return form.PREFIX.pack(form.MAGIC, form.VERSION, zlib.crc32(rest)) + rest


@contextlib.contextmanager
def at_most(size_bytes: int) -> Iterator[None]:
    """What is done inside never holds more memory than that."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size_bytes
    finally:
        tracemalloc.stop()


def with_header(**fields: object) -> bytes:
    header = dataclasses.replace(form.read_header(PACKED), **fields)
    return sealed(form.HEADER.pack(*dataclasses.astuple(header)) + PACKED[PREFIX + HEADER :])


def directory(packed: bytes = PACKED) -> bytes:
    header = form.read_header(packed)
    compressed = packed[PREFIX + HEADER : PREFIX + HEADER + header.directory_size]
    return form.decompress(compressed, header.directory_full_size)


def with_directory(content: bytes, packed: bytes = PACKED, **fields: object) -> bytes:
    """The file with another directory, and nothing else to betray it."""
    header, compressed = form.read_header(packed), form.compress(content)
    fields = {"directory_size": len(compressed), "directory_full_size": len(content), **fields}
    changed = form.HEADER.pack(*dataclasses.astuple(dataclasses.replace(header, **fields)))
    return sealed(changed + compressed + packed[PREFIX + HEADER + header.directory_size :])


def test_every_altered_byte_is_an_error():
    for position in range(len(PACKED)):
        altered = bytearray(PACKED)
        altered[position] ^= 1 + position % 255
        with pytest.raises(UnpackError, match=r"no \.ekz|version|altered"):
            unpack(bytes(altered))


def test_every_truncation_is_an_error():
    for length in range(len(PACKED)):
        with pytest.raises(UnpackError, match=r"no \.ekz|truncated"):
            unpack(PACKED[:length])
    with pytest.raises(UnpackError, match="truncated or altered"):
        unpack(PACKED + b"\0")


def test_a_newer_version_is_refused():
    with pytest.raises(UnpackError, match=r"version 2 .* reads 1\. Install a newer edgekit"):
        unpack(form.PREFIX.pack(form.MAGIC, 2, 0) + PACKED[PREFIX:])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 2**40}, "unpacks to 1,099,511,627,776 bytes; the limit is 1,073,741,824"),
        ({"size": 2**29}, "contradict"),
        ({"size": 10}, "contradict"),
        ({"directory_full_size": 2**31}, "directory is too large"),
        ({"directory_full_size": 60_000}, "too short"),
        ({"directory_full_size": 5}, "too short"),
        ({"directory_size": 2**31}, "longer than the file"),
        ({"directory_size": 30}, "damaged"),
        ({"stored_size": 2**60}, "longer than the file"),
        ({"stored_size": 0}, "damaged"),
        ({"sha256": bytes(32)}, "not the file that was packed"),
    ],
)
def test_declared_sizes_are_checked_before_anything_is_allocated(fields, message):
    packed = with_header(**fields)
    with at_most(SMALL), pytest.raises(UnpackError, match=message):
        unpack(packed)


def test_few_bytes_that_unpack_to_many_are_held_to_the_limit():
    content = model(raw("w", TensorProto.INT8, bytes(5_000_000)))
    packed = pack(content).content
    assert len(packed) < 300 and unpack(packed, limit=len(content)) == content
    with at_most(SMALL), pytest.raises(UnpackError, match="the limit is 4,999,999"):
        unpack(packed, limit=4_999_999)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (TensorProto.INT8, laplace(4_000_000)),
        (TensorProto.UINT4, two_a_byte(codes(8_000_000))),
        (TensorProto.FLOAT, np.tile(floats(1000), 1000)),
    ],
)
def test_memory_is_bounded_by_the_result(kind, data):
    content = model(raw("w", kind, data))
    packed = pack(content).content
    with at_most(form.MOST_MEMORY * len(content) + SMALL // 2):
        unpack(packed)


def column(content: bytes, offset: int, value: int, planes: int) -> bytes:
    """The directory with the first number of a column set; the bytes of a number stand `planes` apart."""
    changed = bytearray(content)
    for plane, byte in enumerate(struct.pack("<I", value)):
        changed[offset + plane * planes] = byte
    return bytes(changed)


PARTS, GROUPS, STREAMS = form.COUNTS.unpack_from(directory())
AT_PARTS = form.COUNTS.size
AT_GROUPS = AT_PARTS + 16 * PARTS
AT_STREAMS = AT_GROUPS + 12 * GROUPS


@pytest.mark.parametrize(
    ("offset", "value", "planes", "message"),
    [
        (0, 2**20 + 1, 1, "too many parts"),
        (0, PARTS + 1000, 1, "directory is too short"),
        (8, STREAMS - 1, 1, "damaged"),
        (AT_PARTS, 2**32 - 1, PARTS, "contradict"),
        (AT_PARTS + 4 * PARTS, 2**32 - 1, PARTS, "contradict"),
        (AT_PARTS + 8 * PARTS, GROUPS, PARTS, "without bytes or group"),
        (AT_GROUPS, 3, GROUPS, "unknown kind of group"),
        (AT_GROUPS + GROUPS - 1, 8, GROUPS, "another number of streams"),
        (AT_GROUPS + 4 * GROUPS, 2, GROUPS, "unknown kind of group"),
        (AT_GROUPS + 4 * GROUPS, 1, GROUPS, "outside the base"),
        (AT_GROUPS + 8 * GROUPS, 2**31, GROUPS, "damaged"),
        (AT_STREAMS, 300, STREAMS, "contradict"),
        (AT_STREAMS + 4 * STREAMS, 256, STREAMS, "outside its alphabet"),
        (AT_STREAMS + 8 * STREAMS, 3, STREAMS, "outside its alphabet"),
        (AT_STREAMS + 12 * STREAMS, 2**32 - 1, 0, "too large"),
    ],
)
def test_every_number_of_the_directory_is_checked(offset, value, planes, message):
    changed = column(directory(), offset, value, planes)
    with pytest.raises(UnpackError, match=message):
        unpack(with_directory(changed))


def test_a_table_without_frequencies_is_refused():
    changed = bytearray(directory())
    codes_at, size = AT_STREAMS + 12 * STREAMS, len(CONTENT)
    plan = form.Plan.parse(bytes(changed), size, 0)
    changed[codes_at : codes_at + len(plan.codes)] = bytes(len(plan.codes))
    with pytest.raises(UnpackError, match="an empty table"):
        unpack(with_directory(bytes(changed)))


@pytest.mark.parametrize(
    ("behind", "message"),
    [(b"\1", "last word is not whole"), (bytes(4), "no words of an ANS coder"), (b"\1\0\0\0", "left over")],
)
def test_words_that_the_coder_would_not_use_are_refused(behind, message):
    with pytest.raises(UnpackError, match=message):
        unpack(sealed(PACKED[PREFIX:] + behind))


def test_stored_bytes_that_are_too_few_are_refused():
    packed = pack(model(raw("w", TensorProto.INT8, np.random.default_rng(0).bytes(2_000)))).content
    header = form.read_header(packed)
    assert header.stored_size == 2_000
    short = dataclasses.replace(header, stored_size=1_000)
    with pytest.raises(UnpackError, match="stored bytes are too few"):
        unpack(sealed(form.HEADER.pack(*dataclasses.astuple(short)) + packed[PREFIX + HEADER :]))


def test_a_directory_that_expands_beyond_what_it_declares_is_cut_off():
    packed = with_directory(bytes(50_000_000), directory_full_size=1_000)
    with at_most(SMALL), pytest.raises(UnpackError, match="damaged"):
        unpack(packed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("base", [None, BASE], ids=["whole", "delta"])
def test_mutations_that_pass_the_checksum_give_an_error_or_the_right_file(base, seed):
    """A corpus by seed: bytes of the file or of its directory before compression replaced, the checksum mended."""
    rng = np.random.default_rng(seed)
    packed = PACKED if base is None else DELTA
    for _ in range(100):
        inside = rng.random() < 0.7
        changed = bytearray(directory(packed) if inside else packed[PREFIX:])
        for position in rng.integers(0, min(len(changed), 10 ** rng.integers(1, 5)), rng.integers(1, 4)):
            changed[position] = rng.choice([0, 1, 255, rng.integers(256)])
        mutated = with_directory(bytes(changed), packed) if inside else sealed(bytes(changed))
        with at_most(SMALL), contextlib.suppress(UnpackError):
            assert unpack(mutated, base) == CONTENT


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_behind_a_right_checksum_are_an_error(rest):
    for content in (rest, sealed(rest), sealed(PACKED[PREFIX : PREFIX + HEADER] + rest), with_directory(rest)):
        with pytest.raises(UnpackError):
            unpack(content)


def test_the_base_has_to_be_the_right_one():
    wanted, given_one = (form.hashlib.sha256(content).hexdigest() for content in (BASE, CONTENT))
    with pytest.raises(UnpackError, match=f"delta: give the ONNX file of SHA-256 {wanted}"):
        unpack(DELTA)
    with pytest.raises(UnpackError, match=f"against the file of SHA-256 {wanted}; the base given has {given_one}"):
        unpack(DELTA, CONTENT)
    with pytest.raises(UnpackError, match="needs no base"):
        unpack(PACKED, BASE)
    assert unpack(DELTA, BASE) == CONTENT


@pytest.fixture
def onnx_file(tmp_path):
    """A valid ONNX file."""
    weight = onnx.numpy_helper.from_array(laplace(4_000), "w")
    nodes = [onnx.helper.make_node("Identity", ["w"], ["y"])]
    output = [onnx.helper.make_tensor_value_info("y", TensorProto.INT8, [4_000])]
    path = tmp_path / "net.onnx"
    graph = onnx.helper.make_graph(nodes, "net", [], output, [weight])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_the_commands_pack_and_unpack_a_bundle_s_file(bundle, tmp_path):
    path = bundle.models[-1]
    precision = path.name.split(".")[2]
    out, _ = run("pack", bundle.path, "--precision", precision, "--out", tmp_path / "m.ekz")
    assert "int8" in out and "total" in out and path.name in out
    run("unpack", tmp_path / "m.ekz", "--out", tmp_path / "m.onnx")
    assert file_sha256(tmp_path / "m.onnx") == file_sha256(path)
    found = pack_file(bundle.base, tmp_path / "base.ekz", base=path)
    assert found["transport_bytes"] == (tmp_path / "base.ekz").stat().st_size
    unpack_file(tmp_path / "base.ekz", tmp_path / "base.onnx", bundle.path)  # the bundle's file of the right hash
    assert file_sha256(tmp_path / "base.onnx") == file_sha256(bundle.base)


def test_a_delta_of_bundles_takes_the_file_of_the_same_name(bundle, tmp_path):
    target, precision = bundle.models[0].name.split(".")[1:3]
    pack_file(bundle.path, tmp_path / "d.ekz", target, precision, bundle.path)
    assert (tmp_path / "d.ekz").stat().st_size < 150


def test_the_commands_explain_what_cannot_be_packed(bundle, onnx_file, tmp_path):
    names = ", ".join(path.name for path in bundle.models)
    out = tmp_path / "m.ekz"
    for arguments, message in (
        ([bundle.path], f"several of its files fit; choose one with --target and --precision: {names}"),
        ([bundle.path, "--target", "tensorrt"], "none of its files fits"),
        ([onnx_file, "--precision", "int8"], "is one file"),
        ([onnx_file, "--base", bundle.path], f"has no net.onnx; give the ONNX file itself as --base. It has {names}"),
        ([tmp_path / "no.onnx"], "no such file"),
        ([tmp_path], "no bundle"),
    ):
        assert message in run("pack", *arguments, "--out", out, code=2)[1]
        assert not out.exists()


def test_nothing_is_overwritten(onnx_file, tmp_path):
    pack_file(onnx_file, tmp_path / "m.ekz")
    with pytest.raises(BadInput, match=r"m\.ekz: exists; give another --out"):
        pack_file(onnx_file, tmp_path / "m.ekz")
    with pytest.raises(BadInput, match=r"net\.onnx: exists"):
        unpack_file(tmp_path / "m.ekz", onnx_file)


def test_external_data_is_refused(onnx_file, tmp_path):
    onnx.save(onnx.load(onnx_file), tmp_path / "out.onnx", save_as_external_data=True, location="w", size_threshold=0)
    with pytest.raises(BadInput, match="'w' lies in another file; only one file can be packed"):
        pack_file(tmp_path / "out.onnx", tmp_path / "m.ekz")


def test_a_damaged_file_leaves_nothing_behind(onnx_file, bundle, tmp_path):
    pack_file(onnx_file, tmp_path / "m.ekz", base=onnx_file)
    for arguments, message in (
        ([tmp_path / "no.ekz"], "no.ekz: no such file"),
        ([onnx_file], "net.onnx: is no .ekz file"),
        ([tmp_path / "m.ekz"], "is a delta: give"),
        ([tmp_path / "m.ekz", "--base", bundle.path], "holds no file of SHA-256"),
        ([tmp_path / "m.ekz", "--base", bundle.base], "the base given has"),
    ):
        before = sorted(tmp_path.iterdir())
        assert message in run("unpack", *arguments, "--out", tmp_path / "new.onnx", code=2)[1]
        assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(BadInput, match="cannot be written"):
        unpack_file(tmp_path / "m.ekz", onnx_file / "new.onnx", onnx_file)
    pack_file(onnx_file, tmp_path / "whole.ekz")
    with pytest.raises(BadInput, match="needs no base"):
        unpack_file(tmp_path / "whole.ekz", tmp_path / "new.onnx", bundle.path)
    with pytest.raises(BadInput, match="Is a directory"):
        unpack_file(tmp_path, tmp_path / "new.onnx")


def test_a_huge_file_is_not_even_read(tmp_path):
    with open(tmp_path / "huge.ekz", "wb") as file:
        file.truncate(form.LIMIT + 2**20)
    with pytest.raises(UnpackError, match="the limit is"):
        form.read(tmp_path / "huge.ekz")
