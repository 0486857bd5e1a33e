"""MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., 2018, arXiv 1801.04381)."""

import torch
from torch import nn

from edgekit.nets.layers import Classifier, ConvNorm, init_weights, make_divisible

# expansion, channels, repeats, stride of the first (table 2 of the paper)
ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class InvertedResidual(nn.Module):
    """1×1 expansion (none where `expansion` is 1), 3×3 depthwise, 1×1 linear projection; added where shapes agree."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        self.expand = ConvNorm(c_in, hidden, act=nn.ReLU6) if expansion != 1 else nn.Identity()
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, groups=hidden, act=nn.ReLU6)
        self.project = ConvNorm(hidden, c_out, act=None)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    def __init__(self, width: float, classes: int, small_input: bool) -> None:
        super().__init__()
        channels = make_divisible(32 * width)
        self.stem = ConvNorm(3, channels, 3, 1 if small_input else 2, act=nn.ReLU6)
        blocks: list[nn.Module] = []
        for index, (expansion, c, repeats, first_stride) in enumerate(ROWS):
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 and not (small_input and index == 1) else 1
                blocks.append(InvertedResidual(channels, c_out := make_divisible(c * width), stride, expansion))
                channels = c_out
        self.blocks = nn.Sequential(*blocks)
        last = make_divisible(1280 * max(1.0, width))
        self.head = ConvNorm(channels, last, act=nn.ReLU6)
        self.classifier = Classifier(last, classes, dropout=0.2)
        init_weights(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.head(self.blocks(self.stem(x))))


def mobilenet_v2(width: float = 1.0, classes: int = 1000, small_input: bool = False) -> nn.Module:
    """MobileNetV2. `small_input` keeps the stem and the second row at stride 1, for images of 32×32."""
    return MobileNetV2(width, classes, small_input)
