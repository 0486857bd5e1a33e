"""Cut the network and learn what to send: a light encoder and a decoder in the place of its early part.

Matsubara, Yang, Levorato, Mandt: Supervised Compression for Resource-Constrained Edge Computing Systems, 2022, arXiv
2108.11898. The network as it came is the teacher. "two_stage", of the paper:

    1. encoder, prior and decoder, with the tail frozen:   Σ_i ||f_i − g_i||² + beta · bits of a picture
       over the decoder's output and the tail's later stages f_i against the teacher's g_i; no labels;
    2. decoder and tail, with the encoder frozen and the latent rounded:   (1 − α) CE + α T² KL,
       T = 1 and α = ½ in the paper.

"end_to_end" (Singh et al., 2020, arXiv 2007.11797) trains everything on labels in stage 1, CE + beta · bits. The paper
has no second stage (tail.epochs = 0); it makes good what rounding does that the noise in training does not. A
"reduction" has no rate: its size is what its channels are (BottleFit, 2022, arXiv 2201.02693).

Another tail for the same packets is trained by naming the bundle whose encoder is to stay: stage 2 is all there is.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from pydantic import ConfigDict
from torch import nn

from edgekit.bottlenecks import Affine, Bottleneck, FactorisedPrior, Kind, Size, bottleneck_of, inserted
from edgekit.bottlenecks.edit import InsertBottleneck
from edgekit.context import PassContext
from edgekit.cuts import net_cuts
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.net import Net
from edgekit.train.loop import fit
from edgekit.train.losses.cross_entropy import CrossEntropy
from edgekit.train.losses.features import Features
from edgekit.train.losses.kd import KD
from edgekit.train.losses.rate import Rate
from edgekit.train.objective import Loss
from edgekit.train.settings import Share, Training
from edgekit.train.taps import Taps, stages

PRIOR_LR = 10
"""How many times as fast the prior trains: its distributions have to follow the encoder's."""
SEEN = 256
"""Calibration pictures that the ends of 8-bit channels are found on."""


