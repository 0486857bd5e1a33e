"""Whose time is whose: the operators that an engine runs, attributed to the nodes of the file.

An engine fuses nodes and names what it made after a node or after a tensor. A convolution with the batch norm and
activation behind it bears the name of the activation's output; what an engine adds, as changes of layout, has no node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.context import Track, no_progress
from edgekit.devices import runner
from edgekit.engines.tensorrt import TENSORRT
from edgekit.errors import BadInput

if TYPE_CHECKING:
    import onnx

    from edgekit.profile.plan import Plan

DENSE = frozenset("Conv ConvTranspose Gemm MatMul".split())
FUSED = DENSE | frozenset("FusedConv FusedGemm FusedMatMul QLinearConv QGemm QLinearMatMul ConvInteger".split())
"""What ONNX Runtime makes of them."""
ADDED = "(layout and types)"
"""What stands for the operators that no node asked for."""


def operators(
    engine_name: str, path: Path, pair: runner.Pair, plan: Plan, track: Track = no_progress
) -> tuple[list[dict[str, Any]], float]:
    """The milliseconds of the operators of an opened file ({"name", "kind", "ms"}, with TensorRT also "nodes"), and of
    a whole run without taking notes.

    Raises:
        BadInput: the engine tells no times of layers.
    """
    if engine_name == "onnxruntime":
        try:
            return runner.operator_times(path, plan.threads, plan.batch, plan.seed, track)
        except ValueError as error:
            raise BadInput(f"{path}: {error}") from None
    if engine_name in TENSORRT:
        session, batch = pair
        whole = runner.interleave([pair], track(range(runner.LAYER_ROUNDS), "profiling layers", runner.LAYER_ROUNDS))
        return session.operator_times(batch, runner.LAYER_ROUNDS), float(np.median(whole[0]))
    raise BadInput(f"--layers: {engine_name} tells no times of layers; leave it out, or give --engine onnxruntime")


def attributed(found: Sequence[Mapping[str, Any]], whole_ms: float, model: onnx.ModelProto) -> list[dict[str, Any]]:
    """The operators' times summed by layer, in the order they run: {"layer", "kind", "ms"}.

    A layer is a node of the file: a convolution or product with all that was fused into it, or another node by itself.
    After them comes what the engine added, and last what the operators' times leave of a whole run ("other"): calling
    the engine; below zero where taking notes costs more than that.
    """
    nodes = {name: node.name for node in model.graph.node for name in (*node.output, node.name)}
    dense = owners(model, [node.name for node in model.graph.node if node.op_type in DENSE])
    kinds: dict[str, str] = {ADDED: ""}
    times: dict[str, float] = {}
    for item in found:
        known = dense if item["kind"] in FUSED else nodes
        names = item.get("nodes", [source_name(item["name"])])
        layer = next((known[name] for name in names if name in known), ADDED)
        kinds.setdefault(layer, item["kind"])
        times[layer] = times.get(layer, 0.0) + item["ms"]
    order = sorted(times, key=lambda layer: layer == ADDED)
    rows = [{"layer": layer, "kind": kinds[layer], "ms": times[layer]} for layer in order]
    return [*rows, {"layer": "other", "kind": "", "ms": whole_ms - sum(times.values())}]


def source_name(operator: str) -> str:
    """The node or tensor that ONNX Runtime named an operator after."""
    return re.sub(r"(_token_\d+|_nchwc)+$", "", operator.removeprefix("fused "))


def owners(model: onnx.ModelProto, layers: Sequence[str]) -> dict[str, str]:
    """The layer behind each name that an engine may give a fused operator: its node's, or a value's made from it alone.

    A convolution whose batch norm and activation were fused into it bears the name of the activation's output.
    """
    made: dict[str, str | None] = {value.name: None for value in model.graph.input}
    nodes: dict[str, str] = {}
    for node in model.graph.node:
        sources = [name for name in node.input if name in made]
        owner = node.name if node.name in layers else made[sources[0]] if len(sources) == 1 else None
        if sources or node.name in layers:
            made.update(dict.fromkeys(node.output, owner))
        if node.name in layers:
            nodes[node.name] = node.name
    return {**{name: owner for name, owner in made.items() if owner}, **nodes}
