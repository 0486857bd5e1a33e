"""Clean-up before anything is quantised: batch norm into convolutions, dead and constant nodes away.

Batch norm at inference is y = gamma (x − mu) / sqrt(var + eps) + beta per channel, so for x = W * a + b

    W' = W · s,   b' = (b − mu) · s + beta,   s = gamma / sqrt(var + eps)

computed in float64. The convolution keeps its name and its weight's name. What remains is simplified by onnxsim. Never
run after quantising: a simplifier folds DequantizeLinear and expands the weights again.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Container
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from edgekit.context import RewriteContext
from edgekit.errors import BadInput
from edgekit.onnx_codes import Stored, put_back, taken_out
from edgekit.onnx_file import fix_input

if TYPE_CHECKING:
    import onnx


@dataclasses.dataclass(frozen=True)
class Fold:
    """Fold batch norm into convolutions and simplify the graph."""

    precision: ClassVar[str | None] = None

    def __call__(self, model: onnx.ModelProto, _ctx: RewriteContext) -> onnx.ModelProto:
        """Raises BadInput where the graph is already quantised."""
        return fold_model(model)


def fold_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """What `Fold` makes of a model. Raises BadInput where the graph is already quantised."""
    bare, coded = taken_out(_unquantised(model))
    return put_back(_simplify(fold_batch_norm(bare, coded)), coded)


def for_torch(model: onnx.ModelProto, shape: tuple[int, int, int], where: str) -> onnx.ModelProto:
    """A foreign model, cleaned for `onnx_torch`: one size (C, H, W) of the input, batch norm folded, shapes constant.

    Where shapes are still computed after that, the batch is fixed at 1 too: the importer reads every shape as one at
    batch 1, and the module takes any batch again.

    Raises:
        BadInput: the model takes another size, or is quantised.
    """
    fixed = _simplify(fold_batch_norm(_unquantised(fix_input(model, shape, where))))
    if any(node.op_type == "Shape" for node in fixed.graph.node):
        fixed = _simplify(fix_input(fixed, shape, where, batch=1))
    return fixed


def _unquantised(model: onnx.ModelProto) -> onnx.ModelProto:
    quantised = next((node for node in model.graph.node if node.op_type in QUANTISED), None)
    if quantised is not None:
        raise BadInput(f"fold: {quantised.name} ({quantised.op_type}) is quantised already; fold before int8")
    return model


QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger")


def fold_batch_norm(model: onnx.ModelProto, coded: dict[str, Stored] | None = None) -> onnx.ModelProto:
    """A copy of the model in which every batch norm that follows a convolution alone is part of it.

    Args:
        coded: weights that the model takes as inputs (see `onnx_codes.taken_out`): their factors take the batch norm.
    """
    import onnx

    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    graph = folded.graph
    coded = coded if coded is not None else {}
    constants = {init.name: init for init in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    producers = {name: node for node in graph.node for name in node.output}
    results = {output.name for output in graph.output}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = producers.get(norm.input[0])
        if conv is None or conv.op_type != "Conv" or not _foldable(conv, norm, readers, {*constants, *coded}, results):
            continue
        _fold(conv, norm, constants, coded, graph)
        graph.node.remove(norm)
    _drop_unused(graph)
    return folded


def _foldable(
    conv: onnx.NodeProto,
    norm: onnx.NodeProto,
    readers: dict[str, list[onnx.NodeProto]],
    constants: Container[str],
    results: set[str],
) -> bool:
    """Only where nothing else reads the convolution's output or its weight, and every value is known."""
    alone = len(readers[conv.output[0]]) == 1 and conv.output[0] not in results
    known = all(name in constants for name in (*conv.input[1:], *norm.input[1:]) if name)
    return alone and known and len(readers[conv.input[1]]) == 1


def _fold(
    conv: onnx.NodeProto,
    norm: onnx.NodeProto,
    constants: dict[str, onnx.TensorProto],
    coded: dict[str, Stored],
    graph: onnx.GraphProto,
) -> None:
    from onnx import numpy_helper

    def value(name: str) -> np.ndarray:
        return numpy_helper.to_array(constants[name]).astype(np.float64)

    gamma, beta, mean, variance = (value(name) for name in norm.input[1:5])
    epsilon = next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)  # (C_out,)
    bias = value(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else 0.0
    new_bias = ((bias - mean) * scale + beta).astype(np.float32)
    if conv.input[1] in coded:
        coded[conv.input[1]] = coded[conv.input[1]].scaled(scale)
    else:
        weight = value(conv.input[1])  # (C_out, C_in / groups, kh, kw)
        weight = (weight * scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.float32)
        constants[conv.input[1]].CopyFrom(numpy_helper.from_array(weight, conv.input[1]))
    # A bias of its own: exporters let convolutions without one share a constant of zeros.
    name = _unused_name(conv.input[1].removesuffix(".weight") + ".bias", constants)
    constants[name] = graph.initializer.add()
    constants[name].CopyFrom(numpy_helper.from_array(new_bias, name))
    del conv.input[2:]
    conv.input.append(name)
    conv.output[0] = norm.output[0]


def _unused_name(name: str, taken: Container[str]) -> str:
    return next(
        candidate
        for candidate in itertools.chain([name], (f"{name}.{i}" for i in itertools.count(1)))
        if candidate not in taken
    )


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [init for init in graph.initializer if init.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    known = {name for node in graph.node for name in node.output}
    infos = [info for info in graph.value_info if info.name in known]
    del graph.value_info[:]
    graph.value_info.extend(infos)


def _simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    simplified, ok = onnxsim.simplify(model)
    if not ok:
        raise BadInput("fold: onnxsim's own check of the simplified graph failed")
    return _canonical_pooling(simplified)


def _canonical_pooling(model: onnx.ModelProto) -> onnx.ModelProto:
    """A mean over height and width becomes GlobalAveragePool, which runtimes fuse and quantise."""
    from onnx import helper, numpy_helper

    constants = {init.name: init for init in model.graph.initializer}
    for node in model.graph.node:
        keeps = all(attribute.i == 1 for attribute in node.attribute if attribute.name == "keepdims")
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants or not keeps:
            continue
        if sorted(axis % 4 for axis in numpy_helper.to_array(constants[node.input[1]])) == [2, 3]:
            pooled = helper.make_node("GlobalAveragePool", [node.input[0]], list(node.output), name=node.name)
            node.CopyFrom(pooled)
    _drop_unused(model.graph)
    return model
