"""Fine-tune on the labels with cross-entropy."""

import dataclasses

import torch

from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.train.loop import Schedule, fit
from edgekit.train.losses import cross_entropy


@dataclasses.dataclass(frozen=True)
class Finetune(Schedule):
    """Train the whole network on the labels."""

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        tuned = net.clone()

        def loss(logits: torch.Tensor, labels: torch.Tensor, _images: torch.Tensor) -> torch.Tensor:
            return cross_entropy(logits, labels)

        fit(tuned.module, loss, self, ctx, "finetune")
        return tuned
