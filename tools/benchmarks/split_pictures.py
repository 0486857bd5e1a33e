"""The pictures themselves as JPEG and WebP: the bytes that cross, and what the uncut network makes of them."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from split_common import BATCH, found, keep

from edgekit.data import Input, Output, Samples
from edgekit.devices.runner import Session

QUALITIES = {
    "JPEG": (95, 90, 85, 80, 75, 70, 60, 50, 40, 30, 20, 10, 5),
    "WEBP": (95, 90, 80, 75, 60, 50, 40, 30, 20, 10, 5, 0),
}
WEBP_HEADER_BYTES = 20


def measure_pictures(session: Session, input: Input, output: Output, samples: Samples, **key: Any) -> None:
    """A row for each format and quality, of pictures resized as the network takes them, encoded and decoded."""
    for kind, qualities in QUALITIES.items():
        for quality in qualities:
            own = {"part": "pictures", "format": kind, "quality": quality, **key}
            if not found(**own):
                keep({**own, **_sent(session, input, output, samples, kind, quality)})


def _sent(session: Session, input: Input, output: Output, samples: Samples, kind: str, quality: int) -> dict[str, Any]:
    sizes, hits = [], 0
    for places in np.array_split(np.arange(len(samples)), len(samples) // BATCH):
        pixels = [input.resized(samples[place].read()).transpose(1, 2, 0) for place in places.tolist()]
        contents = [_encoded(picture, kind, quality) for picture in pixels]
        sizes += [_scan_bytes(content) if kind == "JPEG" else len(content) - WEBP_HEADER_BYTES for content in contents]
        batch = input.normalised(np.stack(list(_decoded(contents))).transpose(0, 3, 1, 2))
        hits += int((output.scores(session.run(batch)).argmax(1) == samples.labels[places]).sum())
    return {"bytes": float(np.mean(sizes)), "top1": 100 * hits / len(samples), "n": len(samples)}


def _encoded(picture: np.ndarray, kind: str, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, quality=quality, **({"method": 6} if kind == "WEBP" else {}))
    return file.getvalue()


def _decoded(contents: list[bytes]) -> Iterator[np.ndarray]:
    for content in contents:
        with Image.open(io.BytesIO(content)) as image:
            yield np.asarray(image.convert("RGB"))


def _scan_bytes(content: bytes) -> int:
    """Of a baseline JPEG: what stands between the header of its one scan and the marker of its end."""
    begin = content.index(b"\xff\xda") + 2
    return len(content) - begin - int.from_bytes(content[begin : begin + 2], "big") - 2
