"""What a layer's output values are sums over: rows of inputs, sampled from its input tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgekit.quant.graph import attributes

if TYPE_CHECKING:
    import onnx


def sampled_rows(
    node: onnx.NodeProto, shape: tuple[int, ...], x: np.ndarray, rng: np.random.Generator, per_image: int
) -> np.ndarray:
    """(G, K, n): inputs of up to `per_image` output positions of each image.

    Args:
        shape: of the layer's weight.
        x: its input, (B, C, H, W) for a convolution, (B, K) or (..., K) for a product.
    """
    if node.op_type != "Conv":
        return x.reshape(1, -1, x.shape[-1]).transpose(0, 2, 1)
    settings = attributes(node)
    groups = settings.get("group", 1)
    strides, dilations = settings.get("strides", [1, 1]), settings.get("dilations", [1, 1])
    kernel = shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), *_padding(settings, x.shape[2:], kernel, strides, dilations)))
    spans = [dilations[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    sizes = [(padded.shape[2 + i] - spans[i]) // strides[i] + 1 for i in (0, 1)]
    picked = rng.choice(sizes[0] * sizes[1], min(per_image, sizes[0] * sizes[1]), replace=False)
    ky, kx = (index.ravel() for index in np.indices(kernel))
    rows = (picked // sizes[1] * strides[0])[:, None] + ky * dilations[0]  # (n, kh · kw)
    columns = (picked % sizes[1] * strides[1])[:, None] + kx * dilations[1]
    windows = padded[:, :, rows, columns]  # (B, C, n, kh · kw)
    batch, channels = x.shape[:2]
    split = windows.reshape(batch, groups, channels // groups, len(picked), -1)
    return split.transpose(1, 2, 4, 0, 3).reshape(groups, -1, batch * len(picked))


def _padding(
    settings: dict, size: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], dilations: list[int]
) -> list[tuple[int, int]]:
    """((top, bottom), (left, right)) of a convolution."""
    mode = settings.get("auto_pad", b"NOTSET")
    if not mode.startswith(b"SAME"):
        top, left, bottom, right = settings.get("pads", [0, 0, 0, 0])
        return [(top, bottom), (left, right)]
    pads = []
    for i in (0, 1):
        outputs = -(-size[i] // strides[i])
        total = max(0, (outputs - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - size[i])
        less, more = total // 2, total - total // 2
        pads.append((less, more) if mode == b"SAME_UPPER" else (more, less))
    return pads
