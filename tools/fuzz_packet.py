"""Throw altered, cut off and random bytes at the packet's reader; every one must give a latent or a PacketError.

    python tools/fuzz_packet.py --inputs 1000000

Half of the inputs get lengths, CRC and HMAC that fit them, so that the codec behind is reached. Ends with 1 at the
first other exception, wrong shape, symbol outside its table, an input that takes longer than a second, or where the
process grows by more than the stated memory; prints the seed and the input.
"""

import argparse
import collections
import hmac
import json
import resource
import sys
import time
import zlib

import numpy as np

from edgekit.split.codec import Codec, PacketError
from edgekit.split.packet import HEADER, MAC_BYTES, SIGNED, STORED, Wire
from edgekit.split.tables import from_counts

SHAPE, SYMBOLS = (8, 6, 6), 24
MOST_GROWTH_BYTES = 32 * 2**20
SLOWEST_S = 1.0


def wires(rng: np.random.Generator) -> list[Wire]:
    """The same model without and with a key; a channel of one symbol among the others."""
    counts = [rng.integers(0, 500, SYMBOLS) for _ in range(SHAPE[0] - 1)]
    codec = Codec(from_counts([*counts, np.array([1])]), SHAPE)
    return [Wire(bytes(range(16)), codec, key) for key in (None, bytes(range(32)))]


def latent(rng: np.random.Generator) -> np.ndarray:
    made = rng.integers(0, SYMBOLS, SHAPE, np.uint8)
    made[-1] = 0
    return made


def altered(packet: bytes, rng: np.random.Generator) -> bytes:
    """Flipped, cut off, extended, or bytes of the same length that mean nothing."""
    kind, data = rng.integers(5), bytearray(packet)
    if kind == 0:
        return rng.bytes(len(data))
    if kind == 1:
        return bytes(data[: rng.integers(len(data))])
    if kind == 2:
        return bytes(data) + rng.bytes(int(rng.integers(1, 64)))
    for place in rng.integers(len(data) if kind == 3 else HEADER.size, size=rng.integers(1, 5)):
        data[place] = rng.integers(256)
    return bytes(data)


def mended(packet: bytes, wire: Wire) -> bytes:
    """The packet with lengths, a CRC and an HMAC that fit what is there, so that only its content is wrong."""
    end = len(packet) - (MAC_BYTES if wire.key else 0)
    if end < HEADER.size:
        return packet
    data = bytearray(packet[:end])
    data[:5], data[34:38] = b"EKSP\x01", (end - HEADER.size).to_bytes(4, "little")
    data[5] = data[5] & STORED | SIGNED * bool(wire.key)
    data[38:42] = zlib.crc32(data[:38] + data[42:]).to_bytes(4, "little")
    return bytes(data) + (hmac.digest(wire.key, data, "sha256") if wire.key else b"")


def outcome(wire: Wire, packet: bytes) -> str:
    """What came of it. Raises whatever the reader raises that it should not."""
    try:
        found = wire.unpack(packet)
    except PacketError as error:
        return " ".join([word for word in str(error).split() if word.isalpha()][:4])
    wire.codec.check(found)
    return "a latent"


def fuzz(inputs: int, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    seen, slowest_s = collections.Counter(), 0.0
    packets = [(wire, wire.pack(latent(rng), stored)) for wire in wires(rng) for stored in (False, True)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(inputs):
        wire, packet = packets[number % len(packets)]
        packet = altered(packet, rng)
        packet = mended(packet, wire) if rng.integers(2) else packet
        began = time.process_time()
        try:
            seen[outcome(wire, packet)] += 1
        except Exception:
            print(f"input {number} of seed {seed}: {packet.hex()}", file=sys.stderr)
            raise
        slowest_s = max(slowest_s, time.process_time() - began)
    grown_bytes = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    ok = slowest_s < SLOWEST_S and grown_bytes < MOST_GROWTH_BYTES
    figures = {"slowest_ms": slowest_s * 1e3, "grown_bytes": grown_bytes, "ok": ok}
    return {"inputs": inputs, "seed": seed, "outcomes": dict(seen.most_common()), **figures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = fuzz(given.inputs, given.seed)
    print(json.dumps(found, indent=1))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
