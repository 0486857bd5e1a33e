"""A layer's weight as the weights of a chain (see `factorise`), and how much of it each rank holds.

channel, spatial, tucker2, tt: one algorithm, the tensor train's (Oseledets, 2011). With T (I, kh, kw, O) unfolded at a
cut into a matrix of singular values σ,

    ‖ T − T̂ ‖² ≤ Σ over the cuts Σ_{i > r} σ_i²,

an equality where there is one cut (Eckart, Young, 1936). From left to right, what is left of T is unfolded at the next
cut and cut to its first r singular vectors.

cp: alternating least squares over the four factors, from a fixed draw; the best rank has no closed form.

channel, weighted: with C the second moment of a layer's windows x, ‖ (W − Ŵ) C^½ ‖² = E ‖ W x − Ŵ x ‖² is least for

    Ŵ = U Uᵀ W,   U the first r eigenvectors of W C Wᵀ = E[(W x) (W x)ᵀ],

the outputs' own second moment, so that C itself is never held. Where the layer has a bias, moments are about the mean
and the bias takes (W − Ŵ) E[x] (Zhang, Zou, He, Sun, 2015, arXiv 1505.06798, section 3.1).

Where two layers of a chain meet, each channel's weights get the same norm in both, which for one cut is √σ on each side
(spectral initialisation: Khodak, Tenenholtz, Mackey, Fusi, 2021, arXiv 2105.01029).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from edgekit.factorise import FORMS, Form

SWEEPS = 30
RIDGE = 1e-12


def spectra(weight: torch.Tensor, form: Form) -> list[torch.Tensor]:
    """σ² of the unfolding at each cut of a form, descending; each sums to ‖W‖². Not for "cp", which has none.

    Args:
        weight: (O, I, kh, kw), or (O, I) of a linear layer.
    """
    tensor, sizes = _tensor(weight)
    rows, found = 1, []
    for axes in FORMS[form][:-1]:
        rows *= math.prod(sizes[axis] for axis in axes)
        found.append(torch.linalg.svdvals(tensor.reshape(rows, -1)).square())
    return found


def factors(weight: torch.Tensor, form: Form, ranks: Sequence[int]) -> list[torch.Tensor]:
    """The weights of the chain's layers, each float64 (out, in / groups, kh, kw)."""
    if form == "cp":
        return _balanced(_canonical(weight, ranks[0]))
    rest, sizes = _tensor(weight)
    cores, before = [], 1
    for axes, rank in zip(FORMS[form], ranks):
        lengths = {axis: sizes[axis] for axis in axes}
        unfolded = rest.reshape(before * math.prod(lengths.values()), -1)
        left = _left_singular(unfolded)[:, :rank]
        cores.append(_kernel(left, lengths, before))
        rest, before = left.T @ unfolded, rank
    last = FORMS[form][-1]
    return _balanced([*cores, _kernel(rest, {axis: sizes[axis] for axis in last}, before)])


def projected(weight: torch.Tensor, basis: torch.Tensor) -> list[torch.Tensor]:
    """The weights of the form "channel" whose outputs are W's, projected on the columns of `basis` (O, r)."""
    tensor = weight.detach().double().cpu()
    return _balanced([torch.tensordot(basis.T, _as_conv(tensor), 1), basis[:, :, None, None]])


def merged(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The weight (O, I, kh, kw) of the one convolution that a chain of layers computes."""
    whole = weights[0]
    for part in weights[1:]:
        if part.shape[1] == whole.shape[0]:
            spread = torch.einsum("orab,rihw->oihawb", part, whole)
        else:
            spread = torch.einsum("rab,rihw->rihawb", part[:, 0], whole)
        outputs, inputs, h, a, w, b = spread.shape
        whole = spread.reshape(outputs, inputs, h * a, w * b)  # of each pair of sizes, one is 1
    return whole


def lost(weight: torch.Tensor, weights: Sequence[torch.Tensor]) -> float:
    """‖ W − Ŵ ‖² / ‖ W ‖² of a chain."""
    wanted = _as_conv(weight.detach().double().cpu())
    return float((wanted - merged(weights)).square().sum()) / (float(wanted.square().sum()) or 1.0)


def _left_singular(matrix: torch.Tensor) -> torch.Tensor:
    """Left singular vectors, the largest first: several times faster by eigenvectors than by `torch.linalg.svd`, and
    orthonormal all the same."""
    if matrix.shape[0] > matrix.shape[1]:
        frame, matrix = torch.linalg.qr(matrix)
        return frame @ _left_singular(matrix)
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors.flip(1)


def _as_conv(weight: torch.Tensor) -> torch.Tensor:
    return weight[:, :, None, None] if weight.ndim == 2 else weight


def _tensor(weight: torch.Tensor) -> tuple[torch.Tensor, dict[str, int]]:
    """T (I, kh, kw, O) in float64, and its lengths."""
    tensor = _as_conv(weight.detach().double().cpu()).permute(1, 2, 3, 0)
    return tensor, dict(zip("ihwo", tensor.shape))


def _kernel(core: torch.Tensor, lengths: dict[str, int], before: int) -> torch.Tensor:
    """A core, its axes in the order (rank before, i, h, w, o, rank after), as a convolution's weight."""
    inputs = before * lengths.get("i", 1)
    return core.reshape(inputs, lengths.get("h", 1), lengths.get("w", 1), -1).permute(3, 0, 1, 2)


def _canonical(weight: torch.Tensor, rank: int) -> list[torch.Tensor]:
    """Alternating least squares: T (I, kh, kw, O) ≈ Σ_r a_r ∘ b_r ∘ c_r ∘ d_r."""
    tensor, sizes = _tensor(weight)
    generator = torch.Generator().manual_seed(0)
    modes = [torch.randn(size, rank, generator=generator, dtype=torch.float64) for size in sizes.values()]
    for _ in range(SWEEPS):
        for place in range(len(modes)):
            others = [mode for other, mode in enumerate(modes) if other != place]
            product = tensor.movedim(place, 0).flatten(1) @ functools.reduce(_khatri_rao, others)
            gram = functools.reduce(torch.mul, (mode.T @ mode for mode in others))
            damp = RIDGE * gram.diagonal().mean() * torch.eye(rank, dtype=torch.float64)
            modes[place] = torch.linalg.solve(gram + damp, product.T).T
    first, rows, columns, last = modes
    return [first.T[:, :, None, None], rows.T[:, None, :, None], columns.T[:, None, None, :], last[:, :, None, None]]


def _khatri_rao(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Column by column the outer product of (m, r) and (n, r): (m · n, r)."""
    return (left[:, None] * right).flatten(0, 1)


def _balanced(weights: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same chain, the norms of each channel's weights equal where two layers meet."""
    for place in range(len(weights) - 1):
        left, right = weights[place : place + 2]
        axis = 0 if right.shape[1] == 1 and left.shape[0] == right.shape[0] else 1
        made, read = left.flatten(1).norm(dim=1), right.transpose(0, axis).flatten(1).norm(dim=1)
        scale = torch.where((made > 0) & (read > 0), (read / made).sqrt(), 1.0)
        weights[place] = left * scale[:, None, None, None]
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        weights[place + 1] = right / scale.reshape(shape)
    return weights
