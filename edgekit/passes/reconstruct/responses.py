"""How the channels of a group respond to what makes them, and the rewriting of those who read them.

With a layer's batch norm folded in, channel j is v_j ∗ x + t_j before its activation:

    v_j = γ_j w_j / σ_j,   t_j = β_j + (b_j − μ_j) γ_j / σ_j,   σ_j = sqrt(var_j + ε)

(without a norm v = w and t = b). Only inner products ⟨v_i, v_j⟩ are needed. Where several layers add up to the channels
(a residual stream), the filters are stacked and the shifts added: the inner products add. A depthwise layer d that
filters channels on their way makes them d_j ∗ v_j with the shift t_j Σd_j + t'_j, so the inner products multiply:
⟨d_i ⊗ v_i, d_j ⊗ v_j⟩ = ⟨d_i, d_j⟩ ⟨v_i, v_j⟩.

If channel j of the reference is Σ_i m_ij (channel i as it is now), every layer that reads them gets back what it read
by

    W'[:, i] = Σ_j m_ij W[:, j].

This is exact where what lies between (activation, pooling, concatenation) is linear, or positively homogeneous and each
channel a multiple m ≥ 0 of one other. It is an approximation with ReLU6, hard swish or gates between, and where ReLU
meets a sum of several channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from edgekit.channels import Group, Ties, ties
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.graph import BATCH_NORMS, trace
from edgekit.labels import Axis
from edgekit.net import Net
from edgekit.passes.importance.rows import made_by, matrices
from edgekit.passes.reconstruct.changes import Changes
from edgekit.removal import layer_side


@dataclasses.dataclass(frozen=True, eq=False)
class Responses:
    """Inner products of the filters of a group's M channels in the reference and the P that are left, as they are now.

    Attributes:
        stay: which channels are left: bool (M,).
        gram: ⟨v_i, v_k⟩ of those left (P, P).
        cross: ⟨v_i, v_j⟩ of those left and the reference's (P, M).
        power: ‖v_j‖² of the reference's (M,).
        shift: t (M, n): a row of a group may hold n channels.
    """

    stay: np.ndarray
    gram: np.ndarray
    cross: np.ndarray
    power: np.ndarray
    shift: np.ndarray


Mix = Callable[[Responses], np.ndarray]
"""m (P, M): each of the reference's channels as a sum of those that are left."""


def compensated(changes: Changes, ctx: PassContext, mix: Mix) -> Net:
    """The network with every group's readers rewritten; what cannot be is left and logged by name.

    Raises:
        BadInput: layers became chains of low rank, whose readers have nothing to make up for by themselves.
    """
    if changes.chained:
        raise BadInput('reconstruct: layers were factorised, which only method = "least_squares" can make up for')
    result = changes.now.clone()
    parameters = dict(result.module.named_parameters())
    found = ties(trace(changes.before.module, ctx.input.shape))
    for group in found.groups:
        stay = changes.stay(group)
        makers = made_by(changes.before.module, group)
        if stay.all() and not any(name in changes.reweighted for name, _ in makers):
            continue
        responses = _responses(changes, found, group, makers)
        if responses is None:
            ctx.log(f"reconstruct: {group.name} is left as it is; no layer with weights makes its channels")
            continue
        weights = mix(responses)
        for axis in _readers(changes.before.module, group):
            if axis[0] in parameters:  # else its block was dropped
                _rewrite(parameters[axis[0]], changes, axis, group.slots[axis], stay, weights)
    return result


def _readers(module: nn.Module, group: Group) -> list[Axis]:
    weights = matrices(module)
    return [axis for axis in group.slots if axis[0] in weights and layer_side(module, axis)[1] == "in"]


def _rewrite(
    parameter: nn.Parameter, changes: Changes, axis: Axis, slots: np.ndarray, stay: np.ndarray, mix: np.ndarray
) -> None:
    """W'[:, i] = Σ_j m_ij W[:, j], with the columns that are left as they are now."""
    name, dim = axis
    columns = changes.left(name, dim).detach().double().movedim(dim, 0).cpu().numpy().copy()
    places = changes.places(axis, slots[stay])
    columns[slots[stay]] = changes.state[name].double().movedim(dim, 0).cpu().numpy()[places]
    mixed = np.tensordot(mix, columns[slots], axes=1)  # (P, n, …) from (P, M) and (M, n, …)
    with torch.no_grad():
        parameter.movedim(dim, 0)[torch.from_numpy(places)] = torch.from_numpy(mixed).to(parameter)


def _responses(changes: Changes, found: Ties, group: Group, makers: list[Axis]) -> Responses | None:
    stay = changes.stay(group)
    gram = cross = power = np.zeros(())
    shift = np.zeros((1, 1))
    for axis in makers:
        old, new, added = _filters(changes, found, axis, group.slots[axis])
        new = new[stay]
        products = new @ new.T, new @ old.T, np.square(old).sum(1)
        if _is_depthwise(changes.before.module, axis):
            gram, cross, power = gram * products[0], cross * products[1], power * products[2]
            gain = old.reshape(*added.shape, -1).sum(2)
            shift = np.repeat(shift, added.shape[1] // shift.shape[1], axis=1) * gain + added
        else:
            gram, cross, power = gram + products[0], cross + products[1], power + products[2]
            shift = shift + added
    return Responses(stay, gram, cross, power, shift) if gram.ndim and np.any(power) else None


def _filters(changes: Changes, found: Ties, axis: Axis, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """v of the reference (M, K); the same with the weights that are left as they are now; t (M, n)."""
    name, dim = axis
    scale, shift = _norm_of(changes, found, axis)
    old = changes.whole[name].double()
    new = old.clone()
    if name in changes.state:  # else its block was dropped
        left = (changes.rows((name, side)) for side in range(2))
        index = np.ix_(*(np.arange(size) if rows is None else rows for rows, size in zip(left, old.shape)))
        new[index] = changes.state[name].double()
    filters = (tensor.movedim(dim, 0).flatten(1).cpu().numpy() * scale[:, None] for tensor in (old, new))
    old, new = (rows[slots].reshape(len(slots), -1) for rows in filters)
    return old, new, shift[slots]


def _norm_of(changes: Changes, found: Ties, axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """γ / σ and t of a layer's output channels, in the reference."""
    ops = found.graph.ops
    made = {op.outputs[0].index for op in ops if op.is_conv and op.args[1].param == axis[0]}
    norm = next((op for op in ops if op.kind in BATCH_NORMS and op.args[0].index in made), None)

    def vector(name: str | None, default: float) -> np.ndarray:
        if name is None or name not in changes.whole:
            return np.full(changes.whole[axis[0]].shape[axis[1]], default)
        return changes.whole[name].double().cpu().numpy()

    bias = vector(f"{axis[0].rpartition('.')[0]}.bias", 0.0)
    if norm is None:
        return np.ones_like(bias), bias
    gamma, beta, mean, variance = (
        vector(value and value.param, default) for value, default in zip(norm.args[1:5], (1.0, 0.0, 0.0, 1.0))
    )
    scale = gamma / np.sqrt(variance + norm.args[-1])
    return scale, beta + (bias - mean) * scale


def _is_depthwise(module: nn.Module, axis: Axis) -> bool:
    layer = module.get_submodule(axis[0].rpartition(".")[0])
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
