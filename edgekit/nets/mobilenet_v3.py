"""Searching for MobileNetV3 (Howard et al., 2019, arXiv 1905.02244)."""

from typing import Any, NamedTuple

from torch import nn

from edgekit.nets.layers import Chain, Classifier, ConvNorm, InvertedResidual, check_arguments, make_divisible


class Row(NamedTuple):
    kernel: int
    expanded: int
    channels: int
    squeeze: bool
    hard_swish: bool
    stride: int


# Tables 1 and 2 of the paper.
LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2),
    Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2),
    Row(5, 240, 40, True, True, 1),
    Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1),
    Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2),
    Row(5, 576, 96, True, True, 1),
    Row(5, 576, 96, True, True, 1),
)
NORM: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}


def _block(row: Row, c_in: int, c_in_full: int, width: float, stride: int) -> InvertedResidual:
    """`c_in_full` is the input's width in the table: the expansion keeps its ratio to the input's."""
    hidden = make_divisible(c_in * row.expanded / c_in_full)
    return InvertedResidual(
        c_in,
        hidden,
        make_divisible(row.channels * width),
        row.kernel,
        stride,
        nn.Hardswish if row.hard_swish else nn.ReLU,
        make_divisible(hidden / 4) if row.squeeze else 0,
        expand=hidden != c_in,
        **NORM,
    )


def _mobilenet_v3(
    rows: tuple[Row, ...], hidden: int, width: float, classes: int, small_input: bool, features_only: bool
) -> nn.Module:
    check_arguments(classes, width)
    full, channels = 16, make_divisible(16 * width)
    stem = ConvNorm(3, channels, 3, 1 if small_input else 2, act=nn.Hardswish, **NORM)
    blocks: list[nn.Module] = []
    strided = [index for index, row in enumerate(rows) if row.stride > 1]
    for index, row in enumerate(rows):
        stride = 1 if small_input and index == strided[0] else row.stride
        blocks.append(_block(row, channels, full, width, stride))
        full, channels = row.channels, make_divisible(row.channels * width)
    last = 6 * channels
    head = {
        "head": ConvNorm(channels, last, act=nn.Hardswish, **NORM),
        "classifier": Classifier(last, classes, dropout=0.2, hidden=make_divisible(hidden * max(1.0, width))),
    }
    return Chain({"stem": stem, "blocks": nn.Sequential(*blocks)}, head, features_only)


def mobilenet_v3_large(
    width: float = 1.0, classes: int = 1000, small_input: bool = False, features_only: bool = False
) -> nn.Module:
    """MobileNetV3-Large; below width 1 the hidden layer of the classifier keeps its 1280 units.

    Args:
        small_input: the stem and the first strided block keep stride 1, for images of 32×32.
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `width` or `classes` not above 0.
    """
    return _mobilenet_v3(LARGE, 1280, width, classes, small_input, features_only)


def mobilenet_v3_small(
    width: float = 1.0, classes: int = 1000, small_input: bool = False, features_only: bool = False
) -> nn.Module:
    """MobileNetV3-Small; below width 1 the hidden layer of the classifier keeps its 1024 units.

    Args:
        small_input: the stem and the first strided block keep stride 1, for images of 32×32.
        features_only: return the last output at each stride as a list (see `Pyramid`).

    Raises:
        BadInput: `width` or `classes` not above 0.
    """
    return _mobilenet_v3(SMALL, 1024, width, classes, small_input, features_only)
