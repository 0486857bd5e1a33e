"""The losses, one file each. Each is a frozen dataclass whose fields are the recipe's; see `edgekit.train.objective`.

Shapes: logits (B, outputs), or (B, outputs, H, W) with a label a pixel.
"""

from edgekit.train.losses.bias import Bias
from edgekit.train.losses.cross_entropy import CrossEntropy
from edgekit.train.losses.features import Features
from edgekit.train.losses.function_matching import FunctionMatching
from edgekit.train.losses.kd import KD
from edgekit.train.losses.meal_v2 import MealV2
from edgekit.train.losses.nd import ND
from edgekit.train.losses.ofa import OFA
from edgekit.train.losses.ps_kd import PSKD

LABEL_LOSSES = {"ce": CrossEntropy, "bias": Bias, "ps_kd": PSKD}
"""Losses that need no teacher."""
TEACHER_LOSSES = {
    "kd": KD,
    "function_matching": FunctionMatching,
    "nd": ND,
    "ofa": OFA,
    "meal_v2": MealV2,
    "features": Features,
}
"""Losses that need one."""
