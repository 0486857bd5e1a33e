"""NVIDIA's TensorRT, versions 10 and 11, and TensorRT-RTX: one code path, their differences in `TENSORRT`.

An ONNX file is parsed, built into an engine, and run through the CUDA driver. Every network is strongly typed: the file
decides the precision of each tensor, which version 11 and TensorRT-RTX insist on and version 10 is asked for.

Sources: NVIDIA's API reference of 10.16 and 11.4, "Migrating from TensorRT 10.x to 11.x" (Python, trtexec, inspector),
"CPU-Only AOT and TensorRT-RTX Engines". Parsing and building were run with TensorRT-RTX 1.7 on a CPU; nothing of this
was run on a GPU yet, and the full TensorRT not at all.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.engines import cuda
from edgekit.engines.inspector import Layer, int8_nodes, layers
from edgekit.errors import BadInput
from edgekit.files import write_bytes

WORKSPACE_BYTES = 1 << 30
BATCHES = (1, 1, 32)
"""Smallest, best and largest batch of a file whose batch is free."""


@dataclasses.dataclass(frozen=True)
class TensorRT:
    """One of NVIDIA's builders, as an engine.

    Attributes:
        name: of the engine and of the extra that installs it.
        module: what Python imports.
        tool: its command-line builder; `flags` are what that takes besides file names and shapes.
        builds_on_cpu: whether building needs no GPU.
        timing_cache: whether timings of kernels are kept for the next build; TensorRT-RTX times none while building.
        version_compatible: whether engines can be built that later versions load.
    """

    name: str
    module: str
    tool: str
    flags: tuple[str, ...]
    builds_on_cpu: bool
    timing_cache: bool
    version_compatible: bool

    def not_installed(self) -> str | None:
        if importlib.util.find_spec(self.module) is None:
            return f"{self.name} is not installed; pip install 'edgekit[{self.name}]'"
        return None

    def missing(self) -> str | None:
        """Why files cannot be run here; None where they can."""
        return self.not_installed() or cuda.missing()

    def version(self) -> str:
        return _library(self.module)[0].__version__

    def build(
        self,
        model: Path | bytes,
        workspace_bytes: int = WORKSPACE_BYTES,
        version_compatible: bool = False,
        capability: str | None = None,
    ) -> bytes:
        """An ONNX file, or a serialised model, as a serialised engine that the inspector can describe.

        Args:
            workspace_bytes: the most GPU memory that one layer may use besides its tensors.
            version_compatible: later versions of the library can load the engine.
            capability: the only compute capability to build for, e.g. "SM86"; TensorRT-RTX alone can choose.

        Raises:
            BadInput: the library or the GPU that it needs is missing, or it refuses the file; what it says is passed
                on with the names of the nodes.
        """
        self._check_build(version_compatible, capability)
        label = "the model" if isinstance(model, bytes) else str(model)
        content = model if isinstance(model, bytes) else _content(model)
        trt, logger = _library(self.module)
        logger.errors.clear()
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse(content):
            raise BadInput(f"{label}: {self.name} cannot take it: {_parser_errors(parser)}")
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.add_optimization_profile(_profile(builder, network, label))
        if version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if capability:
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
        cache = self._open_cache(config)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BadInput(f"{label}: {self.name} cannot build it: {'; '.join(logger.errors) or 'it does not say why'}")
        if cache is not None:
            write_bytes(cache, bytes(config.get_timing_cache().serialize()))
        return bytes(plan)

    def _check_build(self, version_compatible: bool, capability: str | None) -> None:
        reason = self.not_installed() or (None if self.builds_on_cpu else cuda.missing())
        if reason:
            raise BadInput(
                f"{self.name} cannot build an engine: {reason}. Build it where it will run, with the script that "
                f"`edgekit export --target {self.name}` writes; the target tensorrt-rtx builds on a CPU too"
            )
        if version_compatible and not self.version_compatible:
            raise BadInput(f"{self.name} has no version-compatible engines; build one for each version that runs it")
        if capability:
            self._check_capability(capability)

    def _check_capability(self, capability: str) -> None:
        if not self.builds_on_cpu:
            raise BadInput(f"{self.name} builds for the GPU that it finds; leave out the capability {capability!r}")
        known = [name for name in dir(_library(self.module)[0].ComputeCapability) if re.fullmatch(r"SM\d+", name)]
        if capability not in known:
            raise BadInput(f"{self.name} builds for {', '.join(known)}, not for {capability!r}")

    def _open_cache(self, config: Any) -> Path | None:
        """Give the builder the timings that earlier builds kept; returns where to keep the new ones."""
        if not self.timing_cache:
            return None
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"
        path = folder / f"{self.name}-{self.version()}.timing"
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        config.set_timing_cache(cache, False)
        return path

    def load(self, model: Path | bytes, threads: int = 0, optimise: bool = True) -> Session:  # noqa: ARG002
        """Build an ONNX file and make it ready to run.

        Args:
            threads, optimise: for other engines; a GPU has neither.

        Raises:
            BadInput: it cannot be run here, or as `build`.
        """
        reason = self.missing()
        if reason:
            raise BadInput(
                f"{self.name} cannot run a file here: {reason}. Run it on the device, or score it with "
                f"--engine onnxruntime"
            )
        return Session(self, _deserialised(self.module, self.build(model)))

    def inspect(self, plan: bytes) -> list[Layer]:
        """The layers of a serialised engine. Raises BadInput where there is no GPU: even loading one takes a GPU."""
        reason = self.missing()
        if reason:
            raise BadInput(f"{self.name} cannot open an engine here: {reason}")
        trt, _ = _library(self.module)
        return layers(_told(trt, _deserialised(self.module, plan).create_engine_inspector()))

    def executed_ops(self, model: Path | bytes) -> dict[str, int]:
        """How often each kind of layer stands in the engine of a file. Raises as `inspect`."""
        import collections

        return dict(collections.Counter(layer.kind for layer in self.inspect(self.build(model))))

    def int8_convs(self, model: Path | bytes) -> int:
        """How many convolutions of a file read int8 in its engine. Raises as `inspect`."""
        import onnx

        parsed = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(model)
        convolutions = {node.name for node in parsed.graph.node if node.op_type == "Conv"}
        return len(convolutions & int8_nodes(self.inspect(self.build(model))))


TENSORRT = {
    "tensorrt": TensorRT(
        "tensorrt",
        module="tensorrt",
        tool="trtexec",
        # Needed by version 10, taken and ignored by 11; the memory pool is in MiB in both.
        flags=("--stronglyTyped", f"--memPoolSize=workspace:{WORKSPACE_BYTES >> 20}"),
        builds_on_cpu=False,
        timing_cache=True,
        version_compatible=True,
    ),
    "tensorrt-rtx": TensorRT(
        "tensorrt-rtx",
        module="tensorrt_rtx",
        tool="tensorrt_rtx",
        flags=(),
        builds_on_cpu=True,
        timing_cache=False,
        version_compatible=False,  # it asks for libnvinfer_lean, which it does not ship
    ),
}


class Session:
    """A built engine on the GPU, as ONNX Runtime's `Session`."""

    def __init__(self, runtime: TensorRT, engine: Any) -> None:
        self._runtime, self._trt = runtime, _library(runtime.module)[0]
        self._engine, self._context, self._stream = engine, engine.create_execution_context(), cuda.Stream()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        self.name, self._outputs = inputs[0], [name for name in names if name not in inputs]
        first, *shape = engine.get_tensor_shape(self.name)
        self.shape, self.batch = tuple(shape), first if first > 0 else None
        self.dtype = self._trt.nptype(engine.get_tensor_dtype(self.name))
        self._largest = self.batch or BATCHES[2]
        self._buffers = self._allocate(names)

    def _allocate(self, names: Sequence[str]) -> dict[str, cuda.Buffer]:
        """Device memory for every input and output at the largest batch."""
        self._context.set_input_shape(self.name, (self._largest, *self.shape))
        return {name: cuda.Buffer(max(self._empty(self._context, name).nbytes, 1)) for name in names}

    def _empty(self, context: Any, name: str) -> np.ndarray:
        kind = self._trt.nptype(self._engine.get_tensor_dtype(name))
        return np.empty(tuple(context.get_tensor_shape(name)), kind)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """The first output for a batch of (B, *shape), in pieces of the largest size that was built for."""
        if len(batch) > self._largest:
            parts = range(0, len(batch), self._largest)
            return np.concatenate([self.run(batch[start : start + self._largest]) for start in parts])
        if self.batch and len(batch) < self.batch:
            padding = np.repeat(batch[-1:], self.batch - len(batch), axis=0)
            return self.run(np.concatenate([batch, padding]))[: len(batch)]
        self._execute(self._context, batch)
        output = self._outputs[0]
        return self._buffers[output].read(self._empty(self._context, output))

    def _execute(self, context: Any, batch: np.ndarray) -> None:
        context.set_input_shape(self.name, batch.shape)
        for name, buffer in self._buffers.items():
            context.set_tensor_address(name, buffer.address)
        self._buffers[self.name].write(np.ascontiguousarray(batch, self.dtype))
        if not context.execute_async_v3(self._stream.address):
            raise BadInput("TensorRT could not run the engine; its log has the reason")
        self._stream.wait()

    def fork(self) -> Session:
        """A session for another thread to run at the same time, of the same engine and with memory of its own."""
        return Session(self._runtime, self._engine)

    def operator_times(self, batch: np.ndarray, runs: int = 20) -> list[dict[str, Any]]:
        """Mean milliseconds of each layer of the engine at this batch ({"name", "kind", "nodes", "ms"}), in the order
        they run; `nodes` are of the ONNX file. A profiled run is slower than `run` as a whole."""
        total: dict[str, float] = {}

        class Profiler(self._trt.IProfiler):  # type: ignore[name-defined]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                total[layer_name] = total.get(layer_name, 0.0) + ms

        context = self._engine.create_execution_context()
        self._execute(context, batch)
        context.profiler = Profiler()
        for _ in range(runs):
            self._execute(context, batch)
        inspector = self._engine.create_engine_inspector()
        known = {layer.name: layer for layer in layers(_told(self._trt, inspector))}
        return [_operator(name, known.get(name), ms / runs) for name, ms in total.items()]


