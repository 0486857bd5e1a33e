"""PP-LCNet: A Lightweight CPU Convolutional Neural Network (Cui et al., 2021, arXiv 2109.15099)."""

from torch import nn

from edgekit.nets.layers import Chain, Classifier, ConvNorm, DepthwiseSeparable, check_arguments, make_divisible

# kernel, channels, stride, squeeze-and-excitation (table 1 of the paper)
ROWS = (
    (3, 32, 1, False),
    (3, 64, 2, False),
    (3, 64, 1, False),
    (3, 128, 2, False),
    (3, 128, 1, False),
    (3, 256, 2, False),
    (5, 256, 1, False),
    (5, 256, 1, False),
    (5, 256, 1, False),
    (5, 256, 1, False),
    (5, 256, 1, False),
    (5, 512, 2, True),
    (5, 512, 1, True),
)


def pp_lcnet(width: float = 1.0, classes: int = 1000, features_only: bool = False) -> nn.Module:
    """PP-LCNet; `width` was published for 0.25 to 2.5 and leaves the hidden layer of the classifier at 1280 units.

    Args:
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `width` or `classes` not above 0.
    """
    check_arguments(classes, width)
    channels = make_divisible(16 * width)
    stem = ConvNorm(3, channels, 3, 2, act=nn.Hardswish)
    blocks: list[nn.Module] = []
    for kernel, c, stride, squeeze in ROWS:
        squeezed = channels // 4 if squeeze else 0
        c_out = make_divisible(c * width)
        blocks.append(DepthwiseSeparable(channels, c_out, kernel, stride, nn.Hardswish, squeezed))
        channels = c_out
    head = {"classifier": Classifier(channels, classes, dropout=0.2, hidden=1280, hidden_bias=False)}
    return Chain({"stem": stem, "blocks": nn.Sequential(*blocks)}, head, features_only)
