"""The window of a convolution or a pool: kernel, stride, dilation, and pads, which torch wants even on both sides."""

from __future__ import annotations

import dataclasses

from torch import nn

from edgekit.onnx_torch.document import Shape
from edgekit.onnx_torch.plan import Call, Make, layer

Pair = tuple[int, int]
WIDEST_PAD = 65_536


@dataclasses.dataclass(frozen=True)
class Window:
    """Height before width. `pads` is (top, left, bottom, right)."""

    kernel: Pair
    stride: Pair
    dilation: Pair
    pads: tuple[int, int, int, int]

    @property
    def even(self) -> Pair | None:
        """The padding where both sides have the same, else None."""
        top, left, bottom, right = self.pads
        return (top, left) if (top, left) == (bottom, right) else None

    @property
    def reach(self) -> Pair:
        """Pixels from the first to the last that a window looks at."""
        height, width = (d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation))
        return height, width


def window(call: Call, kernel: Shape | None = None) -> Window:
    """The window that a node's attributes describe; `kernel` is the size of its weight.

    Raises:
        BadInput: not two-dimensional, or a kernel_shape that is not the weight's.
    """
    kernel_shape = call.integers("kernel_shape", kernel)
    if kernel_shape is None or (kernel is not None and kernel_shape != kernel):
        raise call.fail(f"kernel_shape = {kernel_shape} where the weight has {kernel}")
    size = _pair(call, kernel_shape)
    stride = _pair(call, call.integers("strides", (1, 1)))
    dilation = _pair(call, call.integers("dilations", (1, 1)))
    plain = Window(size, stride, dilation, (0, 0, 0, 0))
    return dataclasses.replace(plain, pads=_pads(call, plain))


def _pair(call: Call, values: Shape | None) -> Pair:
    if values is None or len(values) != 2 or min(values) < 1:
        raise call.fail(f"{values} must be two positive numbers; only two-dimensional windows can be taken over")
    return values[0], values[1]


def _pads(call: Call, plain: Window) -> tuple[int, int, int, int]:
    pads = call.integers("pads", (0, 0, 0, 0))
    mode = call.text("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        return _same(call, plain, upper=mode == "SAME_UPPER")
    if mode == "VALID":
        return 0, 0, 0, 0
    if mode != "NOTSET" or pads is None or len(pads) != 4 or not all(0 <= pad <= WIDEST_PAD for pad in pads):
        raise call.fail(f"pads = {pads}, auto_pad = {mode!r}; four pads of 0 to {WIDEST_PAD} would fit")
    return pads[0], pads[1], pads[2], pads[3]


def _same(call: Call, plain: Window, upper: bool) -> tuple[int, int, int, int]:
    """Pads that give ceil(size / stride) outputs; the odd pixel goes to the end ("upper") or to the start."""
    begins, ends = [], []
    for size, stride, reach in zip(call.shape()[2:], plain.stride, plain.reach):
        total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return begins[0], begins[1], ends[0], ends[1]


def pad_before(seen: Window, value: float) -> Make:
    """Makes a layer that pads with `value` as the window wants it."""
    top, left, bottom, right = seen.pads
    padding = (left, right, top, bottom)
    return layer(nn.ZeroPad2d, padding) if value == 0 else layer(nn.ConstantPad2d, padding, value)
