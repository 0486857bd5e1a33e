"""What every benchmark shares: the machine, the versions, and the file that its figures go into."""

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.data import Input, Output, Samples
from edgekit.engines import engine
from edgekit.evaluate import evaluate
from edgekit.export import export, serialise
from edgekit.job import versions
from edgekit.machine import identity
from edgekit.net import Net
from edgekit.targets import target

RESULTS = Path(__file__).parent / "results"


def settled(module: nn.Module) -> nn.Module:
    """`module` with batch norms that know their inputs: else activations die out and denormals distort the time."""
    for layer in module.train().modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
            layer.reset_running_stats()
    with torch.no_grad():
        module(torch.randn(4, 3, 128, 128))
    return module.eval()


def score_file(net: Net, samples: Samples, input: Input, output: Output) -> float:
    """Top-1 of the exported file in ONNX Runtime."""
    content = serialise(export(net.module, input, output, target("onnxruntime")).model)
    return evaluate(engine("onnxruntime").load(content).run, samples, input, output).metrics["top1"]


def claim(id: str, required: str, measured: float, unit: str, ok: bool) -> dict[str, Any]:
    """A figure that was asked for, met or not."""
    return {"id": id, "required": required, "measured": measured, "unit": unit, "ok": ok}


def kept(path: Path) -> list[dict[str, Any]]:
    """The finished rows of a benchmark that goes on where it was stopped, a JSON line each."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def keep(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def _anywhere(word: str) -> str:
    """A word of the command line without where its file lies on this machine."""
    return Path(word).name if Path(word).is_absolute() else word


def write(name: str, rows: list[dict[str, Any]], claims: list[dict[str, Any]], seed: int = 0, **extra: Any) -> None:
    """Write `results/NAME.json` and print the claims."""
    document = {
        "schema": "edgekit/benchmark/1",
        "machine": identity(),
        "versions": versions(),
        "command": " ".join(["python", f"tools/benchmarks/{name}.py", *map(_anywhere, sys.argv[1:])]),
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": rows,
        "claims": claims,
        **extra,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    for item in claims:
        mark = "ok  " if item["ok"] else "MISS"
        print(f"{mark} {item['id']}: {item['measured']:.4g} {item['unit']} ({item['required']})")
