"""The orchestrator: recipe + model + data -> bundle. The only module that may import everything.

Each step is measured from outside, on the file that it leads to in the runtime that runs it, and checkpointed, so that
a run that was killed goes on with `resume` and seals the same content as an uninterrupted one.
"""

from __future__ import annotations

import dataclasses
import datetime
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import __version__, gate, profile, report
from edgekit import bundle as bundles
from edgekit import data as datasets
from edgekit import recipe as recipes
from edgekit.bundle import GOLDEN, MANIFEST, WEIGHTS, Bundle
from edgekit.cards import card, package_data
from edgekit.context import PassContext, RewriteContext, Track, no_progress
from edgekit.data import Data, OnError
from edgekit.engines import engine
from edgekit.errors import BadInput, NothingChanged, ParityError
from edgekit.evaluate import Score, evaluate
from edgekit.export import PARITY_DB, export, finish, serialise
from edgekit.files import file_sha256, read_json, write_bytes, write_json
from edgekit.graph import trace
from edgekit.graph_onnx import onnx_cost
from edgekit.net import Net, Source, build, edits_from_json, edits_to_json, parse_spec, state_sha256
from edgekit.parity import sqnr_db
from edgekit.recipe import Recipe
from edgekit.rewrites.fold import Fold
from edgekit.schema import canonical, sha256, to_json
from edgekit.targets import Target, target

if TYPE_CHECKING:
    import onnx

WORK = ".work"
GOLDEN_DB = {"fp32": 60.0, "int8": 25.0}
"""How close `verify` asks the golden outputs to be; int8 kernels round differently from one processor to another."""


def compress(
    model: str,
    recipe: str,
    data: str | Sequence[str],
    out: str | Path,
    *,
    seed: int = 0,
    overrides: Sequence[str] = (),
    resume: bool = False,
    trust: bool = False,
    runs: int = 50,
    threads: int = 1,
    on_error: OnError = "stop",
    track: Track = no_progress,
    log: Callable[[str], None] = lambda _line: None,
) -> Bundle:
    """Run a recipe on a model and write the bundle `out`; then profile it and judge the recipe's gates.

    Args:
        model: zoo name with arguments, `package.module:factory`, or a path ending in .onnx.
        recipe: name of a shipped recipe, or path of a TOML file.
        data: one or several DATA specs.
        runs, threads: of the latency measurement.
        on_error: "stop" at an image that cannot be decoded, or "skip" and count it.

    Raises:
        EdgekitError: everything a user can mend; `out` is then resumable or untouched, never half a bundle.
    """
    job = _Job(
        model, recipe, [data] if isinstance(data, str) else list(data), Path(out), seed, overrides, trust, on_error
    )
    job.track, job.log = track, log
    job.prepare(resume)
    if not (job.out / MANIFEST).is_file():
        job.work_through()
    made = bundles.open_bundle(job.out)
    measure(made, runs, threads, track, extra=sorted(job.work.glob("stage-*.onnx")))
    if job.recipe.gates:
        verdicts = judge(made, job.recipe.gates)
        made.add("gates", {"verdicts": report.verdicts_json(verdicts)})
    shutil.rmtree(job.work, ignore_errors=True)
    return made


def measure(bundle: Bundle, runs: int, threads: int, track: Track = no_progress, extra: Sequence[Path] = ()) -> Path:
    """Profile the base and every shipped file of a bundle (and `extra` files) in one interleaved run."""
    files = [bundle.base, *extra, *bundle.models]
    rows = profile.time_files(files, "onnxruntime", runs, threads, track=track)
    settings = {
        "engine": "onnxruntime",
        "engine_version": engine("onnxruntime").version(),
        "threads": threads,
        "batch": 1,
    }
    return bundle.add("profile", {"rows": rows, "settings": settings, "machine": profile.machine()})


