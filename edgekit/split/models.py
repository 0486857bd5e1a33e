"""What a server runs: the tail of a bundle behind packets and, where the bundle has it, the whole network behind
encoded pictures."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import MANIFEST, Bundle, open_bundle
from edgekit.data import Input
from edgekit.data.images import decode_from
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.schema import parse
from edgekit.split import artifact
from edgekit.split.codec import Codec
from edgekit.split.packet import Wire
from edgekit.split.protocol import DATATYPES, Spec

WHOLE = "-full"
"""Stands behind the name of the model that takes pictures."""
PACKET = Spec("packet", "UINT8", (-1,))
PICTURE = Spec("picture", "UINT8", (-1,))
PICTURE_FORMATS = ("JPEG", "WEBP")
MOST_PICTURE_BYTES = 2**22
MOST_PIXELS = 2**24
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}

Outputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Model:
    """A file that answers inputs of bytes.

    version: the first 16 bytes of the file's SHA-256 in hex; of a tail, what packets name it by.
    most_bytes: the longest input there can be.
    read: an input's bytes as the array (C, H, W) that the file takes; raises BadInput, also for what is longer.
    """

    name: str
    version: str
    input: Spec
    outputs: tuple[Spec, ...]
    most_bytes: int
    read: Callable[[bytes], np.ndarray]
    session: Any

    @property
    def most_batch(self) -> int | None:
        """How many inputs the file takes at once; None where that is free."""
        return self.session.batch

    def run(self, contents: Sequence[bytes]) -> list[Outputs | BadInput]:
        """The outputs for each input, every array with a batch of 1; the error for one that cannot be read."""
        read = [self._read(content) for content in contents]
        sound = [one for one in read if isinstance(one, np.ndarray)]
        answers = iter(self._infer(np.stack(sound)) if sound else [])
        return [next(answers) if isinstance(one, np.ndarray) else one for one in read]

    def _read(self, content: bytes) -> np.ndarray | BadInput:
        try:
            return self.read(content)
        except BadInput as error:
            return error

    def _infer(self, batch: np.ndarray) -> list[Outputs]:
        size = len(batch)
        if self.most_batch is not None:
            batch = np.concatenate([batch, np.repeat(batch[-1:], self.most_batch - size, axis=0)])
        arrays = self.session.raw.run(None, {self.session.name: batch})
        return [{one.name: array[i : i + 1] for one, array in zip(self.outputs, arrays)} for i in range(size)]


def load(name: str, folder: Path, key: bytes | None = None, threads: int = 1) -> dict[str, Model]:
    """The models of a bundle by their names: `name`, and `name`-full where it holds the whole network.

    Args:
        key: of the packets' HMAC.
        threads: of one inference.

    Raises:
        BadInput: no bundle, not cut, altered, or files that do not fit each other.
    """
    bundle = open_bundle(folder)
    split = artifact.read(bundle)
    made = [_tail(name, bundle, split, key, threads)]
    if split.full is not None:
        made.append(_whole(name + WHOLE, bundle, split.full, threads))
    return {model.name: model for model in made}


def _tail(name: str, bundle: Bundle, split: artifact.Split, key: bytes | None, threads: int) -> Model:
    session = engine("onnxruntime").load(bundle.path / split.tail.file, threads)
    if (session.name, session.shape, session.dtype) != (split.latent.name, split.latent.shape, np.uint8):
        raise BadInput(
            f"{bundle.path / split.tail.file}: takes {session.name} {np.dtype(session.dtype)} {session.shape}; by "
            f"{artifact.FILE} the latent is {split.latent.name} uint8 {split.latent.shape}"
        )
    wire = wire_of(split, key)
    return Model(name, split.model_hash.hex(), PACKET, _outputs(session), wire.most_bytes, wire.unpack, session)


def wire_of(split: artifact.Split, key: bytes | None) -> Wire:
    """What both ends of a cut network agree on."""
    return Wire(split.model_hash, Codec(split.tables, split.latent.shape), key)


def _whole(name: str, bundle: Bundle, part: artifact.Part, threads: int) -> Model:
    session = engine("onnxruntime").load(bundle.path / part.file, threads)
    input = parse(Input, bundle.manifest["input"], f"{bundle.path / MANIFEST} input")

    as_it_is = dataclasses.replace(input, resize="none")

    def read(content: bytes) -> np.ndarray:
        picture = decoded(content)
        fits = picture.shape[:2] == input.shape[1:]  # the device cut it out already; a crop of it would be another part
        return (as_it_is if fits else input).apply(picture)

    return Model(name, part.sha256[:32], PICTURE, _outputs(session), MOST_PICTURE_BYTES, read, session)


def decoded(content: bytes) -> np.ndarray:
    """A JPEG or WebP as uint8 (H, W) or (H, W, 3 | 4).

    Raises:
        BadInput: it is none, or has too many bytes or pixels; those are counted before they are decoded.
    """
    from PIL import Image

    if len(content) > MOST_PICTURE_BYTES:
        raise BadInput(f"the picture has {len(content):,} bytes; at most {MOST_PICTURE_BYTES:,} are taken")
    try:
        with Image.open(io.BytesIO(content), formats=PICTURE_FORMATS) as picture:
            pixels = picture.width * picture.height
    except Exception as error:  # Pillow documents no closed set
        raise BadInput(f"the picture is no {' or '.join(PICTURE_FORMATS)} ({str(error)[:80]})") from None
    if pixels > MOST_PIXELS:
        raise BadInput(f"the picture has {pixels:,} pixels; at most {MOST_PIXELS:,} are taken")
    return decode_from(io.BytesIO(content), "the picture")


def _outputs(session: Any) -> tuple[Spec, ...]:
    return tuple(_output(value) for value in session.raw.get_outputs())


def _output(value: Any) -> Spec:
    if value.type not in TYPES:
        raise BadInput(f"the output {value.name} is {value.type}; one of {', '.join(TYPES)} can be sent")
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return Spec(value.name, DATATYPES[np.dtype(TYPES[value.type])], shape)
