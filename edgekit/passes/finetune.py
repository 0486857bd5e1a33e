"""Train the whole network on the labels."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import PlainValidator

from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.schema import chosen
from edgekit.train.loop import fit
from edgekit.train.losses import LABEL_LOSSES
from edgekit.train.losses.cross_entropy import CrossEntropy
from edgekit.train.objective import Loss
from edgekit.train.settings import Training


@dataclasses.dataclass(frozen=True)
class Finetune(Training):
    """Train on the labels.

    Attributes:
        loss: one that needs no teacher, by its name alone or as a table with its settings.
    """

    loss: Annotated[Loss, PlainValidator(chosen(LABEL_LOSSES, "ce"))] = dataclasses.field(default_factory=CrossEntropy)

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        tuned = net.clone()
        fit(tuned, self.loss, self, ctx, "finetune")
        return tuned