def judge(
    bundle: Bundle, gates: Mapping[str, Sequence[gate.Gate]], baseline: Bundle | None = None
) -> list[gate.Verdict]:
    """Judge gates on what a bundle measured, against another bundle or its own uncompressed network."""
    if baseline is None:
        return gate.judge(gates, report.shipped(bundle), report.base_row(bundle, same_run=True))
    verdicts = []
    for row in report.shipped(bundle):
        same = [other for other in report.shipped(baseline) if _key(other) == _key(row)]
        verdicts += gate.judge(gates, [row], same[0] if same else None)
    return verdicts


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["target"], row["precision"]


def load(path: str | Path, trust: bool = False) -> Any:
    """The PyTorch module of a bundle, in evaluation mode, bit-equal to what was sealed."""
    return bundles.load_net(bundles.open_bundle(path), trust).module


@dataclasses.dataclass
class _Job:
    """One compression. `work` holds what is needed to go on after a kill."""

    model: str
    recipe_name: str
    specs: list[str]
    out: Path
    seed: int
    overrides: Sequence[str]
    trust: bool
    on_error: OnError

    recipe: Recipe = dataclasses.field(init=False)
    source: Source = dataclasses.field(init=False)
    data: Data = dataclasses.field(init=False)
    track: Track = dataclasses.field(init=False, default=no_progress)
    log: Callable[[str], None] = dataclasses.field(init=False, default=print)
    steps: list[dict[str, Any]] = dataclasses.field(init=False, default_factory=list)
    started: datetime.datetime = dataclasses.field(init=False)

    @property
    def work(self) -> Path:
        return self.out / WORK

    @property
    def first_target(self) -> Target:
        return target(self.recipe.export.targets[0])

    def prepare(self, resume: bool) -> None:
        """Read and check everything before any work starts."""
        self.started = datetime.datetime.now(datetime.UTC)
        self.recipe = recipes.load(self.recipe_name, self.overrides)
        self.source = parse_spec(self.model)
        if self.source.kind == "factory":
            self.trust = True  # named on the command line by the user, who thereby runs it
        if self.source.kind == "onnx" and self.recipe.passes:
            raise BadInput(
                f"{self.model}: passes work on torch modules; this recipe has [[pass]] tables, the model is ONNX"
            )
        self.data = datasets.load(self.specs, on_error=self.on_error, progress=self.track)
        self._check_classes()
        request = sha256(canonical(self._request()))
        if resume and (self.work / "request.json").is_file():
            if read_json(self.work / "request.json", "edgekit/request/1")["sha256"] != request:
                raise BadInput(
                    f"{self.out}: was started with another model, recipe, data, seed or version; give another --out"
                )
            return
        bundles.new_folder(self.out)
        self.work.mkdir()
        write_json(self.work / "request.json", {"schema": "edgekit/request/1", "sha256": request})

    def _check_classes(self) -> None:
        output = self.recipe.output
        for role in self.data.roles.values():
            if output.task == "classify" and output.classes is not None:
                datasets.check_labels(role, output.classes)

    def _request(self) -> dict[str, Any]:
        roles = {name: samples.sha256 for name, samples in sorted(self.data.roles.items())}
        return {
            "source": to_json(self.source),
            "recipe": to_json(self.recipe.tables),
            "data": roles,
            "seed": self.seed,
            "versions": versions(),
        }

    def work_through(self) -> None:
        if self.source.kind == "onnx":
            model = self._read_onnx()
            self._seal(self._rewritten(lambda _target: model, None), {})
            return
        base = self.base()
        self._file_stage(base, "base", f"base.{self.first_target.name}.fp32.onnx", self.out, 0)
        net = self._run_passes(base)
        files = self._rewritten(lambda wanted: self._exported(net, wanted), net)
        aliases = bundles.save_weights(self.out / WEIGHTS, net)
        self._seal([*files, WEIGHTS], {"edits": edits_to_json(net.edits), "aliases": aliases})
        self._check_rebuild(net)

    # The torch side

    def base(self) -> Net:
        _seed(self.seed)
        module = build(self.source, trust=self.trust)
        if self.source.weights:
            entry = card(self.source.weights["card"])
            path = package_data("models") / entry["weights"]
            if file_sha256(path) != self.source.weights["sha256"]:
                raise BadInput(f"{path}: is corrupt; its SHA-256 is not the card's {entry['sha256'][:16]}…")
            bundles.load_weights(module, path)
        return Net(self.source, (), module.eval())

    def _run_passes(self, base: Net) -> Net:
        net = base
        for index, step in enumerate(self.recipe.passes, 1):
            checkpoint = self.work / f"step-{index:02}.json"
            if not checkpoint.is_file():
                self._save_checkpoint(checkpoint, self._run_pass(index, step, net, base))
            net = self._load_checkpoint(checkpoint)
            last = index == len(self.recipe.passes)
            name = f"model.{self.first_target.name}.fp32.onnx" if last else f"stage-{index:02}.{step.name}.onnx"
            self._file_stage(net, step.name, name, self.out if last else self.work, index)
        return net

    def _run_pass(self, index: int, step: recipes.Step, net: Net, base: Net) -> Net:
        _seed(self.seed + 1000 * index)
        before = state_sha256(net.module)
        result = step.run(net, self._pass_context(index, base))
        if state_sha256(net.module) != before:
            raise NothingChanged(f"{step.name}: touched the network it was given; a pass must return a new one")
        if result.edits == net.edits and state_sha256(result.module) == before:
            raise NothingChanged(f"{step.name}: changed nothing; check its settings in the recipe")
        return result

    def _pass_context(self, index: int, base: Net) -> PassContext:
        def keep(module: Any) -> str:
            path = self.work / f"last-good-{index:02}.safetensors"
            bundles.save_weights(path, Net(self.source, (), module))
            return str(path)

        return PassContext(
            data=self.data,
            input=self.recipe.input,
            output=self.recipe.output,
            seed=self.seed + 1000 * index,
            base=base,
            cost=lambda net: trace(net.module, self.recipe.input.shape).cost(),
            score=lambda net: self._score_torch(net, "calibrate").metrics,
            keep=keep,
            log=self.log,
            track=self.track,
        )

    def _save_checkpoint(self, path: Path, net: Net) -> None:
        aliases = bundles.save_weights(path.with_suffix(".safetensors"), net)
        document = {"schema": "edgekit/checkpoint/1", "edits": edits_to_json(net.edits), "aliases": aliases}
        write_json(path, document)

    def _load_checkpoint(self, path: Path) -> Net:
        document = read_json(path, "edgekit/checkpoint/1")
        edits = edits_from_json(document["edits"], str(path))
        module = build(self.source, edits, self.trust)
        bundles.load_weights(module, path.with_suffix(".safetensors"), document["aliases"])
        return Net(self.source, edits, module.eval())

    def _score_torch(self, net: Net, role: str) -> Score:
        return evaluate(torch_predict(net.module), self.data.role(role), self.recipe.input, self.recipe.output)

    def _check_rebuild(self, net: Net) -> None:
        again = bundles.load_net(bundles.open_bundle(self.out), self.trust)
        probe = self._probe(4)
        if not np.array_equal(torch_predict(again.module)(probe), torch_predict(net.module)(probe)):
            (self.out / MANIFEST).unlink()
            raise ParityError("the network rebuilt from the bundle computes something else; the bundle was not sealed")

    # The crossing and the ONNX side

    def _exported(self, net: Net, wanted: Target) -> onnx.ModelProto:
        """The network in the target's form, float, after the recipe's clean-up; checked against PyTorch."""
        exported = export(net.module, self.recipe.input, self.recipe.output, wanted, self.recipe.export.batch)
        model = exported.model
        for step in self.recipe.rewrites:
            if step.run.precision is None:
                model = finish(
                    step.run(model, self._rewrite_context(wanted)), wanted, self.recipe.input, self.recipe.output
                )
        session = engine(wanted.engine).load(serialise(model))
        for size in (1, 4):
            probe = self._probe(size)
            found = sqnr_db(torch_predict(net.module)(probe), session.run(probe))
            if found < PARITY_DB:
                raise ParityError(
                    f"the exported file differs from PyTorch: {found:.1f} dB at batch {size}, needed {PARITY_DB:.0f}; "
                    f"nothing was written"
                )
        return model

    def _rewrite_context(self, wanted: Target) -> RewriteContext:
        return RewriteContext(wanted, self.recipe.input, self.recipe.output, self.data, self.seed, self.log, self.track)

    def _probe(self, size: int) -> np.ndarray:
        samples = self.data.role("test").subset(size, self.seed)
        return next(samples.batches(self.recipe.input, size))[0]

    def _read_onnx(self) -> onnx.ModelProto:
        from edgekit.onnx_file import read

        wanted = self.first_target
        model = Fold()(read(Path(self.model)), self._rewrite_context(wanted))
        model = finish(model, wanted, self.recipe.input, self.recipe.output)
        name = f"base.{wanted.name}.fp32.onnx"
        write_bytes(self.out / name, serialise(model))
        self.steps.append(self._row("base", self.out / name, wanted, "fp32", onnx_cost(model), None))
        return model

    def _file_stage(self, net: Net, stage: str, name: str, folder: Path, index: int) -> None:
        """Export a network, score it in PyTorch and as a file, and add its row; kept for a resumed run."""
        record = self.work / f"row-{index:02}.json"
        if not (record.is_file() and (folder / name).is_file()):
            write_bytes(folder / name, serialise(self._exported(net, self.first_target)))
            cost = trace(net.module, self.recipe.input.shape).cost()
            metrics = self._score_torch(net, "test").metrics
            row = self._row(stage, folder / name, self.first_target, "fp32", cost, metrics)
            write_json(record, {"schema": "edgekit/row/1", "row": row})
        self.steps.append(read_json(record, "edgekit/row/1")["row"])

    def _row(
        self, stage: str, path: Path, wanted: Target, precision: str, cost: dict[str, int], metrics_torch: Any
    ) -> dict[str, Any]:
        predict = engine(wanted.engine).load(path).run
        score = evaluate(predict, self.data.role("test"), self.recipe.input, self.recipe.output, progress=self.track)
        self.log(f"{stage}: " + ", ".join(f"{name} {value:.2f}" for name, value in score.metrics.items()))
        return {
            "stage": stage,
            "file": path.name,
            "target": wanted.name,
            "precision": precision,
            **cost,
            "size_bytes": path.stat().st_size,
            "metrics": score.metrics,
            "metrics_torch": metrics_torch,
            "n": score.n,
            "skipped": score.skipped,
            "correct": "".join("1" if hit else "0" for hit in score.correct),
        }

    def _rewritten(self, source: Callable[[Target], onnx.ModelProto], net: Net | None) -> list[str]:
        """For every target: its float file, then the file of each rewrite that changes the precision."""
        names = [f"base.{self.first_target.name}.fp32.onnx"]
        cost = {key: self.steps[-1][key] for key in ("params", "macs", "cio", "cio_paper")}
        for wanted in map(target, self.recipe.export.targets):
            name = f"model.{wanted.name}.fp32.onnx"
            model = self._float_file(source, wanted, name, net, cost)
            names.append(name)
            for step in self.recipe.rewrites:
                if step.run.precision is not None:
                    model = self._rewrite(step, model, wanted, cost)
                    names.append(f"model.{wanted.name}.{step.run.precision}.onnx")
        return names

    def _float_file(
        self,
        source: Callable[[Target], onnx.ModelProto],
        wanted: Target,
        name: str,
        net: Net | None,
        cost: dict[str, int],
    ) -> onnx.ModelProto:
        import onnx

        path = self.out / name
        if any(row["file"] == name for row in self.steps):
            return onnx.load(path)
        model = source(wanted)
        write_bytes(path, serialise(model))
        metrics = self._score_torch(net, "test").metrics if net else None
        self.steps.append(self._row(f"export {wanted.name}", path, wanted, "fp32", cost, metrics))
        return model

    def _rewrite(
        self, step: recipes.Step, model: onnx.ModelProto, wanted: Target, cost: dict[str, int]
    ) -> onnx.ModelProto:
        _seed(self.seed)
        result = finish(step.run(model, self._rewrite_context(wanted)), wanted, self.recipe.input, self.recipe.output)
        precision = step.run.precision
        path = self.out / f"model.{wanted.name}.{precision}.onnx"
        write_bytes(path, serialise(result))
        row = self._row(
            step.name if len(self.recipe.export.targets) == 1 else f"{step.name} {wanted.name}",
            path,
            wanted,
            precision,
            cost,
            None,
        )
        probe = self._probe(8)
        runtime = engine(wanted.engine)
        row["parity_db"] = sqnr_db(runtime.load(serialise(model)).run(probe), runtime.load(path).run(probe))
        row["int8_convs"] = runtime.executed_ops(path).get("QLinearConv", 0)
        if row["int8_convs"] == 0:
            raise NothingChanged(f"{step.name}: no convolution runs as int8 in {wanted.engine}")
        self.steps.append(row)
        return result

    # Sealing

    def _seal(self, files: list[str], extra: dict[str, Any]) -> None:
        self._write_golden([name for name in files if name.startswith("model.")])
        roles = {name: {"n": len(s), "sha256": s.sha256} for name, s in sorted(self.data.roles.items())}
        write_json(self.out / "data.json", {"schema": "edgekit/data/1", **self._sample_ids()})
        manifest = {
            "schema": bundles.SCHEMA,
            "source": to_json(self.source),
            "edits": [],
            "aliases": {},
            **extra,
            "recipe": {"name": self.recipe.name, "tables": to_json(self.recipe.tables)},
            "seed": self.seed,
            "versions": versions(),
            "input": to_json(self.recipe.input),
            "output": to_json(self.recipe.output),
            "data": roles,
            "golden_db": GOLDEN_DB,
            "steps": self.steps,
            "files": bundles.hashes(self.out, [*files, GOLDEN, "data.json"]),
            "runs": self._run_record(),
        }
        write_json(self.out / MANIFEST, manifest)

    def _sample_ids(self) -> dict[str, Any]:
        return {"roles": {name: list(samples.ids) for name, samples in sorted(self.data.roles.items())}}

    def _write_golden(self, models: list[str]) -> None:
        from safetensors.numpy import save

        probe = self._probe(8)
        tensors = {"input": probe}
        for name in models:
            wanted = target(name.split(".")[1])
            tensors[name] = engine(wanted.engine).load(self.out / name).run(probe)
        write_bytes(self.out / GOLDEN, save({key: np.ascontiguousarray(value) for key, value in tensors.items()}))

    def _run_record(self) -> dict[str, Any]:
        ended = datetime.datetime.now(datetime.UTC)
        return {
            "started": self.started.isoformat(timespec="seconds"),
            "ended": ended.isoformat(timespec="seconds"),
            "machine": profile.machine(),
            "python": platform.python_version(),
        }


def torch_predict(module: Any) -> Callable[[np.ndarray], np.ndarray]:
    import torch

    def predict(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module.eval()(torch.from_numpy(np.ascontiguousarray(batch))).numpy()

    return predict


def _seed(seed: int) -> None:
    import torch

    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    packages = ("torch", "onnx", "onnxruntime", "onnxsim", "onnxscript", "numpy")
    return {"edgekit": __version__, **{name: version(name) for name in packages}}
