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

from edgekit.coded import Codes, CodeWeight, Form, codable, decoded, set_codes
from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.masked import kept_of
from edgekit.net import Net
from edgekit.passes.reconstruct.walk import Layer, Walk
from edgekit.passes.reconstruct.windows import WIDEST, columns_of, layer_moments
from edgekit.quant.gptq import DAMP, Nearest, gptq, held

HIGHEST = 64
"""Most steps of a weight: int8 kernels without VNNI take no more (see `quant/targets.py`)."""
RIDGE = 0.5
"""λ of W*: a few images say only so much about how errors go together (see `quant/gptq.py`)."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What the levels of a layer should come near to.

    Attributes:
        weight: (G, O, K).
        hessian: H (G, K, K), or None: the error of the weight counts.
        scarcity: by how much to raise λ of H.
        kept: (G, O, K), which weights are not held at 0; None: all.
    """

    weight: np.ndarray
    hessian: np.ndarray | None = None
    scarcity: float = 1.0
    kept: np.ndarray | None = None

    @property
    def importance(self) -> np.ndarray | None:
        """What an error of a weight alone costs, (G, 1, K)."""
        return None if self.hessian is None else np.diagonal(self.hessian, axis1=1, axis2=2)[:, None]

    def rounded(self, scale: np.ndarray, nearest: Nearest) -> np.ndarray:
        """Levels (G, O, K) on scales (G, O)."""
        if self.hessian is not None:
            return gptq(self.weight, scale, self.hessian, nearest, DAMP * self.scarcity, bounds=held(self.kept))
        levels = nearest(self.weight / scale[..., None])
        return levels if self.kept is None else levels * self.kept


Coder = Callable[[str, Target], Codes]
"""Codes, of any shape, of the layer of that name."""
Fit = Callable[[Walk, Layer, dict[str, torch.Tensor], int], object]
"""Changes a layer's weight in a state dict, with a seed."""


def layers_to_code(
    module: nn.Module, exclude: Sequence[str], name: str, forms: tuple[type[Form], ...] = ()
) -> list[str]:
    """The convolutions and linear layers but those excluded, which the pass `name` may code, also from those forms.

    Raises:
        BadInput: a glob matches no layer, or a layer cannot be coded.
    """
    layers = [path for path, layer in module.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    kept = without(layers, exclude, name, "layer")
    check_codable(module, kept, name, forms)
    return kept


def check_codable(module: nn.Module, layers: Iterable[str], name: str, forms: tuple[type[Form], ...] = ()) -> None:
    """Raises BadInput where the pass `name` cannot code one of the layers."""
    for path in layers:
        if not bool(torch.isfinite(codable(module, path, name, forms).weight).all()):
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
    result, codes = net.clone(), dict[str, Codes]()
    kept = {name: _kept_matrix(net.module, name) for name in names}

    def fit(walk: Walk, layer: Layer, state: dict[str, torch.Tensor], seed: int) -> None:
        name = layer.weight.removesuffix(".weight")
        codes[name], _ = fit_layer(walk, layer, state, seed, coder, kept[name])

    if images:
        fit_in_order(net, result, ctx, names, images, fit)
    for name in [name for name in names if name not in codes]:
        codes[name] = coder(name, Target(matrix(result.module, name), kept=kept[name]))
    coded = result.edited(
        *(
            CodeWeight(name, len(code.codebook), code.codebook.shape[1], code.factor is not None, fixed)
            for name, code in codes.items()
        )
    )
    for name, code in codes.items():
        set_codes(coded.module, name, code)
    return coded


def fit_in_order(net: Net, result: Net, ctx: PassContext, names: Sequence[str], images: int, fit: Fit) -> None:
    """Fit the layers `names` of `result` to those of `net`, in the order in which they run, and say which cannot be.

    What is fitted is written into `result`, but for weights that it keeps in another form.

    Raises:
        BadInput: there are no calibration images.
    """
    samples = ctx.data.role("calibrate").subset(images, ctx.seed)
    before, now = decoded(net.module), decoded(result.module)
    state, fitted = now.state_dict(), set[str]()
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=ctx.state and ctx.state.parent) as folder:
        walk = Walk(before, now, ctx.input.shape, Path(folder))
        walk.start(torch.from_numpy(batch) for batch, _, _ in samples.batches(ctx.input, 1))
        for number, layer in enumerate(ctx.track(walk.layers, "fitting layers", len(walk.layers))):
            name = layer.weight.removesuffix(".weight")
            if name in names and columns_of(state[layer.weight]) <= WIDEST:
                fit(walk, layer, state, ctx.seed + number)
                fitted.add(name)
    result.module.load_state_dict(state, strict=False)
    for name in [name for name in names if name not in fitted]:
        ctx.log(f"{name}: fitted to its weights alone, {walk.left.get(f'{name}.weight', 'a row of it is too long')}")


def fit_layer(
    walk: Walk,
    layer: Layer,
    state: dict[str, torch.Tensor],
    seed: int,
    coder: Coder,
    kept: np.ndarray | None = None,
) -> tuple[Codes, list[str]]:
    """The codes of a layer, and the name of the bias or norm's mean that took the shift; `state` gets what both say."""
    found: list[Codes] = []

    def solve(target: Target) -> torch.Tensor:
        shape = tuple(state[layer.weight].shape)
        found.append(dataclasses.replace(coder(layer.weight.removesuffix(".weight"), target), shape=shape))
        return found[0].decode()

    shifted = fit_weight(walk, layer, state, seed, solve, kept)
    return found[0], shifted


def fit_weight(
    walk: Walk,
    layer: Layer,
    state: dict[str, torch.Tensor],
    seed: int,
    solve: Callable[[Target], torch.Tensor],
    kept: np.ndarray | None,
) -> list[str]:
    """Give a layer the weight, of any shape, that `solve` finds, and its bias or norm's mean, whose name is returned,
    the shift that is left."""
    weight = state[layer.weight]
    bias, mean = layer.weight.removesuffix("weight") + "bias", str(layer.norm.args[3].param) if layer.norm else None
    shifted = [key for key in (bias, mean) if key in state][:1]
    moments = layer_moments(walk, layer, weight, None, bool(shifted), seed)
    shape = moments.cross.shape
    target = moments.solve(weight.reshape(shape).double(), RIDGE).numpy()
    weight.copy_(solve(Target(target, moments.square.numpy(), moments.scarcity, kept)).reshape(weight.shape))
    shift = moments.shift(weight.reshape(shape).double())
    for key in shifted:
        state[str(key)].copy_(shift if key == bias else state[str(key)] - shift)
    return [str(key) for key in shifted]


def matrix(module: nn.Module, name: str) -> np.ndarray:
    """A layer's weight as (G, O, K), K the inputs of one output value."""
    layer: Any = module.get_submodule(name)
    return as_matrix(layer, layer.weight.detach().cpu().double().numpy())


def as_matrix(layer: nn.Module, weight: np.ndarray) -> np.ndarray:
    """An array of a layer's weight's shape as (G, O, K)."""
    groups = int(getattr(layer, "groups", 1))
    return weight.reshape(groups, len(weight) // groups, -1)


def _kept_matrix(module: nn.Module, name: str) -> np.ndarray | None:
    layer = module.get_submodule(name)
    kept = kept_of(layer)
    return None if kept is None else as_matrix(layer, kept.cpu().numpy())


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
