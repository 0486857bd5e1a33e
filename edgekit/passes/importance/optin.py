"""What a channel changes on its way through the network.

After Khaki, Plataniotis: The Need for Speed: Pruning Transformers with One Recipe (OPTIN), ICLR 2024. One batch, no
gradients, no labels. With a channel masked, for every later layer i with outputs F (tokens × channels, unit rows)

    L_MD(i) = || F F^T − F' F'^T ||_F²,    L_KL = T² · KL( softmax(z / T) || softmax(z' / T) )
    score   = Σ_i L_MD(i) + γ · L_KL,      γ = 10^int( log10(Σ L_MD / L_KL) − log10(λ) ),  λ = 10

and, where L_KL is above the manifold term, γ is the mean of those so far. For the last layer L_MD is its own. The
language release also multiplies by a ramp over a unit's index, for which no reason is given: it is left out here.

What differs for convolutions: a channel is masked with all that makes it (weights, norm scale and shift are set to 0),
which is what its removal does; tokens are pixels, at most `tokens` of a batch; the later layers are those that make the
channels of the other groups.

What makes it affordable: a pass for each channel costs as many forward passes as the network has channels. Since
channels leave in blocks, `block` rows that are neighbours in L2 magnitude are masked together and share the score
evenly. `block = 1` is the method as published.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt
from torch import nn
from torch.nn import functional as F

from edgekit.channels import Group
from edgekit.context import PassContext
from edgekit.graph import tensors_in
from edgekit.net import Net
from edgekit.passes.importance.l2 import L2
from edgekit.passes.importance.rows import made_by
from edgekit.removal import layer_side


@dataclasses.dataclass(frozen=True)
class Optin:
    """Manifold distortion of later layers, and divergence of the answer.

    Attributes:
        images: size of the one batch, drawn by the seed from the calibration images.
        tokens: pixels compared at each layer.
        block: rows masked together.
        temperature: T.
        ratio: λ, how much the manifold term outweighs the answer's.
    """

    name: Literal["optin"] = "optin"
    images: Annotated[int, Gt(0)] = 16
    tokens: Annotated[int, Gt(0)] = 128
    block: Annotated[int, Gt(0)] = 8
    temperature: Annotated[float, Gt(0)] = 4.0
    ratio: Annotated[float, Gt(0)] = 10.0

    def scores(self, net: Net, groups: Sequence[Group], ctx: PassContext) -> list[np.ndarray]:
        samples = ctx.data.role("calibrate").subset(self.images, ctx.seed)
        images = torch.from_numpy(next(samples.batches(ctx.input, self.images))[0])
        module = copy.deepcopy(net.module).eval()
        axes = [made_by(module, group) for group in groups]
        makers = [found[0][0].rpartition(".")[0] if found else "" for found in axes]
        view = _View(module, sorted({name for name in makers if name}), self.tokens, ctx.seed)
        order = [np.argsort(scores, kind="stable") for scores in L2().scores(net, groups, ctx)]
        blocks = [np.array_split(rows, math.ceil(len(rows) / self.block)) for rows in order]
        total = [np.zeros(group.size) for group in groups]
        with torch.no_grad(), view:
            base = view(images)
            gammas: list[float] = []
            # Padded channels have no maker: nothing is lost with them.
            work = [(number, rows) for number, parts in enumerate(blocks) if makers[number] for rows in parts]
            for number, rows in ctx.track(work, "optin", len(work)):
                with _masked(module, groups[number], rows):
                    total[number][rows] = self._score(base, view(images), makers[number], gammas) / len(rows)
        return total

    def _score(self, base: _Answer, masked: _Answer, maker: str, gammas: list[float]) -> float:
        names = list(base.manifolds)
        later = names[names.index(maker) + 1 :] or [maker]
        distortion = sum(float((base.manifolds[n] - masked.manifolds[n]).square().sum()) for n in later)
        wanted, found = (answer.logits.double() / self.temperature for answer in (base, masked))
        divergence = self.temperature**2 * float(
            F.kl_div(F.log_softmax(found, 1), F.log_softmax(wanted, 1), reduction="sum", log_target=True)
        )
        divergence = max(divergence, 0.0)  # rounding
        if distortion > divergence > 0:
            gammas.append(10.0 ** int(math.log10(distortion / divergence) - math.log10(self.ratio)))
            gamma = gammas[-1]
        else:
            gamma = float(np.mean(gammas)) if gammas else 1.0
        return distortion + gamma * divergence


@dataclasses.dataclass(frozen=True)
class _Answer:
    """What one forward pass gave: for each layer, in order of execution, F F^T (tokens, tokens), and the logits."""

    manifolds: dict[str, torch.Tensor]
    logits: torch.Tensor


class _View:
    """Runs the module and looks at some layers' outputs; a context manager that takes its hooks away again."""

    def __init__(self, module: nn.Module, layers: Sequence[str], tokens: int, seed: int) -> None:
        self.module, self.layers, self.tokens = module, layers, tokens
        self.seed = seed
        self._found: dict[str, torch.Tensor] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> _View:
        for name in self.layers:
            hook = self.module.get_submodule(name).register_forward_hook(
                lambda _m, _a, output, name=name: self._keep(name, output)
            )
            self._hooks.append(hook)
        return self

    def __exit__(self, *_error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep(self, name: str, output: torch.Tensor) -> None:
        pixels = output.movedim(1, -1) if output.ndim == 4 else output
        pixels = pixels.reshape(-1, pixels.shape[-1])  # (B·H·W, C)
        drawn = np.random.default_rng(self.seed).permutation(len(pixels))[: self.tokens]
        rows = F.normalize(pixels[torch.from_numpy(drawn)].double(), dim=1)
        self._found[name] = rows @ rows.T

    def __call__(self, images: torch.Tensor) -> _Answer:
        self._found = {}
        output = next(tensors_in(self.module(images)))
        return _Answer(self._found, output)


@contextlib.contextmanager
def _masked(module: nn.Module, group: Group, rows: np.ndarray) -> Iterator[None]:
    """With what makes the rows of a group set to 0, and back."""
    parameters = dict(module.named_parameters())
    parts = [
        (parameters[name], dim, torch.from_numpy(indices[rows].ravel()))
        for (name, dim), indices in group.slots.items()
        if name in parameters and layer_side(module, (name, dim))[1] == "out"
    ]
    before = [parameter.index_select(dim, indices) for parameter, dim, indices in parts]
    for parameter, dim, indices in parts:
        parameter.index_fill_(dim, indices, 0.0)
    try:
        yield
    finally:
        for (parameter, dim, indices), weights in zip(parts, before):
            parameter.index_copy_(dim, indices, weights)
