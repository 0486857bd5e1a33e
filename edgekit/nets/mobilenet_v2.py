"""MobileNetV2: Inverted Residuals and Linear Bottlenecks (Sandler et al., 2018, arXiv 1801.04381)."""

from torch import nn

from edgekit.nets.layers import Chain, Classifier, ConvNorm, InvertedResidual, check_arguments, make_divisible
from edgekit.nets.ulsam import Ulsam

# expansion, channels, repeats, stride of the first (table 2 of the paper)
ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
FIRST_STRIDED = 1
ROW_96 = 4


def mobilenet_v2(
    width: float = 1.0,
    classes: int = 1000,
    small_input: bool = False,
    ulsam_groups: int = 0,
    features_only: bool = False,
) -> nn.Module:
    """MobileNetV2.

    Args:
        small_input: the stem and the second row keep stride 1, for images of 32×32.
        ulsam_groups: above 0, a ULSAM of so many groups follows the last block of 96 channels.
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `width` or `classes` not above 0, or groups that do not divide the channels.
    """
    check_arguments(classes, width)
    channels = make_divisible(32 * width)
    stem = ConvNorm(3, channels, 3, 1 if small_input else 2, act=nn.ReLU6)
    blocks: list[nn.Module] = []
    for row, (expansion, c, repeats, first_stride) in enumerate(ROWS):
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 and not (small_input and row == FIRST_STRIDED) else 1
            c_out = make_divisible(c * width)
            hidden = channels * expansion
            blocks.append(InvertedResidual(channels, hidden, c_out, stride=stride, expand=expansion != 1))
            channels = c_out
        if ulsam_groups and row == ROW_96:
            blocks.append(Ulsam(channels, ulsam_groups))
    last = make_divisible(1280 * max(1.0, width))
    head = {"head": ConvNorm(channels, last, act=nn.ReLU6), "classifier": Classifier(last, classes, dropout=0.2)}
    return Chain({"stem": stem, "blocks": nn.Sequential(*blocks)}, head, features_only)
