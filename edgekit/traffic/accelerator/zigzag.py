"""ZigZag (Mei, Houshmand, Jain, Giraldo & Verhelst, IEEE Transactions on Computers 70(8), 2021).

For each layer it searches the order of loops and the place of tensors that cost an accelerator least energy, and counts
the words that move at every memory. Here those of the outermost are taken, in bytes. Where a layer's tensors fit into
the memory before it, each moves once, so the bytes of input and output add up to CIO.

Where the height or width of a map is no multiple of what the array does at once, ZigZag 3.9.1 rounds down and counts
too few bytes of the input. Seconds to minutes a layer.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from edgekit.context import Track
from edgekit.traffic.accelerator.program import Counted, Program

if TYPE_CHECKING:
    import onnx

ACCELERATOR = "edge_tpu_like"
"""Of the architectures that ZigZag brings, the one for the edge whose search ends soonest."""
WORD_BYTES = 8
"""What a port of its outermost memory moves at once."""
PARTS = {"W": "weights_bytes", "I": "input_bytes", "O": "output_bytes"}
SEARCHED = {"lpf_limit": 6, "nb_spatial_mappings_generated": 1, "loma_show_progress_bar": False}


def count(model: onnx.ModelProto, _track: Track, _log: Callable[[str], None]) -> Counted:
    """Of each convolution and product that ZigZag takes."""
    from zigzag.api import get_hardware_performance_zigzag as search

    inputs = resources.files("zigzag") / "inputs"
    setting = [str(inputs / kind / f"{ACCELERATOR}.yaml") for kind in ("hardware", "mapping")]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            *_, found = search(model, *setting, opt="energy", dump_folder=folder, **SEARCHED)
    finally:
        logging.disable(disabled)
    return {item.layer.name: _moved(item.memory_word_access) for item, *_ in found[0][1]}


def _moved(words: Mapping[Any, Any]) -> dict[str, int]:
    """Bytes at the last memory of each operand, in all four directions."""
    return {PARTS[str(operand)]: WORD_BYTES * sum(levels[-1].data.values()) for operand, levels in words.items()}


ZIGZAG = Program("ZigZag", "zigzag.api", "zigzag-dse", ACCELERATOR, count)
