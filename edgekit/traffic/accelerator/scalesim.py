"""SCALE-Sim (Samajdar, Zhu, Whatmough, Mattina & Krishna, 2018, arXiv 1811.02883; here version 3.0.0).

It simulates, cycle by cycle, a systolic array of S × S multipliers that fetches weights and inputs from two buffers and
writes outputs through a third, and counts what the buffers exchange with the DRAM. Each is double: one half holds what
is in use, and is emptied when it is full. In the output-stationary dataflow a multiplier keeps one sum until that is
complete: S positions × S filters at a time, all positions for the first S filters first. So with P positions, K
elements in a window and N filters the array asks for

    input     P · K · ⌈N / S⌉
    weights   N · K · ⌈P / S⌉

elements, and the DRAM is asked for those that the buffer does not have: each once where a tensor fits into its half;
otherwise, of a pointwise convolution, the whole input ⌈N / S⌉ times. In the two other dataflows every part of a sum
goes to the DRAM, whatever the buffer, so they are not offered.

Padding is part of the input that SCALE-Sim gets, and is counted. Where the outputs exceed their buffer it counts up to
S too many. Left out are convolutions in groups (depthwise ones with them), dilated and transposed ones, those of other
than two dimensions, and products whose second side has a batch. It is called layer by layer, below its command, which
prints, writes traces and ends the process where a path is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgekit.context import Track
from edgekit.errors import BadInput
from edgekit.traffic.accelerator.program import Counted, Program, shapes

if TYPE_CHECKING:
    import onnx

SIDE, BUFFER_KIB = 32, 64
"""S and the size of each buffer: those of SCALE-Sim's own example."""
REQUEST_S, REQUEST_BYTES = 7e-6, 40
"""What an element that the array asks for takes of a core of 2.5 GHz and of memory, roughly."""
MOST_REQUESTS = 2**27
"""Of a layer: a quarter of an hour and 5 GB."""
NUMPY = "2.4.0"
"""The first that SCALE-Sim 3.0.0 fails with: it takes an array of one element for a number."""

Shape = tuple[int, ...]


class Row(NamedTuple):
    """A layer in the order of SCALE-Sim's table of layers; height and width with padding. Its last two are N:M
    sparsity."""

    name: str
    height: int
    width: int
    window_height: int
    window_width: int
    channels: int
    filters: int
    stride_height: int = 1
    stride_width: int = 1
    nonzero: int = 1
    of: int = 1

    @property
    def requests(self) -> int:
        """Elements that the array asks for."""
        rows = (self.height - self.window_height) // self.stride_height + 1
        columns = (self.width - self.window_width) // self.stride_width + 1
        window = self.window_height * self.window_width * self.channels
        positions = rows * columns
        return window * (positions * math.ceil(self.filters / SIDE) + self.filters * math.ceil(positions / SIDE))


def table(model: onnx.ModelProto) -> list[Row]:
    """The layers of a plain model that SCALE-Sim can express."""
    known = shapes(model)
    found = (TAKEN[node.op_type](node, known) for node in model.graph.node if node.op_type in TAKEN)
    return [row for row in found if row is not None]


def _convolution(node: onnx.NodeProto, known: dict[str, Shape]) -> Row | None:
    from onnx import helper

    given = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    weight, out = known[node.input[1]], known[node.output[0]][2:]
    if len(out) != 2 or given.get("group", 1) != 1 or max(given.get("dilations", [1])) > 1:
        return None
    filters, channels, *window = weight
    strides = given.get("strides", [1, 1])
    # what the windows cover: SCALE-Sim rounds the number of positions up, ONNX down
    height, width = ((count - 1) * stride + size for count, stride, size in zip(out, strides, window))
    return Row(node.name, height, width, window[0], window[1], channels, filters, *strides)


def _product(node: onnx.NodeProto, known: dict[str, Shape]) -> Row | None:
    """Of (M, K) and (K, N): a map of M × K under windows of 1 × K, to N filters."""
    weight, out = known[node.input[1]], known[node.output[0]]
    if len(weight) != 2:
        return None
    filters = out[-1]
    size = math.prod(weight) // filters
    return Row(node.name, math.prod(out) // filters, size, 1, size, 1, filters)


TAKEN = {"Conv": _convolution, "Gemm": _product, "MatMul": _product}


def count(model: onnx.ModelProto, track: Track, log: Callable[[str], None]) -> Counted:
    """Of each layer that SCALE-Sim can express, one after another.

    Raises:
        BadInput: a layer would take too long and too much memory.
    """
    rows = table(model)
    for row in rows:
        if row.requests > MOST_REQUESTS:
            raise BadInput(
                f"{row.name}: SCALE-Sim would take about {_minutes(row.requests)} min and "
                f"{row.requests * REQUEST_BYTES / 1e9:.0f} GB of memory for it; export the file at a smaller input"
            )
    log(f"SCALE-Sim simulates {len(rows)} layers: about {_minutes(sum(row.requests for row in rows))} min")
    return {row.name: _simulated(row) for row in track(rows, "SCALE-Sim", len(rows))}


def _minutes(requests: int) -> int:
    return math.ceil(REQUEST_S * requests / 60)


def _simulated(row: Row) -> dict[str, int]:
    from scalesim.layout_utils import layouts
    from scalesim.scale_config import scale_config
    from scalesim.single_layer_sim import single_layer_sim
    from scalesim.topology_utils import topologies

    array, layer, simulation = scale_config(), topologies(), single_layer_sim()
    array.set_arr_dims(SIDE, SIDE)
    array.set_buffer_sizes_kb(BUFFER_KIB, BUFFER_KIB, BUFFER_KIB)
    array.set_dataflow("os")
    array.force_valid()
    layer.load_layer_params_from_list(row.name, list(row))
    simulation.set_params(0, array, layer, layouts(), verbose=False)
    simulation.run()
    items = simulation.get_detail_report_items()
    # of each of six flows: first cycle, last cycle, elements; the last three are those of the DRAM
    return {"weights_bytes": items[14], "input_bytes": items[11], "output_bytes": items[17]}


def _unfit() -> str | None:
    fails = np.lib.NumpyVersion(np.__version__) >= NUMPY
    return f"SCALE-Sim 3.0.0 fails with numpy {np.__version__}, it takes those before {NUMPY[:3]}" if fails else None


SCALE_SIM = Program(
    "SCALE-Sim",
    "scalesim.single_layer_sim",
    "scalesim",
    f"an output-stationary array of {SIDE}×{SIDE} with {BUFFER_KIB} KiB for each tensor",
    count,
    _unfit,
)