def _told(trt: Any, inspector: Any) -> str:
    return inspector.get_engine_information(trt.LayerInformationFormat.JSON)


def _operator(name: str, layer: Layer | None, ms: float) -> dict[str, Any]:
    kind, nodes = (layer.kind, list(layer.nodes)) if layer else ("", [])
    return {"name": name, "kind": kind, "nodes": nodes, "ms": ms}


@functools.cache
def _library(module: str) -> tuple[Any, Any]:
    """The library and its one logger, which keeps errors; TensorRT ignores any logger but the first.

    Raises:
        BadInput: it is installed and cannot be imported.
    """
    try:
        trt = importlib.import_module(module)
    except Exception as error:  # a library that does not fit the system raises OSError, ImportError or RuntimeError
        raise BadInput(f"{module} cannot be imported: {error}") from None

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(" ".join(message.split()))

    return trt, Logger()


def _content(path: Path) -> bytes:
    """The file with external data taken in, checked before a parser in C++ opens it."""
    from edgekit.onnx_file import read

    return read(path).SerializeToString()


def _parser_errors(parser: Any) -> str:
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = []
    for error in found:
        node = f"{error.node_name()} ({error.node_operator()}): " if error.node_operator() else ""
        lines.append(f"{node}{error.desc()} [{getattr(error.code(), 'name', error.code())}]")
    return "; ".join(lines) or "it does not say why"


