"""A source of boxes: `coco:PATH`, an instances file of the COCO form (Lin et al., 2014, arXiv 1405.0312)."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from edgekit.data.images import decode, image_size
from edgekit.data.samples import NO_LABEL, Found, Sample, Truth
from edgekit.errors import BadInput
from edgekit.files import file_sha256
from edgekit.schema import canonical, sha256

LARGEST_JSON_BYTES = 2**30  # COCO's own largest file has 470 MB
LARGEST_SIDE = 2**16
# Annotators' boxes are rounded: this far, in pixels, they may reach over the edge, where they are cut off.
TOLERANCE = 1.0
ENTRIES = ("images", "annotations", "categories")


class _Box(NamedTuple):
    """An annotation: where it stands, [x, y, w, h] as it was read, and its class, ~class for a crowd."""

    where: str
    bbox: Any
    label: int


class _Picture(NamedTuple):
    where: str
    file: str
    height: int
    width: int
    boxes: list[_Box]


def coco(text: str) -> Found:
    """`coco:PATH`: a JSON file of images, annotations and categories; pictures beside it or in `images` beside it.

    Categories are numbered from 0 in the order of their ids. A crowd (iscrowd = 1) is kept as a region to ignore.

    Raises:
        BadInput: no such file, more than 1 GiB, not of that form, an unknown image or category id, an id or file twice.
            A picture that is not there and a box outside its picture or without area are reported when it is read.
    """
    path = Path(text).expanduser()
    if not text or not path.is_file():
        raise BadInput(f"coco:{text}: no such file; write coco:PATH of a JSON file with {', '.join(ENTRIES)}")
    tables = _tables(path)
    names = _categories(tables["categories"], path)
    pictures = _pictures(tables["images"], path)
    numbers = {id: number for number, id in enumerate(names)}
    for index, entry in enumerate(tables["annotations"]):
        _annotate(entry, f"{path}: annotations[{index}]", pictures, numbers)
    makers: list[Callable[[], Sample]] = [functools.partial(_sample, path, picture) for picture in pictures.values()]
    return Found({None: makers}, tuple(names.values()))


def _tables(path: Path) -> dict[str, list[dict[str, Any]]]:
    if (size_bytes := path.stat().st_size) > LARGEST_JSON_BYTES:
        raise BadInput(f"{path}: has {size_bytes / 2**30:.1f} GiB; the limit is 1 GiB. Split it")
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is no readable JSON ({error})") from error
    for name in ENTRIES:
        entries = document.get(name) if isinstance(document, dict) else None
        if not isinstance(entries, list):
            raise BadInput(f"{path}: has no list {name!r}; an instances file of the COCO form has {', '.join(ENTRIES)}")
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise BadInput(f"{path}: {name}[{index}] must be an object; it is {entry!r:.60}")
    return document


def _whole(entry: Mapping[str, Any], key: str, where: str) -> int:
    value = entry.get(key)
    if type(value) is not int:  # not isinstance: true and false are whole numbers in Python
        raise BadInput(f"{where}: {key} must be a whole number; it is {value!r:.60}")
    return value


def _text(entry: Mapping[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value:
        raise BadInput(f"{where}: {key} must be text; it is {value!r:.60}")
    return value


def _categories(entries: list[dict[str, Any]], path: Path) -> dict[int, str]:
    """Name by id, in the order of the ids."""
    names: dict[int, str] = {}
    for index, entry in enumerate(entries):
        where = f"{path}: categories[{index}]"
        id, name = _whole(entry, "id", where), _text(entry, "name", where)
        if id in names or name in names.values():
            raise BadInput(f"{where}: the id {id} or the name {name!r} stands above already")
        names[id] = name
    if not names:
        raise BadInput(f"{path}: categories is empty; it names the classes")
    return dict(sorted(names.items()))


def _pictures(entries: list[dict[str, Any]], path: Path) -> dict[int, _Picture]:
    pictures: dict[int, _Picture] = {}
    files: set[str] = set()
    for index, entry in enumerate(entries):
        where = f"{path}: images[{index}]"
        id, file = _whole(entry, "id", where), _text(entry, "file_name", where)
        if id in pictures or file in files:
            raise BadInput(f"{where}: the id {id} or the file {file!r} stands above already")
        if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
            raise BadInput(f"{where}: file_name {file!r} leads out of the folder; write a path below it")
        height, width = _whole(entry, "height", where), _whole(entry, "width", where)
        if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
            raise BadInput(f"{where}: {height}×{width} is no size of a picture; at most {LARGEST_SIDE} pixels a side")
        pictures[id] = _Picture(where, file, height, width, [])
        files.add(file)
    return pictures


def _annotate(
    entry: Mapping[str, Any], where: str, pictures: Mapping[int, _Picture], numbers: Mapping[int, int]
) -> None:
    image, category = _whole(entry, "image_id", where), _whole(entry, "category_id", where)
    if image not in pictures:
        raise BadInput(f"{where}: there is no image with id {image}")
    if category not in numbers:
        raise BadInput(f"{where}: there is no category with id {category}; known: {', '.join(map(str, numbers))}")
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise BadInput(f"{where}: iscrowd must be 0 or 1; it is {crowd!r:.60}")
    label = numbers[category]
    pictures[image].boxes.append(_Box(where, entry.get("bbox"), ~label if crowd else label))


def _sample(path: Path, picture: _Picture) -> Sample:
    file = _file(path, picture)
    if (found := image_size(file)) != (picture.height, picture.width):
        raise BadInput(
            f"{picture.where}: says {picture.height}×{picture.width}; {file} is {found[0]}×{found[1]}. Correct one"
        )
    boxes = np.array([_corners(box, picture) for box in picture.boxes], np.float64).reshape(-1, 5)
    try:
        digest = file_sha256(file)
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from error
    truth = Truth("detect", picture.where, lambda: boxes, sha256(canonical(boxes.tolist())))
    return Sample(PurePosixPath(picture.file).as_posix(), NO_LABEL, functools.partial(decode, file), digest, truth)


def _file(path: Path, picture: _Picture) -> Path:
    for candidate in (path.parent / picture.file, path.parent / "images" / picture.file):
        if os.path.isfile(candidate):  # unlike Path.is_file, false for names that no file can have
            return candidate
    raise BadInput(f"{picture.where}: there is no file {picture.file!r} beside it nor in its folder images")


def _corners(box: _Box, picture: _Picture) -> tuple[float, float, float, float, int]:
    """x1, y1, x2, y2 in the picture, and the class."""
    if not isinstance(box.bbox, list) or len(box.bbox) != 4 or not all(map(_is_finite, box.bbox)):
        raise BadInput(f"{box.where}: bbox must be four finite numbers [x, y, w, h]; it is {box.bbox!r:.80}")
    x, y, w, h = map(float, box.bbox)
    if w <= 0 or h <= 0:
        raise BadInput(f"{box.where}: bbox {box.bbox} has no area; width and height must be above 0")
    x2, y2 = min(x + w, picture.width), min(y + h, picture.height)
    over = (-x, -y, x + w - picture.width, y + h - picture.height)
    if max(over) > TOLERANCE or x2 <= max(x, 0) or y2 <= max(y, 0):
        raise BadInput(f"{box.where}: bbox {box.bbox} lies outside its picture of {picture.height}×{picture.width}")
    return max(x, 0.0), max(y, 0.0), x2, y2, box.label


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # a whole number too long for a float
        return False
