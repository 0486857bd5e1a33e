"""One compression in progress: what was asked for, checked before any work starts, and the working folder that lets a
run that was killed go on (`out/.work`)."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from edgekit import __version__, bundle, recipe
from edgekit import data as datasets
from edgekit.cards import card, package_data
from edgekit.context import PassContext, RewriteContext, Track, TrainingContext
from edgekit.data import Data, Input, OnError, Output
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.evaluate import Score, evaluate
from edgekit.export import serialise
from edgekit.files import file_sha256, read_json, write_json
from edgekit.graph import trace
from edgekit.latency import LatencyModel, Table, kept_table, layer_table
from edgekit.net import Edit, Net, Source, build, edits_from_json, edits_to_json, parse_spec, weights_path
from edgekit.onnx_file import io_tables, read
from edgekit.parallel import ALONE, World
from edgekit.profile import time_files
from edgekit.recipe import Recipe
from edgekit.rewrites.fold import for_torch
from edgekit.schema import canonical, parse, sha256, to_json
from edgekit.targets import Target, target
from edgekit.weights import load_exact, load_into

if TYPE_CHECKING:
    import onnx
    from torch import nn

WORK = ".work"
ROUNDS = 30

ABSOLUTE = re.compile(r"(?<![\w./])/(?:[^\s/'\"]+/)*([^\s/'\"]+)")
"""A path from the root, and its last part."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a compression works with. `model` is the MODEL argument, `work` the folder of what is not done yet."""

    model: str
    recipe: Recipe
    source: Source
    data: Data
    out: Path
    seed: int
    track: Track
    log: Callable[[str], None]
    world: World = ALONE
    threads: int = 1
    tables: dict[tuple[str, tuple[Edit, ...]], LatencyModel] = dataclasses.field(default_factory=dict)
    """The latency of networks that was asked for before, by MODEL and edits."""
    command: str = ""
    """What was typed, so that the report can say how to do it again."""

    @property
    def work(self) -> Path:
        return self.out / WORK

    @property
    def targets(self) -> list[Target]:
        return [target(name) for name in self.recipe.export.targets]

    @property
    def base_file(self) -> str:
        return f"base.{self.targets[0].name}.fp32.onnx"

    def probe(self, size: int) -> np.ndarray:
        """The first `size` images of a fixed draw from the test role, preprocessed: (size, C, H, W)."""
        samples = self.data.role("test").subset(size, self.seed)
        return next(samples.batches(self.recipe.input, size))[0]

    def pixels(self, size: int) -> np.ndarray:
        """The pictures of `probe` before normalisation: uint8 (size, C, H, W)."""
        samples = self.data.role("test").subset(size, self.seed)
        taken = dataclasses.replace(self.recipe.input, form="uint8_nhwc")
        return next(samples.batches(taken, size))[0].transpose(0, 3, 1, 2)

    def score(
        self,
        predict: Callable[[np.ndarray], np.ndarray],
        role: str = "test",
        world: World = ALONE,
        io: tuple[Input, Output] | None = None,
        resample: bool = False,
    ) -> Score:
        """Metrics of the network, or of a file that takes and gives what `io` says."""
        input, output = io or self.recipe.plain
        samples = self.data.role(role)
        return evaluate(predict, samples, input, output, progress=self.track, world=world, resample=resample)

    def rewrite_context(self, wanted: Target) -> RewriteContext:
        settings = self.recipe
        # Process 0 alone rewrites, so a rewrite that trains does so by itself.
        training = TrainingContext(
            **self._common(self.seed, ALONE),
            state=self.work / f"training-{wanted.name}.safetensors",
            journal=self.out / f"train.{wanted.name}.csv",
        )
        return RewriteContext(
            wanted, settings.input, settings.output, self.data, self.seed, self.log, self.track,
            keep=lambda name, document: write_json(self.out / name, document),
            timed=lambda models: self.timed(models, wanted), training=training,
        )  # fmt: skip

    def timed(self, models: Sequence[onnx.ModelProto], wanted: Target) -> list[dict[str, Any]]:
        """The latency of files of a target, interleaved; empty where its engine cannot run here."""
        if engine(wanted.engine).missing() is not None:
            return []
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            paths = [Path(folder) / f"{index}.onnx" for index in range(len(models))]
            for path, model in zip(paths, models):
                path.write_bytes(serialise(model))
            return time_files(paths, wanted.engine, ROUNDS, self.threads, track=self.track)

    def pass_context(self, index: int, base: Net, before: Net) -> PassContext:
        return PassContext(
            **self._common(self.seed + index, self.world),
            state=self.work / f"training-{index:02}.safetensors",
            journal=self.out / f"train.{index:02}.csv",
            base=base,
            before=before,
            cost=lambda net: trace(net.module, self.recipe.input.shape).cost(),
            network=self.network,
            latency=self.latency,
        )

    def _common(self, seed: int, world: World) -> dict[str, Any]:
        """What trainings of passes and of rewrites share."""
        return {
            "data": self.data,
            "input": self.recipe.input,
            "output": self.recipe.output,
            "seed": seed,
            "score": lambda net: self.score(torch_predict(net.module), "calibrate", world).metrics,
            "log": self.log,
            "track": self.track,
            "world": world,
        }

    def latency(self, net: Net) -> LatencyModel:
        """The latency of `net` and its narrower forms, from the recipe's table, or on this machine from one that is
        measured once and kept.

        Raises:
            BadInput: the network cannot be measured, or the table cannot be used.
        """
        known = (self.model, net.edits)
        if known not in self.tables:
            agreed = self.world.agreed(self._table(net) if self.world.first else None)
            assert agreed is not None
            self.log(f"latency table: {agreed}")
            self.tables[known] = agreed.model
        return self.tables[known]

    def _table(self, net: Net) -> Table:
        if self.recipe.latency.table:
            return kept_table(Path(self.recipe.latency.table), net, self.recipe.input)
        return layer_table(net, self.recipe.input, self.threads, self.track)

    def network(self, spec: str) -> nn.Module:
        """The module of a bundle, or of a MODEL with trained weights, for this recipe's input.

        Raises:
            BadInput: neither, a bundle made for another input, or a MODEL without weights.
        """
        if (Path(spec) / bundle.MANIFEST).is_file():
            made = bundle.open_bundle(spec)
            if parse(Input, made.manifest["input"], spec) != self.recipe.input:
                raise BadInput(f"{spec}: was made for another [input] than this recipe's; its answers would be wrong")
            return bundle.load_net(made, trust=True).module  # named by the user, as a MODEL is
        source = parse_spec(spec)
        if source.kind == "zoo" and source.weights is None:
            raise BadInput(f"{spec}: has no trained weights; write {spec}{'&' if '?' in spec else '?'}weights=PATH")
        return dataclasses.replace(self, model=spec, source=source).base().module

    def base(self) -> Net:
        """The network before the first pass, with the weights of its ONNX file, of the user's file or of its card."""
        seed_torch(self.seed)
        if self.source.kind == "onnx":
            return Net(self.source, (), self._imported())
        module = build(self.source, trust=True)  # the user named it on the command line and thereby runs it
        if self.source.weights:
            classes = self.source.args.get("classes")
            loaded = load_into(module, self._weights_file(), classes if isinstance(classes, int) else None)
            if loaded.skipped:
                self.log(f"weights: {loaded}")
        return Net(self.source, (), module.eval())

    def _weights_file(self) -> Path:
        record = self.source.weights or {}
        path = weights_path(self.model) or package_data("models") / card(record["card"])["weights"]
        if (found := file_sha256(path)) != record["sha256"]:
            raise BadInput(f"{path}: is corrupt; its SHA-256 is {found[:16]}…, not {record['sha256'][:16]}…")
        return path

    def _imported(self) -> nn.Module:
        """The user's ONNX file as a module."""
        from edgekit.onnx_torch import to_module

        return to_module(self._cleaned())

    def _cleaned(self) -> onnx.ModelProto:
        return for_torch(read(Path(self.model)), self.recipe.input.shape, self.model)

    def keep_graph(self) -> None:
        """Write the graph of the user's ONNX file, from which its module is built ever after."""
        from edgekit.onnx_torch import graph_to_json

        write_json(self.out / bundle.GRAPH, graph_to_json(self._cleaned()))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else works in the folder meanwhile. Raises BadInput where somebody does."""
        if not self.world.first:
            yield
            return
        self.work.mkdir(exist_ok=True)
        lock = filelock.FileLock(self.work / "lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BadInput(f"{self.out}: another run is at work there; wait for it, or give another --out") from None
        try:
            yield
        finally:
            lock.release()

    def build(self, edits: Sequence[Edit]) -> nn.Module:
        """The structure of the source with `edits`, without its weights."""
        graph = None
        if self.source.kind == "onnx":
            graph = read_json(self.out / bundle.GRAPH, bundle.GRAPH_SCHEMA)
        return build(self.source, edits, trust=True, graph=graph)

    def save_checkpoint(self, name: str, net: Net) -> None:
        aliases = bundle.save_weights(self.work / f"{name}.safetensors", net.module)
        document = {"schema": "edgekit/checkpoint/1", "edits": edits_to_json(net.edits), "aliases": aliases}
        write_json(self.work / f"{name}.json", document)

    def has_checkpoint(self, name: str) -> bool:
        """Whether that pass has finished."""
        return (self.work / f"{name}.json").is_file()

    def load_checkpoint(self, name: str) -> Net:
        """The network after a finished pass."""
        path = self.work / f"{name}.json"
        document = read_json(path, "edgekit/checkpoint/1")
        edits = edits_from_json(document["edits"], str(path))
        module = self.build(edits)
        load_exact(module, path.with_suffix(".safetensors"), document["aliases"])
        return Net(self.source, edits, module.eval())


def prepare(
    model: str,
    recipe_name: str,
    specs: Sequence[str],
    out: Path,
    *,
    seed: int,
    overrides: Sequence[str],
    resume: bool,
    on_error: OnError,
    io_file: Path | None,
    track: Track,
    log: Callable[[str], None],
    world: World,
    threads: int = 1,
) -> Job:
    """Read and check everything that was asked for, and make (or reopen) the folder.

    Raises:
        BadInput: the model, recipe or data cannot be used, or `out` is not empty and not this run's to resume.
    """
    source = parse_spec(model)
    own = io_tables(Path(model), io_file) if io_file or _describes_itself(source, model) else None
    settings = recipe.load(recipe_name, overrides, own)
    data = datasets.load(specs, on_error, track, settings.output.labels)
    for role, samples in data.roles.items():
        if role == "calibrate" and not samples.labelled:
            continue  # calibration needs no labels
        datasets.check_task(samples, settings.output.task)
        if settings.output.task == "classify" and settings.output.classes is not None:
            datasets.check_labels(samples, settings.output.classes)
    typed = _command(model, recipe_name, specs, out, seed, overrides, on_error, io_file)
    job = Job(model, settings, source, data, out, seed, track, log, world, threads, command=typed)
    if world.first:
        _claim_folder(job, resume)
    return job


def _command(
    model: str,
    recipe_name: str,
    specs: Sequence[str],
    out: Path,
    seed: int,
    overrides: Sequence[str],
    on_error: OnError,
    io_file: Path | None,
) -> str:
    """The command line that asks for this job; of a path from the root its last part, as a bundle keeps no places."""
    words = ["edgekit", "compress", model, "--recipe", recipe_name]
    words += [word for spec in specs for word in ("--data", spec)]
    words += [word for override in overrides for word in ("--set", override)]
    words += ["--io", str(io_file)] if io_file else []
    words += ["--on-error", on_error] if on_error != "stop" else []
    words += ["--seed", str(seed)] if seed else []
    return ABSOLUTE.sub(r"\1", shlex.join([*words, "--out", str(out)]))


def _describes_itself(source: Source, model: str) -> bool:
    if source.kind != "onnx":
        return False
    return any(prop.key == "edgekit.input" for prop in read(Path(model)).metadata_props)


def _claim_folder(job: Job, resume: bool) -> None:
    path = job.work / "request.json"
    request = sha256(canonical(_request(job)))
    if resume and path.is_file():
        if read_json(path, "edgekit/request/1")["sha256"] != request:
            raise BadInput(
                f"{job.out}: was begun with another model, recipe, data, seed or version; give another --out"
            )
        return
    bundle.new_folder(job.out)
    write_json(path, {"schema": "edgekit/request/1", "sha256": request})


def _request(job: Job) -> dict[str, Any]:
    """What decides the content of the bundle."""
    return {
        "source": to_json(job.source),
        "recipe": to_json(job.recipe.tables),
        "data": {name: samples.sha256 for name, samples in sorted(job.data.roles.items())},
        "seed": job.seed,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "onnx", "onnxruntime", "onnxsim", "onnxscript", "numpy")
    return {"edgekit": __version__, **{name: version(name) for name in packages}}


def torch_predict(module: Any) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a float32 batch to the module's output, as numpy."""
    import torch

    module.eval()

    device = next((tensor.device for tensor in module.state_dict().values()), None)

    def predict(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(batch)).to(device)).cpu().numpy()

    return predict


def seed_torch(seed: int) -> None:
    import torch

    torch.manual_seed(seed)
