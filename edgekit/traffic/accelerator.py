"""ZigZag (Mei, Houshmand, Jain, Giraldo & Verhelst, IEEE Transactions on Computers 70(8), 2021) as a cross-check of the
traffic of layers, for accelerators whose memories a program fills, where this package models caches.

For each layer it searches the order of loops and the place of tensors that cost an accelerator least energy, and counts
the words that move at every memory. Here those of the outermost are taken, in bytes, of weights, input and output. They
are 8 bits an element, and a layer's input and output lie in that memory: nothing stays between two layers. Where a
layer's tensors fit into the memory before it, each moves once, so the bytes of input and output add up to CIO.

Where the height or width of a map is no multiple of what the array does at once, ZigZag 3.9.1 rounds down and counts
too few bytes of the input. Seconds to minutes a layer.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import BadInput, unknown
from edgekit.graph_onnx import LAYERS, node_name, shapes_at_batch_1
from edgekit.onnx_file import read

if TYPE_CHECKING:
    import onnx

ACCELERATOR = "edge_tpu_like"
"""Of the architectures that ZigZag brings, the one for the edge whose search ends soonest."""
WORD_BYTES = 8
"""What a port of its outermost memory moves at once."""
PARTS = {"W": "weights_bytes", "I": "input_bytes", "O": "output_bytes"}
SEARCHED = {"lpf_limit": 6, "nb_spatial_mappings_generated": 1, "loma_show_progress_bar": False}
GET = "pip install 'edgekit[zigzag]'"


def zigzag(path: Path) -> dict[str, Any]:
    """What ZigZag counts for each convolution and product of a float file at batch 1; beside it `once_bytes`, those of
    the layer's tensors, each once.

    Raises:
        BadInput: ZigZag is not installed, or cannot take the file.
    """
    try:
        from zigzag.api import get_hardware_performance_zigzag as search
    except ImportError as error:
        raise BadInput(f"--cross-check zigzag: cannot be imported ({error}); get it by `{GET}`") from None
    model = _plain(read(path), path)
    inputs = resources.files("zigzag") / "inputs"
    setting = [str(inputs / kind / f"{ACCELERATOR}.yaml") for kind in ("hardware", "mapping")]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            *_, found = search(model, *setting, opt="energy", dump_folder=folder, **SEARCHED)
    except Exception as error:  # it raises whatever comes
        raise BadInput(f"{path}: ZigZag cannot take it ({type(error).__name__}: {error})") from None
    finally:
        logging.disable(disabled)
    once = _once(model)
    counted = {item.layer.name: item.memory_word_access for item, *_ in found[0][1]}
    return {
        "by": "zigzag",
        "version": metadata.version("zigzag-dse"),
        "accelerator": ACCELERATOR,
        "layers": [_layer(name, counted[name], size) for name, size in once.items() if name in counted],
        "uncounted": [name for name in once if name not in counted],
    }


CHECKS = {"zigzag": zigzag}


def cross_check(name: str, path: Path) -> dict[str, Any]:
    """What another program counts. Raises BadInput where there is none of that name, or as that program."""
    if name not in CHECKS:
        raise unknown("cross-check", name, CHECKS)
    return CHECKS[name](path)


def _plain(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The file at batch 1 with all its shapes written out, and a name for each node."""
    import onnx

    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise BadInput(f"{path}: ZigZag takes float files, and counts them as int8; give the file it was made from")
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for value in plain.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    for node in plain.graph.node:
        node.name = node_name(node)
    return onnx.shape_inference.infer_shapes(plain, data_prop=True)


def _once(model: onnx.ModelProto) -> dict[str, int]:
    """Elements of each layer's input, weight and output."""
    shapes = shapes_at_batch_1(model) | {init.name: tuple(init.dims) for init in model.graph.initializer}
    return {
        node.name: sum(math.prod(shapes[name]) for name in (*node.input[:2], node.output[0]))
        for node in model.graph.node
        if node.op_type in LAYERS
    }


def _layer(name: str, words: Mapping[Any, Any], once_bytes: int) -> dict[str, Any]:
    """Bytes at the last memory of each operand, in all four directions."""
    moved = {PARTS[str(operand)]: WORD_BYTES * sum(levels[-1].data.values()) for operand, levels in words.items()}
    return {"layer": name, **moved, "traffic_bytes": sum(moved.values()), "once_bytes": once_bytes}
