"""What is minimised: a student and a term that makes one number of its answers.

A loss is described by a frozen dataclass (its fields are the recipe's); `build(setup)` gives its term, a function
`(logits, views) -> scalar`. A term that learns (a projection, a discriminator) or remembers (class centres, last
epoch's answers) is an nn.Module: its parameters are trained with the student's and its buffers are kept in checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from edgekit.data import IGNORE


@dataclasses.dataclass(frozen=True)
class Views:
    """One batch as the networks see it. B is this process's share of the batch.

    Attributes:
        images: float (B, C, H, W), augmented and mixed.
        labels: the network's outputs that are right, int64 (B,), or (B, H, W) with IGNORE where a pixel has none.
        targets: float (B, outputs), each row a distribution, where pictures were mixed; else None.
        indices: int64 (B,), the pictures' places in the role train.
        epoch: from 0, of `epochs`.
        smoothing: share of each hard target that is spread over all outputs.
    """

    images: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor | None
    indices: torch.Tensor
    epoch: int
    epochs: int
    smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a loss is built from.

    Attributes:
        student: the network in training.
        teachers: in evaluation mode, without gradients; empty where the loss takes none.
        shape: (C, H, W) of one input.
        outputs: how many numbers the networks give a picture (or pixel).
        samples: training pictures.
        plain: every training picture once, in order, not augmented: batches (images, labels).
        closing: where a loss registers what must be undone after training, such as hooks.
    """

    student: nn.Module
    teachers: tuple[nn.Module, ...]
    shape: tuple[int, int, int]
    outputs: int
    samples: int
    plain: Callable[[], Iterator[tuple[torch.Tensor, torch.Tensor]]]
    closing: contextlib.ExitStack


Term = Callable[[torch.Tensor, Views], torch.Tensor]


class Loss(Protocol):
    """A loss as the recipe describes it."""

    @property
    def name(self) -> str: ...

    def build(self, setup: Setup) -> Term: ...


class Objective(nn.Module):
    """views -> mean loss of the batch. One module, so that data parallelism wraps student and term together."""

    def __init__(self, student: nn.Module, term: Term) -> None:
        super().__init__()
        self.student, self.term = student, term

    def forward(self, views: Views) -> torch.Tensor:
        logits = self.student(views.images)
        with torch.autocast(logits.device.type, enabled=False):  # losses and their projections in full precision
            return self.term(logits.float(), views)


def cross_entropy(logits: torch.Tensor, views: Views) -> torch.Tensor:
    """The mean over the batch; of masks, over their labelled pixels: 0 where there is none."""
    if views.labels.ndim == 1:
        return cross_entropy_each(logits, views).mean()
    total = F.cross_entropy(logits, views.labels, ignore_index=IGNORE, reduction="sum", label_smoothing=views.smoothing)
    return total / (views.labels != IGNORE).sum().clamp(min=1)


def cross_entropy_each(logits: torch.Tensor, views: Views) -> torch.Tensor:
    """(B,) of logits (B, outputs): to the mixed targets where there are some, else to the labels."""
    wanted = views.labels if views.targets is None else views.targets  # a label may be 255 here: nothing is ignored
    return F.cross_entropy(logits, wanted, reduction="none", label_smoothing=views.smoothing)


def divergence(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student), the mean over the batch or over all its pixels.

    Args:
        student: log-probabilities (B, outputs, ...).
        teacher: probabilities of that shape.
    """
    answers = student.numel() // student.shape[1]  # B, or B·H·W
    return F.kl_div(student, teacher, reduction="sum") / answers


def consensus(teachers: Sequence[nn.Module], images: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The mean of the teachers' softened probabilities (B, outputs, ...), without gradients."""
    with torch.no_grad():
        answers = [F.softmax(teacher(images).float() / temperature, dim=1) for teacher in teachers]
        return torch.stack(answers).mean(0)
