"""Where do two files of one network begin to differ? Both run in the deployed runtime, tensor by tensor.

A tensor that is quantised is observed as the integers behind its QuantizeLinear: asking for the float value before it
would keep the runtime from fusing the layer, so one would look at kernels that never run. Whether the observed file
still answers as the plain one is checked, and said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import data as datasets
from edgekit.context import Track, no_progress
from edgekit.errors import BadInput
from edgekit.onnx_file import read, read_io
from edgekit.parity import CEILING_DB, decibels, sqnr_db
from edgekit.quant.calibrate import batch_size
from edgekit.quant.session import open_session, with_outputs

if TYPE_CHECKING:
    import onnx

FALL_DB = 3.0
"""A layer is named where its output is this much worse than the worst of its inputs."""
SAME_DB = 60.0
"""Observing a float file moves roundings, no more; where other kernels run, answers differ by far more."""
AT_ONCE_BYTES = 64 * 2**20
"""Most bytes of one image's tensors that are asked for in one run."""


@dataclasses.dataclass(frozen=True)
class Tap:
    """How one tensor of the network is observed in one file: under which name, and the scale of its integers."""

    output: str
    scale: float = 1.0
    zero_point: int = 0

    def value(self, raw: np.ndarray) -> np.ndarray:
        return (raw.astype(np.float64) - self.zero_point) * self.scale


@dataclasses.dataclass
class Difference:
    """Sums over the images seen so far of one tensor's signal and of what differs."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, wanted: np.ndarray, found: np.ndarray) -> None:
        self.signal += float(np.square(wanted).sum())
        self.noise += float(np.square(wanted - found).sum())

    @property
    def sqnr_db(self) -> float:
        return decibels(self.signal, self.noise)


def bisect(
    first: Path, second: Path, specs: list[str], images: int, io_file: Path | None = None, track: Track = no_progress
) -> dict[str, Any]:
    """Compare all tensors that both files have, on calibration pictures (or, where there are none, test pictures).

    Returns:
        A row a tensor in the order of `second`: tensor, the layer that makes it, SQNR in dB against `first`, and by how
        many dB it is worse than the worst of the layer's inputs; the layers where that is FALL_DB or more.

    Raises:
        BadInput: a file cannot be read, they share no tensors but input and output, or their inputs differ.
    """
    models = [read(path) for path in (first, second)]
    kinds = [model.graph.input[0].type.tensor_type.elem_type for model in models]
    if kinds[0] != kinds[1]:
        raise BadInput(f"{second}: takes other values than {first}; compare two plain files or two camera-ready ones")
    taps = [taps_of(model) for model in models]
    shared = [name for name in taps[1] if name in taps[0]]
    outputs = [model.graph.output[0].name for model in models]
    if not set(shared) - set(outputs):
        raise BadInput(f"{second}: shares no tensor with {first} but input and output; compare files of one export")
    input, output = read_io(first, io_file)
    data = datasets.load(specs, labels=output.labels)
    role = data.role("calibrate" if "calibrate" in data.roles else "test").subset(images, 0)
    found = {name: Difference() for name in shared}
    batches = track(role.batches(input, batch_size(models[1])), "comparing", len(role))
    observed = _Observed(models[0], taps[0], shared), _Observed(models[1], taps[1], shared)
    for batch, _, _ in batches:
        for (name, wanted), (_, got) in zip(observed[0].values(batch), observed[1].values(batch)):
            if wanted.shape != got.shape:
                raise BadInput(f"{second}: {name!r} is {got.shape} there and {wanted.shape} in {first}")
            found[name].add(wanted, got)
    rows = rows_of(models[1], found)
    return {
        "schema": "edgekit/bisection/1",
        "files": [first.name, second.name],
        "images": len(role),
        "as_deployed": all(one.as_deployed for one in observed),
        "rows": rows,
        "diverging": [row["layer"] for row in rows if row["fall_db"] >= FALL_DB],
    }


def taps_of(model: onnx.ModelProto) -> dict[str, Tap]:
    """How each float tensor can be observed, under the name that a float file has for it, in the order of the graph."""
    from onnx import numpy_helper

    values = {init.name: init for init in model.graph.initializer}
    taps: dict[str, Tap] = {}
    quantised = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in values and node.input[1] in values:
            scale = float(numpy_helper.to_array(values[node.input[1]]).ravel()[0])
            zero = numpy_helper.to_array(values[node.input[2]]).ravel()[0] if len(node.input) > 2 else 0
            quantised[node.input[0]] = Tap(node.output[0], scale, int(zero))
    hidden = {name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.output}
    for node in model.graph.node:
        if node.op_type in ("DequantizeLinear", "QuantizeLinear", "Constant", "Shape"):
            continue
        for name in node.output:
            if name and name not in hidden:
                # The pair around an output of the network took the output's own name.
                taps[name.removesuffix(".raw")] = quantised.get(name, Tap(name))
    return taps


class _Observed:
    """A file whose shared tensors are outputs, a few at a time."""

    def __init__(self, model: onnx.ModelProto, taps: dict[str, Tap], names: list[str]) -> None:
        self.taps, self.names = taps, names
        self.input = model.graph.input[0].name
        self.model, self.last = model, model.graph.output[0].name
        self.plain = open_session(model)
        self.parts: list[tuple[list[str], list[str], Any]] = []
        self.as_deployed = True

    def values(self, batch: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Each shared tensor with its value on a batch, as float64."""
        answer = self.plain.run([self.last], {self.input: batch})[0]
        for names, wanted, session in self.parts or self._split(batch):
            found = dict(zip(wanted, session.run(wanted, {self.input: batch})))
            self.as_deployed &= sqnr_db(answer, found[self.last]) > SAME_DB
            for name in names:
                yield name, self.taps[name].value(found[self.taps[name].output])

    def _split(self, batch: np.ndarray) -> list[tuple[list[str], list[str], Any]]:
        """For so many tensors each as fit AT_ONCE_BYTES: their names, the outputs to ask for, and a session."""
        per_part = max(1, AT_ONCE_BYTES // max(1, batch.nbytes * 16))
        for start in range(0, len(self.names), per_part):
            names = self.names[start : start + per_part]
            wanted = list(dict.fromkeys([*(self.taps[name].output for name in names), self.last]))
            self.parts.append((names, wanted, open_session(with_outputs(self.model, wanted))))
        return self.parts


def rows_of(model: onnx.ModelProto, found: dict[str, Difference]) -> list[dict[str, Any]]:
    """In the order of the graph, each beside the worst of what its layer reads."""
    makers = {name: node for node in model.graph.node for name in node.output}
    rows = []
    for name, difference in found.items():
        node = makers.get(name) or makers[f"{name}.raw"]
        before = [found[source].sqnr_db for source in _sources(node.input, makers, found)]
        worst = min(before, default=CEILING_DB)
        fall = max(0.0, min(worst, 100.0) - difference.sqnr_db) if worst > 0 else 0.0
        layer = node.name or node.output[0]
        rows.append({"tensor": name, "layer": layer, "sqnr_db": difference.sqnr_db, "fall_db": fall})
    return rows


def _sources(names: Iterable[str], makers: dict[str, Any], found: dict[str, Difference]) -> Iterator[str]:
    """The nearest observed tensors that lead to `names`."""
    waiting, seen = list(names), set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if (plain := name.removesuffix(".raw")) in found:
            yield plain
        elif name in makers:
            waiting += makers[name].input
