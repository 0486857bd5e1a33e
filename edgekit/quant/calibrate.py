"""What tensors hold over calibration images, streamed: one batch is in memory at a time.

The images are dealt out to three draws, each with histograms of its own: how far the ranges of the draws lie apart says
whether the images are enough.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import BadInput
from edgekit.quant.ranges import Histogram, Method, find_range
from edgekit.quant.session import open_session, with_outputs

if TYPE_CHECKING:
    import onnx

DRAWS = 3
FAR = 8.0
"""Preprocessed pixels beyond this, or of a spread below 1/FAR of one grey level, are no image's."""


@dataclasses.dataclass(frozen=True)
class Channels:
    """The least and the greatest value of each channel, (C,)."""

    lows: np.ndarray
    highs: np.ndarray

    @classmethod
    def of(cls, value: np.ndarray) -> Channels:
        """Of a tensor (B, C, H, W)."""
        return cls(value.min(axis=(0, 2, 3)), value.max(axis=(0, 2, 3)))

    def joined(self, other: Channels) -> Channels:
        return Channels(np.minimum(self.lows, other.lows), np.maximum(self.highs, other.highs))

    @property
    def top(self) -> np.ndarray:
        """The largest magnitude of each channel."""
        return np.maximum(self.highs, -self.lows)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one tensor held.

    Attributes:
        draws: a histogram of each third of the images; fewer where there were fewer batches.
        channels: its extremes by channel, for a tensor of four axes (B, C, H, W).
    """

    draws: tuple[Histogram, ...]
    channels: Channels | None

    @functools.cached_property
    def all(self) -> Histogram:
        return functools.reduce(Histogram.joined, self.draws)

    def spread(self, method: Method, symmetric: bool) -> float:
        """The widest range among the draws less the narrowest, as a share of the range of all."""
        ends = [find_range(draw, method, symmetric) for draw in (*self.draws, self.all)]
        *widths, whole = [high - low for low, high in ends]
        return (max(widths) - min(widths)) / whole if whole else 0.0


def observed(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray], bins: bool = True
) -> dict[str, Seen]:
    """Run the model on float batches (B, C, H, W) and look at these tensors.

    Args:
        bins: whether more than the extremes is wanted.

    Raises:
        BadInput: a tensor holds values that are not finite.
    """
    inputs = {value.name for value in model.graph.input}
    names = [name for name in tensors if name not in inputs]
    session = open_session(with_outputs(model, names)) if names else None
    draws: dict[str, list[Histogram]] = {name: [] for name in tensors}
    channels: dict[str, Channels] = {}
    for count, batch in enumerate(batches):
        values = dict(zip(names, session.run(names, {model.graph.input[0].name: batch}))) if session else {}
        values |= {name: batch for name in tensors if name in inputs}
        for name, value in values.items():
            _check_finite(name, value)
            if count < DRAWS:
                draws[name].append(Histogram(bins))
            draws[name][count % DRAWS].add(value)
            if value.ndim == 4:
                held = Channels.of(value)
                channels[name] = channels[name].joined(held) if name in channels else held
    return {name: Seen(tuple(found), channels.get(name)) for name, found in draws.items() if found}


def batch_size(model: onnx.ModelProto) -> int:
    """Of a file of fixed batch; 1 where it is free."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    return dims[0].dim_value if dims and dims[0].dim_value > 0 else 1


def whole(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The batches, the last one filled up with its last image: a file of fixed batch takes no fewer."""
    for batch in batches:
        yield batch if len(batch) == size else np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])


def _check_finite(name: str, value: np.ndarray) -> None:
    if not np.isfinite(value).all():
        raise BadInput(f"the tensor {name!r} holds values that are not finite on a calibration image")


def check_images(low: float, high: float) -> None:
    """Raises BadInput where preprocessed images lie far off any usual preprocessing: [input] does not fit the model."""
    if high - low < 1 / FAR:
        raise BadInput(
            f"int8: the preprocessed calibration images lie within [{low:.3g}, {high:.3g}], which is almost one "
            f"colour; check mean and std under [input], and the data"
        )
    if max(-low, high) > FAR * 4:
        raise BadInput(
            f"int8: the preprocessed calibration images reach from {low:.3g} to {high:.3g}; check mean and std under "
            f"[input]: they are on the scale 0 to 1"
        )
