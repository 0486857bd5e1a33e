"""Builders of what moves data: joining, cutting, padding, reshaping."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from edgekit.nets.layers import PadShortcut, SplitChannels
from edgekit.onnx_torch.document import Shape
from edgekit.onnx_torch.layers import Concat, DepthToSpace, Function, Reshape, Slice, SpaceToDepth
from edgekit.onnx_torch.plan import Call, Make, Plan, layer
from edgekit.onnx_torch.windows import WIDEST_PAD

Sizes = tuple[int | tuple[int, int], ...]
ENDLESS = 2**31 - 1
"""What exporters write for "to the end"; some write a 64-bit number."""
PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def concat(call: Call) -> Plan:
    values = tuple(call.value(index) for index in range(len(call.node.inputs)))
    axis = call.axis(call.integer("axis"))
    if axis == 0:
        raise call.fail("joins along the batch")
    return Plan(layer(Concat, axis), values)


def split(call: Call) -> Plan:
    axis = call.axis(call.integer("axis", 0))
    sizes = call.setting("split", 1)
    count = call.integer("num_outputs", len(call.node.outputs))
    if axis == 0 or count != len(call.node.outputs):
        raise call.fail(f"splits axis {axis} into {count}; other axes than the batch into its own outputs would fit")
    each = -(-call.shape()[axis] // count)
    sizes = sizes or tuple(min(each, call.shape()[axis] - each * index) for index in range(count))
    if len(sizes) != count or min(sizes) < 1 or sum(sizes) != call.shape()[axis]:
        raise call.fail(f"sizes {sizes} do not make up the {call.shape()[axis]} of axis {axis}")
    if axis == 1:
        return Plan(layer(SplitChannels, sizes), (call.value(),))
    return Plan(layer(Function, torch.split, split_size_or_sections=list(sizes), dim=axis), (call.value(),))


def slice_(call: Call) -> Plan:
    starts, ends = call.setting("starts", 1), call.setting("ends", 2)
    if starts is None or ends is None or len(starts) != len(ends):
        raise call.fail("starts and ends must be constants of one length")
    axes = call.setting("axes", 3) or tuple(range(len(starts)))
    steps = call.numbers(4) or (1,) * len(starts)
    if len(axes) != len(starts) or len(steps) != len(starts) or min(steps) < 1:
        raise call.fail(f"axes = {axes}, steps = {steps} cannot be taken over; one positive step for each start can")
    slices = [slice(None)] * call.rank()
    for axis, start, end, step in zip(axes, starts, ends, steps):
        if (start, step) != (0, 1) or end < ENDLESS:
            slices[call.axis(axis)] = slice(start, end, step)
    if slices[0] != slice(None):
        raise call.fail("cuts the batch")
    return Plan(layer(Slice, tuple(slices)), (call.value(),))


def pad(call: Call) -> Plan:
    """ONNX lists all the starts, then all the ends; torch pairs from the last axis forward."""
    mode = call.text("mode", "constant")
    pads = call.setting("pads", 1)
    axes = call.numbers(3)
    value = call.number(2) if call.has(2) else call.decimal("value", 0.0)
    axes = tuple(range(call.rank())) if axes is None else tuple(call.axis(axis) for axis in axes)
    if pads is None or len(pads) != 2 * len(axes) or mode not in PAD_MODES or max(map(abs, pads)) > WIDEST_PAD:
        raise call.fail(f"mode = {mode!r}, pads = {pads} cannot be taken over into PyTorch")
    sides = dict.fromkeys(range(call.rank()), (0, 0)) | dict(zip(axes, zip(pads, pads[len(axes) :])))
    if any(sides[0]):
        raise call.fail("pads the batch")
    used = max((axis for axis in sides if any(sides[axis])), default=0)
    first = min((axis for axis in sides if any(sides[axis])), default=used)
    amounts = [amount for axis in range(call.rank() - 1, first - 1, -1) for amount in sides[axis]]
    return Plan(_padding(call, mode, amounts, float(value or 0)), (call.value(),))


def _padding(call: Call, mode: str, amounts: list[int], value: float) -> Make:
    if mode == "constant":
        zeros = value == 0 and call.rank() == 4 and len(amounts) <= 4
        if value == 0 and call.rank() == 4 and len(amounts) == 6 and not any(amounts[:4]) and min(amounts) >= 0:
            return layer(PadShortcut, *amounts[4:], stride=1)
        four = (*amounts, *(0,) * (4 - len(amounts)))
        return layer(nn.ZeroPad2d, four) if zeros else layer(Function, functional.pad, pad=amounts, value=value)
    if call.rank() != 4 or len(amounts) > 4:
        raise call.fail(f"mode = {mode!r} pads other axes than height and width, which PyTorch does not")
    amounts += [0] * (4 - len(amounts))
    return layer(Function, functional.pad, pad=amounts, mode=PAD_MODES[mode])


def flatten(call: Call) -> Plan:
    axis = call.integer("axis", 1)
    if axis == 1:
        return Plan(layer(nn.Flatten, 1), (call.value(),))
    axis = call.axis(axis, call.rank() + 1)
    if axis == 0:
        raise call.fail("axis = 0 joins the batch with the rest; write axis = 1")
    return Plan(layer(Reshape, ((0, axis), (axis, call.rank()))), (call.value(),))


def reshape(call: Call) -> Plan:
    literal_zeros = call.integer("allowzero", 0)
    target, shape = call.setting("shape", 1), call.shape()
    wrong = target is None or any(size < -1 for size in target) or sum(size == -1 for size in target) > 1
    if target is None or wrong or (literal_zeros and 0 in target):
        raise call.fail(f"the shape {target} cannot be taken over into PyTorch")
    if any(size == 0 and place >= len(shape) for place, size in enumerate(target)):
        raise call.fail(f"the shape {target} copies a size that {shape} does not have")
    wanted = [shape[place] if size == 0 else size for place, size in enumerate(target)]
    if -1 in wanted:
        wanted[wanted.index(-1)] = math.prod(shape) // max(1, math.prod(size for size in wanted if size != -1))
    if math.prod(wanted) != math.prod(shape):
        raise call.fail(f"{shape} cannot take the shape {target} at batch 1")
    free = target.index(-1) if -1 in target else None
    sizes = regrouped(shape, tuple(wanted), free)
    tail = len(sizes) - 1
    if sizes == (*((axis, axis + 1) for axis in range(tail)), (tail, len(shape))):
        return Plan(layer(nn.Flatten, tail), (call.value(),))
    return Plan(layer(Reshape, sizes), (call.value(),))


def regrouped(shape: Shape, target: Shape, free: int | None = None) -> Sizes:
    """`target` in terms of `shape` (both at batch 1), see `layers.Reshape`: runs of axes that hold the same elements
    are found from the left; where one new axis takes a whole run it becomes their product, and only where a run is
    cut are there numbers. `free` is the place of the -1, which stays one there. Channels that are cut in two, as for a
    shuffle, become (groups, -1), so that each group may lose the same number.
    """
    sizes: list[int | tuple[int, int]] = []
    i = j = 0
    cut = None
    while i < len(shape) and j < len(target):
        start, first, left, right = i, j, shape[i], target[j]
        i, j = i + 1, j + 1
        while left != right:
            if left < right:
                left, i = left * shape[i], i + 1
            else:
                right, j = right * target[j], j + 1
        if j == len(target):  # what is left of the input are ones
            i = len(shape)
        cut = len(sizes) + 1 if (start, i, j - first) == (1, 2, 2) else cut
        sizes += _run((start, i), target[first:j], None if free is None else free - first)
    if cut is not None and isinstance(sizes[cut], int) and isinstance(sizes[cut - 1], int) and -1 not in sizes:
        sizes[cut] = -1
    return (*sizes, *target[j:])


def _run(axes: tuple[int, int], new: Shape, free: int | None) -> list[int | tuple[int, int]]:
    """The axes from axes[0] up to axes[1] become the axes `new`."""
    if free is not None and 0 <= free < len(new) and len(new) > 1:
        return [-1 if place == free else size for place, size in enumerate(new)]
    long = [place for place, size in enumerate(new) if size > 1]
    if len(new) == 1 or len(long) == 1:
        whole = long[0] if long else 0
        return [axes if place == whole else 1 for place in range(len(new))]
    return list(new)


def transpose(call: Call) -> Plan:
    order = call.integers("perm")
    order = tuple(reversed(range(call.rank()))) if order is None else order
    return Plan(layer(Function, torch.permute, dims=order), (call.value(),))


def squeeze(call: Call) -> Plan:
    axes = call.setting("axes", 1)
    if not axes:
        raise call.fail("names no axes, and so might drop the batch; write them")
    found = tuple(sorted(call.axis(axis) for axis in axes))
    if found[0] == 0 or any(call.shape()[axis] != 1 for axis in found):
        raise call.fail(f"axes = {axes} of {call.shape()} are not all of size 1, or hold the batch")
    return Plan(layer(Function, torch.squeeze, dim=found), (call.value(),))


def unsqueeze(call: Call) -> Plan:
    """New axes of size 1, counted in the output's axes."""
    axes = call.setting("axes", 1) or ()
    rank = call.rank() + len(axes)
    found = sorted(call.axis(axis, rank) for axis in axes)
    if not found or len(set(found)) != len(found):
        raise call.fail(f"axes = {axes} must be different ones")
    sizes: list[int | tuple[int, int]] = [(axis, axis + 1) for axis in range(call.rank())]
    for axis in found:
        sizes.insert(axis, 1)
    return Plan(layer(Reshape, tuple(sizes)), (call.value(),))


def depth_to_space(call: Call) -> Plan:
    block, mode = _block(call), call.text("mode", "DCR")
    if call.shape()[1] % block**2 or mode not in ("DCR", "CRD"):
        raise call.fail(f"{call.shape()[1]} channels, blocksize = {block}, mode = {mode!r} do not fit together")
    return Plan(layer(nn.PixelShuffle if mode == "CRD" else DepthToSpace, block), (call.value(),))


def space_to_depth(call: Call) -> Plan:
    block = _block(call)
    if any(size % block for size in call.shape()[2:]):
        raise call.fail(f"blocksize = {block} does not divide {call.shape()[2:]}")
    return Plan(layer(SpaceToDepth, block), (call.value(),))


def _block(call: Call) -> int:
    block = call.integer("blocksize")
    if block < 1 or call.rank() != 4:
        raise call.fail(f"blocksize = {block} on {call.rank()} axes; a positive one on 4 axes would fit")
    return block
