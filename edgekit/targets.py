"""What each target wants of a file. Target = form of the file, engine = the program that runs it."""

import dataclasses

from edgekit.errors import unknown


@dataclasses.dataclass(frozen=True)
class Target:
    """The form of a file.

    Attributes:
        engine: the program that runs it.
        opset, ir_version: what every writer of a file for this target sets.
        reduce_range: int8 weights within ±64, so that AVX2's 16-bit pair sums cannot saturate.
    """

    name: str
    engine: str
    opset: int
    ir_version: int
    reduce_range: bool


TARGETS = {
    "onnxruntime": Target("onnxruntime", "onnxruntime", opset=20, ir_version=10, reduce_range=True),
    "onnxruntime-vnni": Target("onnxruntime-vnni", "onnxruntime", opset=20, ir_version=10, reduce_range=False),
}


def target(name: str) -> Target:
    """Raises BadInput for a target that is not in TARGETS."""
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]