def _profile(builder: Any, network: Any, label: str) -> Any:
    """The range of batches that the engine takes. Raises BadInput where more than the batch is free."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        value = network.get_input(index)
        first, *shape = value.shape
        if any(size < 0 for size in shape):
            raise BadInput(
                f"{label}: its input {value.name!r} is {['?' if size < 0 else size for size in value.shape]}; "
                f"channels, height and width must be fixed numbers"
            )
        profile.set_shape(value.name, *[(size if first < 0 else first, *shape) for size in BATCHES])
    return profile


def _deserialised(module: str, plan: bytes) -> Any:
    """An engine from its bytes; only ever from those that were built in this process."""
    trt, logger = _library(module)
    logger.errors.clear()
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise BadInput(f"{module} cannot load its engine: {'; '.join(logger.errors) or 'it does not say why'}")
    return engine


Shapes = Mapping[str, Sequence[int | None]]
"""Of each input; None where the batch is free."""


def build_options(runtime: TensorRT, shapes: Shapes) -> list[str]:
    """What the command-line builder is told besides the names of files."""
    free = any(shape[0] is None for shape in shapes.values())
    ranges = [shape_option(*pair, shapes) for pair in zip(("minShapes", "optShapes", "maxShapes"), BATCHES)]
    return [*runtime.flags, *(ranges if free else []), "--profilingVerbosity=detailed"]


def shape_option(name: str, batch: int, shapes: Shapes) -> str:
    """An option of that name: the inputs' shapes at a batch size, where that is free."""
    written = (f"{input}:{'x'.join(str(size or batch) for size in shape)}" for input, shape in shapes.items())
    return f"--{name}={','.join(written)}"


def build_script(runtime: TensorRT, model: str, shapes: Shapes) -> str:
    """A shell script that builds the file `model`, beside it, on the device."""
    stem = model.removesuffix(".onnx")
    command = [runtime.tool, f"--onnx={model}", f"--saveEngine={stem}.plan"]
    if runtime.timing_cache:
        command.append(f"--timingCacheFile={stem}.timing")
    command += [*build_options(runtime, shapes), "--skipInference"]
    return "\n".join(
        (
            "#!/bin/sh",
            f"# Builds {stem}.plan with {runtime.tool}, on the device that runs it.",
            "set -e",
            'cd "$(dirname "$0")"',
            " \\\n  ".join(map(shlex.quote, command)),
            "",
        )
    )
