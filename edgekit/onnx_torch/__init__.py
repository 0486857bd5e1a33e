"""ONNX -> torch: a module that computes what a cleaned ONNX file computes, made of layers that passes can work on.

`graph_to_json` takes the graph without its weights, `module_from_graph` builds the module from that alone, and
`to_module` is both with the weights loaded: so a bundle rebuilds a network without the file it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from edgekit.errors import BadInput, EdgekitError
from edgekit.onnx_torch import dense, movement, pooling
from edgekit.onnx_torch.document import (
    SCHEMA,
    Document,
    Node,
    Tensor,
    constant_tensors,
    describe,
    read_document,
)
from edgekit.onnx_torch.elementwise import ELEMENTWISE
from edgekit.onnx_torch.module import GraphModule, Paths, Step
from edgekit.onnx_torch.plan import Call, Plan, Weight
from edgekit.schema import canonical, to_json

if TYPE_CHECKING:
    import onnx

__all__ = ["SCHEMA", "GraphModule", "graph_to_json", "module_from_graph", "to_module"]

BUILDERS: dict[str, Callable[[Call], Plan]] = {
    **ELEMENTWISE,
    "AveragePool": pooling.average_pool,
    "BatchNormalization": dense.batch_norm,
    "Concat": movement.concat,
    "Conv": dense.conv,
    "ConvTranspose": dense.conv_transpose,
    "DepthToSpace": movement.depth_to_space,
    "Flatten": movement.flatten,
    "Gemm": dense.gemm,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "GroupNormalization": dense.group_norm,
    "InstanceNormalization": dense.instance_norm,
    "LayerNormalization": dense.layer_norm,
    "MaxPool": pooling.max_pool,
    "PRelu": dense.prelu,
    "Pad": movement.pad,
    "ReduceMax": pooling.reduce_max,
    "ReduceMean": pooling.reduce_mean,
    "ReduceSum": pooling.reduce_sum,
    "Reshape": movement.reshape,
    "Resize": pooling.resize,
    "Slice": movement.slice_,
    "SpaceToDepth": movement.space_to_depth,
    "Split": movement.split,
    "Squeeze": movement.squeeze,
    "Transpose": movement.transpose,
    "Unsqueeze": movement.unsqueeze,
    "Upsample": pooling.resize,
}


def to_module(model: onnx.ModelProto) -> GraphModule:
    """A module in evaluation mode that computes what the model computes, for any batch size.

    Args:
        model: as `rewrites.fold.for_torch` leaves it: batch norm folded, shape arithmetic gone.

    Raises:
        BadInput: an operator, attribute or constant that cannot be taken over, by node; nothing was built then.
    """
    from onnx import numpy_helper

    module, weights = _assemble(read_document(graph_to_json(model), "the ONNX graph"))
    constants = constant_tensors(model)
    state = module.state_dict()
    for key, weight in weights.items():
        array = weight.change(numpy_helper.to_array(constants[weight.source]))
        if array.shape != tuple(state[key].shape):
            raise BadInput(f"{key}: {weight.source!r} has the shape {array.shape}, not {tuple(state[key].shape)}")
        state[key].copy_(torch.from_numpy(np.array(array, np.float32)))
    return module


def graph_to_json(model: onnx.ModelProto) -> dict[str, Any]:
    """The graph of a cleaned model as JSON (`edgekit/graph/1`): nodes, names and shapes, settings by value, no weights.

    Raises:
        BadInput: as `to_module`.
    """
    _check_operators((node.op_type, node.domain, node.name) for node in model.graph.node)
    return to_json(describe(model))


def module_from_graph(document: Mapping[str, Any], where: str = "the graph") -> GraphModule:
    """The module of a document that `graph_to_json` wrote, in evaluation mode, its weights zero.

    Raises:
        BadInput: the document is damaged, beyond its limits, or holds what cannot be taken over; see `to_module`.
    """
    return _assemble(read_document(document, where))[0]


def _check_operators(nodes: Iterator[tuple[str, str, str]]) -> None:
    for op, domain, name in nodes:
        if (op not in BUILDERS and op != "Constant") or domain not in ("", "ai.onnx"):
            known = ", ".join(sorted(BUILDERS))
            operator = f"{domain}.{op}" if domain else op
            raise BadInput(
                f"{name or 'a node without a name'}: the operator {operator} cannot be taken over into PyTorch, where "
                f"passes work. A recipe without [[pass]] tables takes any ONNX file. Known: {known}"
            )


def _assemble(document: Document) -> tuple[GraphModule, dict[str, Weight]]:
    """The module, its weights zero, and where each entry of its state comes from."""
    _check_operators((node.op, "", node.name) for node in document.nodes)
    tensors = document.tensors()
    plans = [_plan(node, document, tensors) for node in document.nodes]
    paths, layers, weights, steps = Paths(), {}, {}, []
    shared: dict[bytes, str] = {}
    for node, plan in zip(document.nodes, plans):
        key = _layer_key(node, tensors)
        if plan.weights and key in shared:
            path = shared[key]  # the same layer at two places
        else:
            path = paths.take(node.name, *_weight_paths(plan))
            shared[key], layers[path] = path, _made(node, plan.make)
            weights.update({f"{path}.{name}": weight for name, weight in plan.weights.items()})
        inputs = plan.inputs
        if plan.before is not None:
            padding = paths.take(f"{path}_pad")
            layers[padding] = _made(node, plan.before)
            padded = f"{node.outputs[0]}\npadded"  # names in the file are printable, so this is none of them
            steps.append(Step(padding, inputs[:1], (padded,)))
            inputs = (padded, *inputs[1:])
        steps.append(Step(path, inputs, node.results))
    return _filled(GraphModule(steps, document.input, document.outputs), layers), weights


def _filled(module: GraphModule, layers: Mapping[str, nn.Module]) -> GraphModule:
    for path, layer in layers.items():
        module.add_layer(path, layer)
    for tensor in module.state_dict().values():
        tensor.zero_()
    return module.eval()


def _plan(node: Node, document: Document, tensors: dict[str, Tensor]) -> Plan:
    call = Call(node, document, tensors)
    try:
        plan = BUILDERS[node.op](call)
    except EdgekitError:
        raise
    except Exception as error:  # a stranger's numbers can break arithmetic anywhere
        raise call.fail(f"cannot be taken over into PyTorch: {error}") from error
    call.done()
    return plan


def _made(node: Node, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        raise BadInput(f"{node}: PyTorch refuses it: {str(error).splitlines()[0]}") from error


def _layer_key(node: Node, tensors: Mapping[str, Tensor]) -> bytes:
    """Equal for two nodes that are one layer: the same operator, settings and constants."""
    return canonical([node.op, node.attributes, [name if name in tensors else "" for name in node.inputs]])


def _weight_paths(plan: Plan) -> list[str]:
    """The module path that a weight's name gives away: `blocks.1.conv.weight` belongs to `blocks.1.conv`."""
    return [
        weight.source.removesuffix(f".{key}")
        for key, weight in plan.weights.items()
        if weight.source.endswith(f".{key}")
    ]
