"""Latency predicted from layer times against latency measured, for networks of widths that the table had not seen.

    python tools/benchmarks/latency_table.py                     # about 5 minutes on a quiet core
    python tools/benchmarks/latency_table.py mobilenet_v2        # one network, about 1 minute

ONNX Runtime on the CPU, one thread, 224². Each table is measured anew, whatever the cache holds. A row is a network
kept from the fit: three of one share throughout, four of a width of its own in every group, as a pruner makes them. The
claim is `Table.error`: predicted over measured (fastest round), relative to the median of that quotient over the rows.
The interval is of the median.
"""

import argparse
from typing import Any

import torch
from common import claim, write

from edgekit.data import Input
from edgekit.latency import Table, build_table
from edgekit.net import Net, build, parse_spec
from edgekit.progress import track

NETWORKS = ("mobilenet_v2", "hardnet_68", "resnet_50")
SIZE, THREADS, SEED, REQUIRED = 224, 1, 0, 0.1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    tables = {name: measured(name, options.rounds) for name in options.networks}
    rows = [row for name, table in tables.items() for row in rows_of(name, table)]
    write("latency_table", rows, [claim_of(name, table) for name, table in tables.items()], SEED)


def measured(name: str, rounds: int) -> Table:
    torch.manual_seed(SEED)
    source = parse_spec(name)
    table = build_table(Net(source, (), build(source).eval()), Input(size=SIZE), THREADS, rounds=rounds, track=track)
    print(f"{name}: {table}", flush=True)
    return table


def rows_of(name: str, table: Table) -> list[dict[str, Any]]:
    model, full = table.model, table.full
    return [
        {
            "network": name,
            "predicted_ms": model.predict(item.channels),
            "fastest_ms": item.fastest_ms,
            "latency_ms": item.latency_ms,
            "predicted_ratio": model.predict(item.channels) / model.full_ms,
            "measured_ratio": item.fastest_ms / full.fastest_ms,
            "spread": table.spread,
        }
        for item in (full, *table.held)
    ]


def claim_of(name: str, table: Table) -> dict[str, Any]:
    error = table.error["worst"]
    required = f"<= {100 * REQUIRED:.0f} on {table.error['n']} networks, worst"
    return claim(f"latency_table_error_{name}", required, 100 * error, "%", error <= REQUIRED)


if __name__ == "__main__":
    main()
