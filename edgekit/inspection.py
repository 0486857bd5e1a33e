"""What `edgekit inspect` finds out about a network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from edgekit.cards import card, cards
from edgekit.errors import BadInput
from edgekit.graph import FLOAT_BYTES, Graph, Op, trace
from edgekit.graph_onnx import onnx_cost
from edgekit.net import build, parse_spec
from edgekit.onnx_file import read
from edgekit.phones import accelerators


def inspect_model(spec: str, input_size: int | None = None, phones: bool = False) -> dict[str, Any]:
    """Layers and totals of a MODEL at batch 1 (an ONNX file: totals).

    Args:
        phones: also how many nodes of an ONNX file the accelerators of phones would take.

    Raises:
        BadInput: no such model, it cannot run on that input, or `phones` of a model that is no ONNX file.
    """
    source = parse_spec(spec)
    if source.kind == "onnx":
        path = Path(spec)
        total = {**onnx_cost(read(path)), "size_bytes": path.stat().st_size}
        found = {"schema": "edgekit/inspection/1", "model": spec, "layers": [], "total": total, "uncounted": []}
        return found | ({"phones": accelerators(path)} if phones else {})
    if phones:
        raise BadInput(f"{spec}: accelerators take files; export it, and give the ONNX file to inspect --phones")
    shape = input_shape(spec.partition("?")[0], input_size)
    graph = trace(build(source, trust=True), shape)
    weight_bytes = FLOAT_BYTES * graph.params
    total = {**graph.counts(), "weight_bytes": weight_bytes, "peak_bytes": FLOAT_BYTES * graph.peak_elements}
    layers = [_layer(op) for op in graph.ops if op.macs]
    return {
        "schema": "edgekit/inspection/1",
        "model": spec,
        "input": list(shape),
        "layers": layers,
        "total": total,
        "uncounted": graph.uncounted,
        "free": free_kinds(graph),
    }


def input_shape(name: str, input_size: int | None) -> tuple[int, int, int]:
    """(3, height, width) that a network of the zoo takes by its card, or of `input_size`."""
    known = card(name).get("input_size", 224) if name in cards() else 224
    size = input_size or known
    height, width = (size, size) if isinstance(size, int) else size
    return 3, height, width


def _layer(op: Op) -> dict[str, Any]:
    params = sum(math.prod(value.shape) for value in op.params)
    moved = [*op.inputs, *op.outputs]
    return {
        "layer": op.layer,
        "op": op.kind,
        "input": list(op.inputs[0].shape[1:]),
        "output": list(op.outputs[0].shape[1:]),
        "params": params,
        "macs": op.macs,
        "cio": op.cio,
        "moc": op.moc,
        "activation_bytes": FLOAT_BYTES * sum(value.size for value in moved),
        "weight_bytes": FLOAT_BYTES * params,
    }


def free_kinds(graph: Graph) -> list[str]:
    """The kinds of operation that count as zero MACs by convention and occur here."""
    return sorted({op.kind for op in graph.ops if op.counted and not op.macs})
