"""Modelled memory traffic: the bytes that one inference in ONNX Runtime brings into the last-level cache.

What is counted. Lines filled into the cache, for reads and for writes; a line that is written back is not counted
again. That is cachegrind's count, so the two can be compared. One inference at batch 1 on one core, after others of the
same file: what the last one left in the cache is there.

What is modelled.
  1. The graph as the runtime runs it: its own optimised graph, in its own types. int8 weights are one byte; coded
     weights are decoded when the file is loaded, so they count as what they decode to; a float16 file that the runtime
     computes in float32 counts as float32. A fused group reads its inputs and weights and writes its outputs; what lies
     between the parts of a group never leaves the registers.
  2. Where tensors lie (cache.py). Activations share an arena, so a result may take memory that is in the cache still.
  3. In which order a kernel goes through its tensors (kernels.py). Here tiles come in: a convolution goes through its
     input once for each block of output channels, and adds to its output once for each block of input channels. If
     what it comes back to has left the cache by then, it is counted again.
  4. The cache: fully associative, least recently used, of the last level's size. What is still there when the next
     group wants it is not counted: it is resident.
  5. The runtime itself: its code and what it keeps of every node pass through the cache as well (`RUNTIME_BYTES`,
     `NODE_BYTES`).

What is not. Prefetching, which moves traffic in time and rarely adds to it; the caches in between, which decide how
often the last one is asked; other cores; pages. Kernels are those for AVX2 and, in the widths that matter here, NEON.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from edgekit.devices.boards import DEFAULT
from edgekit.traffic.cache import Cache, Layout, Span
from edgekit.traffic.fused import Group
from edgekit.traffic.kernels import accesses

RUNTIME_BYTES, NODE_BYTES = 16 * 1024, 4 * 1024
"""Of the runtime: what every group uses again, and what belongs to one group (its code, its shapes, its pointers)."""
RESIDENT = 0.1
"""An input of which less was filled than this was resident."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The traffic of one fused group: bytes filled for its weights, input, output, scratch memory and the runtime."""

    group: Group
    filled: dict[str, int]

    @property
    def traffic_bytes(self) -> int:
        return sum(self.filled.values())

    @property
    def resident(self) -> bool:
        """Whether the input was in the cache."""
        return self.filled["input"] < RESIDENT * max(1, self.sizes["input"])

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of its weights, inputs and outputs, each tensor once."""
        parts = {"weights": self.group.weights, "input": self.group.inputs, "output": self.group.outputs}
        return {name: sum(tensor.size_bytes for tensor in tensors) for name, tensors in parts.items()}

    @property
    def intensity(self) -> float:
        """MACs for each byte from memory."""
        return self.group.macs / max(1, self.traffic_bytes)


def modelled(groups: list[Group], llc_bytes: int) -> list[Row]:
    """The traffic of one inference, group by group."""
    layout, cache = Layout(groups), Cache(llc_bytes)
    for place, group in enumerate(groups):
        cache.filled(_all(place, group, layout))
    return [Row(group, cache.filled(_all(place, group, layout))) for place, group in enumerate(groups)]


def traffic_bytes(groups: list[Group], llc_bytes: int = DEFAULT.llc.size_bytes) -> int:
    """The traffic of one inference; a bundle's rows hold it for a last-level cache of 2 MiB."""
    return sum(row.traffic_bytes for row in modelled(groups, llc_bytes))


def _all(place: int, group: Group, layout: Layout) -> Iterator[Span]:
    """The runtime's own accesses, and then the kernel's."""
    yield Span("runtime", layout.runtime, RUNTIME_BYTES)
    yield Span("runtime", layout.runtime + RUNTIME_BYTES + place * NODE_BYTES, NODE_BYTES)
    yield from accesses(group, layout)
