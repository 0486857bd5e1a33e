"""What each target wants of a file. Target = form of the file, engine = the program that runs it."""

import dataclasses

from edgekit.errors import unknown


@dataclasses.dataclass(frozen=True)
class Target:
    """The form of a file.

    Attributes:
        engine: the program that runs it.
        opset, ir_version: what every writer of a file for this target sets.
        stand_in: the engine that scores the file where `engine` cannot run. It computes what the file says, Q/DQ by
            Q/DQ; its times say nothing about the target.
        decodes: the engine decodes coded weights when it loads the file, so that they cost nothing to run; files for
            the others carry plain weights.
        full_range: int8 weights may reach ±127 in kernels that on x86 saturate without VNNI.
    """

    name: str
    engine: str
    opset: int
    ir_version: int
    stand_in: str | None = None
    full_range: bool = False
    decodes: bool = False


TARGETS = {
    "onnxruntime": Target("onnxruntime", "onnxruntime", opset=20, ir_version=10, decodes=True),
    "onnxruntime-vnni": Target(
        "onnxruntime-vnni", "onnxruntime", opset=20, ir_version=10, full_range=True, decodes=True
    ),
    "openvino": Target("openvino", "openvino", opset=20, ir_version=10, stand_in="onnxruntime"),
    # TensorRT 10.3, the one of JetPack 6, reads opsets up to 20.
    "tensorrt": Target("tensorrt", "tensorrt", opset=20, ir_version=10, stand_in="onnxruntime"),
    "tensorrt-rtx": Target("tensorrt-rtx", "tensorrt-rtx", opset=20, ir_version=10, stand_in="onnxruntime"),
}


def target(name: str) -> Target:
    """Raises BadInput for a target that is not in TARGETS."""
    if name not in TARGETS:
        raise unknown("target", name, TARGETS)
    return TARGETS[name]
