"""What the parts of the coding benchmark share: finished rows, files by a recipe's steps, and their scores.

A method is the steps of a recipe, passes before rewrites, as their tables: `[{"name": "cluster", "bits": 4.0}]`.
Without steps it is the float network. A draw chooses 200 pictures of NIPS17-1000, without labels, to fit on; the other
800 score the file that ships, in ONNX Runtime.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import RESULTS
from int8_files import NETWORKS, fold_indices
from prune_common import DATA, ROOT, Row, context, silent

import edgekit
from edgekit import data as datasets
from edgekit.context import RewriteContext
from edgekit.data import Data, Samples
from edgekit.engines import engine
from edgekit.export import export, finish, serialise
from edgekit.net import Net, parse_spec
from edgekit.onnx_file import read
from edgekit.onnx_torch import to_module
from edgekit.passes import PASSES
from edgekit.recipe import Recipe, from_tables
from edgekit.rewrites.fold import for_torch
from edgekit.schema import to_json
from edgekit.targets import target
from edgekit.transport.pack import transport_bytes

WORK, SEED, IMAGES = ROOT / "out" / "benchmarks" / "coding", 0, 200
Steps = Sequence[dict[str, Any]]
INT8: Steps = ({"name": "fold"}, {"name": "int8"})
"""edgekit's int8 file, as the recipe `int8` makes it."""


# Rows: each is measured once, and again when the sources it was made by change. A row is known by these of its entries.
KEY = "part network method setting draw regime target file".split()
SOURCES = "coded.py onnx_codes.py export.py passes/coding.py transport".split()
"""Of every row."""
SOURCES_OF = {
    "cluster": ["passes/cluster.py", "quant/gptq.py", "quant/grid.py"],
    "vq": ["passes/vq"],
    "shift": ["passes/shift.py", "shift"],
    "fold": ["rewrites/fold.py"],
    "int8": ["rewrites/int8.py", "quant"],
}
"""Of rows with that step; of a step that is not here, all passes."""


def kept(part: str) -> list[Row]:
    """The newest row of each key, of the last results and of those measured since."""
    results = RESULTS / "coding.json"
    rows = json.loads(results.read_text())["rows"] if results.is_file() else []
    rows += common.kept(WORK / f"{part}.jsonl")
    rows = [row for row in rows if row["part"] == part and "source" in row]
    return list({json.dumps([row.get(name) for name in KEY]): row for row in rows}.values())


def once(part: str, measure: Callable[[], Row], steps: Steps = (), **key: Any) -> Row:
    """The row of this key, measured and kept if today's sources have not made it yet."""
    key = {"part": part, **key, "source": digest(steps)}
    for row in kept(part):
        if key.items() <= row.items():
            return row
    row = common.keep(WORK / f"{part}.jsonl", key | measure())
    print(json.dumps(row), flush=True)
    return row


def forget(part: str) -> None:
    """Drop the part's rows, of the last results too, so that they are measured again."""
    (WORK / f"{part}.jsonl").unlink(missing_ok=True)
    results = RESULTS / "coding.json"
    if results.is_file():
        document = json.loads(results.read_text())
        rows = [row for row in document["rows"] if row["part"] != part]
        results.write_text(json.dumps({**document, "rows": rows}, indent=1) + "\n")


def digest(steps: Steps) -> str:
    """Of the sources that make what these steps make."""
    package = Path(edgekit.__file__).parent
    names = [*SOURCES, *(source for step in steps for source in SOURCES_OF.get(step["name"], ["passes"]))]
    paths = {path for name in names for path in (package / name).rglob("*.py")}
    paths |= {package / name for name in names if name.endswith(".py")}
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:12]


# Networks and pictures


@functools.cache
def base(network: str) -> Net:
    path = DATA / "models" / f"{network}.onnx"
    model = for_torch(read(path), NETWORKS[network][0].shape, str(path))
    return Net(parse_spec(str(path)), (), to_module(model))


