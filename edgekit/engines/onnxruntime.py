"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.devices import runner
from edgekit.devices.runner import Operators, Session
from edgekit.errors import BadInput

if TYPE_CHECKING:
    import onnx


def load(model: Path | bytes, threads: int = 0, optimise: bool = True, profile: Path | None = None) -> Session:
    """As the runner's `open_session`.

    Raises:
        BadInput: ONNX Runtime cannot load it; its own message is passed on.
    """
    try:
        return runner.open_session(model, threads, optimise, profile)
    except ValueError as error:
        raise BadInput(str(error)) from None


def missing() -> str | None:
    """Why files cannot be run here: never, as it is one of edgekit's own dependencies."""
    return None


def operators(session: Session) -> Operators:
    """As the runner's `operators`. Raises BadInput where not every run had the same."""
    try:
        return runner.operators(session)
    except ValueError as error:
        raise BadInput(str(error)) from None


def version() -> str:
    import onnxruntime as ort

    return ort.__version__


def optimised(model: Path | bytes) -> onnx.ModelProto:
    """The graph that ONNX Runtime really runs, with its own operators."""
    import tempfile

    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath, load_external_data=False)


def executed_ops(model: Path | bytes) -> dict[str, int]:
    """How often each operator stands in the graph that ONNX Runtime really runs, e.g. QLinearConv."""
    import collections

    return dict(collections.Counter(node.op_type for node in optimised(model).graph.node))


def int8_convs(model: Path | bytes) -> int:
    """How many convolutions run as int8."""
    return executed_ops(model).get("QLinearConv", 0)
