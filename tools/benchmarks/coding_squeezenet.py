"""SqueezeNet 1.1: bytes of the packed file against what its answers lose, and what general archivers make of the files.

- squeezenet: every method of `CURVE`, fitted on one draw of 200 pictures without labels; `CHOSEN`, which the figures
  asked for are claimed of, on three.
- archives: zip (deflate, level 9), zstd (level 22) and xz (level 9, extreme) of the float file and of the int8 file.

`pip install 'edgekit[benchmarks]'` brings zstd.
"""

import functools
import lzma
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from coding_common import IMAGES, Steps, kept, named, once, point
from coding_speed import made, steps_of
from common import claim
from prune_common import Row

from edgekit.transport.pack import transport_bytes

NETWORK, DRAWS = "squeezenet1_1", (0, 1, 2)
EM = {"name": "em", "images": IMAGES}
CHOSEN = {"name": "cluster", "bits": 3.85, "images": IMAGES}
CURVE: Sequence[dict[str, Any]] = (
    {"name": "vq", "k": 256, "m": 2, "method": EM},
    {"name": "vq", "k": 64, "m": 2, "method": EM},
    {"name": "vq", "k": 256, "m": 4, "method": EM},
    {"name": "vq", "k": 256, "m": {"conv": 9, "pointwise": 4}, "method": EM},
    *({"name": "shift", "bits": bits, "fit": "gptq", "ends": True, "images": IMAGES} for bits in (4, 3)),
    {"name": "shift", "method": "apot", "bits": 4, "fit": "gptq", "ends": True, "images": IMAGES},
    *({"name": "cluster", "bits": bits, "images": IMAGES} for bits in (6.0, 5.0, 4.5, 4.0, 3.5, 3.0)),
)
FILES = ("fp32", "int8")
BYTES, DROP, AGREEMENT = 620_000, 1.0, 89.0


def squeezenet() -> None:
    methods: list[Steps] = [*(steps_of(NETWORK, file) for file in FILES), *((step,) for step in CURVE)]
    for steps, draw in [*(((CHOSEN,), draw) for draw in DRAWS), *((steps, 0) for steps in methods)]:
        once("squeezenet", functools.partial(point, NETWORK, steps, draw), steps,
             network=NETWORK, draw=draw, **named(steps))  # fmt: skip


def claims() -> list[Row]:
    rows = [row for row in kept("squeezenet") if named((CHOSEN,)).items() <= row.items()]
    if len(rows) < len(DRAWS):
        return []
    largest = max(row["transport_bytes"] for row in rows)
    drop, same = (float(np.mean([row[key] for row in rows])) for key in ("drop", "agreement"))
    mean = "mean of three draws"
    return [
        claim("coding.squeezenet.bytes", f"≤ {BYTES} packed", largest, "bytes", largest <= BYTES),
        claim("coding.squeezenet.drop", f"≤ {DROP}, {mean}", drop, "points", drop <= DROP),
        claim("coding.squeezenet.agreement", f"≥ {AGREEMENT}, {mean}", same, "%", same >= AGREEMENT),
    ]


def archives() -> None:
    for file in FILES:
        once("archives", functools.partial(archived, file), steps_of(NETWORK, file), network=NETWORK, file=file)


def archived(file: str) -> Row:
    import zstandard

    content = made(NETWORK, file, "onnxruntime").read_bytes()
    return {
        "size_bytes": len(content),
        "zip_bytes": len(zlib.compress(content, 9)),
        "zstd_bytes": len(zstandard.ZstdCompressor(level=22).compress(content)),
        "xz_bytes": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
        "transport_bytes": transport_bytes(content),
    }