@functools.cache
def pictures(draw: int) -> tuple[Samples, Samples]:
    """To fit on, and to score."""
    samples = datasets.load([f"test=csv:{DATA / 'nips17' / 'labels.csv'}"]).role("test")
    fit, test = (tuple(samples.items[index] for index in part) for part in fold_indices(draw))
    return dataclasses.replace(samples, items=fit), dataclasses.replace(samples, items=test)


# Files


def coded(network: str, steps: Steps, draw: int) -> Net:
    """The network after the passes among the steps."""
    net, data = base(network), Data({"calibrate": pictures(draw)[0]})
    ctx = context(net, *NETWORKS[network], data, SEED, silent)
    for step in _recipe(network, steps).passes:
        net = step.run(net, ctx)
    return net


def written(network: str, net: Net, steps: Steps, draw: int, target_name: str = "onnxruntime") -> bytes:
    """The file of a network after the rewrites among the steps."""
    wanted, io = target(target_name), NETWORKS[network]
    ctx = RewriteContext(wanted, *io, Data({"calibrate": pictures(draw)[0]}), SEED, silent)
    model = export(net.module, *io, wanted).model
    for step in _recipe(network, steps).rewrites:
        model = finish(step.run(model, ctx), wanted, *io)
    return serialise(model)


def _recipe(network: str, steps: Steps) -> Recipe:
    input, output = (to_json(each) for each in NETWORKS[network])
    passes = [step for step in steps if step["name"] in PASSES]
    rewrites = [step for step in steps if step["name"] not in PASSES]
    return from_tables(
        {"input": input, "output": output, "pass": passes, "rewrite": rewrites}, "benchmark", "tools/benchmarks"
    )


# Scores


def point(network: str, steps: Steps, draw: int) -> Row:
    """Bytes and answers of the file that the steps make, beside those of the float file."""
    content = written(network, coded(network, steps, draw), steps, draw)
    exact, found = float_answers(network, draw), answers(network, content, draw)
    labels = pictures(draw)[1].labels
    top1, top1_float = (100 * float((each == labels).mean()) for each in (found, exact))
    packed = transport_bytes(content)
    return {
        "n": len(labels),
        "size_bytes": len(content),
        "transport_bytes": packed,
        "bits_a_weight": 8 * packed / weights(network),
        "top1": top1,
        "drop": top1_float - top1,
        "agreement": 100 * float((exact == found).mean()),
    }


def answers(network: str, content: bytes, draw: int) -> np.ndarray:
    """The class that a file answers with, for each picture to score."""
    session, output = engine("onnxruntime").load(content, 1), NETWORKS[network][1]
    return np.concatenate([output.scores(session.run(batch)).argmax(1) for batch in inputs(network, draw)])


@functools.lru_cache(maxsize=1)  # half a gigabyte
def inputs(network: str, draw: int) -> list[np.ndarray]:
    """The pictures to score, in batches."""
    return [batch for batch, _, _ in pictures(draw)[1].batches(NETWORKS[network][0], 8)]


@functools.cache
def float_answers(network: str, draw: int) -> np.ndarray:
    return answers(network, written(network, base(network), (), draw), draw)


def weights(network: str) -> int:
    """Of convolutions and linear layers, biases apart."""
    module = base(network).module
    return sum(tensor.numel() for name, tensor in module.named_parameters() if tensor.dim() > 1)


def named(steps: Steps) -> Row:
    """The entries that tell a row's method: the step that counts, and its settings, but how many images, as text."""
    step = next((step for step in steps if step["name"] != "fold"), {"name": "fp32"})
    settings = {name: value for name, value in step.items() if name not in ("name", "images")}
    return {"method": step["name"], "setting": ", ".join(f"{name} = {_text(settings[name])}" for name in settings)}


def _text(value: Any) -> str:
    """As a recipe says it; of a method with settings its name."""
    if not isinstance(value, dict):
        return str(value)
    return value.get("name") or f"{{ {', '.join(f'{key} = {each}' for key, each in value.items())} }}"
