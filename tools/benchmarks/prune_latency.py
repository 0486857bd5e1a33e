"""Part `latency`: a budget of latency is kept, and a budget of MACs is not one.

Each network is pruned to 0.8, 0.6 and 0.4 of its latency, by the table of its layers, and to the same shares of its
MACs; by both allocations, since a greedy one moves further from the widths that a table has seen. All files and the
unpruned one then run interleaved in ONNX Runtime, one thread, 224²; a figure is the ratio of medians over the rounds
with a 95 % interval. Random weights, batch norm calibrated before and after. The tables lie in out/benchmarks/prune.

A busy machine measures itself: a table that is off by more than 10 % on the networks it was not fitted to is measured
anew and nothing is claimed from it, and a network with a ratio whose interval is wider than ± 10 % is measured again by
the next call; until then its claims are not met.
"""

import os
import tempfile
from pathlib import Path

import torch
from common import claim, settled
from prune_common import WORK, Row, applied, context, keep, kept
from zoo import save

from edgekit.data import Input
from edgekit.graph import trace
from edgekit.latency import Table, layer_table
from edgekit.net import Net, build, parse_spec
from edgekit.profile import time_series
from edgekit.progress import track
from edgekit.statistics import ratio_interval

NETWORKS = ("mobilenet_v2", "hardnet_68", "resnet_50")
SHARES = (0.8, 0.6, 0.4)
ALLOCATIONS: dict[str, Row] = {
    "uniform": {"allocation": "uniform"},
    "greedy": {"allocation": "greedy", "floor": 0.25},
}
INPUT, THREADS, SEED, ROUNDS, WITHIN = Input(size=224), 1, 0, 100, 0.1


def latency(only: list[str]) -> None:
    os.environ["EDGEKIT_CACHE"] = str(WORK / "cache")
    for name in only or NETWORKS:
        resolved = [row["resolved"] for row in kept("latency") if row["network"] == name]
        if not resolved or not all(resolved):
            for row in rows_of(name):
                keep("latency", row)


def rows_of(name: str) -> list[Row]:
    torch.manual_seed(SEED)
    net = Net(parse_spec(name), (), settled(build(parse_spec(name))))
    table = layer_table(net, INPUT, THREADS, track)
    print(f"{name}: {table}", flush=True)
    if table.error["worst"] > WITHIN:
        table.key.path.unlink()
        print(f"{name}: the machine is too busy for a table; run again when it is quieter", flush=True)
        return []
    wanted = [(cost, share, how) for cost in ("latency", "macs") for share in SHARES for how in ALLOCATIONS]
    nets = [net, *(narrower(net, table, cost, share, how) for cost, share, how in wanted)]
    with tempfile.TemporaryDirectory() as folder:
        files = [save(each.module, INPUT.size, Path(folder) / f"{n}.onnx") for n, each in enumerate(nets)]
        full, *series = time_series(files, "onnxruntime", ROUNDS, THREADS, SEED, track)
    macs = [trace(each.module, INPUT.shape).macs for each in nets]
    rows = []
    for (cost, share, how), made, times, cut in zip(wanted, nets[1:], series, macs[1:]):
        ratio = ratio_interval(times, full)
        row: Row = {
            "network": name, "budget": cost, "asked": share, "allocation": how, "ratio": ratio,
            "resolved": ratio["high"] - ratio["low"] <= 2 * WITHIN * ratio["median"],
            "fastest_ratio": min(times) / min(full), "predicted": table.model.ratio(made.module),
            "macs": cut / macs[0], "table_error": table.error["worst"], "table_spread": table.spread,
        }  # fmt: skip
        rows.append(row)
    return rows


def narrower(net: Net, table: Table, cost: str, share: float, how: str) -> Net:
    ctx = context(net, INPUT, latency=lambda _net: table.model)
    made = applied({"name": "prune", "budget": {cost: share}, **ALLOCATIONS[how]}, net, ctx)
    settled(made.module)
    return made


def claims() -> list[Row]:
    rows = kept("latency")
    ratios = {(row["network"], row["budget"], row["allocation"], row["asked"]): row["ratio"] for row in rows}
    claims = []
    for row in rows:
        if row["budget"] == "latency":
            ratio, asked = row["ratio"], row["asked"]
            by_macs = ratios[row["network"], "macs", row["allocation"], asked]["median"]
            required = (
                f"within 10 % of {asked}, median of {ratio['n']} rounds (by as large a cut in MACs: {by_macs:.2f})"
            )
            if not row["resolved"]:
                required += f"; the machine was busy: {ratio['low']:.2f} to {ratio['high']:.2f}"
            id = f"prune.latency.{row['network']}.{row['allocation']}.{asked}"
            ok = row["resolved"] and abs(ratio["median"] / asked - 1) <= WITHIN
            claims.append(claim(id, required, ratio["median"], "of the latency", ok))
    return claims
