"""Latency of a network and of its narrower twins, from layer times measured once per network and device.

table = layer_table(net, Input(size=224), threads=1)     # half a minute; afterwards read from the cache
table.model.ratio(pruned.module)                         # share of the unpruned network's latency
table.model.cost("blocks.1.expand.conv", 16, 48)         # ms of one layer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from edgekit.context import Track, no_progress
from edgekit.data import Input
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.latency.measure import Timings, time_variants
from edgekit.latency.model import LatencyModel, LayerCost
from edgekit.latency.table import Key, Place, Table, Whole, load, read
from edgekit.latency.variants import Family, Variant, family, scattered, uniform
from edgekit.machine import identity
from edgekit.net import Net, edits_to_json
from edgekit.schema import canonical, sha256, to_json
from edgekit.statistics import interval

__all__ = [
    "LatencyModel",
    "LayerCost",
    "Place",
    "Table",
    "Timings",
    "build_table",
    "kept_table",
    "layer_table",
    "table_key",
]

ENGINE = "onnxruntime"
ROUNDS = 20
SHARES = (1.0, 0.125, 0.3, 0.5, 0.7)
SCATTERED, HELD_SCATTERED = 10, 4
HELD_SHARES = (0.4, 0.6, 0.8)

Timer = Callable[[Sequence[Variant], Sequence[Variant], int, int, int, Track], Timings]


def layer_table(
    net: Net,
    input: Input,
    threads: int = 1,
    track: Track = no_progress,
    timer: Timer = time_variants,
    place: Place | None = None,
) -> Table:
    """The table of `net` on this machine, or at the `place` where `timer` measures: from the cache, or measured now and
    kept there.

    Raises:
        BadInput: the network cannot be measured, or what the cache holds cannot be used.
    """
    key = table_key(net, input, threads, place)
    table = load(key)
    if table is None:
        table = build_table(net, input, threads, track=track, timer=timer, place=place)
        table.save()
    return table


def kept_table(path: Path, net: Net, input: Input) -> Table:
    """The table of `net` in a file, on whatever machine it was measured.

    Raises:
        BadInput: no such file, no table of layers, or one of another network or input.
    """
    table = read(path)
    if table.key.network != table_key(net, input, table.key.threads).network:
        raise BadInput(
            f"{path}: was measured of another network, or at another input size. Measure it with `edgekit profile "
            f"MODEL --layer-table --input-size {input.shape[1]}`; of layers that a pass put in there can be none"
        )
    return table


def table_key(net: Net, input: Input, threads: int, place: Place | None = None) -> Key:
    source = {name: value for name, value in to_json(net.source).items() if name != "weights"}
    network = sha256(canonical({"source": source, "edits": edits_to_json(net.edits), "input": input.shape}))
    place = place or Place(identity(), engine(ENGINE).version())
    return Key(network, place.machine, ENGINE, place.engine_version, threads)


def build_table(
    net: Net,
    input: Input,
    threads: int = 1,
    *,
    rounds: int = ROUNDS,
    round_to: int = 8,
    seed: int = 0,
    track: Track = no_progress,
    timer: Timer = time_variants,
    place: Place | None = None,
) -> Table:
    """Measure the layers of `net` in networks of many widths, and whole networks of others to judge the fit by.

    Args:
        threads: of one inference.
        rounds: how often each network runs, interleaved.
        round_to: channel counts are multiples of this; a prediction for others is a guess.

    Raises:
        BadInput: no channels of the network can be removed, or ONNX Runtime cannot run it.
    """
    made = family(net.module, input, round_to)
    if not made.groups:
        raise BadInput("latency table: no channels of this network can be removed, so it has but one latency")
    noted, held = _variants(made, np.random.default_rng(seed))
    full, smallest = noted[:2]
    timings = timer(noted, [full, smallest, *held], threads, rounds, seed, track)
    quarter, middle, three = np.quantile(timings.whole[0], (0.25, 0.5, 0.75))
    return Table(
        key=table_key(net, input, threads, place),
        full=_whole(full, timings.whole[0]),
        layers={
            name: tuple((*variant.channels[name], times[name]) for variant, times in zip(noted, timings.layers))
            for name in timings.layers[0]
        },
        # Of the smallest network, where noise hides it least; of fastest rounds both, since one disturbance hits both.
        constant_ms=min(timings.whole[1]) - timings.sums[1],
        spread=float((three - quarter) / middle),
        held=tuple(_whole(variant, series) for variant, series in zip(held, timings.whole[2:])),
    )


def _whole(variant: Variant, series: Sequence[float]) -> Whole:
    return Whole(variant.channels, interval(series), min(series))


def _variants(made: Family, rng: np.random.Generator) -> tuple[list[Variant], list[Variant]]:
    """The networks to fit, the full and the smallest first, and those to judge the fit by."""
    noted = [*uniform(made, SHARES), *scattered(made, SCATTERED, rng)]
    return noted, [*uniform(made, HELD_SHARES), *scattered(made, HELD_SCATTERED, rng)]
