"""The losses, one file each. Each is a frozen dataclass whose fields are the recipe's; see `edgekit.train.objective`.

Shapes: logits (B, outputs), or (B, outputs, H, W) with a label a pixel.
"""

from edgekit.train.losses.cross_entropy import CrossEntropy
from edgekit.train.losses.function_matching import FunctionMatching
from edgekit.train.losses.kd import KD

LABEL_LOSSES = {"ce": CrossEntropy}
"""Losses that need no teacher."""
TEACHER_LOSSES = {"kd": KD, "function_matching": FunctionMatching}
"""Losses that need one."""
