"""The codec and the packet: what goes through is what came in, and what is no packet is refused."""

import dataclasses
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import BadInput
from edgekit.split.codec import Codec, PacketError
from edgekit.split.packet import HEADER, SIGNED, STORED, Wire, WrongModel, read_header
from edgekit.split.tables import Tables, from_counts
from tests import split_bundles

TABLES = Tables(4, ((8, 4, 2, 1, 1), (1, 15), (16,)))
LATENT = np.array([[[0, 1, 0], [2, 4, 3]], [[1, 1, 1], [1, 0, 1]], [[0, 0, 0], [0, 0, 0]]], np.uint8)
KEY = bytes(range(16))
PLAIN = Wire(bytes(range(100, 116)), Codec(TABLES, LATENT.shape))
WIRES = {"plain": PLAIN, "signed": dataclasses.replace(PLAIN, key=KEY)}
GOLDEN = {
    ("plain", False): "454b535001006465666768696a6b6c6d6e6f707172732722ce437ee2e502"
    "120000000800000043bfa2f3b2b121fbc6000000",
    ("plain", True): "454b535001026465666768696a6b6c6d6e6f707172732722ce437ee2e502"
    "12000000120000004dd69d8b000100020403010101010001000000000000",
    ("signed", False): "454b535001016465666768696a6b6c6d6e6f707172732722ce437ee2e502"
    "1200000008000000e22fb51bb2b121fbc600000023725d7a6ddaca4122abea92bad2acd781580abfa1bf7e2be02f46a97c087aaa",
}


@pytest.mark.parametrize("name, stored", GOLDEN)
def test_the_bytes_of_a_packet_never_change(name, stored):
    packet = WIRES[name].pack(LATENT, stored)
    assert packet.hex() == GOLDEN[name, stored]
    assert (WIRES[name].unpack(packet) == LATENT).all()


def test_the_header_is_what_the_table_says():
    packet = PLAIN.pack(LATENT)
    assert packet[:6] == b"EKSP\x01\x00" and packet[6:22] == PLAIN.model_hash and packet[22:30] == TABLES.id
    assert int.from_bytes(packet[30:34], "little") == 18
    assert int.from_bytes(packet[34:38], "little") == len(packet) - 42
    assert int.from_bytes(packet[38:42], "little") == zlib.crc32(packet[:38] + packet[42:])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_latent_comes_back(data):
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 3))
    symbols = data.draw(st.integers(1, 256))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    tables = from_counts(rng.integers(0, 50, (shape[0], symbols)))
    latent = rng.integers(0, symbols, shape, np.uint8)
    wire = Wire(bytes(16), Codec(tables, shape), data.draw(st.sampled_from([None, KEY])))
    packet = wire.pack(latent)
    assert (wire.unpack(packet) == latent).all()
    assert len(packet) <= wire.most_bytes


def test_a_packet_costs_the_entropy_and_the_header():
    rng = np.random.default_rng(0)
    latent = np.clip(rng.laplace(32, 4, (24, 28, 28)).round(), 0, 63).astype(np.uint8)
    tables = from_counts([np.bincount(channel.reshape(-1), minlength=64) for channel in latent])
    packet = Wire(bytes(16), Codec(tables, latent.shape)).pack(latent)
    entropy_bytes = tables.bits(latent) / 8
    assert entropy_bytes < len(packet) - HEADER.size <= entropy_bytes + 8


def test_a_latent_that_would_grow_is_stored():
    wire = Wire(bytes(16), Codec(from_counts([np.array([10**6, 1])]), (1, 4, 4)))
    packet = wire.pack(np.ones((1, 4, 4), np.uint8))
    assert read_header(packet).flags == STORED and len(packet) == HEADER.size + 16


@pytest.mark.parametrize(
    "latent, message",
    [
        (LATENT[:2], r"must be uint8 \(3, 2, 3\); got uint8 \(2, 2, 3\)"),
        (LATENT.astype(np.int32), "got int32"),
        (LATENT + np.array([0, 1, 0], np.uint8)[:, None, None], "channel 1 of the latent has the symbol 2; .* at 1"),
    ],
)
def test_no_latent_of_the_model_is_packed(latent, message):
    for stored in (False, True):
        with pytest.raises(BadInput, match=message):
            PLAIN.pack(latent, stored)


