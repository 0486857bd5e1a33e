"""What passes and rewrites may ask for. `run.py` fills these in; nothing here imports an engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edgekit.data import Data, Input, Output
from edgekit.errors import BadInput
from edgekit.parallel import ALONE, World
from edgekit.targets import Target

if TYPE_CHECKING:
    import onnx
    from torch import nn

    from edgekit.latency import LatencyModel
    from edgekit.net import Net

T = TypeVar("T")
Track = Callable[..., Iterable]
"""Shows progress: (items, label, total, status=None) -> the same items; `status()` is a word on how it goes."""


def no_progress(
    items: Iterable[T], _label: str, _total: int | None = None, _status: Callable[[], str] | None = None
) -> Iterable[T]:
    return items


def no_latency(_net: Net) -> LatencyModel:
    """Raises BadInput: nobody said on which engine."""
    raise BadInput("no latency is measured here; run the pass by `edgekit compress`, or give a budget of macs instead")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """What a training works with.

    Attributes:
        score: the task's metrics of a network on the calibration images; on several processes all of them must ask.
        log: takes one line about what was decided.
        state: the file that a training keeps its state in and goes on from; None keeps none.
        journal: the file for a training's log of steps.
        world: this process's place among those that train together.
    """

    data: Data
    input: Input
    output: Output
    seed: int
    score: Callable[[Net], dict[str, float]]
    log: Callable[[str], None]
    track: Track = no_progress
    state: Path | None = None
    journal: Path | None = None
    world: World = ALONE


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassContext(TrainingContext):
    """What a pass works with.

    Attributes:
        base: the network before the first pass, e.g. the teacher of a distillation.
        before: the last whole network: what the latest pass that changed the structure was given; while none has,
            what the latest pass was given. None stands for `base`.
        cost: params, macs, cio, cio_paper, size_bytes and peak_bytes of a network, as traced.
        latency: what a network, and any narrower form of it, takes on this machine; all processes must ask.
        network: the module that a MODEL or bundle names, with its trained weights, e.g. a teacher.
    """

    base: Net
    cost: Callable[[Net], dict[str, int]]
    network: Callable[[str], nn.Module]
    latency: Callable[[Net], LatencyModel] = no_latency
    before: Net | None = None

    def limits(self, budget: Mapping[Any, float]) -> dict[str, float]:
        """What each cost of `budget` may come to: that share of the uncompressed network's."""
        whole: dict[str, float] = dict(self.cost(self.base))
        if "latency" in budget:
            whole["latency"] = self.latency(self.base).full_ms
        return {str(name): share * whole[name] for name, share in budget.items()}

    def layer_latency(self, net: Net) -> LatencyModel:
        """The times of a network's layers: those of the uncompressed network, where they are all among its own.

        Times of two tables come from two runs, and what the machine did meanwhile would count as the network's.
        """
        from edgekit.edits import layer_channels

        known = self.latency(self.base)
        return known if layer_channels(net.module).keys() <= known.layers.keys() else self.latency(net)


@dataclasses.dataclass(frozen=True)
class RewriteContext:
    """What a rewrite works with: the target's form, and calibration images where the recipe's data has them.

    Attributes:
        keep: takes a JSON document and the name under which it is to stand beside the file.
        timed: files of the target timed in one run, a record each with latency_ms, and latency_ratio to the first;
            empty where the target's engine cannot run here.
        training: for a rewrite that trains; None where there is no data.
    """

    target: Target
    input: Input
    output: Output
    data: Data | None
    seed: int
    log: Callable[[str], None]
    track: Track = no_progress
    keep: Callable[[str, dict[str, Any]], None] = lambda _name, _document: None
    timed: Callable[[Sequence[onnx.ModelProto]], list[dict[str, Any]]] = lambda _models: []
    training: TrainingContext | None = None

    def calibration(self, images: int, batch_size: int = 1) -> Iterator[np.ndarray]:
        """At most `images` preprocessed calibration images as float32 batches of (B, C, H, W), always the same ones.

        Raises:
            BadInput: the data has no calibration images.
        """
        if self.data is None:
            raise BadInput("this recipe needs calibration images: give --data")
        samples = self.data.role("calibrate").subset(images, self.seed)
        for batch, _, _ in samples.batches(self.input, batch_size):
            yield batch
