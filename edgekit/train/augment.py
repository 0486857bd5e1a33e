"""Random views of the training pictures.

Where a picture is looked at (crop, shift, flip) is drawn for each picture from (seed, epoch, number) and carried out by
Pillow in the picture's own resolution, mask and all: the same view whatever the number of processes. Colour,
RandAugment and erasing run on whole batches by kornia, which, unlike torchvision, works beside a CPU build of PyTorch.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict
from torch.nn import functional as F

from edgekit.data import View
from edgekit.errors import BadInput

Share = Annotated[float, Ge(0), Le(1)]
MAGNITUDE = 9
"""Of RandAugment's operations, out of 30: the setting for ImageNet (Cubuk et al., 2019, arXiv 1909.13719)."""


@dataclasses.dataclass(frozen=True)
class Augment:
    """What is done to a training picture; nothing by default.

    Attributes:
        flip: left and right are swapped for every other picture.
        shift: up to this share of the side, in both directions; 0.125 is the four pixels usual for 32×32.
        area: a box of at least this share of the picture's area, of sides 3:4 to 4:3, is stretched over the input
            (Szegedy et al., 2014, arXiv 1409.4842); 1 takes the whole picture.
        jitter: brightness, contrast and saturation change by up to this share.
        randaugment: so many of RandAugment's operations a picture.
        erase: the share of pictures that lose a rectangle (Zhong et al., 2017, arXiv 1708.04896).
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    flip: bool = False
    shift: Annotated[float, Ge(0), Le(0.5)] = 0.0
    area: Annotated[float, Gt(0), Le(1)] = 1.0
    jitter: Share = 0.0
    randaugment: Annotated[int, Ge(0)] = 0
    erase: Share = 0.0

    @property
    def photometric(self) -> bool:
        return bool(self.jitter or self.randaugment or self.erase)

    def view(self, rng: random.Random, height: int, width: int) -> View:
        """A look at a picture of `height` × `width`."""
        box = _box(rng, height, width, self.area) if self.area < 1 else None
        shift = rng.uniform(-self.shift, self.shift), rng.uniform(-self.shift, self.shift)
        return View(box, shift, self.flip and rng.random() < 0.5)

    def on_batches(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What runs on float (B, C, H, W) in 0 to 1.

        Raises:
            BadInput: kornia is needed and not installed.
        """
        if not self.photometric:
            return lambda images: images
        try:
            from kornia import augmentation as kornia
        except ImportError:
            raise BadInput(
                "augment: jitter, randaugment and erase run on kornia; install it with pip install 'edgekit[train]'"
            ) from None
        steps: list[Any] = []
        if self.jitter:
            steps.append(kornia.ColorJiggle(self.jitter, self.jitter, self.jitter, 0.0, p=1.0))
        if self.randaugment:
            steps.append(kornia.auto.RandAugment(self.randaugment, MAGNITUDE))
        if self.erase:
            steps.append(kornia.RandomErasing(p=self.erase))
        return kornia.AugmentationSequential(*steps, data_keys=["input"])


def _box(rng: random.Random, height: int, width: int, area: float) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a box inside the picture; the whole picture where ten draws do not fit."""
    for _ in range(10):
        wanted = rng.uniform(area, 1) * height * width
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randrange(width - w + 1), rng.randrange(height - h + 1)
            return left, top, left + w, top + h
    return 0, 0, width, height


def mixed(
    images: torch.Tensor, labels: torch.Tensor, outputs: int, mixup: float, cutmix: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each picture mixed with the one before it in the batch, and the targets (B, outputs) in the same shares.

        mixup: x = λ·a + (1 − λ)·b, λ ~ Beta(mixup, mixup)    Zhang et al., 2017, arXiv 1710.09412
        cutmix: a rectangle of the share 1 − λ comes from b    Yun et al., 2019, arXiv 1905.04899

    Where both are asked for, each batch takes one of them.
    """
    targets = F.one_hot(labels, outputs).to(images.dtype)
    cut = bool(cutmix and (not mixup or rng.random() < 0.5))
    share = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    other = images.roll(1, 0)
    if cut:
        height, width = images.shape[2:]
        half = math.sqrt(1 - share) / 2
        y, x = rng.random(2)
        rows = slice(round(max(0, y - half) * height), round(min(1, y + half) * height))
        columns = slice(round(max(0, x - half) * width), round(min(1, x + half) * width))
        images = images.clone()
        images[:, :, rows, columns] = other[:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        images = share * images + (1 - share) * other
    return images, share * targets + (1 - share) * targets.roll(1, 0)
