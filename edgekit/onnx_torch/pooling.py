"""Builders of pools, reductions and resizing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgekit.onnx_torch.layers import Function, MeanOfInside, Resample
from edgekit.onnx_torch.plan import Call, Make, Plan, layer
from edgekit.onnx_torch.resize import Table, coordinates, is_torch_bilinear, is_torch_nearest, table
from edgekit.onnx_torch.windows import WIDEST_PAD, Window, pad_before, window


def max_pool(call: Call) -> Plan:
    call.ignore("storage_order")
    seen, ceil = window(call), bool(call.integer("ceil_mode", 0))
    small = seen.even is not None and all(pad <= kernel // 2 for pad, kernel in zip(seen.even, seen.kernel))
    if not small and ceil:
        seen, ceil = _with_whole_windows(call, seen), False
    make = layer(
        nn.MaxPool2d, seen.kernel, seen.stride, (seen.even or 0) if small else 0, seen.dilation, ceil_mode=ceil
    )  # fmt: skip
    return Plan(make, (call.value(),), before=None if small else pad_before(seen, float("-inf")))


def _with_whole_windows(call: Call, seen: Window) -> Window:
    """The pads grown at the end until the last window is whole, so that rounding up is not needed."""
    top, left, bottom, right = seen.pads
    ends = []
    for axis, begin in ((0, top), (1, left)):
        last = (call.output_shape()[2 + axis] - 1) * seen.stride[axis] + seen.reach[axis]
        ends.append(last - call.shape()[2 + axis] - begin)
    return dataclasses.replace(seen, pads=(top, left, max(bottom, ends[0]), max(right, ends[1])))


def average_pool(call: Call) -> Plan:
    seen, ceil = window(call), bool(call.integer("ceil_mode", 0))
    outside = bool(call.integer("count_include_pad", 0))
    if seen.dilation != (1, 1):
        raise call.fail(f"dilations = {seen.dilation} cannot be taken over into PyTorch; (1, 1) can")
    if seen.even is not None and all(pad <= kernel // 2 for pad, kernel in zip(seen.even, seen.kernel)):
        make = layer(nn.AvgPool2d, seen.kernel, seen.stride, seen.even, ceil, outside)
        return Plan(make, (call.value(),))
    if ceil:
        raise call.fail("ceil_mode = 1 with uneven pads cannot be taken over into PyTorch")
    if outside:
        return Plan(layer(nn.AvgPool2d, seen.kernel, seen.stride), (call.value(),), before=pad_before(seen, 0.0))
    top, left, bottom, right = seen.pads
    return Plan(layer(MeanOfInside, seen.kernel, seen.stride, (left, right, top, bottom)), (call.value(),))


def global_average_pool(call: Call) -> Plan:
    return Plan(layer(nn.AdaptiveAvgPool2d, 1), (call.value(),))


def global_max_pool(call: Call) -> Plan:
    return Plan(layer(Function, torch.amax, dim=(2, 3), keepdim=True), (call.value(),))


def reduce_mean(call: Call) -> Plan:
    return _reduce(call, torch.mean)


def reduce_sum(call: Call) -> Plan:
    return _reduce(call, torch.sum)


def reduce_max(call: Call) -> Plan:
    return _reduce(call, torch.amax)


def _reduce(call: Call, function: Callable[..., Any]) -> Plan:
    axes, keep = call.setting("axes", 1), bool(call.integer("keepdims", 1))
    call.ignore("noop_with_empty_axes")  # matters only where there are no axes, which is refused
    if not axes:
        raise call.fail("names no axes, and so would reduce over the batch")
    found = tuple(sorted(call.axis(axis) for axis in axes))
    if found[0] == 0:
        raise call.fail(f"axes = {axes} reduce over the batch")
    return Plan(layer(Function, function, dim=found, keepdim=keep), (call.value(),))


def resize(call: Call) -> Plan:
    """Torch's own interpolation where it computes the same pixels, else tables (see `resize.table`)."""
    _refuse_rare_modes(call)
    mode = call.text("mode", "nearest")
    if mode not in ("nearest", "linear") or call.rank() != 4:
        raise call.fail(f"mode = {mode!r} on {call.rank()} axes cannot be taken over; nearest and linear on 4 axes can")
    how = call.text("coordinate_transformation_mode", "half_pixel" if call.opset > 10 else "asymmetric")
    rounding = call.text("nearest_mode", "round_prefer_floor" if call.opset > 10 else "floor")
    scales = _scales(call)
    tables = {}
    for axis, (size, (wanted, scale)) in enumerate(zip(call.shape()[2:], scales), 2):
        positions = coordinates(how, size, wanted, scale)
        found = table(positions, size, rounding if mode == "nearest" else None) if positions is not None else None
        if found is None:
            raise call.fail(f"{how}, {rounding} cannot be taken over into PyTorch")
        tables[axis] = found
    return Plan(_upsample(call, mode, how, scales, tables), (call.value(),))


def _upsample(call: Call, mode: str, how: str, scales: list[tuple[int, float]], tables: dict[int, Table]) -> Make:
    sizes = call.shape()[2:]
    factors = tuple(wanted // size for size, (wanted, _) in zip(sizes, scales))
    whole = all(size * factor == wanted for size, factor, (wanted, _) in zip(sizes, factors, scales))
    size = {"scale_factor": factors} if whole else {"size": tuple(wanted for wanted, _ in scales)}
    if mode == "nearest" and is_torch_nearest(sizes, tables):
        return layer(nn.Upsample, **size, mode="nearest")
    if mode == "linear" and how == "align_corners":
        return layer(nn.Upsample, **size, mode="bilinear", align_corners=True)
    if mode == "linear" and is_torch_bilinear(how, sizes, scales):
        return layer(nn.Upsample, **size, mode="bilinear", align_corners=False)
    return layer(Resample, tables)


def _refuse_rare_modes(call: Call) -> None:
    call.only("antialias", 0)
    call.only("keep_aspect_ratio_policy", "stretch")
    # These belong to the cubic mode and to cropping, which are refused.
    call.ignore("cubic_coeff_a", "exclude_outside", "extrapolation_value")


def _scales(call: Call) -> list[tuple[int, float]]:
    """For height and width, the wanted size and the scale; a scale that is given stands, whatever its rounding."""
    shape = call.shape()
    axes = tuple(call.axis(axis) for axis in call.integers("axes", tuple(range(4))) or ())
    old = call.opset <= 10 or call.node.op == "Upsample"
    scales, sizes = call.numbers(1 if old else 2), None if old else call.numbers(3)
    if len(scales or sizes or ()) != len(axes):
        raise call.fail(f"scales = {scales} and sizes = {sizes} do not fit {len(axes)} axes")
    wanted = dict.fromkeys(range(4), 1.0)
    if scales:
        wanted.update(zip(axes, scales))
        found = [(int(shape[axis] * wanted[axis]), wanted[axis]) for axis in range(4)]
    else:
        given = {**dict(enumerate(shape)), **dict(zip(axes, sizes or ()))}
        given[0] = 1 if 0 not in axes else given[0]
        found = [(given[axis], given[axis] / shape[axis]) for axis in range(4)]
    if [size for size, _ in found[:2]] != list(shape[:2]):
        raise call.fail("resizes the batch or the channels")
    if not all(0 < size <= WIDEST_PAD for size, _ in found):
        raise call.fail(f"its output would have sides of {[size for size, _ in found[2:]]} pixels")
    return found[2:]
