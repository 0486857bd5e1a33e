"""The entropy coder: bytes beside the empirical entropy, and how fast it decodes.

- entropy: what tensors take in the packed file, with all tables and headers, above their order-0 entropy, tensor by
  tensor. Names, shapes and nodes are no tensors; they go through LZMA and are given beside it.
- decode: `unpack`, whole: checksum, decoding and the hash of the result. Decoded bytes are those of the ONNX file that
  comes out. In wall time and in the process's CPU time.

The files are those of coding_speed.py for the target onnxruntime.
"""

import functools
import time

import numpy as np
from coding_common import kept, once
from coding_speed import BITS, made, steps_of
from common import claim
from prune_common import Row

from edgekit.transport.pack import pack
from edgekit.transport.unpack import unpack

FILES = [(network, file) for network in BITS for file in ("coded", "int8")]
REPEATS, EXCESS, PACE = 25, 1.0, 20.0


def entropy() -> None:
    for network, file in FILES:
        once("entropy", functools.partial(packed, network, file), steps_of(network, file), network=network, file=file)


def packed(network: str, file: str) -> Row:
    content = made(network, file, "onnxruntime").read_bytes()
    found = pack(content)
    sizes = {row.kind: row.transport_bytes for row in found.rows}
    graph, tables = sizes.pop("graph"), sizes.pop("tables")
    ideal = sum(row.entropy_bytes or 0 for row in found.rows)
    return {
        "size_bytes": len(content),
        "transport_bytes": len(found.content),
        "entropy_bytes": ideal,
        "tensor_bytes": sum(sizes.values()),
        "table_bytes": tables,
        "graph_bytes": graph,
        "excess": 100 * ((sum(sizes.values()) + tables) / ideal - 1),
    }


def entropy_claims() -> list[Row]:
    rows = kept("entropy")
    if not rows:
        return []
    worst = max(row["excess"] for row in rows)
    required = f"≤ {EXCESS:g} % above the order-0 entropy, tables and headers included, worst of {len(rows)} files"
    return [claim("coding.entropy", required, worst, "%", worst <= EXCESS)]


def decode() -> None:
    for network, file in FILES:
        once("decode", functools.partial(decoded, network, file), steps_of(network, file), network=network, file=file)


def decoded(network: str, file: str) -> Row:
    content = made(network, file, "onnxruntime").read_bytes()
    small = pack(content).content
    wall, cpu = [], []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter(), time.process_time()
        unpack(small)
        wall.append(time.perf_counter() - begin[0])
        cpu.append(time.process_time() - begin[1])
    wall_s, cpu_s = (float(np.median(each[1:])) for each in (wall, cpu))
    return {
        "size_bytes": len(content),
        "wall_ms": 1e3 * wall_s,
        "cpu_ms": 1e3 * cpu_s,
        "mb_a_second": len(content) / 1e6 / wall_s,
        "mb_a_cpu_second": len(content) / 1e6 / cpu_s,
    }


def decode_claims() -> list[Row]:
    rows = kept("decode")
    if not rows:
        return []
    slowest = min(row["mb_a_second"] for row in rows)
    required = f"≥ {PACE:g} MB of ONNX file a second of wall time, slowest of {len(rows)} files"
    return [claim("coding.decode", required, slowest, "MB/s", slowest >= PACE)]
