"""Builders of activations and arithmetic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgekit.onnx_torch.dense import linear
from edgekit.onnx_torch.layers import Function, WithNumber, WithWeight
from edgekit.onnx_torch.plan import Call, Make, Plan, Weight, layer, weighted

Builder = Callable[[Call], Plan]


def simple(cls: Make) -> Builder:
    """A builder for a layer without settings."""
    return lambda call: Plan(cls, (call.value(),))


def function(run: Callable[..., Any]) -> Builder:
    """A builder for a function of one activation."""
    return lambda call: Plan(layer(Function, run), (call.value(),))


def clip(call: Call) -> Plan:
    low, high = _bound(call, "min", 1, -math.inf), _bound(call, "max", 2, math.inf)
    if (low, high) == (0, 6):
        make: Make = nn.ReLU6
    elif low == 0 and high >= 3e38:  # the largest float32, as some exporters write it
        make = nn.ReLU
    elif low < high < math.inf and low > -math.inf:
        make = layer(nn.Hardtanh, low, high)
    else:
        bounds = {"min": low if low > -math.inf else None, "max": high if high < math.inf else None}
        make = layer(Function, torch.clamp, **bounds) if any(b is not None for b in bounds.values()) else nn.Identity
    return Plan(make, (call.value(),))


def _bound(call: Call, name: str, index: int, default: float) -> float:
    given = call.number(index)
    return call.decimal(name, default) if given is None else float(given)


def leaky_relu(call: Call) -> Plan:
    return Plan(layer(nn.LeakyReLU, call.decimal("alpha", 0.01)), (call.value(),))


def hard_sigmoid(call: Call) -> Plan:
    """max(0, min(1, alpha · x + beta)); torch's own has alpha = 1/6 and beta = 1/2."""
    alpha, beta = call.decimal("alpha", 0.2), call.decimal("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return Plan(nn.Hardsigmoid, (call.value(),))
    return Plan(layer(Function, hard_gate, alpha=alpha, beta=beta), (call.value(),))


def hard_gate(x: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    return torch.clamp(x * alpha + beta, 0, 1)


def gelu(call: Call) -> Plan:
    how = call.text("approximate", "none")
    if how not in ("none", "tanh"):
        raise call.fail(f"approximate = {how!r} is unknown")
    return Plan(layer(nn.GELU, how), (call.value(),))


def softmax(call: Call) -> Plan:
    """Below operator set 13 all axes from `axis` on were normalised together."""
    axis = call.axis(call.integer("axis", -1 if call.opset >= 13 else 1))
    if call.opset < 13 and math.prod(call.shape()[axis + 1 :]) != 1:
        raise call.fail(f"axis = {axis} of operator set {call.opset} joins several axes; convert the file to 13")
    if axis == 0:
        raise call.fail("normalises over the batch")
    return Plan(layer(nn.Softmax, axis), (call.value(),))


def dropout(call: Call) -> Plan:
    ratio = call.number(1)
    call.ignore("seed", "is_test")
    if call.number(2):
        raise call.fail("training_mode = true cannot be taken over into PyTorch; export for inference")
    return Plan(layer(nn.Dropout, call.decimal("ratio", 0.5) if ratio is None else float(ratio)), (call.value(),))


def cast(call: Call) -> Plan:
    """Every activation is float32 here, so a cast to that is nothing."""
    call.ignore("saturate", "round_mode")
    call.only("to", 1)
    return Plan(nn.Identity, (call.value(),))


def arithmetic(run: Callable[[Any, Any], Any]) -> Builder:
    """A builder for a binary operator: two activations, or one and a number or weight on either side."""

    def build(call: Call) -> Plan:
        first = call.is_constant(0)
        if not first and not call.is_constant(1):
            return Plan(layer(Function, run), (call.value(0), call.value(1)))
        constant = call.tensor(0 if first else 1)
        place = 1 if first else 0
        if constant.values is not None and len(constant.shape) <= max(1, call.rank(place)):
            return Plan(layer(WithNumber, run, call.number(0 if first else 1), first), (call.value(place),))
        make = weighted(WithWeight, run, constant.shape, first)
        return Plan(make, (call.value(place),), {"weight": Weight(constant.name)})

    return build


def matmul(call: Call) -> Plan:
    if call.is_constant(1) and len(call.tensor(1).shape) == 2 and call.rank() >= 2:
        return linear(call)
    return arithmetic(operator.matmul)(call)


ELEMENTWISE: dict[str, Builder] = {
    "Relu": simple(nn.ReLU),
    "Sigmoid": simple(nn.Sigmoid),
    "HardSwish": simple(nn.Hardswish),
    "Tanh": simple(nn.Tanh),
    "Identity": simple(nn.Identity),
    "Softplus": simple(nn.Softplus),
    "Mish": simple(nn.Mish),
    "Erf": function(torch.erf),
    "Exp": function(torch.exp),
    "Sqrt": function(torch.sqrt),
    "Abs": function(torch.abs),
    "Neg": function(torch.neg),
    "Softsign": function(functional.softsign),
    "Clip": clip,
    "LeakyRelu": leaky_relu,
    "HardSigmoid": hard_sigmoid,
    "Gelu": gelu,
    "Softmax": softmax,
    "Dropout": dropout,
    "Cast": cast,
    "Add": arithmetic(operator.add),
    "Sub": arithmetic(operator.sub),
    "Mul": arithmetic(operator.mul),
    "Div": arithmetic(operator.truediv),
    "Pow": arithmetic(operator.pow),
    "MatMul": matmul,
}
