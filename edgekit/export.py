"""Net -> ONNX, the only crossing from torch: PyTorch's exporter, then names and bookkeeping that edgekit can rely on.

Every node is named by the path of the module that made it (`blocks.1.expand.conv`, or `blocks.1/Add` for functional
code), every initialiser keeps its state-dict key, and what the exporter adds about the machine is taken away.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgekit.coded import coded_weights, decoded
from edgekit.data import Input, Output
from edgekit.errors import BadInput
from edgekit.onnx_codes import put_back, stored
from edgekit.schema import to_json
from edgekit.targets import Target

if TYPE_CHECKING:
    import onnx
    from torch import nn

PARITY_DB = 60.0
SCOPES = "pkg.torch.onnx.name_scopes"


@dataclasses.dataclass(frozen=True)
class Exported:
    """An ONNX model and, for each initialiser that came from the module, its state-dict key."""

    model: onnx.ModelProto
    tensors: dict[str, str]


def export(module: nn.Module, input: Input, output: Output, target: Target, batch: int | str = "dynamic") -> Exported:
    """The module as an ONNX model of the target's opset and IR version.

    Args:
        batch: "dynamic", or the fixed batch size of the file.

    Raises:
        BadInput: PyTorch's exporter cannot take the module; its own message is passed on.
    """
    plain = decoded(module)
    program = _program(plain, input.shape, target.opset, batch)
    _clean(program.model)
    model = program.model_proto
    _name_nodes(model)
    _strip(model)
    state = plain.state_dict()
    tensors = {init.name: init.name for init in model.graph.initializer if init.name in state}
    if target.decodes:
        coded = {name: stored(codes) for name, codes in coded_weights(module).items() if name in tensors}
        kept = [init for init in model.graph.initializer if init.name not in coded]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        put_back(model, coded)
    return Exported(finish(model, target, input, output), tensors)


def _program(module: nn.Module, shape: tuple[int, int, int], opset: int, batch: int | str) -> Any:
    import torch

    from edgekit.graph import deterministic

    dynamic = batch == "dynamic"
    example = torch.zeros((2 if dynamic else int(batch), *shape))
    dimensions = ({0: torch.export.Dim("batch")},) if dynamic else None
    with _quiet(), deterministic(False):
        try:
            return torch.onnx.export(
                copy.deepcopy(module).cpu().eval(),
                (example,),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                input_names=["input"],
                output_names=["output"],
                dynamic_shapes=dimensions,
            )
        except Exception as error:
            raise BadInput(f"the network cannot be exported to ONNX: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs about packages that edgekit does not use, on the logger and on stdout."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)


def _clean(model: Any) -> None:
    """Fold constants and drop what nothing reads, without touching weights: batch norm is edgekit's to fold."""
    from onnxscript import optimizer

    optimizer.fold_constants(model)
    optimizer.remove_unused_nodes(model)


def _name_nodes(model: onnx.ModelProto) -> None:
    used: dict[str, int] = {}
    paths: set[str] = set()
    for node in model.graph.node:
        path = _module_path(node)
        whole = path and path not in paths and _is_layer(node)
        paths.add(path) if whole else None
        name = path if whole else f"{path}/{node.op_type}" if path else node.op_type
        used[name] = used.get(name, -1) + 1
        node.name = f"{name}_{used[name]}" if used[name] else name


def _is_layer(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu", "Clip", "Relu")


def _module_path(node: onnx.NodeProto) -> str:
    scopes = next((prop.value for prop in node.metadata_props if prop.key == SCOPES), "[]")
    parts = ast.literal_eval(scopes)
    return parts[-2] if len(parts) > 1 and not parts[-2].startswith("_") else ""


def _strip(model: onnx.ModelProto) -> None:
    """Remove doc strings and metadata: stack traces hold paths of the machine that exported."""
    model.ClearField("metadata_props")
    model.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.graph.ClearField("doc_string")
    items = [*model.graph.node, *model.graph.initializer, *model.graph.value_info, *model.graph.input]
    for item in [*items, *model.graph.output]:
        item.ClearField("metadata_props")
        item.ClearField("doc_string")


def finish(model: onnx.ModelProto, target: Target, input: Input, output: Output) -> onnx.ModelProto:
    """Set producer, IR version and edgekit's metadata: every writer of a file ends with this."""
    import onnx

    model.producer_name = "edgekit"
    model.ClearField("producer_version")
    model.ir_version = target.ir_version
    onnx.helper.set_model_props(model, {"edgekit.input": _dump(input), "edgekit.output": _dump(output)})
    return model


def _dump(value: object) -> str:
    return json.dumps(to_json(value), sort_keys=True)


def serialise(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
