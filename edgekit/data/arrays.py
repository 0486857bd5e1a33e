"""Sources of arrays: `digits`, `npz:PATH` and `python:package.module:factory`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import math
import operator
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgekit.data.samples import Found, Sample
from edgekit.errors import BadInput, unknown

ROLES = ("train", "calibrate", "test")
LARGEST_NPZ_BYTES = 16 * 2**30


def _array_sample(id: str, label: int, image: np.ndarray) -> Sample:
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    return Sample(id, label, lambda: image, digest)


def _makers(name: str, images: np.ndarray, labels: np.ndarray) -> list[Callable[[], Sample]]:
    ids = _ids(name, len(images))
    return [functools.partial(_array_sample, *item) for item in zip(ids, labels.astype(np.int64).tolist(), images)]


def _ids(name: str, n: int) -> list[str]:
    """Padded with zeros, so that their order as text is the source's order."""
    digits = max(4, len(str(n - 1)))
    return [f"{name}/{index:0{digits}}" for index in range(n)]


def digits(text: str) -> Found:
    """`digits`: scikit-learn's 1,797 handwritten digits, 8×8, 10 classes (Alpaydin & Kaynak, UCI 1998; test part).

    Raises:
        BadInput: scikit-learn is not installed.
    """
    if text:
        raise BadInput(f"digits:{text}: takes nothing behind it; write digits")
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise BadInput("digits: comes with scikit-learn; install it with pip install 'edgekit[digits]'") from None
    values, labels = load_digits(return_X_y=True)  # float64 (1797, 64), 0 to 16
    images = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    return Found({None: _makers("digits", images, labels)}, tuple(map(str, range(10))))


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype


def npz(text: str) -> Found:
    """`npz:PATH`: the arrays x uint8 (N, H, W[, C]) and y (N,); or x_ROLE and y_ROLE for its own splits.

    Raises:
        BadInput: no such file, pickled objects, arrays missing or of another type or length, a file that claims
            more than it holds, or more than 16 GiB.
    """
    path = Path(text).expanduser()
    if not text or not path.is_file():
        raise BadInput(f"npz:{text}: no such file; write npz:PATH of a file with the arrays x and y")
    try:
        headers = _headers(path)
        suffixes = _suffixes(headers, path)
        with np.load(path, allow_pickle=False) as arrays:
            parts = {role: _npz_part(arrays, headers, path, suffix) for role, suffix in suffixes.items()}
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: is no readable .npz file ({error})") from error
    return Found(parts)


def _headers(path: Path) -> dict[str, _Header]:
    """Shape and type of each array, read before anything is allocated."""
    headers = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.filename.endswith(".npy"):
                continue
            with archive.open(member) as file:
                header = _header(file, f"{path}: {member.filename}")
                claimed = math.prod(header.shape) * header.dtype.itemsize
                if not header.dtype.hasobject and claimed != (held := member.file_size - file.tell()):
                    raise BadInput(f"{path}: {member.filename} claims {claimed} bytes and holds {held}")
            headers[member.filename.removesuffix(".npy")] = header
    return headers


def _header(file: Any, where: str) -> _Header:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise BadInput(f"{where} has .npy version {version}; save plain arrays with numpy.savez")
    shape, _, dtype = read(file)
    return _Header(shape, dtype)


def _suffixes(headers: Mapping[str, _Header], path: Path) -> dict[str | None, str]:
    roles = [role for role in ROLES if f"x_{role}" in headers]
    if roles and "x" in headers:
        raise BadInput(f"{path}: has both x and x_{roles[0]}; keep one of them")
    suffixes: dict[str | None, str] = {role: f"_{role}" for role in roles}
    suffixes = suffixes or {None: ""}
    for suffix in suffixes.values():
        for kind, check in (("x", _check_pictures), ("y", _check_numbers)):
            if (name := f"{kind}{suffix}") not in headers:
                raise BadInput(f"{path}: has no array {name!r}; it has {', '.join(sorted(headers)) or 'none'}")
            if headers[name].dtype.hasobject:
                raise BadInput(f"{path}: {name} holds pickled objects, which are never loaded; save a plain array")
            check(headers[name], f"{path}: {name}")
    # Only what is used counts: other arrays are never loaded.
    used = [headers[f"{kind}{suffix}"] for suffix in suffixes.values() for kind in "xy"]
    size_bytes = sum(math.prod(header.shape) * header.dtype.itemsize for header in used)
    if size_bytes > LARGEST_NPZ_BYTES:
        raise BadInput(f"{path}: would need {size_bytes / 2**30:.1f} GiB of memory; the limit is 16 GiB. Use a folder")
    return suffixes


