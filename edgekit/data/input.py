"""What a network eats and gives: the recipe's [input] and [output] tables, and the arithmetic they stand for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import BeforeValidator

from edgekit.errors import BadInput

if TYPE_CHECKING:
    from PIL import Image

LARGEST_SIDE = 16_384
# A crop first scales the whole picture; a long thin one would then need gigabytes for a strip of it.
LARGEST_SCALED_PIXELS = 2**28

PerChannel = Annotated[
    tuple[float, ...], BeforeValidator(lambda value: (value,) if isinstance(value, (int, float)) else value)
]


@dataclasses.dataclass(frozen=True)
class Input:
    """The recipe's [input]: how a decoded picture becomes x = (pixel · scale - mean) / std, float32 (C, H, W).

    size: height and width in pixels, or one number for both.
    resize: "squash" stretches; "crop" scales the shorter side to round(size / crop) and cuts out the centre; "pad"
        scales the longer side to size and centres the picture on zeros; "none" wants pictures of that size.
    mean, std: one value a channel, in the order of `channels`, after `scale`; a single value stands for all.
    """

    size: int | tuple[int, int]
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: Literal["squash", "crop", "pad", "none"] = "squash"
    crop: float = 0.875
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    scale: float = 1 / 255
    mean: PerChannel = (0.0,)
    std: PerChannel = (1.0,)

    def __post_init__(self) -> None:
        for side in self.shape[1:]:
            if not 1 <= side <= LARGEST_SIDE:
                raise ValueError(f"size = {self.size!r} must be from 1 to {LARGEST_SIDE} pixels a side")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop = {self.crop!r} must be above 0 and at most 1")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale = {self.scale!r} must be a finite number above 0")
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._per_channel(name))
        if min(self.std) <= 0:
            raise ValueError(f"std = {list(self.std)} must be above 0 in every channel")

    def _per_channel(self, name: str) -> tuple[float, ...]:
        values = tuple(float(value) for value in getattr(self, name))
        if len(values) not in (1, self.shape[0]):
            raise ValueError(f"{name} has {len(values)} values; {self.channels} needs {self.shape[0]}, or one for all")
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name} = {list(values)} must be finite")
        return values * self.shape[0] if len(values) == 1 else values

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one input."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return (1 if self.channels == "gray" else 3, height, width)

    def resized(self, image: np.ndarray) -> np.ndarray:
        """A uint8 picture (H, W) or (H, W, 1 | 3 | 4; RGB order) as uint8 (C, H, W) of this input's shape.

        Gray is repeated for three channels, colour becomes ITU-R 601 luma for one, alpha is laid over white. Resizing
        is Pillow's, which averages over the source pixels when it shrinks ("nearest" picks one).

        Raises:
            BadInput: no such picture, or it has another size and `resize` is "none".
        """
        from PIL import Image

        pixels = Image.fromarray(_with_channels(_checked(image), gray=self.channels == "gray"))
        array = np.asarray(_FITS[self.resize](pixels, self))  # (H, W) or (H, W, 3)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)  # (C, H, W)
        return np.ascontiguousarray(array[::-1] if self.channels == "bgr" else array)

    def normalised(self, batch: np.ndarray) -> np.ndarray:
        """uint8 (B, C, H, W) as float32 of the same shape; each value is the float64 result, rounded once."""
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1] != self.shape[0]:
            raise BadInput(f"a batch must be uint8 (B, {self.shape[0]}, H, W); got {batch.dtype} {batch.shape}")
        pixel = np.arange(256) * self.scale
        out = np.empty(batch.shape, np.float32)
        # A byte has 256 values: looking them up is quicker than the arithmetic and cannot differ between machines.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std)):
            out[:, channel] = ((pixel - mean) / std).astype(np.float32)[batch[:, channel]]
        return out

    def apply(self, image: np.ndarray) -> np.ndarray:
        """A uint8 picture as float32 (C, H, W): `resized`, then `normalised`."""
        return self.normalised(self.resized(image)[None])[0]


@dataclasses.dataclass(frozen=True)
class Output:
    """The recipe's [output]: what the network's numbers mean.

    classes: how many real ones; `labels` names them in the order of the outputs.
    class_offset: outputs in front of them that stand for no class, such as TensorFlow's background.
    """

    task: Literal["classify", "segment", "detect"] = "classify"
    classes: int | None = None
    labels: tuple[str, ...] | None = None
    class_offset: int = 0

    def __post_init__(self) -> None:
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must all differ")
        if self.labels and self.classes is None:
            object.__setattr__(self, "classes", len(self.labels))
        if self.classes is not None and self.classes < 1:
            raise ValueError(f"classes = {self.classes} must be at least 1")
        if self.labels is not None and len(self.labels) != self.classes:
            raise ValueError(f"labels names {len(self.labels)} classes, but classes = {self.classes}")
        if self.class_offset < 0:
            raise ValueError(f"class_offset = {self.class_offset} must not be negative")

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Logits (B, class_offset + classes, ...) without the offset: (B, classes, ...).

        Raises:
            BadInput: the network has another number of outputs than this says.
        """
        width = logits.shape[1] - self.class_offset if logits.ndim >= 2 else 0
        if width < 1 or (self.classes is not None and width != self.classes):
            wanted = "at least one class" if self.classes is None else f"{self.classes} classes"
            raise BadInput(
                f"the network's output is {tuple(logits.shape)}; [output] expects {wanted} on axis 1 "
                f"after class_offset = {self.class_offset}"
            )
        return logits[:, self.class_offset :]


