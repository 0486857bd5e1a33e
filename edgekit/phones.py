"""Files for phones: ONNX Runtime's own format, and how much of a file each of its accelerators there would take.

The format, which a minimal build of ONNX Runtime needs, and the list of operators come from its own converter,
`onnxruntime.tools.convert_onnx_models_to_ort`. What NNAPI and CoreML take is ONNX Runtime's own estimate,
`onnxruntime.tools.mobile_helpers.usability_checker`: by operator and shape, without the conditions on attributes. It
has no list for XNNPACK; the one here is that of ONNX Runtime's documentation of that provider.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.devices.runner import noise
from edgekit.engines import engine
from edgekit.errors import BadInput, ParityError
from edgekit.files import write_bytes
from edgekit.onnx_file import fix_input, read
from edgekit.quant.graph import Graph
from edgekit.verify import compared, comparison

if TYPE_CHECKING:
    import onnx

STATIC = "a static estimate by operators and shapes at batch 1; nothing was run on a phone"
NEEDED_DB = 25.0
"""Kernels of the two files may round differently; where operators were lost or mixed up, answers differ by far more."""
XNNPACK = frozenset("AveragePool Conv ConvTranspose Gemm MatMul MaxPool Resize Softmax".split())
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FUSED = {"Relu": ("Conv", "MaxPool", "AveragePool"), "Clip": ("Conv", "MaxPool", "AveragePool")}
"""Activations that XNNPACK takes together with the operator before them."""
ONNX_RUNTIME_LISTS = {
    "CoreML, ML Program": "coreml_supported_mlprogram_ops.md",
    "CoreML, NeuralNetwork": "coreml_supported_neuralnetwork_ops.md",
}


def to_ort(content: bytes) -> tuple[bytes, bytes]:
    """An ONNX file's content in ORT format, optimised for ARM, and the list of the operators that it needs, for
    `build.sh --include_ops_by_config`.

    Raises:
        BadInput: ONNX Runtime's converter refuses it; its own message is passed on.
        ParityError: the converted file answers differently.
    """
    from onnxruntime.tools import convert_onnx_models_to_ort as converter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        fixed = [converter.OptimizationStyle.Fixed]
        try:
            with _quiet():
                converter.convert_onnx_models_to_ort(path, optimization_styles=fixed, target_platform="arm")
        except Exception as error:  # ONNX Runtime raises classes of its own for each kind of failure
            raise BadInput(f"ONNX Runtime cannot convert it to ORT format: {error}") from None
        made = path.with_suffix(".ort").read_bytes()
        operators = path.with_suffix(".required_operators.config").read_text()
    _check_answers(content, made)
    listed = re.sub(r"^# - .*\n", "", operators, flags=re.MULTILINE)  # the path of a file that is gone
    return made, listed.replace("# Generated from model/s:\n", "").encode()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The converter tells what it does, on stdout and by logging."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _check_answers(content: bytes, made: bytes) -> None:
    plain, converted = (engine("onnxruntime").load(one) for one in (content, made))
    batch = noise(plain, 4)
    row = comparison("the file in ORT format", plain.run(batch), converted.run(batch), NEEDED_DB)
    found, needed, unit = compared(row)
    if found < needed:
        raise ParityError(f"the file in ORT format answers differently: {found:.1f} {unit}, needed {needed:g}")


def accelerators(path: Path) -> dict[str, Any]:
    """How many of a file's nodes each accelerator of phones would take, in how many separate parts, at batch 1.

    Nodes are counted after ONNX Runtime's basic optimisation. Every part costs copies to the accelerator and back.

    Raises:
        BadInput: no file that can be read, or its input has free sizes besides the batch.
    """
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    model = _basic(read(path), path)
    found = {"XNNPACK": checker.check_partitioning(model.graph, _Xnnpack(model), True)}
    found["NNAPI"] = checker.check_nnapi_partitions(model, True)
    for name, listed in ONNX_RUNTIME_LISTS.items():
        found[name] = checker.check_coreml_partitions(model, True, listed)
    rows = [
        {
            "accelerator": name,
            "nodes": info.num_nodes,
            "taken": info.num_supported_nodes,
            "parts": info.num_partitions,
            "left": sorted(kind.removeprefix("ai.onnx:") for kind in info.unsupported_ops),
        }
        for name, info in found.items()
    ]
    return {"what": STATIC, "rows": rows}


def _basic(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model at batch 1 after ONNX Runtime's basic optimisation, with the shapes of its values."""
    import onnx
    from onnxruntime.tools.onnx_model_utils import optimize_model

    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    if len(sizes) != 3 or 0 in sizes:
        raise BadInput(f"{path}: the sizes of its input are not fixed; accelerators of phones need them")
    fixed = fix_input(model, (sizes[0], sizes[1], sizes[2]), str(path), batch=1)
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        write_bytes(before, fixed.SerializeToString())
        try:
            optimize_model(before, after)
        except Exception as error:  # as in `to_ort`
            raise BadInput(f"{path}: ONNX Runtime cannot load it at batch 1: {error}") from None
        return onnx.shape_inference.infer_shapes(onnx.load(after))


class _Xnnpack:
    """Which nodes XNNPACK would take, in the form that ONNX Runtime's checker asks for."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = Graph(model)

    def is_op_supported(self, node: onnx.NodeProto) -> bool:
        before = self.graph.producer.get(node.input[0]) if node.input else None
        if node.op_type == "QuantizeLinear":
            return before is not None and before.op_type in XNNPACK and self.is_op_supported(before)
        if node.op_type == "DequantizeLinear":
            readers = self.graph.readers.get(node.output[0], [])
            return any(reader.op_type in XNNPACK and self.is_op_supported(reader) for reader in readers)
        if node.op_type in FUSED:
            return before is not None and before.op_type in FUSED[node.op_type] and self.is_op_supported(before)
        return node.op_type in XNNPACK and (node.op_type not in WEIGHTED or self._fixed_weight(node))

    def _fixed_weight(self, node: onnx.NodeProto) -> bool:
        """A constant, quantised or not, of four axes for a convolution and two for a product."""
        maker = self.graph.producer.get(node.input[1])
        name = maker.input[0] if maker is not None and maker.op_type == "DequantizeLinear" else node.input[1]
        axes = 4 if node.op_type.startswith("Conv") else 2
        return name in self.graph.constants and self.graph.constants[name].ndim == axes