def _check_numbers(header: _Header, where: str) -> None:
    if header.dtype.kind not in "iu" or len(header.shape) != 1:
        raise BadInput(f"{where} must be whole numbers (N,); it is {header.dtype} {header.shape}")


def _check_pictures(header: _Header, where: str) -> None:
    gray = len(header.shape) == 3
    if header.dtype != np.uint8 or not (gray or (len(header.shape) == 4 and header.shape[3] in (1, 3, 4))):
        raise BadInput(f"{where} must be uint8 (N, H, W) or (N, H, W, 1 | 3 | 4); it is {header.dtype} {header.shape}")


def _npz_part(arrays: Any, headers: Mapping[str, _Header], path: Path, suffix: str) -> list[Callable[[], Sample]]:
    images, labels = headers[f"x{suffix}"].shape[0], headers[f"y{suffix}"].shape[0]
    if images != labels:
        raise BadInput(f"{path}: x{suffix} has {images} pictures and y{suffix} {labels} labels")
    return _makers(f"{path.stem}{suffix}", arrays[f"x{suffix}"], arrays[f"y{suffix}"])


def python(text: str) -> Found:
    """`python:package.module:factory`: what the user's own factory() returns.

    That is a sequence (`len` and `[index]`) of (picture uint8 (H, W[, C]), label), or a dict of role to such sequences.
    Items are read from several threads, more than once, and must be the same each time.

    Raises:
        BadInput: it cannot be imported or called, or returns something else.
    """
    module_name, _, attribute = text.partition(":")
    if not module_name or not attribute:
        raise BadInput(f"python:{text}: write python:package.module:factory")
    where = f"python:{text}"
    if "" not in sys.path:
        sys.path.append("")  # an installed command, unlike `python -m`, does not look in the working folder
    try:
        data = getattr(importlib.import_module(module_name), attribute)()
    except Exception as error:  # the user's code may raise anything
        raise BadInput(f"{where}: cannot be imported and called ({type(error).__name__}: {error})") from error
    if not isinstance(data, Mapping):
        return Found({None: _python_makers(data, None, where)})
    for role in data:
        if role not in ROLES:
            raise unknown("data role", str(role), ROLES, where)
    return Found({role: _python_makers(items, role, where) for role, items in data.items()})


def _python_makers(items: Any, role: str | None, where: str) -> list[Callable[[], Sample]]:
    if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
        raise BadInput(f"{where}: returned {type(items).__name__}; a sequence of (picture, label) is needed")
    ids = _ids(role or where.rpartition(":")[2], len(items))
    return [functools.partial(_python_sample, items, index, id) for index, id in enumerate(ids)]


def _python_sample(items: Any, index: int, id: str) -> Sample:
    image, label = _item(items, index, id)
    digest = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
    # The picture is read again when it is wanted: keeping it would hold the whole set in memory.
    return Sample(id, label, lambda: _item(items, index, id)[0], digest)


def _item(items: Any, index: int, id: str) -> tuple[np.ndarray, int]:
    try:
        image, label = items[index]
        image, label = np.asarray(image), int(np.int64(operator.index(label)))
    except Exception as error:  # the user's code may raise anything
        raise BadInput(f"{id}: is no (picture, whole number) ({type(error).__name__}: {error})") from error
    if image.dtype != np.uint8:
        raise BadInput(f"{id}: the picture must be uint8, 0 to 255; it is {image.dtype}")
    return image, label
