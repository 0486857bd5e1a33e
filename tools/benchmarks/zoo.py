"""The architectures' own claims, measured: are HarDNet and VoVNet faster than what they were compared with, on a CPU?

    python tools/benchmarks/zoo.py      # about 30 minutes on 2 cores

Random weights with calibrated batch norm, exported to ONNX and folded. For every input size and number of threads, all
networks run interleaved in random order; a figure is the ratio of medians with a 95 % interval.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from common import claim, settled, write
from torch import nn

from edgekit.context import RewriteContext
from edgekit.data import Input, Output
from edgekit.export import export, finish, serialise
from edgekit.graph import trace
from edgekit.net import build, parse_spec
from edgekit.profile import time_series
from edgekit.progress import track
from edgekit.rewrites import Fold
from edgekit.statistics import ratio_interval
from edgekit.targets import target

# network, reference, published ratio of times, where it was published
PAIRS = (
    ("hardnet_68", "resnet_50", 0.70, "GTX 1080, 1024², Chao et al. 2019, table 4"),
    ("hardnet_39ds", "mobilenet_v2", 0.86, "Jetson Nano, 320², Chao et al. 2019, table 4"),
    ("hardnet_68ds", "mobilenet_v2?width=1.4", 0.91, "Jetson Nano, 320², Chao et al. 2019, table 4"),
    ("vovnet_39", "densenet_201", 0.26, "TITAN X, stigma0617/VoVNet.pytorch README"),
    ("vovnet_39", "resnet_50", 0.83, "TITAN X, stigma0617/VoVNet.pytorch README"),
)
SINGLE = ("fc_hardnet_70",)
ROUNDS = {224: 60, 512: 25, 1024: 12}
THREADS = (1, 2)
SEED = 0


def main() -> None:
    names = sorted({name for pair in PAIRS for name in pair[:2]} | set(SINGLE))
    modules = {name: fresh(name) for name in names}
    rows, claims = [], []
    with tempfile.TemporaryDirectory() as folder:
        for size, rounds in ROUNDS.items():
            costs = {name: trace(module, (3, size, size)).cost() for name, module in modules.items()}
            files = [
                save(modules[name], size, Path(folder) / f"{index}.{size}.onnx") for index, name in enumerate(names)
            ]
            for threads in THREADS:
                times = dict(zip(names, time_series(files, "onnxruntime", rounds, threads, SEED, track)))
                for name, reference, published, source in PAIRS:
                    row = compare(name, reference, published, source, size, threads, times, costs)
                    rows.append(row)
                    claims.append(claim_of(row))
                rows += [alone(name, size, threads, times[name], costs[name]) for name in SINGLE]
    write("zoo", rows, claims, SEED)


def fresh(name: str) -> nn.Module:
    torch.manual_seed(SEED)
    return settled(build(parse_spec(name)))


def save(module: nn.Module, size: int, path: Path) -> Path:
    wanted, input, output = target("onnxruntime"), Input(size=size), Output()
    model = export(module, input, output, wanted, batch=1).model
    context = RewriteContext(wanted, input, output, None, SEED, lambda _line: None)
    path.write_bytes(serialise(finish(Fold()(model, context), wanted, input, output)))
    return path


def compare(
    name: str, reference: str, published: float, source: str, size: int, threads: int, times: dict, costs: dict
) -> dict:
    """One pair at one size and number of threads."""
    ratios = {f"{key}_ratio": costs[name][key] / costs[reference][key] for key in ("macs", "cio")}
    return {
        "network": name,
        "reference": reference,
        "size": size,
        "threads": threads,
        "ratio": ratio_interval(times[name], times[reference]),
        **ratios,
        "published_ratio": published,
        "published_where": source,
    }


def alone(name: str, size: int, threads: int, times: list[float], cost: dict) -> dict:
    median = float(np.median(times))
    return {
        "network": name,
        "size": size,
        "threads": threads,
        "latency_ms": median,
        "macs": cost["macs"],
        "cio": cost["cio"],
    }


def claim_of(row: dict) -> dict:
    ratio = row["ratio"]
    required = f"faster: interval below 1 (published {row['published_ratio']})"
    place = f"{row['network']}/{row['reference']}@{row['size']},{row['threads']}t"
    return claim(f"zoo.{place}", required, ratio["median"], "ratio", ratio["high"] < 1)


if __name__ == "__main__":
    main()
