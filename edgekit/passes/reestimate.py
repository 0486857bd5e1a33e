"""Re-estimate the statistics of batch norms: a pruned or coded network's first aid.

The running mean and variance of a batch norm belong to the weights before it. After those were changed the statistics
are those of another network; taking them anew from a few batches needs neither labels nor gradients (Li et al.:
EagleEye, 2020, arXiv 2007.02491, section 3.2).
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt
from torch import nn

from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.net import Net


@dataclasses.dataclass(frozen=True)
class Reestimate:
    """Take every batch norm's statistics as the mean over `images` training pictures, not augmented.

    Attributes:
        images: at most so many, drawn by the seed.
        batch: pictures a forward pass; the variance is taken within it.
    """

    images: Annotated[int, Gt(1)] = 2000
    batch: Annotated[int, Gt(1)] = 100

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where the network has no batch norm."""
        result = net.clone()
        norms = [module for module in result.module.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        norms = [norm for norm in norms if norm.track_running_stats]
        if not norms:
            raise BadInput("reestimate: this network has no batch norm (an ONNX file has it folded); remove the pass")
        kept = [norm.momentum for norm in norms]
        result.module.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        samples = ctx.data.role("train")
        # Drawn and mixed: the pictures lie class by class, and a batch of one class has another variance.
        order = np.random.default_rng(ctx.seed).permutation(len(samples))[: self.images]
        batches = samples.batches(ctx.input, self.batch, order.tolist())
        with torch.no_grad():
            for images, _, _ in ctx.track(batches, "reestimate", -(-len(order) // self.batch)):
                if len(images) > 1:  # a rest of one picture has no variance worth its weight
                    result.module(torch.from_numpy(images))
        for norm, momentum in zip(norms, kept):
            norm.momentum = momentum
        result.module.eval()
        return result
