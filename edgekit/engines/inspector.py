"""What TensorRT's engine inspector says of a built engine, in the form of version 10 or 11."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a built engine, as the engine inspector tells it.

    Attributes:
        nodes: the names of the ONNX nodes that went into it.
        inputs, outputs: the types of its tensors: "int8", "fp16", "fp32", or what the inspector says.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def layers(information: str) -> list[Layer]:
    """The engine inspector's JSON, in the form of version 10 ("Format/Datatype") or 11 ("DataType")."""
    return [_layer(item) for item in json.loads(information).get("Layers", []) if isinstance(item, dict)]


def _layer(item: Mapping[str, Any]) -> Layer:
    nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(item.get("Metadata", "")))
    types = [tuple(map(_type, item.get(side, []))) for side in ("Inputs", "Outputs")]
    return Layer(item.get("Name", ""), item.get("LayerType", ""), tuple(nodes), *types)


TYPES = {"int8": r"int8", "fp16": r"half|fp16|float16", "fp32": r"float|fp32"}
"""The inspector writes a type by itself, or in the middle of a sentence about the memory format."""


def _type(tensor: Mapping[str, Any]) -> str:
    text = next((str(value) for key, value in tensor.items() if "datatype" in key.lower()), "")
    return next((name for name, pattern in TYPES.items() if re.search(pattern, text, re.IGNORECASE)), text)


def int8_nodes(found: Sequence[Layer]) -> set[str]:
    """ONNX nodes of the layers that read int8 first: a convolution's input, not only its weight."""
    return {node for layer in found if layer.inputs[:1] == ("int8",) for node in layer.nodes}
