"""The packet: one latent on the wire.

    offset  bytes
    0       4      magic, "EKSP"
    4       1      version, 1
    5       1      flags: 1 = an HMAC follows, 2 = the payload is the latent itself, a byte a symbol
    6       16     model: the first bytes of the SHA-256 of the tail's file
    22      8      tables: the first bytes of the SHA-256 of their canonical JSON
    30      4      how many symbols
    34      4      how many bytes of payload
    38      4      CRC-32 of all before it and of the payload
    42      …      payload
    end     32     HMAC-SHA256 of all before it, with flag 1

Numbers are little-endian. There is no shape in it: that is the model's. The CRC tells of accidents and the HMAC of
strangers; neither tells a packet that is sent again, which TLS is for.
"""

from __future__ import annotations

import dataclasses
import hmac
import struct
import zlib
from typing import NamedTuple

import numpy as np

from edgekit.errors import BadInput
from edgekit.split.codec import Codec, PacketError

MAGIC = b"EKSP"
VERSION = 1
SIGNED, STORED = 1, 2
HEADER = struct.Struct("<4sBB16s8sIII")
CRC_BYTES = 4
MAC_BYTES = 32
LEAST_KEY_BYTES = 16


class WrongModel(PacketError):
    """A sound packet for another tail, or for other tables."""


class Header(NamedTuple):
    magic: bytes
    version: int
    flags: int
    model_hash: bytes
    table_id: bytes
    symbols: int
    payload_bytes: int
    crc: int

    @property
    def end(self) -> int:
        """Where the payload ends."""
        return HEADER.size + self.payload_bytes


def read_header(packet: bytes) -> Header:
    """The header of a packet that is whole, by its lengths and its CRC; nothing is allocated before that is known.

    Raises:
        PacketError: it is not.
    """
    if len(packet) < HEADER.size:
        raise PacketError(f"a packet has at least {HEADER.size} bytes; this has {len(packet)}")
    header = Header._make(HEADER.unpack_from(packet))
    if header.magic != MAGIC:
        raise PacketError(f"it does not begin with {MAGIC.decode()}, so it is no packet")
    if header.version != VERSION:
        raise PacketError(
            f"its version is {header.version}; this end reads {VERSION}. Install the same edgekit on both"
        )
    if header.flags & ~(SIGNED | STORED):
        raise PacketError(f"its flags are {header.flags:#04x}; this end knows {SIGNED | STORED:#04x}")
    size = header.end + MAC_BYTES * bool(header.flags & SIGNED)
    if len(packet) != size:
        raise PacketError(f"by its header it has {size} bytes; there are {len(packet)}")
    view = memoryview(packet)
    if _crc(view[: HEADER.size - CRC_BYTES], view[HEADER.size : header.end]) != header.crc:
        raise PacketError("its CRC is wrong: it was altered on the way")
    return header


def _crc(head: bytes | memoryview, payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(head))


@dataclasses.dataclass(frozen=True)
class Wire:
    """What both ends of one model agree on.

    key: of the HMAC; where there is one, packets without it are refused, and where there is none, packets with it.
    """

    model_hash: bytes
    codec: Codec
    key: bytes | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.key is not None and len(self.key) < LEAST_KEY_BYTES:
            raise ValueError(f"the key has {len(self.key)} bytes; it must have at least {LEAST_KEY_BYTES}")

    @property
    def most_bytes(self) -> int:
        """The longest packet there can be."""
        return HEADER.size + self.codec.size + MAC_BYTES

    def pack(self, latent: np.ndarray, stored: bool = False) -> bytes:
        """A latent, uint8 (C, H, W), as a packet.

        Args:
            stored: as it is, a byte a symbol; so is a latent whose code would be longer than that.

        Raises:
            BadInput: it is no latent of this model.
        """
        payload = self.codec.encode(latent)
        stored = stored or len(payload) > latent.size
        payload = latent.tobytes() if stored else payload
        flags = SIGNED * (self.key is not None) | STORED * stored
        fields = (MAGIC, VERSION, flags, self.model_hash, self.codec.tables.id, latent.size, len(payload))
        head = HEADER.pack(*fields, 0)[:-CRC_BYTES]
        packet = head + _crc(head, payload).to_bytes(CRC_BYTES, "little") + payload
        return packet + self._mac(packet)

    def _mac(self, packet: bytes | memoryview) -> bytes:
        return b"" if self.key is None else hmac.digest(self.key, packet, "sha256")

    def unpack(self, packet: bytes) -> np.ndarray:
        """The latent of a packet, uint8 (C, H, W), every symbol within its table.

        Raises:
            PacketError: it is no packet, was altered, or comes from someone without the key.
            WrongModel: it is for another tail.
        """
        if len(packet) > self.most_bytes:
            raise PacketError(f"it has {len(packet)} bytes; packets for this model have at most {self.most_bytes}")
        header = read_header(packet)
        self._check(header, packet)
        payload = packet[HEADER.size : header.end]
        return self._stored(payload) if header.flags & STORED else self.codec.decode(payload)

    def _check(self, header: Header, packet: bytes) -> None:
        signed = bool(header.flags & SIGNED)
        if self.key is None and signed:
            raise PacketError("it has an HMAC, and this end has no key to check it with")
        if self.key is not None and not signed:
            raise PacketError("it has no HMAC; give the other end this end's key")
        if not hmac.compare_digest(packet[header.end :], self._mac(memoryview(packet)[: header.end])):
            raise PacketError("its HMAC is wrong: the other end has another key")
        if header.model_hash != self.model_hash:
            raise WrongModel(f"it is for the tail {header.model_hash.hex()}; this is {self.model_hash.hex()}")
        if header.table_id != self.codec.tables.id:
            raise WrongModel(
                f"it was coded by the tables {header.table_id.hex()}; these are {self.codec.tables.id.hex()}"
            )
        if header.symbols != self.codec.size:
            raise PacketError(f"it says {header.symbols} symbols; the model's latent has {self.codec.size}")

    def _stored(self, payload: bytes) -> np.ndarray:
        if len(payload) != self.codec.size:
            raise PacketError(f"its payload has {len(payload)} bytes for {self.codec.size} symbols")
        latent = np.frombuffer(payload, np.uint8).reshape(self.codec.shape)
        try:
            self.codec.check(latent)
        except BadInput as error:
            raise PacketError(str(error)) from None
        return latent