def _with(packet: bytes, offset: int, data: bytes) -> bytes:
    """The packet with other bytes there, and a CRC that fits them."""
    altered = bytearray(packet)
    altered[offset : offset + len(data)] = data
    altered[38:42] = zlib.crc32(altered[:38] + altered[42:]).to_bytes(4, "little")
    return bytes(altered)


CODED, RAW = PLAIN.pack(LATENT), PLAIN.pack(LATENT, stored=True)


@pytest.mark.parametrize(
    "packet, message",
    [
        (b"", "at least 42 bytes; this has 0"),
        (CODED[:-1], f"has {len(CODED)} bytes; there are {len(CODED) - 1}"),
        (CODED + b"\0", f"there are {len(CODED) + 1}"),
        (CODED + bytes(100), "packets for this model have at most 92"),
        (b"PK" + CODED[2:], "does not begin with EKSP"),
        (_with(CODED, 4, b"\2"), "version is 2; this end reads 1. Install the same edgekit"),
        (_with(CODED, 5, b"\4"), "flags are 0x04"),
        (_with(CODED, 5, bytes([SIGNED])), "by its header it has"),
        (_with(CODED, 6, b"?"), "is for the tail 3f"),
        (_with(CODED, 22, b"?"), "coded by the tables 3f"),
        (_with(CODED, 30, b"\xff\xff\xff\xff"), "says 4294967295 symbols; the model's latent has 18"),
        (_with(CODED, 34, b"\xff\xff\xff\xff"), "by its header it has 4294967337 bytes"),
        (CODED[:-1] + bytes([CODED[-1] ^ 1]), "its CRC is wrong"),
        (_with(CODED, len(CODED) - 4, bytes(4)), "cannot be decoded"),
        (_with(CODED + b"\1\0\0\0", 34, b"\x0c"), "goes on after the last symbol"),
        (_with(RAW, 5, b"\0"), "no multiple of 4"),
        (_with(CODED, 5, bytes([STORED])), "bytes for 18 symbols"),
        (_with(RAW, 42 + 6, b"\2"), "channel 1 of the latent has the symbol 2"),
        (WIRES["signed"].pack(LATENT), "has an HMAC, and this end has no key"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_packet_is_refused(packet, message):
    with pytest.raises(PacketError, match=message):
        PLAIN.unpack(packet)


def test_only_who_has_the_key_is_heard():
    signed = WIRES["signed"]
    with pytest.raises(PacketError, match="has no HMAC"):
        signed.unpack(CODED)
    with pytest.raises(PacketError, match="HMAC is wrong"):
        dataclasses.replace(PLAIN, key=KEY[::-1]).unpack(signed.pack(LATENT))
    with pytest.raises(PacketError, match="HMAC is wrong"):
        stored = signed.pack(LATENT, stored=True)
        signed.unpack(_with(stored[:-32], 42, b"\1") + stored[-32:])
    with pytest.raises(ValueError, match="at least 16"):
        dataclasses.replace(PLAIN, key=b"short")


def test_another_tail_is_told_from_a_broken_packet():
    other = dataclasses.replace(PLAIN, model_hash=bytes(16))
    with pytest.raises(WrongModel, match=f"for the tail {PLAIN.model_hash.hex()}; this is 00"):
        other.unpack(CODED)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_bytes_off_the_wire_are_a_latent_or_an_error(data):
    """With a CRC that fits, so that the decoder gets to see them."""
    wire = Wire(bytes(16), Codec(split_bundles.tables(), split_bundles.SHAPE))
    packet = bytearray(wire.pack(np.full(split_bundles.SHAPE, 10, np.uint8)))
    for _ in range(data.draw(st.integers(1, 4))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    packet = _with(packet[: data.draw(st.integers(42, len(packet)))], 4, b"\1")
    if data.draw(st.booleans()):
        packet = _with(packet, 34, (len(packet) - 42).to_bytes(4, "little"))
    try:
        latent = wire.unpack(packet)
    except PacketError:
        return
    assert latent.shape == split_bundles.SHAPE and latent.dtype == np.uint8 and latent.max() < split_bundles.LEVELS
