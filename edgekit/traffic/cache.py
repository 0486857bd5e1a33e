"""A last-level cache that keeps what was used last, and where the runtime puts its tensors."""

from __future__ import annotations

import bisect
import dataclasses
from collections import OrderedDict
from collections.abc import Iterable

from edgekit.traffic.fused import Group, Tensor

BLOCK_BYTES = 1024
"""What the cache is filled by. Single lines would give the same within a percent, sixteen times as slowly."""
ALIGNED = 256
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

    The arena is laid out as ONNX Runtime does after its first run: every tensor goes into the smallest gap that holds
    it among those alive; kernels that may write over their input do.
    """

    def __init__(self, groups: list[Group]) -> None:
        self._end = 0
        self.places: dict[str, int] = {}
        self._arena(groups)
        self.scratch, self.runtime = self._beyond(2**34), self._beyond(2**34)
        for group in groups:
            for tensor in group.weights:
                self.places.setdefault(tensor.name, self._beyond(tensor.size_bytes))

    def span(self, tensor: Tensor, role: str) -> Span:
        return Span(role, self.places[tensor.name], tensor.size_bytes)

    def _beyond(self, size_bytes: int) -> int:
        address, self._end = self._end, self._end + _aligned(size_bytes)
        return address

    def _arena(self, groups: list[Group]) -> None:
        last = {tensor.name: place for place, group in enumerate(groups) for tensor in group.inputs}
        taken: list[tuple[int, int, str]] = []  # (address, end, name) of what is alive, in order
        held: dict[str, str] = {}  # tensor -> the one whose memory it shares
        ends: dict[str, int] = {}
        for place, group in enumerate(groups):
            for tensor in group.inputs:
                if tensor.name not in self.places:  # the network's input, which the caller holds
                    self.places[tensor.name] = 2**40
            for index, tensor in enumerate(group.outputs):
                over = _written_over(group, tensor, last, place) if index == 0 else None
                if over is not None and over.name in held:
                    held[tensor.name] = held[over.name]
                    self.places[tensor.name] = self.places[over.name]
                else:
                    held[tensor.name] = tensor.name
                    self.places[tensor.name] = _fit(taken, _aligned(tensor.size_bytes), tensor.name)
                owner = held[tensor.name]
                ends[owner] = max(ends.get(owner, 0), last.get(tensor.name, place))
            self._end = max(self._end, max((end for _, end, _ in taken), default=0))
            taken = [item for item in taken if ends[item[2]] > place]


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNED) * ALIGNED


def _written_over(group: Group, output: Tensor, last: dict[str, int], place: int) -> Tensor | None:
    """The input whose memory the output takes."""
    if group.kind in HERE:
        return group.inputs[0] if group.inputs else None
    added = group.inputs[1:] if group.is_conv else group.inputs if group.kind in IN_PLACE else ()
    same = (tensor for tensor in added if tensor.size_bytes == output.size_bytes and last[tensor.name] == place)
    return next(same, None)


def _fit(taken: list[tuple[int, int, str]], size: int, name: str) -> int:
    """The address of the smallest gap of that size, or behind all; notes it as taken."""
    address, best, at = 0, None, 0
    for begin, end, _ in taken:
        if begin - address >= size and (best is None or begin - address < best):
            best, at = begin - address, address
        address = max(address, end)
    at = address if best is None else at
    bisect.insort(taken, (at, at + size, name))
    return at
