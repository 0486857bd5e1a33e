"""Times of every layer inside its network, from ONNX Runtime's own account of its operators.

A layer that is measured alone does not tell what it costs inside a network: its tensors are warm, and its layout is
changed at both ends. Single convolutions at the very widths that were asked for came to 8.8 ms where MobileNetV2 takes
13.3, and were 2 % off (worst 6 %) in the ratio of two widths; as whole sessions, reorders included, 16 % (worst 100 %).
Layers measured in place and fitted (`model.py`) are off by 0.4 to 0.8 % (worst 2 %). Hence this module.

All networks run in the same rounds, in random order, and of every operator and every whole network the fastest round
counts: a neighbour on the machine only ever adds time. Beside four busy processes on two cores, prediction and
measurement were 15 % apart by medians and 0.8 % by fastest rounds (MobileNetV2; ResNet-50 8 and 2.6 %). Rounds so long
that none is left alone stay disturbed (HarDNet-68 9 and 11 %): the table then says that the machine was busy.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgekit.context import Track, no_progress
from edgekit.devices import runner
from edgekit.engines import onnxruntime
from edgekit.errors import BadInput
from edgekit.latency.variants import Variant
from edgekit.profile.layers import owners, source_name

LAYER_KINDS = frozenset("Conv FusedConv ConvTranspose Gemm FusedGemm MatMul FusedMatMul".split())


@dataclasses.dataclass(frozen=True)
class Timings:
    """What was measured.

    Attributes:
        layers: for each noted network, the ms of each of its layers, glue included (fastest round of each operator).
        sums: for each noted network, the ms of all its operators in its fastest round.
        whole: for each network that ran without notes, the ms of every round.
    """

    layers: list[dict[str, float]]
    sums: list[float]
    whole: list[list[float]]


def time_variants(
    noted: Sequence[Variant],
    whole: Sequence[Variant],
    threads: int,
    runs: int,
    seed: int = 0,
    track: Track = no_progress,
) -> Timings:
    """Run every network once in each of `runs` rounds.

    Args:
        noted: networks whose operators are timed one by one; taking notes costs some microseconds an operator.
        whole: networks that are timed as they are shipped.

    Raises:
        BadInput: ONNX Runtime cannot load or account for one of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        opened = [onnxruntime.load(variant.bytes(), threads, profile=Path(folder) / "layers") for variant in noted]
        plain = [onnxruntime.load(variant.bytes(), threads) for variant in whole]
        rng = np.random.default_rng(seed)
        pairs = [(session, rng.standard_normal((1, *session.shape), np.float32)) for session in (*opened, *plain)]
        for pair in pairs:
            runner.warm_up(*pair)
        series = runner.interleave(pairs, track(range(runs), "profiling", runs), seed)
        accounts = [onnxruntime.operators(session) for session in opened]
    return Timings(
        layers=[layer_times(account, variant, runs) for account, variant in zip(accounts, noted)],
        sums=[float(account.ms[-runs:].sum(axis=1).min()) for account in accounts],
        whole=series[len(opened) :],
    )


def layer_times(noted: runner.Operators, variant: Variant, runs: int) -> dict[str, float]:
    """Milliseconds of each layer, from the fastest of the last `runs` runs of each of its operators.

    What is no layer (a concatenation, a pooling, a change of layout) goes to the next layer that is run, whose input it
    makes; after the last layer, to that one.
    """
    known = owners(variant.model, list(variant.channels))
    times = dict.fromkeys(known.values(), 0.0)
    waiting, layer = 0.0, None
    for name, kind, ms in zip(noted.names, noted.kinds, noted.ms[-runs:].min(axis=0).tolist()):
        waiting += ms
        owner = known.get(source_name(name)) if kind in LAYER_KINDS else None
        if owner is not None:
            times[owner] += waiting
            waiting, layer = 0.0, owner
    if layer is None:
        raise BadInput("ONNX Runtime's account names no layer of the network; its latency cannot be told by layers")
    times[layer] += waiting
    return times
