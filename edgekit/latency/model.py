"""From measured layer times to the latency of any width.

One layer's time is fitted over its measured samples by

    t(c_in, c_out) = r · (k0 + k1·c_in + k2·c_out + k3·c_in·c_out),   k ≥ 0

which is what a blocked convolution does: a fixed part, reading its input, writing its output, multiplying. Channel
counts are rounded up to the block that fits all layers best (8 with AVX2, 16 with AVX-512): a last block that is not
full costs a whole one. r is 1, but for a convolution whose c_in is no multiple of 4: ONNX Runtime then takes its plain
kernel, with reorders around it, and r is the median of what that cost where it was measured.

The network is the sum of its layers plus a constant, what the engine spends outside of operators less what noting
their times costs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import BadInput, unknown
from edgekit.graph import LINEAR, Op, Shape

if TYPE_CHECKING:
    from torch import nn

Sample = tuple[int, int, float]
"""(channels in, channels out, milliseconds) of one layer as it was measured."""
BLOCKS = (1, 8, 16)
ALIGNMENT = 4


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """The fitted time of one layer: coefficients k0…k3 in ms and the factor for an unaligned input."""

    coefficients: tuple[float, float, float, float]
    unaligned: float
    block: int

    def __call__(self, c_in: int, c_out: int) -> float:
        """Milliseconds with these channels."""
        k0, k1, k2, k3 = self.coefficients
        x, y = -(-c_in // self.block) * self.block, -(-c_out // self.block) * self.block
        time_ms = k0 + k1 * x + k2 * y + k3 * x * y
        return time_ms * self.unaligned if c_in % ALIGNMENT else time_ms


@dataclasses.dataclass(frozen=True)
class LatencyModel:
    """Latency of a network as a function of its layers' channels.

    Attributes:
        layers: the cost of each layer; `constant_ms` is what no layer decides.
        full: the channels of the network that was measured.
    """

    layers: dict[str, LayerCost]
    constant_ms: float
    full: dict[str, tuple[int, int]]

    @functools.cached_property
    def full_ms(self) -> float:
        return self.predict(self.full)

    def cost(self, layer: str, c_in: int, c_out: int) -> float:
        """Milliseconds of one layer with these channels.

        Raises:
            BadInput: no such layer was measured.
        """
        if layer not in self.layers:
            raise unknown("layer", layer, self.layers, "latency table")
        return self.layers[layer](c_in, c_out)

    def predict(self, channels: Mapping[str, tuple[int, int]]) -> float:
        """Milliseconds of the network whose layers have these (channels in, channels out); one that is gone takes none.

        Raises:
            BadInput: a layer was not measured: this is another network.
        """
        if strange := channels.keys() - self.layers.keys():
            raise BadInput(f"latency table: layer {min(strange)!r} was not measured; the table is of another network")
        return self.constant_ms + sum(self.layers[name](*pair) for name, pair in channels.items())

    def layer_cost(self) -> Callable[[Op, Shape, Shape], float]:
        """Milliseconds of an operation of given shapes of input and output, as `edgekit.costs` asks for them.

        Other operations are in the times of the layers around them. What no layer decides is charged to the first.
        """
        first = next(iter(self.layers))

        def cost(op: Op, before: Shape, after: Shape) -> float:
            if op.layer not in self.layers or not (op.is_conv or op.kind in LINEAR):
                return 0.0
            axis = 1 if op.is_conv else -1
            constant = self.constant_ms if op.layer == first else 0.0
            return self.cost(op.layer, before[axis], after[axis]) + constant

        return cost

    def latency_ms(self, module: nn.Module) -> float:
        """`predict` for a module of the measured network, pruned or not."""
        from edgekit.edits import layer_channels

        return self.predict(layer_channels(module))

    def ratio(self, module: nn.Module) -> float:
        """Latency of the module as a share of the measured network's: what a budget asks for."""
        return self.latency_ms(module) / self.full_ms


def fit(samples: Mapping[str, Sequence[Sample]]) -> dict[str, LayerCost]:
    """The cost of every layer, at the block that leaves the least relative error over all samples."""
    made = [{name: _fit_layer(found, block) for name, found in samples.items()} for block in BLOCKS]
    best = min(made, key=lambda layers: _squares(layers, samples))
    known = [
        best[name].unaligned for name, found in samples.items() if len({x % ALIGNMENT > 0 for x, *_ in found}) == 2
    ]
    typical = float(np.median(known)) if known else 1.0
    return {
        name: dataclasses.replace(cost, unaligned=typical) if math.isnan(cost.unaligned) else cost
        for name, cost in best.items()
    }


def _squares(layers: Mapping[str, LayerCost], samples: Mapping[str, Sequence[Sample]]) -> float:
    """Squared errors of the aligned samples, in shares of a layer's longest time so that each layer counts alike."""
    total = 0.0
    for name, found in samples.items():
        longest = max(ms for *_, ms in found) or 1.0
        total += sum(((layers[name](x, y) - ms) / longest) ** 2 for x, y, ms in found if x % ALIGNMENT == 0)
    return total


def _fit_layer(samples: Sequence[Sample], block: int) -> LayerCost:
    """`unaligned` is NaN where this layer shows nothing about it."""
    ragged = [sample for sample in samples if sample[0] % ALIGNMENT]
    aligned = [sample for sample in samples if sample not in ragged] or ragged  # a picture's three channels stay three
    x, y, ms = np.array(aligned, np.float64).T
    x, y = np.ceil(x / block) * block, np.ceil(y / block) * block
    cost = LayerCost(non_negative(np.stack([np.ones_like(x), x, y, x * y], 1), ms), 1.0, block)
    if aligned == ragged:
        return cost
    ratios = [ms / cost(x, y) for x, y, ms in ragged if cost(x, y)]
    return dataclasses.replace(cost, unaligned=float(np.median(ratios)) if ratios else math.nan)


def non_negative(features: np.ndarray, times: np.ndarray) -> tuple[float, float, float, float]:
    """The k ≥ 0 that fit `times` ≈ features · k best, relative to each time (those under a tenth of the longest weigh
    as that): of every choice of columns the least-squares solution is taken, the best without a negative one wins.

    Args:
        features: (samples, 4); `times`: (samples,)
    """
    weight = 1 / np.maximum(times, max(times.max() / 10, 1e-9))
    scale = features.max(0)
    scaled = features / scale * weight[:, None]
    best, least = np.zeros(4), math.inf
    for size in range(1, 5):
        for chosen in itertools.combinations(range(4), size):
            columns = list(chosen)
            found, *_ = np.linalg.lstsq(scaled[:, columns], times * weight, rcond=None)
            error = float(((scaled[:, columns] @ found - times * weight) ** 2).sum())
            if found.min() >= 0 and error < least - 1e-12:
                best, least = np.zeros(4), error
                best[columns] = found
    k0, k1, k2, k3 = (float(value) for value in best / scale)
    return k0, k1, k2, k3
