"""An order of channels under which the chunks of the layers that read them are easier to cluster.

Martinez et al.: Permute, Quantize, and Fine-tune, 2021, arXiv 2010.15703, section 3.1. A chunk that spans b channels
holds those that stand side by side, and the order is free: with the outputs of the layers before permuted alike, the
network computes the same. At a given number of codes the error of the best codebook is bounded by a multiple of
det(Σ)^(1/m), Σ the covariance of the chunks (m, m), so that is made small, summed over the layers that read the
channels:

    Σ_layers N m det(Σ)^(1/m).

Greedy start: the channels in the order of falling variance, each to the place in the chunk that has got the least
variance so far. Then random pairs of channels change places wherever that lowers the sum.

Which channels go together (residual streams, norms and depthwise layers included) is read from the graph (channels.py),
and no edit is needed: the structure stays, and only the weights change places.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from edgekit.channels import Group, ties
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.graph import tensors_in, trace
from edgekit.net import Net
from edgekit.parity import sqnr_db
from edgekit.passes.vq.subvectors import Layer, weight_of

SWAPS = 10_000
"""Tried at most, as in the paper; in small groups every pair twice, on average."""
WIDEST = 8192
"""Layers with more weights a row do not count: their products would take more than 512 MiB."""
FLOOR = 1e-6
"""Share of the mean variance added to each: a few chunks span fewer dimensions than they have."""
SAME_DB = 80.0


def permuted(net: Net, layers: list[Layer], ctx: PassContext, method: str) -> Net:
    """The network with its channels in another order wherever that serves the layers.

    Raises:
        BadInput: the network does not compute the same with its channels in another order.
    """
    module = copy.deepcopy(net.module)
    groups = [group for group in ties(trace(net.module, ctx.input.shape)).groups if _movable(module, group)]
    generator = np.random.default_rng(ctx.seed)
    before = after = 0.0
    for group in ctx.track(groups, "permute", len(groups)):
        readers = _readers(module, group, layers)
        if readers:
            order, start, end = best_order(readers, group.size, generator)
            before, after = before + start, after + end
            reorder(module, group, order)
    if not before:
        raise BadInput(f"{method}: no subvector spans several channels that can change places; write permute = false")
    images = torch.randn(2, *ctx.input.shape, generator=torch.Generator().manual_seed(ctx.seed))
    if _difference_db(net.module, module, images) < SAME_DB:
        raise BadInput(f"{method}: the code of this network takes channels by their numbers; write permute = false")
    ctx.log(f"{method}: channels reordered; the bound on the error falls by {1 - after / before:.2%}")
    return Net(net.source, net.edits, module)


class Reader:
    """A layer that reads a group's channels: products of its weights, and the order of its channels so far."""

    def __init__(self, weight: torch.Tensor, m: int, slots: np.ndarray) -> None:
        """weight is (O, C, …), m a multiple of a kernel's size, slots each row's channels (size, n)."""
        outputs, channels = weight.shape[:2]
        self.slots, self.m = slots, m
        values = weight.double().reshape(outputs, channels, -1)
        self.kernel = values.shape[2]
        self.span = m // self.kernel
        self.count = outputs * channels // self.span
        flat = values.reshape(outputs, -1)
        self.products = (flat.T @ flat).reshape(channels, self.kernel, channels, self.kernel).numpy()
        self.sums = values.sum(0).numpy()  # (C, kernel)
        self.variance = values.var(0, correction=0).sum(1).numpy()  # (C,)
        self.order = np.arange(channels)
        self.moments = self._moments(np.arange(channels // self.span))

    def _moments(self, blocks: np.ndarray) -> np.ndarray:
        """Σ x xᵀ with Σ x below it, over the chunks at these places of a row: (m + 1, m)."""
        channels = self.order.reshape(-1, self.span)[blocks]  # (B, b)
        products = self.products[channels[:, :, None], :, channels[:, None, :]].sum(0)  # (b, b, kernel, kernel)
        square = products.transpose(0, 2, 1, 3).reshape(self.m, self.m)
        return np.concatenate([square, self.sums[channels].sum(0).reshape(1, -1)])

    def swap(self, row: int, other: int) -> None:
        here, there = self.slots[row], self.slots[other]
        blocks = np.unique(np.concatenate([here, there]) // self.span)
        before = self._moments(blocks)
        self.order[here], self.order[there] = self.order[there], self.order[here]
        self.undo = row, other, self.moments
        self.moments = self.moments - before + self._moments(blocks)

    def swap_back(self) -> None:
        row, other, self.moments = self.undo
        here, there = self.slots[row], self.slots[other]
        self.order[here], self.order[there] = self.order[there], self.order[here]

    def take(self, order: np.ndarray) -> None:
        """Row i of the group becomes what row order[i] was at first."""
        self.order[self.slots] = np.arange(len(self.order))[self.slots[order]]
        self.moments = self._moments(np.arange(len(self.order) // self.span))

    def bound(self) -> float:
        """N m det(Σ)^(1/m)."""
        mean = self.moments[-1] / self.count
        covariance = self.moments[:-1] / self.count - np.outer(mean, mean)
        covariance += FLOOR * np.trace(covariance) / self.m * np.eye(self.m)
        _, log_det = np.linalg.slogdet(covariance)
        return self.count * self.m * float(np.exp(log_det / self.m))


def best_order(readers: list[Reader], size: int, generator: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """Which row goes to each place (size,), and the bound before and with that; never a higher one."""

    def bound() -> float:
        return sum(reader.bound() for reader in readers)

    def take(order: np.ndarray) -> float:
        for reader in readers:
            reader.take(order)
        return bound()

    before = bound()
    greedy = _greedy(max(readers, key=lambda reader: reader.count * reader.m), readers)
    order = greedy if take(greedy) < before else np.arange(size)
    best = take(order)
    for row, other in generator.integers(0, size, (min(SWAPS, size**2), 2)).tolist():
        if row == other:
            continue
        for reader in readers:
            reader.swap(row, other)
        if (now := bound()) < best:
            best = now
            order[[row, other]] = order[[other, row]]
        else:
            for reader in readers:
                reader.swap_back()
    return order, before, best


def _greedy(main: Reader, readers: list[Reader]) -> np.ndarray:
    """By the places that the group's rows have in the chunks of the largest layer."""
    variance = sum(reader.variance[reader.slots].sum(1) for reader in readers)
    bucket = main.slots[:, 0] % main.span
    free = [np.flatnonzero(bucket == place).tolist() for place in range(main.span)]
    got = np.zeros(main.span)
    order = np.empty(len(bucket), np.int64)
    for row in np.argsort(-variance, kind="stable"):
        place = min((place for place in range(main.span) if free[place]), key=lambda place: got[place])
        order[free[place].pop(0)] = row
        got[place] += variance[row]
    return order


def reorder(module: nn.Module, group: Group, order: np.ndarray) -> None:
    """Row i of the group becomes what row order[i] was, along every axis that it has."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for (name, dim), slots in group.slots.items():
            if name in tensors:  # else it is a module that holds channel counts and no weights
                here, there = (torch.from_numpy(rows.ravel()) for rows in (slots, slots[order]))
                tensors[name].index_copy_(dim, here, tensors[name].index_select(dim, there))


def _movable(module: nn.Module, group: Group) -> bool:
    """Whether all that the group has a part of are plain tensors, and no weight in another form."""
    known = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    return all(name in known or not name.endswith((".weight", ".bias")) for name, _ in group.slots)


def _readers(module: nn.Module, group: Group, layers: list[Layer]) -> list[Reader]:
    """Those of the layers that read the group's channels in chunks of more than one."""
    found = []
    for layer in layers:
        slots, weight = group.slots.get((f"{layer.name}.weight", 1)), weight_of(module, layer)
        kernel = weight[0, 0].numel()
        if slots is None or layer.m == kernel or layer.m % kernel or weight[0].numel() > WIDEST:
            continue
        if getattr(module.get_submodule(layer.name), "groups", 1) == 1:
            found.append(Reader(weight, layer.m, slots))
    return found


def _difference_db(left: nn.Module, right: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        answers = [list(tensors_in(copy.deepcopy(module).eval()(images))) for module in (left, right)]
    return min(sqnr_db(one.numpy(), other.numpy()) for one, other in zip(*answers))
