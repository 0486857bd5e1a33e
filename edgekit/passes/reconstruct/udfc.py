"""Making up for lost channels in closed form, after UDFC.

Bai, Chen, Shen, Qian, Liu: Unified Data-Free Compression: Pruning and Quantization without Fine-Tuning, 2023,
arXiv 2308.07209. Its assumption: what a damaged channel said is said by a linear combination of the others. The paper's
own equations were not at hand; this is what follows from the assumption, and is named for what it is.

A removed channel j becomes the sum of the channels i that are left (responses.py says what v and t are) that minimises

    ‖ v_j − Σ_i s_i v_i ‖² + α₁ ( t_j − Σ_i s_i t_i )² + α₂ Σ_i s_i² ‖v_i‖²

    s = ( V Vᵀ + α₁ t tᵀ + α₂ diag(V Vᵀ) )⁻¹ ( V v_j + α₁ t_j t ),

V the filters that are left, as rows. A channel that is left with another filter v^q, as quantising leaves it, is scaled
by the same with one term:

    s = ( ⟨v^q, v⟩ + α₁ t² ) / ( (1 + α₂) ‖v^q‖² + α₁ t² ).

The paper's α₂ weighs ‖s‖² alone, which fits filters of about unit norm; weighed by ‖v_i‖² as here, s does not depend on
the unit in which a channel is counted. α₁ and α₂ default to the paper's values.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt

from edgekit.context import PassContext
from edgekit.net import Net
from edgekit.passes.reconstruct.changes import Changes
from edgekit.passes.reconstruct.responses import Responses, compensated

TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class UDFC:
    """Each lost or changed channel as the best sum of those that are left; needs no data.

    Attributes:
        alpha1: weight of the shifts beside the filters.
        alpha2: ridge, as a share of each filter's squared norm.
    """

    name: Literal["udfc"] = "udfc"
    alpha1: Annotated[float, Ge(0)] = 0.01
    alpha2: Annotated[float, Gt(0)] = 0.008

    def __call__(self, net: Net, ctx: PassContext) -> Net:
        return compensated(Changes(ctx, net), ctx, self.mix)

    def mix(self, given: Responses) -> np.ndarray:
        stay = given.stay
        gone = ~stay & (given.power > 0)  # without a filter a channel is constant, and no sum of others
        left = given.shift[stay]
        wanted = given.cross + self.alpha1 * left @ given.shift.T  # (P, M)
        square = given.gram + self.alpha1 * left @ left.T
        ridge = self.alpha2 * np.diag(given.gram) + TINY
        mix = np.zeros_like(given.cross)
        mix[:, gone] = np.linalg.solve(square + np.diag(ridge), wanted[:, gone])
        own = wanted[:, stay].diagonal() / (square.diagonal() + ridge)
        same = np.isclose(given.gram.diagonal(), given.cross[:, stay].diagonal(), rtol=1e-9, atol=0)
        mix[:, stay] = np.diag(np.where(same, 1.0, own))
        return mix
