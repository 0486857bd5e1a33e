"""A last-level cache that keeps what was used last, and where the runtime puts its tensors."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable

from edgekit.traffic.fused import Group, Tensor

BLOCK_BYTES = 1024
"""What the cache is filled by. Single lines would give the same within a percent, sixteen times as slowly."""
ALIGNED, SLOT_BYTES = 256, 2**40
ROLES = ("weights", "input", "output", "scratch", "runtime")
HERE = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")
"""Results that are the same bytes as the first input."""
IN_PLACE = frozenset(
    "Add Sub Mul Div Relu Clip LeakyRelu Sigmoid HardSigmoid HardSwish Tanh Gelu QuickGelu Sqrt Exp Neg Abs Max Min "
    "Softmax BatchNormalization".split()
)
"""Kernels that may write over an input of the same size which nobody reads again."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Where a tensor lies, and what it is to the group that uses it: one of ROLES."""

    role: str
    address: int
    size_bytes: int

    def part(self, index: int, count: int) -> Span:
        """The index-th of `count` parts of the same length."""
        begin = self.size_bytes * index // count
        return Span(self.role, self.address + begin, self.size_bytes * (index + 1) // count - begin)


class Cache:
    """Fully associative, of the least recently used block replaced; an access to a block that is not there fills it."""

    def __init__(self, size_bytes: int) -> None:
        self._room = max(1, size_bytes // BLOCK_BYTES)
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def filled(self, accesses: Iterable[Span]) -> dict[str, int]:
        """Go through the accesses; the bytes filled by role."""
        filled = dict.fromkeys(ROLES, 0)
        blocks, room = self._blocks, self._room
        for span in accesses:
            for block in range(span.address // BLOCK_BYTES, (span.address + span.size_bytes - 1) // BLOCK_BYTES + 1):
                if block in blocks:
                    blocks.move_to_end(block)
                    continue
                filled[span.role] += BLOCK_BYTES
                blocks[block] = None
                if len(blocks) > room:
                    blocks.popitem(last=False)
        return filled


class Layout:
    """Addresses of all tensors: weights each in a place of its own, activations in an arena that is used again.

    The arena is laid out as ONNX Runtime does. Where shapes are known before the first run, a kernel that may writes
    over its input, and a result takes the memory of a dead one of the same size. What is left goes into the smallest
    gap that holds it among the buffers alive, where a buffer that was taken again counts as alive all the while.
    Scratch memory comes from an allocator that keeps sizes apart: buffers of another power of two lie elsewhere.
    """

    def __init__(self, groups: list[Group]) -> None:
        self.places: dict[str, int] = {}
        self._end = 0
        for tensor in (*_given(groups), *(weight for group in groups for weight in group.weights)):
            if tensor.name not in self.places:
                self.places[tensor.name] = self._beyond(tensor.size_bytes)
        self._scratch, self.runtime, arena = (self._beyond(4 * SLOT_BYTES) for _ in range(3))
        buffers = _buffers(groups)
        offsets = _packed(list({id(buffer): buffer for buffer in buffers.values()}.values()))
        self.places |= {name: arena + offsets[id(buffer)] for name, buffer in buffers.items()}

    def span(self, tensor: Tensor, role: str) -> Span:
        return Span(role, self.places[tensor.name], tensor.size_bytes)

    def scratch(self, size_bytes: int, slot: int) -> Span:
        """Memory that a kernel asks for while it runs; buffers of different slots are held at the same time."""
        return Span("scratch", self._scratch + slot * SLOT_BYTES + (1 << size_bytes.bit_length()), size_bytes)

    def _beyond(self, size_bytes: int) -> int:
        address, self._end = self._end, self._end + _aligned(size_bytes)
        return address


@dataclasses.dataclass
class Buffer:
    """Memory of the arena, from the group that first fills it to the one that reads it last."""

    size_bytes: int
    planned: bool
    begin: int
    end: int


def _given(groups: list[Group]) -> list[Tensor]:
    """What the caller holds: activations that no group makes."""
    made = {tensor.name for group in groups for tensor in group.outputs}
    return [tensor for group in groups for tensor in group.inputs if tensor.name not in made]


def _buffers(groups: list[Group]) -> dict[str, Buffer]:
    """The buffer of every result."""
    last = {tensor.name: place for place, group in enumerate(groups) for tensor in group.inputs}
    found: dict[str, Buffer] = {}
    free: list[Buffer] = []
    for place, group in enumerate(groups):
        for index, tensor in enumerate(group.outputs):
            over = _written_over(group, tensor, last, place) if index == 0 else None
            buffer = found.get(over.name) if over is not None else None
            if buffer is None and tensor.planned:
                buffer = next((item for item in reversed(free) if item.size_bytes == tensor.size_bytes), None)
                free = [item for item in free if item is not buffer]
            buffer = buffer or Buffer(tensor.size_bytes, tensor.planned, place, place)
            buffer.end = max(buffer.end, last.get(tensor.name, place))
            found[tensor.name] = buffer
        touched = {id(item): item for item in (found.get(t.name) for t in (*group.inputs, *group.outputs)) if item}
        free += [item for item in touched.values() if item.planned and item.end == place and item not in free]
    return found


def _packed(buffers: list[Buffer]) -> dict[int, int]:
    """Where each buffer begins: in the smallest gap among those alive with it, or behind them."""
    offsets: dict[int, int] = {}
    for buffer in buffers:
        alive = [item for item in buffers if id(item) in offsets and item.end >= buffer.begin]
        address, best, at = 0, None, None
        for begin, size in sorted((offsets[id(item)], _aligned(item.size_bytes)) for item in alive):
            gap = begin - address
            if gap >= _aligned(buffer.size_bytes) and (best is None or gap < best):
                best, at = gap, address
            address = max(address, begin + size)
        offsets[id(buffer)] = address if at is None else at
    return offsets


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNED) * ALIGNED


def _written_over(group: Group, output: Tensor, last: dict[str, int], place: int) -> Tensor | None:
    """The input whose memory the output takes."""
    if group.kind in HERE:
        return group.inputs[0] if group.inputs else None
    added = group.inputs[1:] if group.is_conv else group.inputs if group.kind in IN_PLACE else ()
    dead = (tensor for tensor in added if last[tensor.name] == place and tensor.planned and output.planned)
    return next((tensor for tensor in dead if tensor.size_bytes == output.size_bytes), None)
