"""MobileNets: Efficient Convolutional Neural Networks for Mobile Vision (Howard et al., 2017, arXiv 1704.04861)."""

from torch import nn

from edgekit.nets.layers import Chain, Classifier, ConvNorm, DepthwiseSeparable, check_arguments, make_divisible
from edgekit.nets.ulsam import Ulsam

# channels, stride (table 1 of the paper)
ROWS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)
FIRST_STRIDED = 1
LAST_512 = 10


def mobilenet_v1(
    width: float = 1.0,
    classes: int = 1000,
    small_input: bool = False,
    ulsam_groups: int = 0,
    features_only: bool = False,
) -> nn.Module:
    """MobileNet V1.

    Args:
        small_input: the stem and the first strided block keep stride 1, for images of 32×32.
        ulsam_groups: above 0, a ULSAM of so many groups follows the last block of 512 channels.
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `width` or `classes` not above 0, or groups that do not divide the channels.
    """
    check_arguments(classes, width)
    channels = make_divisible(32 * width)
    stem = ConvNorm(3, channels, 3, 1 if small_input else 2)
    blocks: list[nn.Module] = []
    for row, (c, stride) in enumerate(ROWS):
        stride = 1 if small_input and row == FIRST_STRIDED else stride
        blocks.append(DepthwiseSeparable(channels, c_out := make_divisible(c * width), 3, stride))
        channels = c_out
        if ulsam_groups and row == LAST_512:
            blocks.append(Ulsam(channels, ulsam_groups))
    trunk = {"stem": stem, "blocks": nn.Sequential(*blocks)}
    return Chain(trunk, {"classifier": Classifier(channels, classes)}, features_only)
