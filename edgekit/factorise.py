"""Layers as chains of smaller ones: the forms there are, and the edit that puts a chain in a layer's place.

A convolution's weight is a tensor T (I, kh, kw, O), a linear layer's the same with a 1×1 kernel. A form cuts this row
of axes, and a rank runs over each cut:

    channel   i h w | o        T = Σ_r A[i,h,w,r] B[r,o]                   kh×kw to r channels, 1×1
    spatial   i h | w o        T = Σ_r A[i,h,r] B[r,w,o]                   kh×1, 1×kw
    tucker2   i | h w | o      T = Σ_rs A[i,r] G[r,h,w,s] B[s,o]           1×1, kh×kw, 1×1
    tt        i | h | w | o    T = Σ_rst A[i,r] G[r,h,s] H[s,w,t] B[t,o]   1×1, kh×1, 1×kw, 1×1
    cp        i | h | w | o    T = Σ_r A[i,r] G[r,h] H[r,w] B[r,o]         1×1, depthwise kh×1, depthwise 1×kw, 1×1

channel: Zhang, Zou, He, Sun, 2015, arXiv 1505.06798. spatial: Jaderberg, Vedaldi, Zisserman, 2014, arXiv 1405.3866.
tucker2: Kim, Park, Yoo, Choi, Yang, Shin, 2015, arXiv 1511.06530. cp: Lebedev, Ganin, Rakhuba, Oseledets, Lempitsky,
2014, arXiv 1412.6553. tt: Oseledets, Tensor-Train Decomposition, SIAM J. Sci. Comput. 33(5), 2011, over these four
axes as they are: channels are not folded into further axes, which no engine's convolution could run.

Stride, padding and dilation along an axis go with the convolution that holds the axis. None but the last has a bias, so
that padding by zeros stays padding by zeros.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal

from torch import nn
from torch.nn.utils import parametrize

from edgekit.errors import BadInput

Form = Literal["channel", "spatial", "tucker2", "cp", "tt"]
FORMS: dict[Form, tuple[str, ...]] = {
    "channel": ("ihw", "o"),
    "spatial": ("ih", "wo"),
    "tucker2": ("i", "hw", "o"),
    "cp": ("i", "h", "w", "o"),
    "tt": ("i", "h", "w", "o"),
}
"""The axes of each layer of the chain."""


@dataclasses.dataclass(frozen=True)
class Factorise:
    """Replace a convolution or linear layer by an `nn.Sequential` in this form: its layers are `<layer>.0`, `.1`, …

    `ranks` has one number for each cut, "cp" one for all. The chain has fresh weights; `passes.lowrank` sets them.
    """

    layer: str
    form: Form
    ranks: tuple[int, ...]

    def apply(self, module: nn.Module) -> None:
        try:
            layer = module.get_submodule(self.layer)
        except AttributeError:
            raise BadInput(f"factorise: the network has no layer {self.layer!r}") from None
        if reason := unsuited(module, self.layer):
            raise BadInput(f"factorise: {self.layer or 'the network itself'} {reason}")
        parent, _, name = self.layer.rpartition(".")
        setattr(module.get_submodule(parent), name, chain(layer, self.form, self.ranks, self.layer))


def unsuited(module: nn.Module, name: str) -> str | None:
    """Why a layer cannot be replaced by a chain; None where it can."""
    layer = module.get_submodule(name)
    if not name or not isinstance(layer, (nn.Conv2d, nn.Linear)):
        return "is no convolution or linear layer"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return "is a grouped convolution"
    if parametrize.is_parametrized(layer, "weight"):
        return "keeps its weight as codes; factorise first"
    if type(layer).forward not in (nn.Conv2d.forward, nn.Linear.forward):
        return f"is of class {type(layer).__name__}, which runs code of its own"
    for other, parameter in module.named_parameters(remove_duplicate=False):
        if parameter is layer.weight and other != f"{name}.weight":
            return f"shares its weight with {other.rpartition('.')[0]}"
    return None


def axis_sizes(layer: nn.Conv2d | nn.Linear) -> dict[str, int]:
    """The lengths of the axes i, h, w, o of a layer's weight."""
    outputs, inputs, *kernel = layer.weight.shape
    height, width = kernel or (1, 1)
    return {"i": inputs, "h": height, "w": width, "o": outputs}


