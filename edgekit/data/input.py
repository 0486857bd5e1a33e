"""What a network eats and gives: the recipe's [input] and [output] tables, and the arithmetic they stand for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BeforeValidator

from edgekit.errors import BadInput

Task = Literal["classify", "segment", "detect"]
InputForm = Literal["float_nchw", "uint8_nhwc"]
OutputForm = Literal["scores", "argmax", "topk"]

LARGEST_SIDE = 16_384
# A crop first scales the whole picture; a long thin one would then need gigabytes for a strip of it.
LARGEST_SCALED_PIXELS = 2**28
# The class, in a mask, of pixels that are of no class: unknown, or outside the picture.
IGNORE = 255

PerChannel = Annotated[
    tuple[float, ...], BeforeValidator(lambda value: (value,) if isinstance(value, (int, float)) else value)
]


class View(NamedTuple):
    """A look at a picture that differs from the plain one.

    box: left, top, right, bottom of the part that is stretched over the input; None for `resize` as usual.
    shift: down and right, in shares of the input's height and width; what comes in from outside is empty.
    flip: left and right are swapped.
    """

    box: tuple[int, int, int, int] | None = None
    shift: tuple[float, float] = (0.0, 0.0)
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class Input:
    """The recipe's [input]: how a decoded picture becomes x = (pixel · scale - mean) / std, float32 (C, H, W).

    size: height and width in pixels, or one number for both.
    resize: "squash" stretches; "crop" scales the shorter side to round(size / crop) and cuts out the centre; "pad"
        scales the longer side to size and centres the picture on zeros; "none" wants pictures of that size.
    mean, std: one value a channel, in the order of `channels`, after `scale`; a single value stands for all.
    form: what the file takes: x, or ("uint8_nhwc") the pixels as a camera gives them, uint8 (H, W, C), of which the
        file makes x itself.
    """

    size: int | tuple[int, int]
    channels: Literal["rgb", "bgr", "gray"] = "rgb"
    resize: Literal["squash", "crop", "pad", "none"] = "squash"
    crop: float = 0.875
    interpolation: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    scale: float = 1 / 255
    mean: PerChannel = (0.0,)
    std: PerChannel = (1.0,)
    form: InputForm = "float_nchw"

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

    def resized(self, image: np.ndarray, view: View | None = None) -> np.ndarray:
        """A uint8 picture (H, W) or (H, W, 1 | 3 | 4; RGB order) as uint8 (C, H, W) of this input's shape.

        Gray is repeated for three channels, colour becomes ITU-R 601 luma for one, alpha is laid over white. Resizing
        is Pillow's, which averages over the source pixels when it shrinks ("nearest" picks one). `view` is another look
        at the picture than the plain one, for training.

        Raises:
            BadInput: no such picture, or it has another size and `resize` is "none".
        """
        pixels = _with_channels(_checked(image), gray=self.channels == "gray")
        array = self._seen(pixels, view, self.interpolation, fill=0)  # (H, W) or (H, W, 3)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)  # (C, H, W)
        return np.ascontiguousarray(array[::-1] if self.channels == "bgr" else array)

    def resized_mask(self, mask: np.ndarray, view: View | None = None) -> np.ndarray:
        """A picture's classes, uint8 (h, w), as uint8 (H, W): where `resized` puts the picture, by the nearest pixel.

        What lies outside the picture is IGNORE.

        Raises:
            BadInput: no such mask, or as `resized`.
        """
        mask = np.asarray(mask)
        if mask.dtype != np.uint8 or mask.ndim != 2 or mask.size == 0:
            raise BadInput(f"a mask must be uint8 (H, W); got {mask.dtype} {mask.shape}")
        return np.ascontiguousarray(self._seen(mask, view, "nearest", IGNORE))

    def _seen(self, pixels: np.ndarray, view: View | None, interpolation: str, fill: int) -> np.ndarray:
        """The picture (H, W[, 3]), or the box of it that `view` looks at, in this input's geometry."""
        place = self._placement(*pixels.shape[:2])
        if view is None:
            return _placed(pixels, place, self.shape[1:], interpolation, fill)
        if view.box is not None:
            left, top, right, bottom = view.box
            pixels, place = pixels[top:bottom, left:right], _squash(0, 0, self)
        down, right = (round(share * side) for share, side in zip(view.shift, self.shape[1:]))
        place = place._replace(top=place.top + down, left=place.left + right)
        array = _placed(pixels, place, self.shape[1:], interpolation, fill)
        return array[:, ::-1] if view.flip else array

    def resized_boxes(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        """Boxes float (n, 5) of x1, y1, x2, y2, class in a picture of `height` × `width`, where `resized` puts them.

        Boxes are cut off at the input's edges; what has nothing left inside is dropped: float64 (m, 5), m ≤ n.

        Raises:
            BadInput: as `resized`.
        """
        place, (_, input_h, input_w) = self._placement(height, width), self.shape
        boxes = np.array(boxes, np.float64).reshape(-1, 5)
        boxes[:, 0:4:2] = np.clip(boxes[:, 0:4:2] * (place.width / width) + place.left, 0, input_w)
        boxes[:, 1:4:2] = np.clip(boxes[:, 1:4:2] * (place.height / height) + place.top, 0, input_h)
        return boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]

    def _placement(self, height: int, width: int) -> _Placement:
        """Where `resize` puts a picture of `height` × `width`: the one geometry of pictures, masks and boxes."""
        return _FITS[self.resize](height, width, self)

    def normalised(self, batch: np.ndarray) -> np.ndarray:
        """uint8 (B, C, H, W) as the network takes it: float32 of the same shape, each value the float64 result, rounded
        once; or, where `form` leaves that to the file, the pixels as uint8 (B, H, W, C)."""
        if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1] != self.shape[0]:
            raise BadInput(f"a batch must be uint8 (B, {self.shape[0]}, H, W); got {batch.dtype} {batch.shape}")
        if self.form == "uint8_nhwc":
            return np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        pixel = np.arange(256) * self.scale
        out = np.empty(batch.shape, np.float32)
        # A byte has 256 values: looking them up is quicker than the arithmetic and cannot differ between machines.
        for channel, (mean, std) in enumerate(zip(self.mean, self.std)):
            out[:, channel] = ((pixel - mean) / std).astype(np.float32)[batch[:, channel]]
        return out

    def apply(self, image: np.ndarray) -> np.ndarray:
        """A uint8 picture as the network takes it (see `form`): `resized`, then `normalised`."""
        return self.normalised(self.resized(image)[None])[0]


