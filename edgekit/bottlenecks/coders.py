"""What stands before and behind a latent.

Matsubara, Yang, Levorato, Mandt: Supervised Compression for Resource-Constrained Edge Computing Systems, 2022, arXiv
2108.11898 (Entropic Student). For ResNet-50, with c channels in the latent (24), the picture at stride 4 and 256
channels wanted at stride 4,

    encoder   5×5 /2 3 → 4c, GDN, 5×5 /2 4c → 2c, GDN, 2×2 2c → c,
    decoder   2×2 c → 512, IGDN, 2×2 512 → 256, IGDN, 2×2 256 → 256,

none with a bias; only the decoder's first and last convolution pad, by 1, so that 56² becomes 55² on the wire and 56²
again. Here the stride is any power of two, one halving a stage, and a decoder that has to enlarge u-fold makes u²
times the channels last and lays them out as pixels (and is u times as wide before).

The encoder of size "mobile" costs a fraction: its first stage is 3×3 to c channels, and every other a depthwise 5×5 and
a 1×1. Widths may be others than these multiples of c: the last stage's is given, and the stages before have twice as
many channels, or with "mobile" half. "reduction" has batch norm and ReLU in the place of GDN, as the same paper's
channel reduction and BottleFit (Matsubara, Callegaro, Singh, Levorato, Restuccia, 2022, arXiv 2201.02693).
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from edgekit.bottlenecks.gdn import GDN
from edgekit.errors import BadInput

Kind = Literal["entropic", "reduction"]
Size = Literal["paper", "mobile"]


def encoder(kind: Kind, size: Size, c_in: int, channels: int, stride: int, width: int) -> nn.Sequential:
    """(B, c_in, H, W) to (B, channels, ⌈H / stride⌉ − 1, ⌈W / stride⌉ − 1); the last stage has `width` channels."""
    stages = stride.bit_length() - 1
    before = max(1, width // 2) if size == "mobile" else 2 * width
    widths = [*[before] * (stages - 1), width]
    layers: list[nn.Module] = []
    for index, c_out in enumerate(widths):
        layers += [*_stage(size, c_in, c_out, first=index == 0), *_norm(kind, c_out, inverse=False)]
        c_in = c_out
    return nn.Sequential(*layers, nn.Conv2d(c_in, channels, 2, bias=False))


def _stage(size: Size, c_in: int, c_out: int, first: bool) -> list[nn.Module]:
    """Half the resolution."""
    if size == "paper":
        return [nn.Conv2d(c_in, c_out, 5, 2, 2, bias=False)]
    if first:
        return [nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False)]
    return [nn.Conv2d(c_in, c_in, 5, 2, 2, groups=c_in, bias=False), nn.Conv2d(c_in, c_out, 1, bias=False)]


def decoder(kind: Kind, channels: int, c_out: int, enlarge: int) -> nn.Sequential:
    """(B, channels, h − 1, w − 1) to (B, c_out, enlarge · h, enlarge · w)."""
    wide = c_out * enlarge
    return nn.Sequential(
        nn.Conv2d(channels, 2 * wide, 2, padding=1, bias=False),
        *_norm(kind, 2 * wide, inverse=True),
        nn.Conv2d(2 * wide, wide, 2, bias=False),
        *_norm(kind, wide, inverse=True),
        nn.Conv2d(wide, c_out * enlarge**2, 2, padding=1, bias=False),
        *([nn.PixelShuffle(enlarge)] if enlarge > 1 else []),
    )


def _norm(kind: Kind, channels: int, inverse: bool) -> list[nn.Module]:
    return [GDN(channels, inverse)] if kind == "entropic" else [nn.BatchNorm2d(channels), nn.ReLU()]


def enlargement(stride: int, before: tuple[int, ...], behind: tuple[int, ...]) -> int:
    """How much larger the decoder's output `behind` is than the latent's grid, for an encoder's input `before`; both
    (C, H, W).

    Raises:
        BadInput: the stride is no power of two from 2 on, or no whole enlargement gives that output.
    """
    if stride < 2 or stride & (stride - 1):
        raise BadInput(f"stride = {stride}: the latent's stride must be a power of two, such as 2, 4 or 8")
    height, width = (-(-side // stride) for side in before[1:])
    enlarge = max(1, behind[1] // height)
    if min(height, width) < 2 or (enlarge * height, enlarge * width) != behind[1:]:
        raise BadInput(
            f"stride = {stride}: a grid of {height}×{width} cannot become the {behind[1]}×{behind[2]} at the cut; "
            f"write a stride that makes it as large, or smaller by a whole factor, and 2×2 at least"
        )
    return enlarge
