"""OpenVINO on the CPU, an extra: on x86 it often runs an int8 file faster than ONNX Runtime does.

It reads ONNX and fuses Q/DQ itself. Precisions are kept as the file has them: on processors with bfloat16 it would
otherwise choose that, and answer less exactly than measured elsewhere.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import BadInput
from edgekit.onnx_file import read

INT8 = ("u8", "i8")


@dataclasses.dataclass(frozen=True)
class Session:
    """A loaded file, as ONNX Runtime's `Session`; `again` loads it anew, since a compiled model runs one at a time."""

    request: Any
    shape: tuple[int, ...]
    batch: int | None
    again: Callable[[], Session]
    dtype: type[np.generic] = np.float32

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The first output for a batch of (B, *shape); a file of fixed batch is run piece by piece."""
        size = self.batch or len(batch)
        parts = []
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            padding = np.repeat(part[-1:], size - len(part), axis=0)
            filled = np.ascontiguousarray(np.concatenate([part, padding]) if len(padding) else part)
            parts.append(np.array(self.request.infer({0: filled})[0])[: len(part)])
        return np.concatenate(parts)

    def fork(self) -> Session:
        """A session for another thread to run at the same time."""
        return self.again()


def load(model: Path | bytes, threads: int = 0, optimise: bool = True) -> Session:  # noqa: ARG001
    """Open a file or a serialised model.

    Args:
        threads: of one inference; 0 leaves the choice to OpenVINO.
        optimise: for other engines; OpenVINO always rewrites the graph.

    Raises:
        BadInput: OpenVINO is not installed or cannot load it; its own message is passed on.
    """
    compiled, label = _compiled(model, threads), _label(model)
    first, *shape = compiled.input(0).get_partial_shape()
    if len(compiled.inputs) != 1 or len(shape) != 3 or any(size.is_dynamic for size in shape):
        raise BadInput(
            f"{label}: needs one input of (batch, channels, height, width), all but the batch fixed; found "
            f"{', '.join(str(item.get_partial_shape()) for item in compiled.inputs)}"
        )
    sizes = tuple(size.get_length() for size in shape)
    batch = None if first.is_dynamic else first.get_length()
    kind = compiled.input(0).get_element_type().to_dtype().type
    return Session(compiled.create_infer_request(), sizes, batch, functools.partial(load, model, threads), kind)


def missing() -> str | None:
    """Why files cannot be run here; None where they can."""
    if importlib.util.find_spec("openvino") is None:
        return "openvino is not installed; pip install 'edgekit[openvino]'"
    return None


def version() -> str:
    from importlib.metadata import version as installed

    return installed("openvino")


def executed_ops(model: Path | bytes) -> dict[str, int]:
    """How often each kind of layer stands in the graph that OpenVINO really runs, e.g. `Convolution u8`."""
    layers = _compiled(model, 1).get_runtime_model().get_ops()
    found = (layer.get_rt_info() for layer in layers)
    kinds = (f"{_text(info['layerType'])} {_text(info['runtimePrecision'])}" for info in found)
    return dict(collections.Counter(kinds))


def int8_convs(model: Path | bytes) -> int:
    """How many convolutions run as int8."""
    ops = executed_ops(model)
    return sum(ops.get(f"Convolution {precision}", 0) for precision in INT8)


def _compiled(model: Path | bytes, threads: int) -> Any:
    if reason := missing():
        raise BadInput(reason)
    content = model if isinstance(model, bytes) else read(model).SerializeToString()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        return _core().compile_model(_core().read_model(content), "CPU", settings)
    except Exception as error:  # OpenVINO raises RuntimeError, and others where a plugin fails
        raise BadInput(f"{_label(model)}: OpenVINO cannot load it: {error}") from None


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _label(model: Path | bytes) -> str:
    return "the model" if isinstance(model, bytes) else str(model)


def _text(value: Any) -> str:
    """A value of the runtime's notes, which older versions wrap."""
    return value if isinstance(value, str) else value.astype(str)