@dataclasses.dataclass(frozen=True)
class Tail(Training):
    """How the second stage trains; of no epochs, it is left out.

    Attributes:
        temperature: T; softens the answers of teacher and student.
        alpha: weight of the teacher's part, 0 to 1; the rest is the labels'.
    """

    epochs: Annotated[int, Ge(0)] = 10
    lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    temperature: Annotated[float, Gt(0)] = 1.0
    alpha: Share = 0.5
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclasses.dataclass(frozen=True)
class Split(Training):
    """Cut the network and train a bottleneck.

    Attributes:
        cut: the module whose output the decoder makes (`edgekit inspect MODEL --cuts` lists them).
        bottleneck: "entropic" (a prior, and beta), or "reduction" (channels of 8 bits).
        channels: of the latent.
        beta: the weight of a bit; of an entropic bottleneck.
        stride: of the latent's grid, against the encoder's input.
        size: of the encoder, "paper" or "mobile"; it may not cost more than what it replaces.
        width: channels of the encoder's last stage; by default twice those of the latent.
        after: the module whose output the encoder takes, where the network's own first layers are to stay before it.
        method: "two_stage" or "end_to_end", which differ in the first stage. The training settings are that one's.
        tail: the training settings of the second stage.
        encoder: a bundle whose encoder and tables are taken as they are; channels, stride, width and size must be its.
    """

    cut: str = ""
    bottleneck: Kind = "entropic"
    channels: Annotated[int, Gt(0)] = 24
    beta: Annotated[float, Gt(0)] | None = None
    stride: Annotated[int, Ge(2)] = 4
    size: Size = "paper"
    width: Annotated[int, Gt(0)] | None = None
    after: str = ""
    method: Literal["two_stage", "end_to_end"] = "two_stage"
    tail: Tail = dataclasses.field(default_factory=Tail)
    encoder: str = ""
    epochs: Annotated[int, Gt(0)] = 10
    optimiser: Literal["sgd", "adamw"] = "adamw"
    lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def __post_init__(self) -> None:
        if not self.cut:
            raise ValueError('name the cut, such as cut = "layer1"; `edgekit inspect MODEL --cuts` lists what there is')
        if self.beta is None and self.bottleneck == "entropic" and not self.encoder:
            raise ValueError("an entropic bottleneck needs beta, the weight of a bit, such as beta = 0.08")
        if self.beta is not None and (self.bottleneck == "reduction" or self.encoder):
            raise ValueError("beta weighs the rate of an entropic bottleneck in training; leave it out here")
        if self.encoder and self.after:
            raise ValueError("encoder takes over one that begins at the picture; leave out after")

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput as `InsertBottleneck`, for a bundle without that encoder, or without calibration pictures."""
        placed = (self.cut, self.bottleneck, self.channels, self.stride, ctx.input.shape)
        student = net.edited(InsertBottleneck(*placed, size=self.size, width=self.width, after=self.after))
        teacher = net.clone().module.eval().requires_grad_(False)
        path, bottleneck = inserted(student.module)
        if self.encoder:
            _take_over(bottleneck, ctx.network(self.encoder), self.encoder)
        elif self.method == "two_stage":
            self._match(student, teacher, path, ctx)
        else:
            fit(student, self._rated(CrossEntropy()), self, ctx, "split")
        if not self.encoder:
            _settle(student.module, path, ctx)
        if self.tail.epochs:
            with _frozen(_head(student.module, path, ctx.input.shape)):
                answers = KD(temperature=self.tail.temperature, alpha=self.tail.alpha)
                fit(student, answers, self.tail, _second(ctx), "split, tail", [teacher])
        return student

    def _match(self, student: Net, teacher: nn.Module, path: str, ctx: PassContext) -> None:
        """Stage 1."""
        names = (path, *_later(teacher, path, ctx.input.shape))
        matched = Features(stages=names, teacher_stages=names, summed=True, ce=0.0)
        rest = [part for name, part in student.module.named_parameters() if not name.startswith(f"{path}.")]
        with _frozen(rest):
            fit(student, self._rated(matched), self, ctx, "split, encoder", [teacher])

    def _rated(self, loss: Loss) -> Loss:
        return loss if self.beta is None else Rate(loss, self.beta, PRIOR_LR * self.lr)


def _take_over(bottleneck: Bottleneck, other: nn.Module, spec: str) -> None:
    """Encoder and latent of another network's bottleneck, with all that belongs to them."""
    found = bottleneck_of(other)
    if found is None:
        raise BadInput(f"encoder = {spec!r}: has no bottleneck; name a bundle that the pass `split` made")
    for own, its in ((bottleneck.encoder, found[1].encoder), (bottleneck.latent, found[1].latent)):
        try:
            own.load_state_dict(its.state_dict())
        except RuntimeError as error:
            raise BadInput(
                f"encoder = {spec!r}: is another encoder than bottleneck, channels, stride, width and size here say "
                f"({str(error).splitlines()[1].strip()})"
            ) from None


def _later(teacher: nn.Module, path: str, shape: tuple[int, int, int]) -> list[str]:
    """The last modules of each resolution behind the cut."""
    ends = net_cuts(trace(teacher, shape)).ends
    return [name for name in stages(teacher, shape) if ends.get(name, -1) > ends[path]]


def _head(module: nn.Module, path: str, shape: tuple[int, int, int]) -> list[nn.Parameter]:
    """Of all that runs before the latent's symbols are made."""
    ends = net_cuts(trace(module, shape)).ends
    names = [name for name, end in ends.items() if end <= ends[f"{path}.latent"]]
    return [parameter for name in names for parameter in module.get_submodule(name).parameters()]


@contextlib.contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Those of them that train do not meanwhile."""
    training = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in training:
        parameter.requires_grad_(False)
    yield
    for parameter in training:
        parameter.requires_grad_(True)


def _settle(module: nn.Module, path: str, ctx: PassContext) -> None:
    """Fix the latent's symbols, by what the prior holds or by what the encoder makes of calibration pictures."""
    latent = module.get_submodule(f"{path}.latent")
    if isinstance(latent, FactorisedPrior):
        latent.update()
        return
    assert isinstance(latent, Affine)
    taps, found = Taps(module.eval(), [f"{path}.encoder"]), []
    with torch.no_grad():
        for batch, _, _ in ctx.data.role("calibrate").subset(SEEN, ctx.seed).batches(ctx.input, 32):
            module(torch.from_numpy(batch))
            (made,) = taps.values.values()
            found.append(made.transpose(0, 1).flatten(1).numpy())  # (C, B · h · w)
    taps.remove()
    latent.update(np.concatenate(found, axis=1))


def _second(ctx: PassContext) -> PassContext:
    """The files of the second training beside those of the first."""
    state, journal = (path and path.with_suffix(f".tail{path.suffix}") for path in (ctx.state, ctx.journal))
    return dataclasses.replace(ctx, state=state, journal=journal)
