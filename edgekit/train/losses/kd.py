"""Distillation of softened answers.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531, section 2.

    L = (1 − alpha) · CE(student, label) + alpha · T² · KL(softmax(teacher / T) || softmax(student / T))

With several teachers the first argument of KL is the mean of their softened answers.
"""

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch.nn import functional as F

from edgekit.train.objective import Setup, Term, Views, consensus, cross_entropy, divergence


@dataclasses.dataclass(frozen=True)
class KD:
    """Softened answers and labels.

    Attributes:
        temperature: T; softens both answers.
        alpha: weight of the teacher's part, 0 to 1.
    """

    name: Literal["kd"] = "kd"
    temperature: Annotated[float, Gt(0)] = 4.0
    alpha: Annotated[float, Ge(0), Le(1)] = 0.9

    def build(self, setup: Setup) -> Term:
        def term(logits: torch.Tensor, views: Views) -> torch.Tensor:
            target = consensus(setup.teachers, views.images, self.temperature)
            soft = divergence(F.log_softmax(logits / self.temperature, dim=1), target)
            return (1 - self.alpha) * cross_entropy(logits, views) + self.alpha * self.temperature**2 * soft

        return term
