"""Cross-entropy with the labels, or with mixed or smoothed targets."""

import dataclasses
from typing import Literal

from edgekit.train.objective import Setup, Term, cross_entropy


@dataclasses.dataclass(frozen=True)
class CrossEntropy:
    """The labels alone."""

    name: Literal["ce"] = "ce"

    def build(self, setup: Setup) -> Term:  # noqa: ARG002
        return cross_entropy
