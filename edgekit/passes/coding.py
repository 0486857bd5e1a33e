"""Layers coded one after the other, each to make up for what coding did to the layers before it. Shared by passes that
store weights as codes; no labels needed.

For a layer y = W x let x be its input in the network coded so far and y* its output in the network that came in. What
is coded is W*, the least-squares fit of y* on x (`reconstruct/windows.py`), by a coder that knows H = E[x xᵀ], so that
it can make the error of the output small and not that of the weight; means belong to the bias.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.coded import Codes, CodeWeight, codable, set_codes
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.passes.reconstruct.walk import Layer, Walk
from edgekit.passes.reconstruct.windows import WIDEST, columns_of, layer_moments
from edgekit.quant.gptq import DAMP, Nearest, gptq

HIGHEST = 64
"""Most steps of a weight: int8 kernels without VNNI take no more (see `quant/targets.py`)."""
RIDGE = 0.5
"""λ of W*: a few images say only so much about how errors go together (see `quant/gptq.py`)."""
Coder = Callable[[str, np.ndarray, np.ndarray | None, float], Codes]
"""Codes, of any shape, of the layer of that name, for weights (G, O, K), H (G, K, K) or None, and by how much to raise
its λ."""


def layers_to_code(module: nn.Module, exclude: Sequence[str], name: str) -> list[str]:
    """The convolutions and linear layers but those excluded, which the pass `name` may code.

    Raises:
        BadInput: a glob matches no layer, or a layer cannot be coded.
    """
    layers = [path for path, layer in module.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    kept = without(layers, exclude, name, "layer")
    check_codable(module, kept, name)
    return kept


def check_codable(module: nn.Module, layers: Iterable[str], name: str) -> None:
    """Raises BadInput where the pass `name` cannot code one of the layers."""
    for path in layers:
        if not bool(torch.isfinite(codable(module, path, name).weight).all()):
            raise BadInput(f"{name}: the weight of {path} is not finite")


def without(names: Iterable[str], exclude: Sequence[str], where: str, what: str) -> list[str]:
    """The names that no glob of `exclude` matches. Raises BadInput for a glob that matches none of them."""
    every = list(names)
    for pattern in exclude:
        if not fnmatch.filter(every, pattern):
            raise BadInput(f"{where}: exclude = {pattern!r} matches no {what}")
    return [name for name in every if not any(fnmatch.fnmatch(name, pattern) for pattern in exclude)]


def code_layers(
    net: Net, ctx: PassContext, names: Sequence[str], images: int, coder: Coder, fixed: bool = False
) -> Net:
    """The network with the weights of the layers `names` as codes.

    Args:
        images: so many calibration images; with 0 each weight is coded as it is.
        fixed: whether levels stay as they are in training that follows.

    Raises:
        BadInput: there are no calibration images.
    """
    result, codes = net.clone().module, dict[str, Codes]()
    if images:
        _fit_in_order(net, result, ctx, names, images, coder, codes)
    for name in [name for name in names if name not in codes]:
        codes[name] = coder(name, matrix(result, name), None, 1.0)
    edits = [
        CodeWeight(name, len(code.codebook), code.codebook.shape[1], code.factor is not None, fixed)
        for name, code in codes.items()
    ]
    coded = Net(net.source, net.edits, result).edited(*edits)
    for name, code in codes.items():
        set_codes(coded.module, name, code)
    return coded


def _fit_in_order(
    net: Net,
    result: nn.Module,
    ctx: PassContext,
    names: Sequence[str],
    images: int,
    coder: Coder,
    codes: dict[str, Codes],
) -> None:
    """Put the codes of all layers that the walk can fit into `codes`, and what they stand for into `result`."""
    samples = ctx.data.role("calibrate").subset(images, ctx.seed)
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=ctx.state and ctx.state.parent) as folder:
        walk = Walk(net.module, result, ctx.input.shape, Path(folder))
        walk.start(torch.from_numpy(batch) for batch, _, _ in samples.batches(ctx.input, 1))
        state = result.state_dict()
        for number, layer in enumerate(ctx.track(walk.layers, "coding layers", len(walk.layers))):
            name = layer.weight.removesuffix(".weight")
            if name in names and columns_of(state[layer.weight]) <= WIDEST:
                codes[name], _ = fit_layer(walk, layer, state, ctx.seed + number, coder)
    for name in [name for name in names if name not in codes]:
        ctx.log(f"{name}: coded by its weights alone, {walk.left.get(f'{name}.weight', 'a row of it is too long')}")


def fit_layer(
    walk: Walk, layer: Layer, state: dict[str, torch.Tensor], seed: int, coder: Coder
) -> tuple[Codes, list[str]]:
    """The codes of a layer, and the name of the bias or norm's mean that took the shift; `state` gets what both say."""
    name = layer.weight.removesuffix(".weight")
    weight, bias, mean = state[layer.weight], f"{name}.bias", str(layer.norm.args[3].param) if layer.norm else None
    shifted = [key for key in (bias, mean) if key in state][:1]
    moments = layer_moments(walk, layer, weight, None, bool(shifted), seed)
    shape = moments.cross.shape
    target = moments.solve(weight.reshape(shape).double(), RIDGE)
    found = coder(name, target.numpy(), moments.square.numpy(), moments.scarcity)
    codes = dataclasses.replace(found, shape=tuple(weight.shape))
    weight.copy_(codes.decode())
    shift = moments.shift(weight.reshape(shape).double())
    for key in shifted:
        state[key].copy_(shift if key == bias else state[key] - shift)
    return codes, [str(key) for key in shifted]


