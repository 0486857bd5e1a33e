"""ONNX Runtime on the CPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Session:
    """A loaded file. `shape` is (C, H, W) of its input; `batch` is its fixed batch size, or None where it is free."""

    raw: Any
    name: str
    shape: tuple[int, ...]
    batch: int | None

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The first output for a float32 batch of (B, C, H, W); a file of fixed batch is run piece by piece."""
        if self.batch is None or len(batch) == self.batch:
            return self.raw.run(None, {self.name: batch})[0]
        if len(batch) % self.batch:
            padding = np.repeat(batch[-1:], self.batch - len(batch) % self.batch, axis=0)
            return self.run(np.concatenate([batch, padding]))[: len(batch)]
        return np.concatenate([self.run(part) for part in np.split(batch, len(batch) // self.batch)])


def load(model: Path | bytes, threads: int = 0, optimise: bool = True) -> Session:
    """Open a file or a serialised model.

    Args:
        threads: of one inference; 0 leaves the choice to ONNX Runtime.
        optimise: whether ONNX Runtime may rewrite the graph, as it does by default.

    Raises:
        BadInput: ONNX Runtime cannot load it; its own message is passed on.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    label = "the model" if isinstance(model, bytes) else str(model)
    try:
        raw = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own for each kind of failure
        raise BadInput(f"{label}: ONNX Runtime cannot load it: {error}") from None
    return _session(raw, label)


def _session(raw: Any, label: str) -> Session:
    inputs = raw.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        found = ", ".join(f"{item.name}: {item.type} {item.shape}" for item in inputs)
        raise BadInput(f"{label}: needs one float input of (batch, channels, height, width), found {found}")
    first, *shape = inputs[0].shape
    if not all(isinstance(size, int) for size in shape):
        raise BadInput(f"{label}: its input is {inputs[0].shape}; channels, height and width must be fixed numbers")
    return Session(raw, inputs[0].name, tuple(shape), first if isinstance(first, int) else None)


def missing() -> str | None:
    """Why files cannot be run here: never, as it is one of edgekit's own dependencies."""
    return None


def version() -> str:
    import onnxruntime as ort

    return ort.__version__


def executed_ops(model: Path | bytes) -> dict[str, int]:
    """How often each operator stands in the graph that ONNX Runtime really runs, e.g. QLinearConv."""
    import collections
    import tempfile

    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"])
        optimised = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return dict(collections.Counter(node.op_type for node in optimised.graph.node))


def int8_convs(model: Path | bytes) -> int:
    """How many convolutions run as int8."""
    return executed_ops(model).get("QLinearConv", 0)
