"""First-order Taylor expansion of the loss.

Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network Pruning, 2019, arXiv 1906.10771,
eq. 8, with a group's tied slices as one unit, and magnitudes in place of squares:

    score_i = mean over batches of | Σ over tied parameters w of w_i · ∂L/∂w_i |

L is the cross-entropy on labelled pictures, so scores are in its unit and compare between groups as they are.
"""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt

from edgekit.channels import Group
from edgekit.context import PassContext
from edgekit.data import check_task
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.passes.importance.rows import row_sums
from edgekit.train.objective import Views, cross_entropy


@dataclasses.dataclass(frozen=True)
class Taylor:
    """The change of the loss that the removal of a channel would make, to first order.

    Attributes:
        batches: how many, of `batch` pictures each, drawn by the seed, not augmented.
        role: where the labelled pictures come from.
    """

    name: Literal["taylor"] = "taylor"
    batches: Annotated[int, Gt(0)] = 4
    batch: Annotated[int, Gt(0)] = 32
    role: Literal["train", "calibrate"] = "train"

    def scores(self, net: Net, groups: Sequence[Group], ctx: PassContext) -> list[np.ndarray]:
        """Raises BadInput where there are no labels, or the loss is not finite."""
        module = copy.deepcopy(net.module).eval().requires_grad_(True)
        parameters = dict(module.named_parameters())
        total = [np.zeros(group.size) for group in groups]
        count = 0
        for views in ctx.track(self._views(ctx), "taylor", self.batches):
            with torch.enable_grad():
                loss = cross_entropy(module(views.images).float(), views)
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            if not torch.isfinite(loss):
                raise BadInput("taylor: the loss of this network is not finite; it needs trained weights")
            changes = {n: p * g for (n, p), g in zip(parameters.items(), gradients) if g is not None}
            total = [sums + abs(row_sums(group, changes)) for sums, group in zip(total, groups)]
            count += 1
        return [sums / count for sums in total]

    def _views(self, ctx: PassContext) -> Iterator[Views]:
        samples = ctx.data.role(self.role)
        if samples.task == "detect":
            raise BadInput('taylor: has no loss for detection; write importance = "l2"')
        check_task(samples, ctx.output.task)
        order = np.random.default_rng(ctx.seed).permutation(len(samples))[: self.batches * self.batch].tolist()
        for images, truths, indices in samples.batches(ctx.input, self.batch, order):
            labels = torch.from_numpy(ctx.output.channels(truths))
            yield Views(torch.from_numpy(images), labels, None, torch.tensor(indices), epoch=0, epochs=1)
