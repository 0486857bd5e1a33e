"""The runtime of split computing: bytes on the wire, the coder's speed, what the server adds, a load, and dead workers.

    python tools/benchmarks/split_serve.py                    all of it, about ten minutes on a quiet machine
    python tools/benchmarks/split_serve.py --seconds 10       a look at whether it works
    python tools/benchmarks/split_serve.py --bundle out/cut   of a cut network instead of the made one

The made network has a latent of 24 × 28 × 28 and a tail of 14 M MACs; its latents are drawn from its tables, which is
what an entropic bottleneck's are like. Everything is on this machine: the server, and its clients in another process.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from common import claim, write
from split_load import Ask, killed, load, started
from split_made import make

from edgekit.bundle import open_bundle
from edgekit.engines import engine
from edgekit.split import artifact
from edgekit.split.models import wire_of
from edgekit.split.packet import HEADER, Wire
from edgekit.split.remote import Address, Remote

LATENTS, ROUNDS, CLIENTS = 64, 400, 64
MOST_OVER_ENTROPY, LEAST_SYMBOLS_PER_S, MOST_ADDED_MS, MOST_GROWTH = 0.02, 10e6, 2.0, 0.02
Row = dict


def drawn(wire: Wire, n: int, seed: int = 0) -> np.ndarray:
    """Latents whose symbols are drawn from their tables: uint8 (n, C, H, W)."""
    rng, (channels, height, width) = np.random.default_rng(seed), wire.codec.shape
    tables = wire.codec.tables
    rows = [
        rng.choice(len(row), (n, height, width), p=np.array(row) / (1 << tables.precision_bits))
        for row in tables.frequencies
    ]
    return np.stack(rows, 1).astype(np.uint8).reshape(n, channels, height, width)


def coding(wire: Wire, latents: np.ndarray) -> Row:
    """Bytes against the tables' entropy, and symbols a second each way: medians of single latents."""
    packets = [wire.pack(latent) for latent in latents]
    entropy_bytes = sum(wire.codec.tables.bits(latent) for latent in latents) / 8
    payloads = [packet[HEADER.size :] for packet in packets]
    encode_s = [_timed(wire.codec.encode, latent) for latent in np.repeat(latents, 4, axis=0)]
    decode_s = [_timed(wire.codec.decode, payload) for payload in payloads * 4]
    return {
        "step": "coding",
        "symbols": wire.codec.size,
        "packet_bytes": float(np.mean([len(packet) for packet in packets])),
        "header_bytes": HEADER.size,
        "entropy_bytes": entropy_bytes / len(latents),
        "over_entropy": sum(map(len, payloads)) / entropy_bytes - 1,
        "encode_symbols_per_s": wire.codec.size / float(np.median(encode_s)),
        "decode_symbols_per_s": wire.codec.size / float(np.median(decode_s)),
    }


def _timed(function, argument) -> float:
    began = time.perf_counter()
    function(argument)
    return time.perf_counter() - began


def added(bundle: Path, wire: Wire, latents: np.ndarray) -> Row:
    """One client: a packet to the server and the same latent straight to ONNX Runtime, in turns."""
    tail = engine("onnxruntime").load(bundle / artifact.read(open_bundle(bundle)).tail.file, 1)
    packets, direct_ms, served_ms = [wire.pack(latent) for latent in latents], [], []
    with started(bundle) as (_, url):
        remote = Remote(Address(url, "bench"))
        for number in range(ROUNDS + 20):
            index = number % len(latents)
            direct_ms.append(1e3 * _timed(tail.run, latents[index : index + 1]))
            served_ms.append(1e3 * _timed(remote.infer, packets[index]))
    direct, served = (float(np.median(times[20:])) for times in (direct_ms, served_ms))
    return {"step": "added", "rounds": ROUNDS, "direct_ms": direct, "served_ms": served, "added_ms": served - direct}


def asks(bundle: Path, wire: Wire, latents: np.ndarray) -> list[Ask]:
    tail = engine("onnxruntime").load(bundle / artifact.read(open_bundle(bundle)).tail.file, 1)
    return [Ask(wire.pack(latent), tail.run(latent[None])) for latent in latents]


def claims(rows: list[Row]) -> list[Row]:
    row = {row["step"]: row for row in rows}
    coded, loaded, dead = row["coding"], row["load"], row["killed"]
    speed = min(coded["encode_symbols_per_s"], coded["decode_symbols_per_s"])
    p50, p99 = loaded["latency_ms"]["p50"], loaded["latency_ms"].get("p99", float("nan"))
    counted = f"{loaded['clients']} clients, {loaded['seconds']:.0f} s, {loaded['answered']:,} answers"
    return [
        claim("split.bytes", "payload over the tables' entropy ≤ 2 %", 100 * coded["over_entropy"], "%",
              coded["over_entropy"] <= MOST_OVER_ENTROPY),
        claim("split.coding", "≥ 10 M symbols/s each way", speed / 1e6, "M symbols/s", speed >= LEAST_SYMBOLS_PER_S),
        claim("split.added", "p50 over ONNX Runtime called directly ≤ 2 ms", row["added"]["added_ms"], "ms",
              row["added"]["added_ms"] <= MOST_ADDED_MS),
        claim("split.load.errors", f"0 wrong or failed; {counted}; p50 {p50:.1f}, p99 {p99:.1f} ms",
              loaded["wrong"] + loaded["failed"], "requests", loaded["wrong"] + loaded["failed"] == 0),
        claim("split.load.memory", "growth of the server from the second fifth of the time to the last ≤ 2 %",
              100 * loaded["growth"], "%", loaded["growth"] <= MOST_GROWTH),
        claim("split.killed", f"0 lost after retries; {dead['kills']} × kill -9 of one of two workers",
              dead["wrong"] + dead["failed"], "requests", dead["wrong"] + dead["failed"] == 0 and dead["kills"] > 0),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0, help="of the load; the kills take a fifth of it")
    parser.add_argument("--dry", action="store_true", help="print the rows and write no result")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or make(Path(folder) / "made")
        wire = wire_of(artifact.read(open_bundle(bundle)), None)
        latents = drawn(wire, LATENTS)
        known = asks(bundle, wire, latents)
        rows = [
            coding(wire, latents),
            added(bundle, wire, latents),
            {"step": "load", **load(bundle, known, CLIENTS, given.seconds)},
            {"step": "killed", **killed(bundle, known, 8, given.seconds / 5)},
        ]
    if given.dry:
        print(*rows, *claims(rows), sep="\n")
    else:
        write("split_serve", rows, claims(rows))


if __name__ == "__main__":
    main()
