"""Every layer fitted anew to what the layers before it give it now.

He, Zhang, Sun: Channel Pruning for Accelerating Very Deep Neural Networks, 2017, arXiv 1707.06168, section 3, and Luo,
Wu, Lin: ThiNet, 2017, arXiv 1707.06342. For a layer y = W x + b let x be a window of its input in the network as it is
now, and y* what the layer put out there in the reference. In the order of execution,

    min over W', b'   Σ ‖ y* − W' x − b' ‖² + λ ‖ W' − W ‖²,
    W' = W + ( Σ (y* − W x) xᵀ ) ( Σ x xᵀ + λ I )⁻¹,   b' = mean(y*) − W' mean(x),

x and y* centred in the sums where there is a b'. The layers before are fitted already: each makes up for what is lost
in its own input and for what they left over (the papers' asymmetric form). The layer is drawn to its weights as they
are, not to 0, so that what the images do not show stays. λ is a share of the mean of diag Σ x xᵀ, raised where there
are few windows for so many weights. Grouped convolutions are fitted group by group, depthwise ones channel by channel.

Where a batch norm alone reads the layer, it is given the reference's parameters and statistics, and takes b' into its
mean if the layer has no bias.

Windows are drawn: so many places of each image, the same in both networks, that there are 8 for each weight of a row.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Gt

from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.passes.reconstruct.changes import Changes
from edgekit.passes.reconstruct.walk import Layer, Walk
from edgekit.passes.reconstruct.windows import WIDEST, columns_of, layer_moments


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """Least squares of each layer's output on calibration images; no labels needed.

    Attributes:
        images: at most so many, drawn by the seed.
        ridge: λ, as a share of the mean square of the layer's input.
    """

    name: Literal["least_squares"] = "least_squares"
    images: Annotated[int, Gt(0)] = 200
    ridge: Annotated[float, Gt(0)] = 0.001

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where there are no calibration images."""
        changes = Changes(ctx, net)
        samples = ctx.data.role("calibrate").subset(self.images, ctx.seed)
        result = net.clone()
        with torch.no_grad(), tempfile.TemporaryDirectory(dir=ctx.state and ctx.state.parent) as folder:
            walk = Walk(changes.before.module, result.module, ctx.input.shape, Path(folder))
            for weight, reason in walk.left.items():
                ctx.log(f"reconstruct: {weight} is left as it is, {reason}")
            walk.start(torch.from_numpy(batch) for batch, _, _ in samples.batches(ctx.input, 1))
            state = result.module.state_dict()
            for number, layer in enumerate(ctx.track(walk.layers, "reconstruct", len(walk.layers))):
                if columns_of(state[layer.weight]) > WIDEST:
                    ctx.log(f"reconstruct: {layer.weight} is left as it is, a row has more than {WIDEST} weights")
                    continue
                self._fit(walk, layer, changes, state, ctx.seed + number)
        return result

    def _fit(self, walk: Walk, layer: Layer, changes: Changes, state: dict[str, torch.Tensor], seed: int) -> None:
        weight, bias = state[layer.weight], state.get(layer.weight.removesuffix("weight") + "bias")
        intercept = bias is not None or layer.norm is not None
        moments = layer_moments(walk, layer, weight, changes.rows((layer.weight, 0)), intercept, seed)
        fitted = moments.solve(weight.reshape(*moments.cross.shape).double(), self.ridge)
        weight.copy_(fitted.reshape(weight.shape))
        for value in layer.norm.params if layer.norm else ():
            state[str(value.param)].copy_(changes.left(str(value.param)))
        if bias is not None:
            bias.copy_(moments.shift(fitted))
        elif layer.norm is not None:
            state[str(layer.norm.args[3].param)].sub_(moments.shift(fitted))