def matrix(module: nn.Module, name: str) -> np.ndarray:
    """A layer's weight as (G, O, K), K the inputs of one output value."""
    layer: Any = module.get_submodule(name)
    weight = layer.weight.detach().cpu().double().numpy()
    groups = getattr(layer, "groups", 1)
    return weight.reshape(groups, len(weight) // groups, -1)


def rounded(
    weight: np.ndarray, scale: np.ndarray, hessian: np.ndarray | None, few: float, nearest: Nearest
) -> np.ndarray:
    """Levels (G, O, K) of weights (G, O, K) on scales (G, O)."""
    if hessian is None:
        return nearest(weight / scale[..., None])
    return gptq(weight, scale, hessian, nearest, DAMP * few)


def as_codes(levels: np.ndarray, scale: np.ndarray | None) -> Codes:
    """Levels as codes of those that occur."""
    book, codes = np.unique(levels.astype(np.float32), return_inverse=True)
    factor = None if scale is None else torch.from_numpy(scale.ravel().astype(np.float32))
    return Codes(torch.from_numpy(codes.ravel()), torch.from_numpy(book)[:, None], factor, levels.shape)


def sensitivities(net: Net, ctx: PassContext, images: int) -> dict[str, np.ndarray]:
    """For each layer, what the square of an error in one weight of an output channel costs, on average: (C_out,).

    F · E[x²], x the layer's inputs and F the diagonal of the Fisher information of its outputs: E of the squared
    gradient of −log p(c), summed over the places of a channel, with the class c drawn from the network's own p, so that
    no labels are needed.

    Raises:
        BadInput: the outputs are not those of a classifier.
    """
    if ctx.output.task != "classify":
        raise BadInput("the bits of each layer are found for classifiers alone; give levels instead of bits")
    samples = ctx.data.role("calibrate").subset(images, ctx.seed)
    generator = torch.Generator().manual_seed(ctx.seed)
    module = net.clone().module.eval().requires_grad_(True)
    calls: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    totals: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(lambda _m, x, y, name=name: calls.__setitem__(name, (x[0], y)))
    for batch, _, _ in ctx.track(samples.batches(ctx.input, 1), "sensitivities", len(samples)):
        with torch.enable_grad():
            logits = module(torch.from_numpy(batch)).flatten(1)
            drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
            loss = -logits.log_softmax(1).gather(1, drawn).sum()
            gradients = torch.autograd.grad(loss, [y for _, y in calls.values()], allow_unused=True)
        for (name, (x, y)), gradient in zip(calls.items(), gradients):
            steep = (
                torch.zeros(y.shape[1])
                if gradient is None
                else gradient.square().reshape(*y.shape[:2], -1).sum((0, -1))
            )
            fisher, square = totals.get(name, (0.0, 0.0))
            totals[name] = fisher + steep, square + x.detach().square().mean()
    return {
        name: ((fisher + fisher.mean()) * square / len(samples) ** 2).double().numpy()
        for name, (fisher, square) in totals.items()
    }
