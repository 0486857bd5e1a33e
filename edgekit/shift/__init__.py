"""Power-of-two weights that are trained, one paper a file."""

from edgekit.shift.apot import APoT
from edgekit.shift.base import Shift
from edgekit.shift.deepshift import DeepShiftPS, DeepShiftQ
from edgekit.shift.denseshift import DenseShift
from edgekit.shift.s3 import S3

METHODS: dict[str, type[Shift]] = {
    "denseshift": DenseShift,
    "s3": S3,
    "deepshift_q": DeepShiftQ,
    "deepshift_ps": DeepShiftPS,
    "apot": APoT,
}
