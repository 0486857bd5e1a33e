"""Builders of layers with weights: convolutions, products, norms, PReLU."""

from __future__ import annotations

import numpy as np
from torch import nn

from edgekit.onnx_torch.document import Shape
from edgekit.onnx_torch.plan import Call, Plan, Weight, weighted
from edgekit.onnx_torch.windows import pad_before, window


def conv(call: Call) -> Plan:
    """W (C_out, C_in / groups, kh, kw)."""
    weight = call.tensor(1)
    _two_dimensional(call, weight.shape)
    groups = call.integer("group", 1)
    seen = window(call, weight.shape[2:])
    make = weighted(
        nn.Conv2d,
        weight.shape[1] * groups,
        weight.shape[0],
        seen.kernel,
        stride=seen.stride,
        padding=seen.even or 0,
        dilation=seen.dilation,
        groups=groups,
        bias=call.has(2),
    )
    before = None if seen.even else pad_before(seen, 0.0)
    return Plan(make, (call.value(),), _weight_and_bias(call, weight.shape[0]), before)


def conv_transpose(call: Call) -> Plan:
    """W (C_in, C_out / groups, kh, kw)."""
    weight = call.tensor(1)
    _two_dimensional(call, weight.shape)
    if call.integers("output_shape") is not None:
        raise call.fail("output_shape cannot be taken over into PyTorch; write pads and output_padding instead")
    call.only("auto_pad", "NOTSET")
    groups = call.integer("group", 1)
    seen = window(call, weight.shape[2:])
    if seen.even is None:
        raise call.fail(f"uneven pads {seen.pads} cannot be taken over into PyTorch")
    make = weighted(
        nn.ConvTranspose2d,
        weight.shape[0],
        weight.shape[1] * groups,
        seen.kernel,
        stride=seen.stride,
        padding=seen.even,
        output_padding=call.integers("output_padding", (0, 0)),
        dilation=seen.dilation,
        groups=groups,
        bias=call.has(2),
    )
    return Plan(make, (call.value(),), _weight_and_bias(call, weight.shape[1] * groups))


def _two_dimensional(call: Call, shape: Shape) -> None:
    if len(shape) != 4:
        raise call.fail(f"its weight has the shape {shape}; only two-dimensional convolutions can be taken over")


def _weight_and_bias(call: Call, channels: int, places: tuple[int, int] = (1, 2)) -> dict[str, Weight]:
    weights = {"weight": Weight(call.tensor(places[0]).name)}
    if call.has(places[1]):
        weights["bias"] = Weight(call.tensor(places[1], (channels,)).name)
    return weights


def gemm(call: Call) -> Plan:
    """alpha · x Wᵀ + beta · c; the two factors go into the weights."""
    call.only("transA", 0)
    weight, transposed = call.tensor(1), call.integer("transB", 0)
    if len(weight.shape) != 2:
        raise call.fail(f"{weight.name!r} has the shape {weight.shape}; a matrix would fit")
    c_out, c_in = weight.shape if transposed else weight.shape[::-1]
    alpha, beta = call.decimal("alpha", 1.0), call.decimal("beta", 1.0)
    weights = {"weight": Weight(weight.name, lambda w: _scaled(w if transposed else w.T, alpha))}
    if call.has(2):
        c = call.tensor(2, (c_out,), (1, c_out), (1,), (1, 1), ())
        weights["bias"] = Weight(c.name, lambda c: np.broadcast_to(_scaled(c.reshape(-1), beta), (c_out,)))
    return Plan(weighted(nn.Linear, c_in, c_out, bias=call.has(2)), (call.value(),), weights)


def _scaled(array: np.ndarray, factor: float) -> np.ndarray:
    return array if factor == 1 else (array.astype(np.float64) * factor).astype(np.float32)


def linear(call: Call) -> Plan:
    """x W with a constant matrix W (C_in, C_out)."""
    weight = call.tensor(1)
    c_in, c_out = weight.shape
    return Plan(
        weighted(nn.Linear, c_in, c_out, bias=False), (call.value(),), {"weight": Weight(weight.name, np.transpose)}
    )


def batch_norm(call: Call) -> Plan:
    call.only("training_mode", 0)
    call.only("spatial", 1)
    # The momentum of a training that is over; a later one uses torch's.
    call.ignore("momentum")
    channels = call.shape()[1] if call.rank() > 1 else 0
    kinds: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}
    if call.rank() not in kinds:
        raise call.fail(f"its input has {call.rank()} axes; 2, 3 or 4 can be taken over")
    keys = ("weight", "bias", "running_mean", "running_var")
    weights = {key: Weight(call.tensor(place, (channels,)).name) for place, key in enumerate(keys, 1)}
    return Plan(weighted(kinds[call.rank()], channels, eps=call.decimal("epsilon", 1e-5)), (call.value(),), weights)


def layer_norm(call: Call) -> Plan:
    call.ignore("stash_type")
    axis = call.axis(call.integer("axis", -1))
    shape = call.shape()[axis:]
    weights = {"weight": Weight(call.tensor(1, shape).name)}
    if call.has(2):
        weights["bias"] = Weight(call.tensor(2, shape).name)
    make = weighted(nn.LayerNorm, shape, eps=call.decimal("epsilon", 1e-5), bias=call.has(2))
    return Plan(make, (call.value(),), weights)


def instance_norm(call: Call) -> Plan:
    """A group norm with as many groups as channels: the same numbers, and it runs at any batch size."""
    channels = call.shape()[1]
    return _group_norm(call, channels, channels)


def group_norm(call: Call) -> Plan:
    call.ignore("stash_type")
    return _group_norm(call, call.integer("num_groups"), call.shape()[1])


def _group_norm(call: Call, groups: int, channels: int) -> Plan:
    if groups < 1 or channels % groups:
        raise call.fail(f"{channels} channels do not fall into {groups} groups")

    def for_each_channel(array: np.ndarray) -> np.ndarray:  # operator sets below 21 have one value a group
        return np.repeat(array, channels // len(array))

    shapes = ((channels,),) if call.opset >= 21 or call.node.op != "GroupNormalization" else ((groups,),)
    keys = {"weight": 1, "bias": 2}
    weights = {key: Weight(call.tensor(place, *shapes).name, for_each_channel) for key, place in keys.items()}
    make = weighted(nn.GroupNorm, groups, channels, eps=call.decimal("epsilon", 1e-5))
    return Plan(make, (call.value(),), weights)


def prelu(call: Call) -> Plan:
    """One slope, or one a channel: (C, 1, 1) beside (B, C, H, W)."""
    slope = call.tensor(1)
    count = int(np.prod(slope.shape))
    if count > 1:
        padded = (*(1,) * (call.rank() - len(slope.shape)), *slope.shape)
        if padded != (1, count, *(1,) * (call.rank() - 2)):
            raise call.fail(f"{slope.name!r} has the shape {slope.shape}; one slope, or one a channel would fit")
    return Plan(weighted(nn.PReLU, count), (call.value(),), {"weight": Weight(slope.name, np.ravel)})
