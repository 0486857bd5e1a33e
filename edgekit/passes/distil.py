"""Train the whole network towards the answers of one or several teachers."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import PlainValidator

from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.schema import chosen
from edgekit.train.loop import fit
from edgekit.train.losses import TEACHER_LOSSES
from edgekit.train.losses.kd import KD
from edgekit.train.objective import Loss
from edgekit.train.settings import Training


@dataclasses.dataclass(frozen=True)
class Distil(Training):
    """Distil.

    Attributes:
        loss: one that takes a teacher, by its name alone or as a table with its settings.
        teachers: MODELs with trained weights, or bundles; none means the network as it was before the first pass.
    """

    loss: Annotated[Loss, PlainValidator(chosen(TEACHER_LOSSES, "kd"))] = dataclasses.field(default_factory=KD)
    teachers: tuple[str, ...] = ()

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput for a teacher that cannot be loaded, or that knows other classes."""
        student = net.clone()
        teachers = [ctx.network(spec) for spec in self.teachers] or [ctx.base.clone().module]
        for teacher in teachers:
            teacher.eval().requires_grad_(False)
        fit(student, self.loss, self, ctx, "distil", teachers)
        return student
