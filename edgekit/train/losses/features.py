"""Feature matching: the student's maps should equal the teacher's, stage by stage.

Romero et al.: FitNets: Hints for Thin Deep Nets, 2014, arXiv 1412.6550, section 2.2; at several stages as in Matsubara
et al.: Supervised Compression for Resource-Constrained Edge Computing Systems, 2022, arXiv 2108.11898 (Entropic
Student, stage 1). With f_i and g_i the maps of student and teacher at stage i, and r_i a trained 1×1 convolution where
they differ in channels:

    L = ce · CE(student, label) + weight · sum over i of mean of (r_i(f_i) − g_i)²

Where resolutions differ, the larger map is averaged down to the smaller. The means are over batch, channels and pixels;
both papers sum over channels and pixels, as `summed` does, which weighs large maps more and scales the whole.

Published settings: FitNets: one stage in the middle of each network, half the squared distance, no labels (ce = 0),
then a second training with kd. Entropic Student: four stages of weight 1, no labels, Adam lr 1e-3, a tenth after 5 and
8 of 10 epochs, batch 64; then 10 epochs of kd at T 1, alpha 0.5.
"""

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import nn
from torch.nn import functional as F

from edgekit.errors import BadInput
from edgekit.train.losses.common import device_of, one_teacher, own_stages
from edgekit.train.objective import Setup, Term, Views, cross_entropy
from edgekit.train.taps import Taps, forms


@dataclasses.dataclass(frozen=True)
class Features:
    """Labels, and one teacher's feature maps.

    Attributes:
        stages: the student's modules whose outputs are matched.
        teacher_stages: the teacher's, in the same order; if both are empty, the last module of each network at every
            resolution that both have.
        weight: of the maps.
        summed: over channels and pixels, where else their mean is taken.
        ce: weight of the labels.
    """

    name: Literal["features"] = "features"
    stages: tuple[str, ...] = ()
    teacher_stages: tuple[str, ...] = ()
    weight: Annotated[float, Gt(0)] = 1.0
    summed: bool = False
    ce: Annotated[float, Ge(0)] = 1.0

    def build(self, setup: Setup) -> Term:
        return _Term(self, setup).to(device_of(setup))


class _Term(nn.Module):
    """`maps`: what takes each stage of the student to the teacher's number of channels."""

    def __init__(self, loss: Features, setup: Setup) -> None:
        super().__init__()
        self.loss, self.teachers = loss, (one_teacher(setup, loss.name),)  # in a tuple, for it is no part of the term
        self.pairs = _pairs(loss, setup)
        ours, theirs = zip(*self.pairs)
        both = zip(forms(setup.student, ours, setup.shape), forms(self.teachers[0], theirs, setup.shape))
        self.maps = nn.ModuleList(
            nn.Identity() if own == its else nn.Conv2d(own, its, 1) for (own, *_), (its, *_) in both
        )
        self.ours, self.theirs = Taps(setup.student, ours), Taps(self.teachers[0], theirs)
        setup.closing.callback(self.ours.remove)
        setup.closing.callback(self.theirs.remove)

    def forward(self, logits: torch.Tensor, views: Views) -> torch.Tensor:
        with torch.no_grad():
            self.teachers[0](views.images)
        total = self.loss.ce * cross_entropy(logits, views)
        for (own, its), to_teacher in zip(self.pairs, self.maps):
            mapped = to_teacher(self.ours.values[own])
            total = total + self.loss.weight * _distance(mapped.float(), self.theirs.values[its], self.loss.summed)
        return total


def _distance(own: torch.Tensor, its: torch.Tensor, summed: bool) -> torch.Tensor:
    """Mean squared difference of maps (B, C, H, W) and (B, C, H', W'), at the smaller resolution; if `summed`, the mean
    over the batch alone."""
    size = min(own.shape[2], its.shape[2]), min(own.shape[3], its.shape[3])
    own, its = F.adaptive_avg_pool2d(own, size), F.adaptive_avg_pool2d(its.float(), size)
    return F.mse_loss(own, its) * (own[0].numel() if summed else 1)


def _pairs(loss: Features, setup: Setup) -> list[tuple[str, str]]:
    """Names of what is matched, in the student and in the teacher."""
    if len(loss.stages) != len(loss.teacher_stages):
        raise BadInput(
            f"features.stages names {len(loss.stages)} modules and features.teacher_stages {len(loss.teacher_stages)}; "
            "name one of the teacher's for each of the student's, or leave both out"
        )
    if loss.stages:
        return list(zip(loss.stages, loss.teacher_stages))
    ours, theirs = (own_stages(network, setup.shape, loss.name) for network in (setup.student, setup.teachers[0]))
    at = {form[1:]: name for name, form in theirs.items()}
    pairs = [(name, at[form[1:]]) for name, form in ours.items() if form[1:] in at]
    if not pairs:
        raise BadInput(
            "student and teacher have no resolution in common; name what to match in features.stages and "
            f"features.teacher_stages, such as {list(ours)[-1]!r} and {list(theirs)[-1]!r}"
        )
    return pairs