@dataclasses.dataclass(frozen=True)
class Output:
    """The recipe's [output]: what the network's numbers mean.

    classes: how many real ones; `labels` names them in the order of the outputs.
    class_offset: outputs in front of them that stand for no class, such as TensorFlow's background.
    form: what the file gives: a score for each class; the class of the largest ("argmax"), int64 (B,) or, for
        segmentation, (B, H, W); or the k best classes ("topk"), best first, int64 (B, k), and then their scores (B, k).
    k: how many classes "topk" gives.
    """

    task: Task = "classify"
    classes: int | None = None
    labels: tuple[str, ...] | None = None
    class_offset: int = 0
    form: OutputForm = "scores"
    k: int | None = None

    def __post_init__(self) -> None:
        self._check_form()
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

    def _check_form(self) -> None:
        if self.form != "scores" and self.task == "detect":
            raise ValueError(f"form = {self.form!r} is for classification and segmentation; leave boxes as they are")
        if self.form == "topk" and self.task == "segment":
            raise ValueError("form = 'topk' is for classification; write 'argmax' for masks")
        if (self.form == "topk") != (self.k is not None):
            raise ValueError(f"k = {self.k} belongs to form = 'topk', and only there")
        if self.k is not None and self.k < 1:
            raise ValueError(f"k = {self.k} must be at least 1")

    def chosen(self, outputs: np.ndarray) -> np.ndarray:
        """The classes that a file of form "argmax" or "topk" gave, best first: int64 (B, 1) or (B, k), or masks
        (B, H, W).

        Raises:
            BadInput: the file gave something else.
        """
        wanted = 3 if self.task == "segment" else 1 if self.form == "argmax" else 2
        if not np.issubdtype(outputs.dtype, np.integer) or outputs.ndim != wanted:
            raise BadInput(f"the file should give classes ({self.form}); it gave {outputs.dtype} {outputs.shape}")
        outside = outputs[(outputs < 0) | (outputs >= (self.classes or np.inf))]
        if outside.size:
            raise BadInput(f"the file gave class {outside.flat[0]}; [output] says classes = {self.classes}")
        return outputs[:, None] if wanted == 1 else outputs

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Logits (B, class_offset + classes, ...) without the offset: (B, classes, ...).

        Raises:
            BadInput: the network has another number of outputs than this says, or more than masks can number.
        """
        width = logits.shape[1] - self.class_offset if logits.ndim >= 2 else 0
        if width < 1 or (self.classes is not None and width != self.classes):
            wanted = "at least one class" if self.classes is None else f"{self.classes} classes"
            raise BadInput(
                f"the network's output is {tuple(logits.shape)}; [output] expects {wanted} on axis 1 "
                f"after class_offset = {self.class_offset}"
            )
        if self.task == "segment" and logits.shape[1] > IGNORE:
            raise BadInput(f"the network has {logits.shape[1]} outputs; masks number at most {IGNORE} classes")
        return logits[:, self.class_offset :]

    def channels(self, labels: Any) -> Any:
        """The output that stands for each label, the inverse of `scores`; IGNORE in a mask stays what it is.

        Args:
            labels: whole numbers as a NumPy array or a PyTorch tensor, (B,) or, for segmentation, (B, H, W).
        """
        if self.task == "segment":
            return labels + self.class_offset * (labels != IGNORE)
        return labels + self.class_offset

    def detections(self, found: np.ndarray) -> np.ndarray:
        """One image's boxes (n, 6) of x1, y1, x2, y2, score, class without the offset: (m, 6), m ≤ n.

        Rows whose class is then below 0 are background, or fill up an output of fixed length: they are left out.

        Raises:
            BadInput: another shape, or a class outside `classes`.
        """
        found = np.asarray(found, np.float64)
        if found.ndim != 2 or found.shape[1] != 6:
            raise BadInput(f"detections of an image must be (n, 6): x1, y1, x2, y2, score, class; got {found.shape}")
        found = np.concatenate([found[:, :5], found[:, 5:] - self.class_offset], axis=1)
        if self.classes is not None and (found[:, 5] >= self.classes).any():
            raise BadInput(f"the network found class {found[:, 5].max():g}; [output] says classes = {self.classes}")
        return found[found[:, 5] >= 0]


def check_plain(input: Input, output: Output, where: str) -> None:
    """That a network takes floats and gives scores, as everything before the finished file works on.

    Raises:
        BadInput: it is a finished, camera-ready file's.
    """
    for section, value, form in (("input", input, "float_nchw"), ("output", output, "scores")):
        if value.form != form:
            raise BadInput(
                f"{where}: [{section}] form = {value.form!r} is a finished file's; give the plain file, and ask for "
                f"{section} = {value.form!r} in [export]"
            )


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


class _Placement(NamedTuple):
    """A picture scaled to height × width, its corner at (top, left) of the input: negative where a crop cuts it off."""

    height: int
    width: int
    top: int
    left: int


def _placed(image: np.ndarray, place: _Placement, size: tuple[int, int], interpolation: str, fill: int) -> np.ndarray:
    """The picture (H, W[, 3]) at its place on a canvas of `size` (H, W) filled with `fill`."""
    from PIL import Image

    if image.shape[:2] != (place.height, place.width):
        scaler = Image.Resampling[interpolation.upper()]
        pixels = Image.fromarray(np.ascontiguousarray(image))
        image = np.asarray(pixels.resize((place.width, place.height), scaler))
    if place == (*size, 0, 0):
        return image
    canvas = np.full((*size, *image.shape[2:]), fill, np.uint8)
    rows, columns = (max(0, -start) for start in (place.top, place.left))  # of the picture that lie outside
    part = image[rows : size[0] - place.top, columns : size[1] - place.left]
    top, left = max(0, place.top), max(0, place.left)
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return canvas


def _squash(_height: int, _width: int, input: Input) -> _Placement:
    return _Placement(*input.shape[1:], 0, 0)


def _crop(height: int, width: int, input: Input) -> _Placement:
    _, input_h, input_w = input.shape
    scaled_h, scaled_w = round(input_h / input.crop), round(input_w / input.crop)
    # Whole numbers, as this decides which side is the shorter one and must not depend on rounding.
    if scaled_h * width >= scaled_w * height:
        scaled_w = width * scaled_h // height
    else:
        scaled_h = height * scaled_w // width
    if scaled_h * scaled_w > LARGEST_SCALED_PIXELS:
        raise BadInput(f"a picture of {height}×{width} is too long and thin for resize = 'crop'")
    return _Placement(scaled_h, scaled_w, -round((scaled_h - input_h) / 2), -round((scaled_w - input_w) / 2))


def _pad(height: int, width: int, input: Input) -> _Placement:
    _, input_h, input_w = input.shape
    ratio = min(input_h / height, input_w / width)
    inner_h = min(input_h, max(1, round(height * ratio)))
    inner_w = min(input_w, max(1, round(width * ratio)))
    return _Placement(inner_h, inner_w, (input_h - inner_h) // 2, (input_w - inner_w) // 2)


def _as_is(height: int, width: int, input: Input) -> _Placement:
    _, input_h, input_w = input.shape
    if (height, width) != (input_h, input_w):
        raise BadInput(
            f"a picture of {height}×{width} where [input] says {input_h}×{input_w} and resize = 'none'; "
            "write resize = 'squash', 'crop' or 'pad'"
        )
    return _Placement(height, width, 0, 0)


_FITS: dict[str, Callable[[int, int, Input], _Placement]] = {
    "squash": _squash,
    "crop": _crop,
    "pad": _pad,
    "none": _as_is,
}
