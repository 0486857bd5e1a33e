"""Reconstruct: make up for what pruning or quantising weights took away, in the layers behind, without training.

One method a file. The reference is the network as it was before (`PassContext.before`); the structure stays as it is.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import PlainValidator

from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.passes.reconstruct.least_squares import LeastSquares
from edgekit.passes.reconstruct.merging import Merging
from edgekit.passes.reconstruct.udfc import UDFC
from edgekit.schema import chosen

METHODS = {"least_squares": LeastSquares, "udfc": UDFC, "merging": Merging}
Method = LeastSquares | UDFC | Merging


@dataclasses.dataclass(frozen=True)
class Reconstruct:
    """Fit the layers that read lost or changed channels to those that are left. Put it right after `prune`.

    Attributes:
        method: how, by its name alone or as a table with its settings: `least_squares` on calibration images, or
            without data `udfc` or `merging`.
    """

    method: Annotated[Method, PlainValidator(chosen(METHODS, "least_squares"))] = dataclasses.field(
        default_factory=LeastSquares
    )

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where nothing was lost or changed, or `least_squares` has no calibration images."""
        return self.method(net, ctx)
