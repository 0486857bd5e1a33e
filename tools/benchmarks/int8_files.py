"""The networks and pictures of the int8 benchmark, and the files that are compared: edgekit's and the peers'."""

import dataclasses
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import int8_peer
import numpy as np
import onnx

import edgekit
from edgekit import data as datasets
from edgekit.context import RewriteContext
from edgekit.data import Input, Output, Samples
from edgekit.engines import engine
from edgekit.export import finish, serialise
from edgekit.files import read_toml
from edgekit.onnx_file import read
from edgekit.recipe import from_tables, known_recipes
from edgekit.rewrites import Fold, Int8
from edgekit.targets import target

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WORK = Path(__file__).resolve().parents[2] / "out" / "benchmarks" / "int8"
FOLDS, CALIBRATION, PICTURES, SEED = 5, 200, 1000, 0
IMAGENET = Input(size=224, resize="squash", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NETWORKS = {
    "mobilenetv2_tf": (
        Input(size=224, resize="squash", mean=(0.5,), std=(0.5,)),
        Output(classes=1000, class_offset=1),
    ),
    "squeezenet1_1": (IMAGENET, Output(classes=1000)),
}
# file -> target, recipe
OURS = {
    "portable": ("onnxruntime", "int8"),
    "fast": ("onnxruntime", "int8_fast"),
    "vnni": ("onnxruntime-vnni", "int8"),
    "tensorrt": ("tensorrt", "int8"),
    "data_free": ("onnxruntime", "int8"),
}
ONCE = ("ort_entropy", "data_free")
"""Measured in the first fold alone: the one is MinMax's file again, the other is the same in all of them."""
PEERS = tuple(int8_peer.SETTINGS)
SAFE = ("portable", "fast", "data_free", "ort_portable")
"""Files whose weights are such that no processor's kernels saturate."""


@dataclasses.dataclass
class Bench:
    """One network with its data: images in memory, labels and the float network's logits."""

    name: str
    model: onnx.ModelProto
    data: Samples
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray

    @property
    def output(self) -> Output:
        return NETWORKS[self.name][1]


class PeerFailed(Exception):
    """A peer could not make its file; says why in its own words."""


def pictures() -> Samples:
    return datasets.load([f"test=csv:{DATA / 'nips17' / 'labels.csv'}"]).role("test")


def folded(name: str) -> onnx.ModelProto:
    model = Fold()(read(DATA / "models" / f"{name}.onnx"), context(name, "onnxruntime", None))
    return finish(model, target("onnxruntime"), *NETWORKS[name])


@functools.cache
def prepare(name: str) -> Bench:
    samples, model = pictures(), folded(name)
    images = np.concatenate([batch for batch, _, _ in samples.batches(NETWORKS[name][0], 50)])
    return Bench(name, model, samples, images, samples.labels, predict(serialise(model), images, True))


def context(name: str, target_name: str, calibrate: Samples | None) -> RewriteContext:
    data = datasets.Data({"calibrate": calibrate}) if calibrate else None
    return RewriteContext(target(target_name), *NETWORKS[name], data, SEED, lambda _line: None)


def predict(model: bytes, images: np.ndarray, optimise: bool) -> np.ndarray:
    session = engine("onnxruntime").load(model, 1, optimise)
    return np.concatenate([session.run(image[None]) for image in images])


def fold_indices(fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the pictures to calibrate with, and of those to score."""
    order = np.random.default_rng(SEED).permutation(PICTURES)
    chosen = np.sort(order[fold * CALIBRATION : (fold + 1) * CALIBRATION])
    return chosen, np.setdiff1d(np.arange(PICTURES), chosen)


def settings(recipe: str, size: int, **changes: Any) -> Int8:
    """The int8 step of a shipped recipe."""
    tables = {**read_toml(known_recipes()[recipe]), "input": {"size": size}}
    steps = {step.name: step.run for step in from_tables(tables, recipe, recipe).rewrites}
    return dataclasses.replace(steps["int8"], **changes)


def calibrate_on(bench: Bench, file: str, fold: int) -> Samples:
    if file == "data_free":
        return datasets.load([f"calibrate=synthetic:{CALIBRATION}"]).role("calibrate")
    chosen, _ = fold_indices(fold)
    return dataclasses.replace(bench.data, items=tuple(bench.data.items[index] for index in chosen))


def made(bench: Bench, file: str, fold: int, pythons: dict[str, str]) -> tuple[bytes, dict[str, Any]]:
    """A file's content with what is known of its making; kept in the work folder, made where it is not there.

    Raises:
        PeerFailed: a peer did not make it.
    """
    if file == "fp32":
        return serialise(bench.model), {}
    path = WORK / "files" / f"{bench.name}.{file}.{fold}.{digest(file)}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        content, record = by_peer(bench, file, fold, pythons[file]) if file in PEERS else by_us(bench, file, fold)
        path.with_suffix(".json").write_text(json.dumps(record))
        path.write_bytes(content)
    return path.read_bytes(), json.loads(path.with_suffix(".json").read_text())


def by_us(bench: Bench, file: str, fold: int) -> tuple[bytes, dict[str, Any]]:
    target_name, recipe = OURS[file]
    begin = time.perf_counter()
    rewrite = settings(recipe, NETWORKS[bench.name][0].size)
    model = rewrite(bench.model, context(bench.name, target_name, calibrate_on(bench, file, fold)))
    return serialise(finish(model, target(target_name), *NETWORKS[bench.name])), {
        "version": f"edgekit {edgekit.__version__}",
        "seconds": time.perf_counter() - begin,
    }


def by_peer(bench: Bench, file: str, fold: int, python: str) -> tuple[bytes, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "float.onnx").write_bytes(serialise(bench.model))
        np.save(folder / "images.npy", bench.images[fold_indices(fold)[0]])
        paths = [str(folder / item) for item in ("float.onnx", "images.npy", "int8.onnx")]
        done = subprocess.run([python, int8_peer.__file__, file, *paths], capture_output=True, text=True)
        if done.returncode:
            raise PeerFailed(done.stderr.strip().splitlines()[-1])
        model = finish(onnx.load(paths[2]), target("onnxruntime"), *NETWORKS[bench.name])
        return serialise(model), json.loads(done.stdout.strip().splitlines()[-1])


def pythons_of(nncf: str | None, aimet: str | None) -> dict[str, str]:
    """The Python that makes each peer's file; peers without one are left out."""
    found = {"ort": sys.executable, "nncf": nncf, "aimet": aimet}
    chosen = {file: found[file.partition("_")[0]] for file in PEERS}
    return {file: python for file, python in chosen.items() if python}


@functools.cache
def digest(file: str) -> str:
    """Of the sources that a file is made by: rows and files of other sources are not taken for this one's."""
    package = Path(edgekit.__file__).parent
    ours = [*sorted((package / "quant").glob("*.py")), package / "rewrites" / "int8.py"]
    sources: Iterable[Path] = [Path(int8_peer.__file__)] if file in PEERS else ours
    contents = b"".join(path.read_bytes() for path in [package / "rewrites" / "fold.py", *sources])
    recipe = known_recipes()[OURS[file][1]].read_bytes() if file in OURS else b""
    return hashlib.sha256(contents + recipe).hexdigest()[:12]
