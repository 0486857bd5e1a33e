"""In which order ONNX Runtime's CPU kernels go through their tensors, as accesses to parts of them.

Float convolutions work on channels in blocks (layout NCHWc). They compute 32 output channels at once, so the input is
gone through once for every 32 of them, and

    pointwise   goes through all positions for 128 input channels at a time, adding to the outputs;
    dense       goes through all rows for 8 input channels at a time, adding to the outputs;
    depthwise   goes through every channel once.

An activation other than ReLU goes through the outputs once more. int8 convolutions work on channels last. They go
through positions in at most five parts and of each part 240 at a time, and for each of these through all weights, 16
output channels at a time. Where the channels are no multiple of what the kernel wants (8 out, 4 in; 16 of a depthwise
one), the window is unfolded into a buffer and the sums go through another of int32. Windows are found by a table of
pointers, 8 bytes for each of their elements and positions. Of several groups each is a product of its own over a whole
part: it unfolds its channels of the input and adds up its channels of the sums, a cache line in every position.

A transposition from channels last to channels first goes through its input once for every few channels (8 of one byte,
4 of four). Everything else goes through its inputs and outputs side by side, once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from edgekit.traffic.cache import BLOCK_BYTES, Layout, Span
from edgekit.traffic.fused import Group

SET, LANES, BATCH = 32, 8, 128
"""Output channels computed at once, channels of a block, input channels of one pass of a pointwise convolution."""
TASKS, POSITIONS, CHANNELS, PART_MACS = 5, 240, 16, 64 * 1024
"""Of an int8 convolution: parts of the output, positions of one pass, output channels at once, least work of a part."""
POINTER_BYTES, SUM_BYTES, LINE_BYTES = 8, 4, 64
COLUMNS = {1: 8, 2: 8, 4: 4, 8: 4}
"""Channels that a transposition writes at once, by the bytes of an element."""


def accesses(group: Group, layout: Layout) -> Iterator[Span]:
    """What a group goes through, in order."""
    inputs = [layout.span(tensor, "input") for tensor in group.inputs]
    outputs = [layout.span(tensor, "output") for tensor in group.outputs]
    weights = [layout.span(tensor, "weights") for tensor in group.weights]
    if group.is_conv and inputs and weights:
        conv = Convolution(group, inputs[0], weights[0], outputs[0], layout)
        if len(inputs) > 1 and inputs[1].address != outputs[0].address:  # a sum that is added to is copied first
            yield from stream([inputs[1], outputs[0]])
        yield from stream(weights[1:])  # bias and scales
        yield from conv.accesses()
    elif group.attributes.get("perm") == [0, 3, 1, 2]:
        x = group.inputs[0]
        yield from _columns(inputs[0], outputs[0], math.ceil(x.shape[-1] / COLUMNS[x.item_bytes]))
    else:
        yield from stream([*inputs, *weights, *outputs])


def stream(spans: list[Span]) -> Iterator[Span]:
    """All of them side by side, from begin to end."""
    count = _steps(max((span.size_bytes for span in spans), default=0))
    for index in range(count):
        for span in spans:
            yield span.part(index, count)


def _columns(x: Span, y: Span, passes: int) -> Iterator[Span]:
    for index in range(passes):
        yield from stream([x, y.part(index, passes)])


def _steps(size_bytes: int) -> int:
    return max(1, size_bytes // BLOCK_BYTES)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution at batch 1 of input x, weights w and output y."""

    group: Group
    x: Span
    w: Span
    y: Span
    layout: Layout

    def accesses(self) -> Iterator[Span]:
        if self.group.kind == "QLinearConv":
            return self._int8()
        if self.group.is_depthwise:
            return self._depthwise()
        return self._pointwise() if self.group.kernel == 1 and not self.group.strided else self._dense()

    @property
    def _channels(self) -> tuple[int, int]:
        return self.group.inputs[0].shape[1], self.group.outputs[0].shape[1]

    def _depthwise(self) -> Iterator[Span]:
        planes = max(1, self._channels[1] // LANES)
        for index in range(planes):
            yield self.w.part(index, planes)
            yield from stream([self.x.part(index, planes), self.y.part(index, planes)])

    def _pointwise(self) -> Iterator[Span]:
        channels, filters = self._channels
        sets, batches = math.ceil(filters / SET), math.ceil(channels / BATCH)
        for chosen in range(sets):
            y = self.y.part(chosen, sets)
            for batch in range(batches):
                yield self.w.part(chosen, sets).part(batch, batches)
                yield from self._planes(self.x.part(batch, batches), max(1, channels // batches // LANES), y)
            yield from self._activated(y)

    def _dense(self) -> Iterator[Span]:
        channels, filters = self._channels
        lanes = LANES if channels % LANES == 0 else channels
        groups = self.group.groups
        sets, passes = math.ceil(filters / groups / SET), max(1, channels // groups // lanes)
        for number in range(groups):
            x, w, y = (span.part(number, groups) for span in (self.x, self.w, self.y))
            for chosen in range(sets):
                for index in range(passes):
                    yield w.part(chosen, sets).part(index, passes)
                    yield from self._planes(x.part(index, passes), 1, y.part(chosen, sets))
                yield from self._activated(y.part(chosen, sets))

    def _planes(self, x: Span, planes: int, y: Span) -> Iterator[Span]:
        """All positions, row by row, in every plane of both."""
        outs = max(1, SET // LANES)
        count = min(self.group.outputs[0].shape[2], _steps(max(x.size_bytes // planes, y.size_bytes // outs)))
        for row in range(count):
            for plane in range(planes):
                yield x.part(plane, planes).part(row, count)
            for plane in range(outs):
                yield y.part(plane, outs).part(row, count)

    def _activated(self, y: Span) -> Iterator[Span]:
        if self.group.attributes.get("activation", b"Relu") != b"Relu":
            yield y

    # int8

    @property
    def _last(self) -> tuple[int, int]:
        """Channels of input and output."""
        axis = -1 if self.group.attributes.get("channels_last") else 1
        return self.group.inputs[0].shape[axis], self.group.outputs[0].shape[axis]

    @property
    def _symmetric(self) -> bool:
        """Whether the kernel takes the tensors as they are, without unfolding."""
        channels, filters = self._last
        if self.group.is_depthwise:
            return filters % 16 == 0
        return self.group.groups == 1 and channels % 4 == 0 and filters % 8 == 0 and filters >= CHANNELS

    def _int8(self) -> Iterator[Span]:
        _, filters = self._last
        positions = max(1, self.y.size_bytes // filters)
        if self.group.groups > 1 and not (self.group.is_depthwise and filters == self.group.groups):
            yield from self._int8_groups(positions)
            return
        count = math.ceil(positions / min(POSITIONS, math.ceil(positions / TASKS)))
        sets = 1 if self.group.is_depthwise else math.ceil(filters / CHANNELS)
        buffers = self._buffers(positions, self.w.size_bytes // filters)
        yield from buffers[:1] if not self._symmetric else ()
        for index in range(count):
            yield from (buffer.part(index, count) for buffer in buffers)
            for chosen in range(sets):
                yield self.x.part(index, count)
                yield self.w.part(chosen, sets)
                yield self.y.part(index, count)
            yield from (buffer.part(index, count) for buffer in buffers)

    def _int8_groups(self, positions: int) -> Iterator[Span]:
        """Channels that share a cache line stand for a contiguous part of the tensor here; it is as large."""
        channels, filters = self._last
        groups = self.group.groups
        least = math.ceil(PART_MACS / (self.w.size_bytes // groups) / POSITIONS) * POSITIONS
        count = min(TASKS, math.ceil(positions / least))
        unfolded = self.layout.scratch(positions * (self.w.size_bytes // filters), 0)
        sums = self.layout.scratch(SUM_BYTES * self.y.size_bytes, 1)
        x_lines, sum_lines = math.ceil(channels / LINE_BYTES), math.ceil(filters * SUM_BYTES / LINE_BYTES)
        for index in range(count):
            for number in range(groups):
                yield self.x.part(number * x_lines // groups, x_lines).part(index, count)
                yield unfolded.part(index, count)
                yield self.w.part(number, groups)
                yield sums.part(number * sum_lines // groups, sum_lines).part(index, count)
            yield from (sums.part(index, count), self.y.part(index, count))

    def _buffers(self, positions: int, window_bytes: int) -> list[Span]:
        """The table of pointers or the unfolded windows, and the sums in int32."""
        sizes = []
        if self.group.kernel > 1 or self.group.strided:
            pointed = self.group.is_depthwise or self._symmetric
            sizes.append(positions * (self.group.kernel * POINTER_BYTES if pointed else window_bytes))
        if not self._symmetric:
            sizes.append(SUM_BYTES * self.y.size_bytes)
        return [self.layout.scratch(size, slot) for slot, size in enumerate(sizes)]
