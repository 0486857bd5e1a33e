"""Pictures made of nothing, to calibrate with where there are no others: `synthetic` and `synthetic:N`.

Dead leaves (Lee, Mumford & Huang 2001, "Occlusion Models for Natural Images", IJCV 41; as training pictures Baradad et
al. 2021, arXiv 2106.05963): shapes of random colour fall on the picture and hide one another. With radii of density
p(r) ~ r^-3 the pictures have edges, flat parts and the 1/f spectrum of photographs, at every scale. Here each leaf is
an ellipse or a polygon, the picture is lit unevenly and carries a little noise, as a camera's does.
"""

from __future__ import annotations

import functools
import math
import re

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from edgekit.data.samples import NO_LABEL, Found, Sample
from edgekit.errors import BadInput
from edgekit.schema import sha256

PICTURES, MOST = 256, 100_000
SIZE, LEAVES = 256, 600
RADII = (6.0, 128.0)


def synthetic(text: str) -> Found:
    """`synthetic[:N]`: N pictures (256), 256×256 RGB, without labels: they serve the role calibrate alone.

    Raises:
        BadInput: N is no number from 1 to 100,000.
    """
    count = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else PICTURES if not text else 0
    if not 1 <= count <= MOST:
        raise BadInput(f"synthetic:{text}: write synthetic, or synthetic:N with N from 1 to {MOST}")
    return Found({"calibrate": [functools.partial(_sample, index) for index in range(count)]})


def _sample(index: int) -> Sample:
    name = f"synthetic/{index:06}"
    return Sample(name, NO_LABEL, functools.partial(dead_leaves, index), sha256(name.encode()))


def dead_leaves(seed: int) -> np.ndarray:
    """One picture, uint8 (256, 256, 3)."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (SIZE, SIZE), _colour(rng, rng.uniform(40, 215)))
    draw = ImageDraw.Draw(picture)
    brightness, contrast = rng.uniform(70, 180), rng.uniform(20, 75)
    for radius in _radii(rng, LEAVES):
        x, y = rng.uniform(0, SIZE, 2)
        draw.polygon(_outline(rng, x, y, radius), _colour(rng, rng.normal(brightness, contrast)))
    if rng.random() < 0.5:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2.0)))
    return _lit(rng, np.asarray(picture, np.float32))


def _radii(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws from p(r) ~ r^-3 within RADII, by the inverse of its distribution."""
    low, high = (radius**-2 for radius in RADII)
    return (low + rng.random(count) * (high - low)) ** -0.5


def _outline(rng: np.random.Generator, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """An ellipse (by 16 corners) or a shape of 3 to 6 corners, turned at random."""
    corners = 16 if rng.random() < 0.5 else int(rng.integers(3, 7))
    turn, flat = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.0)
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    along, across = radius * np.cos(angles), flat * radius * np.sin(angles)
    xs = x + along * math.cos(turn) - across * math.sin(turn)
    ys = y + along * math.sin(turn) + across * math.cos(turn)
    return list(zip(xs.tolist(), ys.tolist()))


def _colour(rng: np.random.Generator, brightness: float) -> tuple[int, int, int]:
    """Mostly grey: the channels of photographs vary together."""
    red, green, blue = np.clip(brightness + rng.normal(0, 25, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def _lit(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """A gradient of light across the picture, and noise."""
    angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.4)
    ramp = np.linspace(-1, 1, SIZE)
    light = 1 + depth * (math.cos(angle) * ramp[None, :] + math.sin(angle) * ramp[:, None])
    noisy = pixels * light[..., None] + rng.normal(0, rng.uniform(0, 6), pixels.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)
