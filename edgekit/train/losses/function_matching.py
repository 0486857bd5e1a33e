"""Function matching: the teacher as a function to imitate on many mixed views, without labels.

Beyer et al.: Knowledge distillation: A good teacher is patient and consistent, 2022, arXiv 2106.05237, section 3.

    L = KL(softmax(teacher(x)) || softmax(student(x)))

"Consistent": teacher and student see the same crop and the same mixture, which the training loop gives by computing
the teacher's answer on the student's view. "Patient": a long schedule with aggressive mixing; the published setting is
mixup on every picture, crops from 5 % of the area, no weight but this one, and hundreds of epochs.
"""

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch.nn import functional as F

from edgekit.train.objective import Setup, Term, Views, consensus, divergence


@dataclasses.dataclass(frozen=True)
class FunctionMatching:
    """The teacher's answers alone; use it with mixup and many epochs.

    Attributes:
        temperature: T of both answers; 1 in the paper.
    """

    name: Literal["function_matching"] = "function_matching"
    temperature: Annotated[float, Gt(0)] = 1.0

    def build(self, setup: Setup) -> Term:
        def term(logits: torch.Tensor, views: Views) -> torch.Tensor:
            target = consensus(setup.teachers, views.images, self.temperature)
            return divergence(F.log_softmax(logits / self.temperature, dim=1), target)

        return term
