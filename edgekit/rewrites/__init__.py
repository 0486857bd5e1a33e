"""ONNX -> ONNX, applied in a recipe's order. A rewrite is a frozen dataclass `(model, ctx) -> model` that leaves its
input alone; `precision` names the precision it brings the file to (None where it keeps it)."""

from edgekit.rewrites.fold import Fold
from edgekit.rewrites.fp16 import Fp16
from edgekit.rewrites.int8 import Int8
from edgekit.rewrites.qat import QAT
from edgekit.rewrites.split import Split

REWRITES = {"fold": Fold, "fp16": Fp16, "int8": Int8, "qat": QAT, "split": Split}
