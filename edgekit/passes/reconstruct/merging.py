"""Neuron merging: each removed channel is handed over to one that is left.

Kim, Kim, Park, Jeon: Neuron Merging: Compensating for Pruned Neurons, NeurIPS 2020, arXiv 2010.13160. With v and t as
in responses.py, a removed channel j is seen as S times channel i plus B,

    S = ‖v_j‖ / ‖v_i‖,   B = t_j − S t_i,

which for w_j = s w_i with norms is S = s (γ_j / σ_j) (σ_i / γ_i), B = γ_j / σ_j (s (μ_i − σ_i β_i / γ_i) − μ_j) + β_j.
Of the channels that are left the one is chosen that minimises

    λ (1 − cos(v_i, v_j)) + (1 − λ) |B| / S,   the second, for each j, scaled to 0 … 1 over all i,

and W'[:, i] = W[:, i] + S W[:, j]; where its cosine is below the threshold, j is given up. B is left to itself.

The release takes the running variance where the derivation has its root σ, and compares the filters without their
norms' scales, whose signs may differ; both are as derived here.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from edgekit.context import PassContext
from edgekit.errors import BadInput
from edgekit.net import Net
from edgekit.passes.reconstruct.changes import Changes
from edgekit.passes.reconstruct.responses import Responses, compensated

TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class Merging:
    """Each lost channel as a multiple of the most similar one that is left; needs no data.

    Attributes:
        lam: weight of the angle between filters against the shift that remains.
        threshold: a channel is given up where the cosine is below this.
    """

    name: Literal["merging"] = "merging"
    lam: Annotated[float, Ge(0), Le(1)] = 0.85
    threshold: Annotated[float, Ge(-1), Le(1)] = 0.1

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        """Raises BadInput where no channel was removed."""
        changes = Changes(ctx, net)
        if not changes.kept:
            raise BadInput('merging: no channel was removed since; for changed weights write method = "udfc"')
        return compensated(changes, ctx, self.mix)

    def mix(self, given: Responses) -> np.ndarray:
        stay = given.stay
        gone = np.flatnonzero(~stay)
        mix = np.zeros_like(given.cross)
        mix[:, stay] = np.eye(stay.sum())
        norms = np.sqrt(np.maximum(given.gram.diagonal(), TINY))[:, None]  # (P, 1)
        lost = np.sqrt(np.maximum(given.power[gone], TINY))
        cosine = given.cross[:, gone] / (norms * lost)
        scale = lost / norms
        rest = given.shift[None, gone] - scale[..., None] * given.shift[stay][:, None]  # (P, M − P, n)
        cost = self.lam * (1 - cosine) + (1 - self.lam) * _spread(np.linalg.norm(rest, axis=2) / scale)
        chosen = cost.argmin(0)
        each = np.arange(len(gone))
        mix[chosen, gone] = np.where(cosine[chosen, each] < self.threshold, 0.0, scale[chosen, each])
        return mix


def _spread(values: np.ndarray) -> np.ndarray:
    """Each column scaled to 0 … 1; zeros where all of it is equal."""
    low = values.min(0)
    return (values - low) / np.maximum(values.max(0) - low, TINY)
