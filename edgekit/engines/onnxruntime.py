"""ONNX Runtime on the CPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import BadInput

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Session:
    """A loaded file. `shape` is (C, H, W) of its float32 input, or (H, W, C) of one that takes uint8 pixels (`dtype`);
    `batch` is its fixed batch size, or None where it is free."""

    raw: Any
    name: str
    shape: tuple[int, ...]
    batch: int | None
    dtype: type[np.generic] = np.float32

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The first output for a batch of (B, *shape); a file of fixed batch is run piece by piece."""
        if self.batch is None or len(batch) == self.batch:
            return self.raw.run(None, {self.name: batch})[0]
        if len(batch) % self.batch:
            padding = np.repeat(batch[-1:], self.batch - len(batch) % self.batch, axis=0)
            return self.run(np.concatenate([batch, padding]))[: len(batch)]
        return np.concatenate([self.run(part) for part in np.split(batch, len(batch) // self.batch)])


def load(model: Path | bytes, threads: int = 0, optimise: bool = True, profile: Path | None = None) -> Session:
    """Open a file or a serialised model.

    Args:
        threads: of one inference; 0 leaves the choice to ONNX Runtime.
        optimise: whether ONNX Runtime may rewrite the graph, as it does by default.
        profile: where ONNX Runtime notes the time of every operator (see `operators`), as the start of a file name.

    Raises:
        BadInput: ONNX Runtime cannot load it; its own message is passed on.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    label = "the model" if isinstance(model, bytes) else str(model)
    try:
        raw = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own for each kind of failure
        raise BadInput(f"{label}: ONNX Runtime cannot load it: {error}") from None
    return _session(raw, label)


TYPES: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


def _session(raw: Any, label: str) -> Session:
    inputs = raw.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in TYPES or len(inputs[0].shape) != 4:
        found = ", ".join(f"{item.name}: {item.type} {item.shape}" for item in inputs)
        raise BadInput(
            f"{label}: needs one float input of (batch, channels, height, width), or one of uint8 (batch, height, "
            f"width, channels); found {found}"
        )
    first, *shape = inputs[0].shape
    if not all(isinstance(size, int) for size in shape):
        raise BadInput(f"{label}: its input is {inputs[0].shape}; channels, height and width must be fixed numbers")
    batch = first if isinstance(first, int) else None
    return Session(raw, inputs[0].name, tuple(shape), batch, TYPES[inputs[0].type])


def missing() -> str | None:
    """Why files cannot be run here: never, as it is one of edgekit's own dependencies."""
    return None


@dataclasses.dataclass(frozen=True)
class Operators:
    """The operators that ONNX Runtime ran, in order, e.g. `stem.act_nchwc` and `Conv`; `ms` is (runs, operators)."""

    names: list[str]
    kinds: list[str]
    ms: np.ndarray


def operators(session: Session) -> Operators:
    """What a session that was loaded with `profile` noted since; it notes nothing more afterwards.

    Raises:
        BadInput: not every run had the same operators.
    """
    events = json.loads(Path(session.raw.end_profiling()).read_bytes())
    runs = sum(event["name"] == "model_run" for event in events)
    ending = "_kernel_time"
    noted = [event for event in events if event["cat"] == "Node" and event["name"].endswith(ending)]
    each = len(noted) // max(runs, 1)
    names = [event["name"].removesuffix(ending) for event in noted]
    if not each or names != names[:each] * runs:
        raise BadInput("the operators of this network change from run to run; their times cannot be told apart")
    ms = np.array([event["dur"] for event in noted], np.float64).reshape(runs, each) / 1e3
    return Operators(names[:each], [event["args"]["op_name"] for event in noted[:each]], ms)


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
