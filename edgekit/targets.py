"""What each target wants of a file. Target = form of the file, engine = the program that runs it."""

import dataclasses

from edgekit.errors import unknown


@dataclasses.dataclass(frozen=True)
class Target:
    """The form of a file.

    Attributes:
        engine: the program that runs it.
        opset, ir_version: what every writer of a file for this target sets.
    """

    name: str
    engine: str
    opset: int
    ir_version: int


TARGETS = {
    "onnxruntime": Target("onnxruntime", "onnxruntime", opset=20, ir_version=10),
    "onnxruntime-vnni": Target("onnxruntime-vnni", "onnxruntime", opset=20, ir_version=10),
}


def target(name: str) -> Target:
    """Raises BadInput for a target that is not in TARGETS."""
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]
