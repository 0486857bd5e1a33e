"""Sources of image files: `folder:PATH` and `csv:PATH`, and the decoding of one file."""

from __future__ import annotations

import csv
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from edgekit.data.samples import Found, Sample
from edgekit.errors import BadInput
from edgekit.files import file_sha256

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
# Only these decoders: Pillow has others that start programs (EPS) and would be chosen by content, not by extension.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
ROLE_LIKE = {"train", "training", "calibrate", "calibration", "val", "valid", "validation", "test", "testing"}


def decode(path: Path) -> np.ndarray:
    """The picture in a file as uint8: (H, W) gray, (H, W, 3) RGB or (H, W, 4) RGBA; EXIF rotation is not applied.

    Raises:
        BadInput: the file cannot be read or decoded; the message names it.
    """
    return decode_from(path, str(path))


def decode_from(source: Path | BinaryIO, name: str) -> np.ndarray:
    """As `decode`, from a path or an open file; `name` stands in the error.

    Raises:
        BadInput: it cannot be read or decoded.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=FORMATS) as image:
            image.load()
            return _as_array(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow documents no closed set: a broken file raises whatever its decoder trips over
        raise BadInput(f"{name}: cannot be decoded as an image ({error})") from error


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture in a file, from its head.

    Raises:
        BadInput: the file cannot be read or is no picture.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except Exception as error:  # as in `decode`
        raise BadInput(f"{path}: cannot be decoded as an image ({error})") from error


def _as_array(image) -> np.ndarray:  # type: ignore[no-untyped-def]  # PIL is imported only where it is used
    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8).astype(np.uint8)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range; convert it to 8 or 16 bits")
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    return np.array(image)


def _file_sample(path: Path, id: str, label: int) -> Sample:
    try:
        return Sample(id, label, functools.partial(decode, path), file_sha256(path))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error


def folder(text: str) -> Found:
    """`folder:PATH`: a folder a class, in the order of their names ("10" before "2"); files at any depth below.

    Files without an image's extension and hidden ones are none of the data. Ids are paths below PATH.

    Raises:
        BadInput: no such folder, no class folders, an empty one, pictures outside them, or folders named as roles.
    """
    root = Path(text).expanduser()
    if not text or not root.is_dir():
        raise BadInput(f"folder:{text}: no such folder; write folder:PATH with a folder a class inside")
    if stray := next((path for path in sorted(root.iterdir()) if _is_image(path, root)), None):
        raise BadInput(f"{stray}: lies outside every class; move it into a folder named as its class")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = tuple(path.name for path in folders)
    if not names:
        raise BadInput(f"{root}: holds no class folders; put the pictures of each class in a folder named as the class")
    if {name.lower() for name in names} <= ROLE_LIKE:
        raise BadInput(
            f"{root}: its folders {', '.join(names)} look like roles, not classes; "
            f"give each its own, such as train=folder:{root / names[0]}"
        )
    return Found({None: [one for label, path in enumerate(folders) for one in _in_class(path, root, label)]}, names)


def _in_class(path: Path, root: Path, label: int) -> list[Callable[[], Sample]]:
    files = sorted(file for file in path.rglob("*") if _is_image(file, root))
    if not files:
        raise BadInput(f"{path}: holds no pictures ({', '.join(EXTENSIONS)}); fill it or remove it")
    return [functools.partial(_file_sample, file, file.relative_to(root).as_posix(), label) for file in files]


def _is_image(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.suffix.lower() in EXTENSIONS and path.is_file()


class _Row(NamedTuple):
    line: int
    file: str
    label: str


def csv_file(text: str) -> Found:
    """`csv:PATH`: the columns `file` and `label`; others are not read.

    A file is looked for beside PATH, then in a folder `images` beside it. Labels are class numbers from 0 or, all of
    them, names, which are then numbered in their sorted order.

    Raises:
        BadInput: no such file, a column missing, a row without file or label, a file listed twice, mixed labels.
            A picture that is not there is reported with its line when it is read.
    """
    path = Path(text).expanduser()
    if not text or not path.is_file():
        raise BadInput(f"csv:{text}: no such file; write csv:PATH of a file with the columns file,label")
    rows = _rows(path)
    numbers, classes = _numbered(rows, path)
    makers: list[Callable[[], Sample]] = [functools.partial(_csv_sample, path, row, numbers[row.label]) for row in rows]
    return Found({None: makers}, classes)


def _rows(path: Path) -> list[_Row]:
    try:
        # utf-8-sig: spreadsheets put a byte-order mark in front, which would become part of the first column's name.
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for column in ("file", "label"):
                if column not in (reader.fieldnames or ()):
                    raise BadInput(f"{path}: has no column {column!r}; its columns are {reader.fieldnames or 'none'}")
            rows = [_Row(reader.line_num, (r["file"] or "").strip(), (r["label"] or "").strip()) for r in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: cannot be read as a CSV file in UTF-8 ({error})") from error
    seen: dict[str, int] = {}
    for row in rows:
        if not row.file or not row.label:
            raise BadInput(f"{path}: line {row.line} lacks its {'label' if row.file else 'file'}")
        if row.file in seen:
            raise BadInput(f"{path}: line {row.line}: {row.file} stands on line {seen[row.file]} already")
        seen[row.file] = row.line
    return rows


def _numbered(rows: list[_Row], path: Path) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """Each label's class number, and the classes' names if the labels are names."""
    names = sorted({row.label for row in rows})
    whole = [name for name in names if re.fullmatch(r"[+-]?[0-9]{1,18}", name)]
    if len(whole) == len(names):
        return {name: int(name) for name in names}, None
    for row in rows:
        # "3.0" in every row is a column of numbers written as floats; as names, "10.0" would come before "2.0".
        if (whole and row.label not in whole) or re.fullmatch(r"[+-]?[0-9]*\.[0-9]*", row.label):
            raise BadInput(
                f"{path}: line {row.line}: label {row.label!r} is no whole number; "
                "write class numbers in every row, or names in every row"
            )
    return {name: number for number, name in enumerate(names)}, tuple(names)


def _csv_sample(path: Path, row: _Row, label: int) -> Sample:
    for candidate in (path.parent / row.file, path.parent / "images" / row.file):
        if os.path.isfile(candidate):  # unlike Path.is_file, false for names that no file can have
            return _file_sample(candidate, Path(row.file).as_posix(), label)
    raise BadInput(f"{path}: line {row.line}: there is no file {row.file!r} beside it nor in its folder images")