def full_ranks(layer: nn.Conv2d | nn.Linear, form: Form) -> tuple[int, ...]:
    """The ranks at which the form holds any weight."""
    sizes = axis_sizes(layer)
    if form == "cp":
        return (math.prod(sizes.values()) // max(sizes.values()),)
    lengths = [math.prod(sizes[axis] for axis in axes) for axes in FORMS[form]]
    cuts = range(1, len(lengths))
    return tuple(min(math.prod(lengths[:cut]), math.prod(lengths[cut:])) for cut in cuts)


def widths(layer: nn.Conv2d | nn.Linear, form: Form, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """The channels that go in, those between the layers of the chain, and those that come out."""
    sizes = axis_sizes(layer)
    return (sizes["i"], *(ranks * 3 if form == "cp" else ranks), sizes["o"])


def chain(layer: nn.Module, form: Form, ranks: tuple[int, ...], name: str = "layer") -> nn.Sequential:
    """The layers of a form, with fresh weights of the layer's type and device.

    Raises:
        BadInput: a rank is below 1 or above full, there are too few or too many, or a linear layer is to have another
            form than its SVD.
    """
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    if isinstance(layer, nn.Linear) and form != "channel":
        raise BadInput(f'factorise: {name} is a linear layer, a matrix, whose one form is its SVD; write "channel"')
    _check_ranks(layer, form, ranks, name)
    pairs, last = list(itertools.pairwise(widths(layer, form, ranks))), len(FORMS[form]) - 1
    parts = [
        _part(layer, axes, *pair, depthwise=form == "cp" and 0 < place < last, last=place == last)
        for place, (axes, pair) in enumerate(zip(FORMS[form], pairs))
    ]
    return nn.Sequential(*parts).train(layer.training)


def possible(layer: nn.Conv2d | nn.Linear, form: Form, ranks: Sequence[int]) -> bool:
    """Whether a rank is no larger than full, nor than what the chain up to it can use."""
    sizes, full = axis_sizes(layer), full_ranks(layer, form)
    used = [before * math.prod(sizes[axis] for axis in axes) for axes, before in zip(FORMS[form][1:], ranks)]
    return len(ranks) == len(full) and all(
        1 <= rank <= most and rank <= useful for rank, most, useful in zip(ranks, full, (full[0], *used))
    )


def _check_ranks(layer: nn.Conv2d | nn.Linear, form: Form, ranks: Sequence[int], name: str) -> None:
    if not possible(layer, form, ranks):
        full = full_ranks(layer, form)
        asked = ", ".join(map(str, ranks)) or "none"
        raise BadInput(
            f"factorise: {name} in the form {form!r} takes {len(full)} rank(s) of at least 1 and at most "
            f"{', '.join(map(str, full))}, each no larger than those before it can feed; not {asked}"
        )


def _part(
    layer: nn.Conv2d | nn.Linear, axes: str, inputs: int, outputs: int, *, depthwise: bool, last: bool
) -> nn.Conv2d | nn.Linear:
    """One layer of a chain: the original along the `axes` it holds, 1×1 along the others."""
    bias, device, dtype = last and layer.bias is not None, layer.weight.device, layer.weight.dtype
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias, device, dtype)

    def along(values: tuple[int, ...], neutral: int) -> tuple[int, int]:
        return values[0] if "h" in axes else neutral, values[1] if "w" in axes else neutral

    padding = layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0)
    return nn.Conv2d(
        inputs, outputs, along(layer.kernel_size, 1), along(layer.stride, 1), padding, along(layer.dilation, 1),
        inputs if depthwise else 1, bias, layer.padding_mode, device, dtype,
    )  # fmt: skip