def _checked(image: np.ndarray) -> np.ndarray:
    """The picture as (H, W) or (H, W, 3 | 4)."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    known = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if image.dtype != np.uint8 or not known or image.size == 0:
        raise BadInput(f"a picture must be uint8 (H, W) or (H, W, 1 | 3 | 4); got {image.dtype} {image.shape}")
    return np.ascontiguousarray(image)


def _with_channels(image: np.ndarray, gray: bool) -> np.ndarray:
    """(H, W) if `gray`, else (H, W, 3)."""
    from PIL import Image

    if image.ndim == 3 and image.shape[2] == 4:
        image = _over_white(image)
    if gray:
        return image if image.ndim == 2 else np.asarray(Image.fromarray(image).convert("L"))
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _over_white(image: np.ndarray) -> np.ndarray:
    colour, alpha = image[..., :3].astype(np.uint32), image[..., 3:].astype(np.uint32)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def _scaled(image: Image.Image, height: int, width: int, input: Input) -> Image.Image:
    from PIL import Image

    if height * width > LARGEST_SCALED_PIXELS:
        raise BadInput(f"a picture of {image.height}×{image.width} is too long and thin for resize = 'crop'")
    return image.resize((width, height), Image.Resampling[input.interpolation.upper()])


def _squash(image: Image.Image, input: Input) -> Image.Image:
    return _scaled(image, *input.shape[1:], input)


def _crop(image: Image.Image, input: Input) -> Image.Image:
    _, height, width = input.shape
    cover_h, cover_w = round(height / input.crop), round(width / input.crop)
    # Whole numbers, as this decides which side is the shorter one and must not depend on rounding.
    if cover_h * image.width >= cover_w * image.height:
        scaled = _scaled(image, cover_h, image.width * cover_h // image.height, input)
    else:
        scaled = _scaled(image, image.height * cover_w // image.width, cover_w, input)
    left, top = round((scaled.width - width) / 2), round((scaled.height - height) / 2)
    return scaled.crop((left, top, left + width, top + height))


def _pad(image: Image.Image, input: Input) -> Image.Image:
    from PIL import Image

    _, height, width = input.shape
    ratio = min(height / image.height, width / image.width)
    inner_h = min(height, max(1, round(image.height * ratio)))
    inner_w = min(width, max(1, round(image.width * ratio)))
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(_scaled(image, inner_h, inner_w, input), ((width - inner_w) // 2, (height - inner_h) // 2))
    return canvas


def _as_is(image: Image.Image, input: Input) -> Image.Image:
    _, height, width = input.shape
    if (image.height, image.width) != (height, width):
        raise BadInput(
            f"a picture of {image.height}×{image.width} where [input] says {height}×{width} and resize = 'none'; "
            "write resize = 'squash', 'crop' or 'pad'"
        )
    return image


_FITS: dict[str, Callable[[Image.Image, Input], Image.Image]] = {
    "squash": _squash,
    "crop": _crop,
    "pad": _pad,
    "none": _as_is,
}
