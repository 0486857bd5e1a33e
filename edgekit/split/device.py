"""What a device does with a picture: run the head and pack its latent, encode the picture, or run the whole network."""

from __future__ import annotations

import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgekit.bundle import MANIFEST, Bundle, open_bundle
from edgekit.data import Input, Output
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.schema import parse
from edgekit.split import artifact
from edgekit.split.models import WHOLE, wire_of
from edgekit.split.packet import Wire


@dataclasses.dataclass(frozen=True)
class Device:
    """The near end of a cut network. Pixels are uint8 (1, H, W, C) of the input's size.

    whole: the uncut network's session; None where the bundle has none.
    """

    input: Input
    output: Output
    wire: Wire
    head: Any
    whole: Any | None

    def taken(self, pixels: np.ndarray) -> np.ndarray:
        """The pixels as the head and the whole network take them."""
        return self.input.normalised(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def latent(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (C, H, W)"""
        return self.head.run(self.taken(pixels))[0]

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        """The first output of the whole network. Raises BadInput where there is none."""
        if self.whole is None:
            raise BadInput("the bundle has no whole network, so the device cannot answer by itself")
        return self.whole.run(self.taken(pixels))


def load(folder: Path, key: bytes | None = None, threads: int = 1) -> Device:
    """The device side of a bundle.

    Raises:
        BadInput: no bundle, not cut, altered, or a head that does not fit its description.
    """
    bundle = open_bundle(folder)
    split = artifact.read(bundle)
    head = _session(bundle, split.head, threads)
    made = head.raw.get_outputs()[0]
    if (made.name, made.type, tuple(made.shape[1:])) != (split.latent.name, "tensor(uint8)", split.latent.shape):
        raise BadInput(
            f"{bundle.path / split.head.file}: gives {made.name} {made.type} {made.shape}; by {artifact.FILE} the "
            f"latent is {split.latent.name} uint8 {split.latent.shape}"
        )
    where = f"{bundle.path / MANIFEST}"
    input = parse(Input, bundle.manifest["input"], f"{where} input")
    output = parse(Output, bundle.manifest["output"], f"{where} output")
    whole = _session(bundle, split.full, threads) if split.full else None
    return Device(input, output, wire_of(split, key), head, whole)


def _session(bundle: Bundle, part: artifact.Part, threads: int) -> Any:
    return engine("onnxruntime").load(bundle.path / part.file, threads)


class Prepared(NamedTuple):
    """What is sent for a picture. parts: milliseconds that it took, by what took them."""

    content: bytes
    parts: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to have a picture answered by the server. suffix: of the model that takes it."""

    name: str
    prepare: Callable[[np.ndarray], Prepared]
    suffix: str = ""


def latent_way(device: Device, stored: bool = False) -> Way:
    """The head's latent as a packet: coded, or (`stored`) a byte a symbol."""

    def prepare(pixels: np.ndarray) -> Prepared:
        began = time.perf_counter()
        latent = device.latent(pixels)
        ready = time.perf_counter()
        content = device.wire.pack(latent, stored)
        return Prepared(content, {"head_ms": 1e3 * (ready - began), "code_ms": 1e3 * (time.perf_counter() - ready)})

    return Way("latent8" if stored else "split", prepare)


def picture_way(device: Device, format: str, quality: int) -> Way:
    """The picture, in the input's size, as a JPEG or WebP for the whole network at the server."""
    from PIL import Image

    bgr, gray = device.input.channels == "bgr", device.input.channels == "gray"

    def prepare(pixels: np.ndarray) -> Prepared:
        began = time.perf_counter()
        rgb = pixels[0, :, :, 0] if gray else pixels[0, :, :, ::-1] if bgr else pixels[0]
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(rgb)).save(file, format, quality=quality)
        return Prepared(file.getvalue(), {"code_ms": 1e3 * (time.perf_counter() - began)})

    return Way(f"{format.lower()}-{quality}", prepare, WHOLE)
