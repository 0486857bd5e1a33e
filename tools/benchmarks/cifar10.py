"""The CIFAR-10 copy of ../shared/data as a data source: `--data python:cifar10:load` with this folder on the path.

RECIPE is the beginning of a recipe for its networks.

An .npz holds `jpeg` (all files' bytes joined), `end` (the end offset of each file) and `label`.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

RECIPE = """
[input]
size = 32
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[output]
classes = 10
"""
FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"


class Packed(Sequence):
    """(image, label) pairs, decoded when asked for."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as arrays:
            self.jpeg, self.end, self.label = arrays["jpeg"], arrays["end"], arrays["label"]

    def __len__(self) -> int:
        return len(self.end)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        begin = int(self.end[index - 1]) if index else 0
        with Image.open(io.BytesIO(self.jpeg[begin : int(self.end[index])].tobytes())) as image:
            return np.asarray(image.convert("RGB")), int(self.label[index])


def load() -> dict[str, Sequence]:
    return {role: Packed(FOLDER / f"{role}.npz") for role in ("train", "test")}


def load_test() -> dict[str, Sequence]:
    return {"test": Packed(FOLDER / "test.npz")}
