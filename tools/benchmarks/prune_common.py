"""What the claims about pruning share: finished rows, passes as recipe tables, the exported file's answer."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from torch import nn

from edgekit.context import PassContext
from edgekit.data import Data, Input, Output
from edgekit.engines import engine
from edgekit.evaluate import evaluate
from edgekit.export import export, serialise
from edgekit.graph import trace
from edgekit.job import torch_predict
from edgekit.net import Net
from edgekit.parity import sqnr_db
from edgekit.passes import PASSES
from edgekit.progress import track
from edgekit.recipe import from_tables
from edgekit.schema import to_json
from edgekit.targets import target

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "out" / "benchmarks" / "prune"
DATA = ROOT.parent / "shared" / "data"
sys.path.insert(0, str(ROOT))  # for the networks of the tests
Row = dict[str, Any]


# Rows: one JSON line each, in a file a part. A row is known by these of its entries, and is not measured again unless
# the steps it was made by have changed; then the newest counts.
KEY = "network run tool way budget allocation asked point table seed round".split()


def kept(part: str) -> list[Row]:
    """The finished rows."""
    rows = [{"part": part, **row} for row in common.kept(WORK / f"{part}.jsonl")]
    newest = {_of_recipe(row): row.get("steps") for row in rows}
    of_newest = [row for row in rows if row.get("steps") == newest[_of_recipe(row)]]
    return list({json.dumps([row.get(name) for name in KEY]): row for row in of_newest}.values())


def _of_recipe(row: Row) -> str:
    """What rows share that differ in the seed alone."""
    return json.dumps([row.get(name) for name in KEY if name not in ("seed", "round")])


def keep(part: str, row: Row) -> Row:
    print(part, row, flush=True)
    return common.keep(WORK / f"{part}.jsonl", row)


def forget(part: str, only: Sequence[str]) -> None:
    """Drop the part's rows, or those of some networks, so that they are measured again."""
    rows = [row for row in kept(part) if only and row["network"] not in only]
    if (path := WORK / f"{part}.jsonl").is_file():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def found(part: str, **key: Any) -> Row | None:
    """The finished row with these entries."""
    return next((row for row in kept(part) if all(row.get(name) == value for name, value in key.items())), None)


# Passes


def silent(_line: str) -> None:
    """A log for many small networks."""


def context(
    base: Net,
    input: Input,
    output: Output | None = None,
    data: Data | None = None,
    seed: int = 0,
    log: Callable[[str], None] = lambda line: print(line, flush=True),
    **more: Any,
) -> PassContext:
    """As `edgekit compress` would give it, costs and scores included."""
    output, data = output or Output(), data or Data({})

    def score(net: Net) -> dict[str, float]:
        return evaluate(torch_predict(net.module), data.role("calibrate"), input, output).metrics

    return PassContext(
        data=data, input=input, output=output, seed=seed, base=base, score=score,
        cost=lambda net: trace(net.module, input.shape).cost(), network=lambda _spec: base.module,
        log=log, track=track, **more,
    )  # fmt: skip


def applied(table: Mapping[str, Any], net: Net, ctx: PassContext) -> Net:
    """One `[[pass]]` table of a recipe, run."""
    recipe = from_tables({"input": to_json(ctx.input), "pass": [dict(table)]}, "benchmark", "tools/benchmarks")
    return recipe.passes[0].run(net, ctx)


def unknown_passes(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """The passes among `tables` that this edgekit does not have."""
    return [table["name"] for table in tables if table["name"] not in PASSES]


# Files


def parity_db(module: nn.Module, input: Input) -> float:
    """The exported file in ONNX Runtime against the module, on two random pictures."""
    content = serialise(export(module, input, Output(), target("onnxruntime")).model)
    batch = np.random.default_rng(0).standard_normal((2, *input.shape), np.float32)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(batch)).numpy()
    return sqnr_db(expected, engine("onnxruntime").load(content).run(batch))
