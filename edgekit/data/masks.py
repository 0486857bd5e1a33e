"""A source of dense labels: `masks:PATH`, pictures with a PNG each whose pixels are class numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgekit.data.images import EXTENSIONS, decode, image_size
from edgekit.data.samples import NO_LABEL, Found, Sample, Truth
from edgekit.errors import BadInput
from edgekit.files import file_sha256

FORM = "PATH/images/NAME.* with PATH/masks/NAME.png"
PNG = b"\x89PNG\r\n\x1a\n"
# Colour types of PNG (W3C PNG, 11.2.1), with the bit depths whose pixels are the numbers that were written: Pillow
# stretches gray of fewer than 8 bits to 0..255.
GRAY, PALETTE = 0, 3
DEPTHS = {GRAY: (8,), PALETTE: (1, 2, 4, 8)}


def masks(text: str) -> Found:
    """`masks:PATH`: PATH/images/NAME.* with PATH/masks/NAME.png, 8-bit gray or palette, a class number a pixel.

    255 is ignored. PATH/train and PATH/val or PATH/test of that form are splits of its own; of both, val calibrates.

    Raises:
        BadInput: no such folder, no pictures in it, two of one name, or both a set and splits. A mask that is missing,
            of another size than its picture or in colour is reported when it is read.
    """
    root = Path(text).expanduser()
    if not text or not root.is_dir():
        raise BadInput(f"masks:{text}: no such folder; write masks:PATH of a folder with {FORM}")
    splits = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if splits and (root / "images").is_dir():
        raise BadInput(f"{root}: holds both images and {splits[0]}; keep one of them")
    if not splits:
        return Found({None: _in_set(root, root)})
    roles = {"train": "train", "val": "calibrate" if "test" in splits else "test", "test": "test"}
    return Found({roles[name]: _in_set(root / name, root) for name in splits})


def _in_set(folder: Path, root: Path) -> list[Callable[[], Sample]]:
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise BadInput(f"{folder}: has no folder {part!r}; write {FORM}")
    files: dict[str, Path] = {}
    for file in sorted((folder / "images").iterdir()):
        if file.name.startswith(".") or file.suffix.lower() not in EXTENSIONS:
            continue
        if file.stem in files:
            raise BadInput(f"{file}: would have the mask of {files[file.stem].name}; rename one of them")
        files[file.stem] = file
    if not files:
        raise BadInput(f"{folder / 'images'}: holds no pictures ({', '.join(EXTENSIONS)})")
    return [
        functools.partial(_sample, file, folder / "masks" / f"{name}.png", file.relative_to(root).as_posix())
        for name, file in files.items()
    ]


def _sample(image: Path, mask: Path, id: str) -> Sample:
    if not mask.is_file():
        raise BadInput(f"{mask}: is missing; each picture needs a mask, here that of {image}")
    height, width = _checked_size(mask)
    if (found := image_size(image)) != (height, width):
        raise BadInput(f"{mask}: is {height}×{width}, its picture {image} {found[0]}×{found[1]}; make them one size")
    try:
        truth = Truth("segment", str(mask), functools.partial(read_mask, mask), file_sha256(mask))
        return Sample(id, NO_LABEL, functools.partial(decode, image), file_sha256(image), truth)
    except OSError as error:
        raise BadInput(f"{error.filename}: cannot be read ({error.strerror})") from error


def _checked_size(path: Path) -> tuple[int, int]:
    """Height and width of a mask, from the head of its file."""
    try:
        with open(path, "rb") as file:
            head = file.read(26)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    if len(head) < 26 or head[:8] != PNG:
        raise BadInput(f"{path}: is no PNG file")
    depth, colour = head[24:26]
    if depth not in DEPTHS.get(colour, ()):
        kind = {GRAY: "gray", PALETTE: "palette", 2: "RGB", 4: "gray with alpha", 6: "RGBA"}.get(colour, "unknown")
        raise BadInput(
            f"{path}: is a {kind} PNG of {depth} bits; a mask is 8-bit gray or palette, the class number in each pixel"
        )
    return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big")


def read_mask(path: Path) -> np.ndarray:
    """The class of each pixel, uint8 (H, W).

    Raises:
        BadInput: the file cannot be decoded, or is no mask.
    """
    from PIL import Image

    _checked_size(path)
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return np.array(image, np.uint8)  # of a palette PNG, the numbers and not the colours
    except MemoryError:
        raise
    except Exception as error:  # as in `decode`: a broken file raises whatever its decoder trips over
        raise BadInput(f"{path}: cannot be decoded as a mask ({error})") from error
