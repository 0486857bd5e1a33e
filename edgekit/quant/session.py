"""Running parts of a float graph in ONNX Runtime: all wanted tensors of a model at once, or one node by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

    from edgekit.quant.graph import Graph


def open_session(model: onnx.ModelProto) -> Any:
    """A session of one thread: results then do not depend on how many cores there are."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """A copy whose outputs are exactly these tensors; their types are left to the runtime."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


class NodeRunner:
    """Runs single nodes of a graph on arrays, as ONNX Runtime computes them."""

    def __init__(self, model: onnx.ModelProto, graph: Graph) -> None:
        self.graph, self.opsets, self.ir_version = graph, list(model.opset_import), model.ir_version

    def open(
        self, node: onnx.NodeProto, dtypes: Mapping[str, np.dtype], changed: dict[str, np.ndarray] | None = None
    ) -> Any:
        """A session of the node.

        Args:
            dtypes: of its computed inputs.
            changed: other values for some of its constants.
        """
        from onnx import helper, numpy_helper

        values = {name: self.graph.constants[name] for name in node.input if name in self.graph.constants}
        values.update(changed or {})
        fed = {name: helper.np_dtype_to_tensor_dtype(dtype) for name, dtype in dtypes.items()}
        inner = helper.make_graph(
            [node],
            "node",
            [helper.make_tensor_value_info(name, kind, None) for name, kind in fed.items()],
            [helper.make_empty_tensor_value_info(name) for name in node.output if name],
            [numpy_helper.from_array(value, name) for name, value in values.items()],
        )
        return open_session(helper.make_model(inner, opset_imports=self.opsets, ir_version=self.ir_version))
