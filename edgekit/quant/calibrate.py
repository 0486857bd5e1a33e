"""Ranges of intermediate tensors over calibration images, streamed: one batch is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import BadInput
from edgekit.quant.ranges import Histogram
from edgekit.quant.session import open_session, with_outputs

if TYPE_CHECKING:
    import onnx

FAR = 8.0
"""Preprocessed pixels beyond this, or of a spread below 1/FAR of one grey level, are no image's."""


def histograms(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[np.ndarray], bins: bool = True
) -> tuple[dict[str, Histogram], dict[str, np.ndarray]]:
    """Run the model on float batches (B, C, H, W).

    Args:
        bins: whether more than the extremes is wanted.

    Returns:
        For each tensor its histogram, and for those of four axes (B, C, H, W) the largest magnitude of each channel.

    Raises:
        BadInput: a tensor holds values that are not finite, or the images are far off any preprocessing.
    """
    inputs = {value.name for value in model.graph.input}
    names = [name for name in tensors if name not in inputs]
    session = open_session(with_outputs(model, names)) if names else None
    found = {name: Histogram(bins) for name in tensors}
    channels: dict[str, np.ndarray] = {}
    for batch in batches:
        values = dict(zip(names, session.run(names, {model.graph.input[0].name: batch}))) if session else {}
        values |= {name: batch for name in tensors if name in inputs}
        for name, value in values.items():
            _check_finite(name, value)
            found[name].add(value)
            if value.ndim == 4:
                top = np.maximum(value.max(axis=(0, 2, 3)), -value.min(axis=(0, 2, 3)))
                channels[name] = np.maximum(channels.get(name, top), top)
    return found, channels


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
