"""The orchestrator: recipe + model + data -> bundle. With `job.py`, the only module that may import everything.

Each step is measured from outside, on the file that it leads to in the runtime that runs it, and checkpointed, so that
a run that was killed goes on with `resume` and seals the same content as an uninterrupted one.
"""

from __future__ import annotations

import datetime
import platform
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import bundle as bundles
from edgekit import isa, profile, report
from edgekit import recipe as recipes
from edgekit.bundle import GOLDEN, GRAPH, MANIFEST, WEIGHTS, Bundle
from edgekit.context import PassContext, Track, no_progress
from edgekit.data import OnError
from edgekit.engines import engine, runner
from edgekit.errors import BadInput, NothingChanged, ParityError
from edgekit.export import PARITY_DB, export, finish, serialise
from edgekit.files import read_json, write_bytes, write_json
from edgekit.footprint import modelled_traffic, sized
from edgekit.graph import deterministic, trace
from edgekit.graph_onnx import onnx_cost
from edgekit.job import Job, prepare, seed_torch, torch_predict, versions
from edgekit.judge import judge
from edgekit.machine import machine
from edgekit.metrics.resample import packed
from edgekit.net import Net, edits_to_json, state_sha256
from edgekit.onnx_file import read, read_io
from edgekit.parallel import join
from edgekit.parity import sqnr_db
from edgekit.passes import PASSES
from edgekit.recipe import Step
from edgekit.rewrites.fold import Fold
from edgekit.rewrites.split import Split
from edgekit.schema import to_json
from edgekit.shipping import GOLDEN_DB, golden_db, ship
from edgekit.split.build import crossing_of, cut_files
from edgekit.targets import Target
from edgekit.train.settings import Training
from edgekit.weights import load_exact

if TYPE_CHECKING:
    import onnx
    from torch import nn


def compress(
    model: str,
    recipe: str,
    data: str | Sequence[str],
    out: str | Path,
    *,
    seed: int = 0,
    overrides: Sequence[str] = (),
    resume: bool = False,
    runs: int = 50,
    threads: int = 1,
    on_error: OnError = "stop",
    io_file: str | Path | None = None,
    track: Track = no_progress,
    log: Callable[[str], None] = lambda _line: None,
) -> Bundle:
    """Run a recipe on a model and write the bundle `out`; then profile it and judge the recipe's gates.

    Under torchrun the processes share the training; process 0 alone exports, measures and writes. All of them must see
    the same files under the same paths.

    Args:
        model: zoo name with arguments, `package.module:factory`, or a path ending in .onnx.
        recipe: name of a shipped recipe, or path of a TOML file.
        data: one or several DATA specs.
        runs, threads: of the latency measurement; at least eight runs.
        on_error: "stop" at an image that cannot be decoded, or "skip" and count it.
        io_file: TOML with [input] and [output] for a model that the recipe does not describe.

    Raises:
        EdgekitError: everything a user can mend; `out` is then resumable or untouched, never half a bundle.
    """
    specs = [data] if isinstance(data, str) else list(data)
    plan = profile.Plan(runs=runs, threads=threads)
    world = join()
    job = prepare(
        model, recipe, specs, Path(out), seed=seed, overrides=overrides, resume=resume, on_error=on_error,
        io_file=Path(io_file) if io_file else None, track=track if world.first else no_progress,
        log=log if world.first else lambda _line: None, world=world, threads=threads,
    )  # fmt: skip
    with job.locked():
        if not world.agreed((job.out / MANIFEST).is_file()):
            _make(job)
        if world.first:
            _finish(job, plan)
    world.agreed(None)  # the others wait until everything is written
    return bundles.open_bundle(job.out)


def train(model: str, recipe: str, data: str | Sequence[str], out: str | Path, **options: Any) -> Bundle:
    """`compress` by a recipe that trains.

    Raises:
        BadInput: no pass of the recipe trains; else as `compress`.
    """
    settings = recipes.load(recipe, options.get("overrides", ()), {"input": {"size": 1}})
    if not any(isinstance(step.run, Training) for step in settings.passes):
        names = sorted(name for name, made in PASSES.items() if issubclass(made, Training))
        raise BadInput(f"{recipe}: trains nothing; add a [[pass]] named {' or '.join(names)}, or use edgekit compress")
    return compress(model, recipe, data, out, **options)


def _finish(job: Job, plan: profile.Plan) -> None:
    """Measure and judge a sealed bundle, and remove what only a resumed run would need."""
    made = bundles.open_bundle(job.out)
    stages = sorted(job.work.glob("stage-*.onnx"))
    profile.profile_bundle(made, plan, stages, track=job.track)
    if job.recipe.gates:
        made.add("gates", {"verdicts": report.verdicts_json(judge(made, job.recipe.gates, track=job.track))})
    shutil.rmtree(job.work, ignore_errors=True)


def load(path: str | Path, trust: bool = False) -> nn.Module:
    """The PyTorch module of a bundle, in evaluation mode, bit-equal to what was sealed."""
    return bundles.load_net(bundles.open_bundle(path), trust).module


def _make(job: Job) -> None:
    """Everything up to the seal."""
    started = datetime.datetime.now(datetime.UTC)
    if job.source.kind == "onnx" and not job.recipe.passes:
        if not job.world.first:
            return
        (steps, model), net = _read_onnx(job), None
        files, sealed = _rewrite_all(job, steps, lambda _target: model, None), {}
    else:
        steps, net = _run_passes(job)
        if not job.world.first:
            return
        files = _rewrite_all(job, steps, lambda wanted: _exported(job, net, wanted), net)
        aliases = bundles.save_weights(job.out / WEIGHTS, net.module)
        _check_rebuild(job, net, aliases)
        files += [WEIGHTS, GRAPH] if job.source.kind == "onnx" else [WEIGHTS]
        sealed = {"edits": edits_to_json(net.edits), "aliases": aliases, "golden_db": golden_db(net.module)}
    files += _cut(job, steps, files, net)
    files += sorted(path.name for kind in ("train.*.csv", "quant.*.json") for path in job.out.glob(kind))
    _seal(job, steps, files, sealed, started)


# The torch side


def _run_passes(job: Job) -> tuple[list[dict[str, Any]], Net]:
    """Run or reload every pass; in process 0 a row for the base and one for each network that a pass made."""
    base, steps = job.base(), []
    predicted = _predicted(job, base, base)
    if job.world.first:
        if job.source.kind == "onnx":
            job.keep_graph()
            _check_import(job, base)
        steps.append(_stage(job, base, "base", job.out / job.base_file, 0, predicted))
    net = before = base
    for index, step in enumerate(job.recipe.passes, 1):
        name = f"step-{index:02}"
        if not job.world.agreed(job.has_checkpoint(name)):
            made = _run_pass(step, net, job.pass_context(index, base, before))
            if job.world.first:
                job.save_checkpoint(name, made)
            job.world.agreed(None)  # the others wait until it is written
        made = job.load_checkpoint(name)
        if made.edits != net.edits or made.edits == before.edits:
            before = net  # see PassContext
        net = made
        last = index == len(job.recipe.passes)
        ships = last and job.recipe.shipped == job.recipe.plain
        path = job.out / _shipped(job.targets[0], "fp32") if ships else job.work / f"stage-{index:02}.{step.name}.onnx"
        predicted = _predicted(job, base, net)
        if job.world.first:
            steps.append(_stage(job, net, step.name, path, index, predicted))
    return steps, net


def _check_import(job: Job, base: Net) -> None:
    """The module that an ONNX file became, against the file; an image at a time, as the file's batch may be fixed."""
    session = engine("onnxruntime").load(serialise(read(Path(job.model))))
    probe = job.probe(4)
    expected = np.concatenate([session.run(image[None]) for image in probe])
    try:
        found = sqnr_db(expected, torch_predict(base.module)(probe))
    except RuntimeError as error:
        raise BadInput(f"{job.model}: its graph is tied to one batch size: {str(error).splitlines()[0]}") from error
    if found < PARITY_DB:
        raise ParityError(
            f"{job.model}: PyTorch computes something else than the file: {found:.1f} dB, needed {PARITY_DB:.0f}"
        )


def _shipped(wanted: Target, precision: str) -> str:
    return f"model.{wanted.name}.{precision}.onnx"


def _run_pass(step: Step, net: Net, ctx: PassContext) -> Net:
    seed_torch(ctx.seed)
    before = state_sha256(net.module)
    with deterministic(True):
        result = step.run(net, ctx)
    if state_sha256(net.module) != before:
        raise ParityError(f"{step.name}: touched the network it was given; a pass must return a new one")
    if result.edits == net.edits and state_sha256(result.module) == before:
        raise NothingChanged(f"{step.name}: changed nothing; check its settings in the recipe")
    return result


def _predicted(job: Job, base: Net, net: Net) -> dict[str, Any]:
    """What a recipe that budgets latency foresees for a network, for its row; all processes must ask."""
    if not job.recipe.budgets_latency:
        return {}
    ctx = job.pass_context(0, base, base)
    share = ctx.layer_latency(net).latency_ms(net.module) / ctx.latency(base).full_ms
    table = job.recipe.latency.table
    return {"latency_predicted": share, **({"latency_table": Path(table).name} if table else {})}


def _stage(job: Job, net: Net, stage: str, path: Path, index: int, predicted: dict[str, Any]) -> dict[str, Any]:
    """Export a network, score it in PyTorch and as a file; the row is kept for a resumed run."""
    record = job.work / f"row-{index:02}.json"
    if not (record.is_file() and path.is_file()):
        write_bytes(path, serialise(_exported(job, net, job.targets[0])))
        cost = trace(net.module, job.recipe.input.shape).counts()
        metrics = job.score(torch_predict(net.module)).metrics
        row = _row(job, stage, path, job.targets[0], "fp32", cost, metrics)
        write_json(record, {"schema": "edgekit/row/1", "row": row | predicted})
    return read_json(record, "edgekit/row/1")["row"]


def _check_rebuild(job: Job, net: Net, aliases: dict[str, str]) -> None:
    """The invariant of every bundle, checked before it is sealed."""
    module = job.build(net.edits)
    load_exact(module, job.out / WEIGHTS, aliases)
    probe = job.probe(4)
    if not np.array_equal(torch_predict(module)(probe), torch_predict(net.module)(probe)):
        raise ParityError("the network rebuilt from its edits computes something else; nothing was sealed")


# The crossing and the ONNX side


def _exported(job: Job, net: Net, wanted: Target) -> onnx.ModelProto:
    """The network in the target's form, float, after the recipe's clean-up; checked against PyTorch."""
    settings = job.recipe
    model = export(net.module, settings.input, settings.output, wanted, settings.export.batch).model
    for step in settings.rewrites:
        if step.run.precision is None:
            model = finish(step.run(model, job.rewrite_context(wanted)), wanted, settings.input, settings.output)
    session = runner(wanted).load(serialise(model))
    needed = min(PARITY_DB, golden_db(net.module)["fp32"])
    for size in (1, 4):
        probe = job.probe(size)
        found = sqnr_db(torch_predict(net.module)(probe), session.run(probe))
        if found < needed:
            raise ParityError(
                f"the exported file differs from PyTorch: {found:.1f} dB at batch {size}, needed {needed:.0f}; "
                f"nothing was written"
            )
    return model


def _read_onnx(job: Job) -> tuple[list[dict[str, Any]], onnx.ModelProto]:
    """A foreign file, cleaned, as the base that all is compared with."""
    wanted = job.targets[0]
    model = Fold()(read(Path(job.model)), job.rewrite_context(wanted))
    model = finish(model, wanted, job.recipe.input, job.recipe.output)
    write_bytes(job.out / job.base_file, serialise(model))
    return [_row(job, "base", job.out / job.base_file, wanted, "fp32", onnx_cost(model), None)], model


def _rewrite_all(
    job: Job, steps: list[dict[str, Any]], source: Callable[[Target], onnx.ModelProto], net: Net | None
) -> list[str]:
    """For every target its float file, then the file of each rewrite that changes the precision; adds their rows."""
    import onnx

    cost = {key: steps[-1][key] for key in ("params", "macs", "cio", "cio_paper")}
    for wanted in job.targets:
        path = job.out / _shipped(wanted, "fp32")
        if any(row["file"] == path.name for row in steps):
            model = onnx.load(path)
        else:
            model = source(wanted)
            close = _ship(job, model, wanted, "fp32", path)
            metrics = job.score(torch_predict(net.module)).metrics if net else None
            steps.append(_row(job, "export", path, wanted, "fp32", cost, metrics) | close)
        for step in job.recipe.rewrites:
            if step.run.precision is not None:
                row, result = _rewrite(job, step, model, wanted, cost)
                steps.append(row)
                model = result if isinstance(step.run, Split) else model  # what follows quantises the cut network
    return [job.base_file, *(row["file"] for row in steps if row["file"].startswith("model."))]


def _rewrite(
    job: Job, step: Step, model: onnx.ModelProto, wanted: Target, cost: dict[str, int]
) -> tuple[dict[str, Any], onnx.ModelProto]:
    """Apply a rewrite that changes the precision to the float model, and hold its file against that."""
    seed_torch(job.seed)
    result = finish(step.run(model, job.rewrite_context(wanted)), wanted, job.recipe.input, job.recipe.output)
    path = job.out / _shipped(wanted, step.run.precision)
    close = _ship(job, result, wanted, step.run.precision, path)
    runtime, probe = runner(wanted), job.probe(8)
    row = {
        **_row(job, step.name, path, wanted, step.run.precision, cost, None),
        **close,
        "parity_db": sqnr_db(*(runtime.load(serialise(one)).run(probe) for one in (model, result))),
        "int8_convs": runtime.int8_convs(path),
        **isa.row(path, wanted),
    }
    if step.run.precision == "int8" and row["int8_convs"] == 0:
        raise NothingChanged(f"{step.name}: no convolution runs as int8 in {wanted.engine}")
    return row, result


def _cut(job: Job, steps: list[dict[str, Any]], files: list[str], net: Net | None) -> list[str]:
    """Head, tail and `split.json` where the network is cut; adds to the rows what a picture's latent costs."""
    rewrites = [step.run for step in job.recipe.rewrites]
    if (crossing := crossing_of(net.module if net else None, rewrites)) is None:
        return []
    models = [name for name in files if name.startswith("model.")]
    made = cut_files(job.out, models, crossing, job.base_file, job.data)
    steps[:] = [row | made.rates.get(row["file"], {}) for row in steps]
    return made.files


def _ship(job: Job, model: onnx.ModelProto, wanted: Target, precision: str, path: Path) -> dict[str, float]:
    """Write a file in the form that [export] asks for; returns how close it is to the plain one, for the file's row."""
    asked, pixels = job.recipe.shipped, job.pixels(8)
    made, found = ship(model, wanted, job.recipe.plain, asked, GOLDEN_DB[precision], pixels)
    write_bytes(path, serialise(made))
    return {} if found is None else {"camera_db": found}


def _row(
    job: Job, stage: str, path: Path, wanted: Target, precision: str, cost: dict[str, int], metrics_torch: Any
) -> dict[str, Any]:
    """What is known of a file: its cost, its bytes, and its metrics in the engine that the row names."""
    runtime = runner(wanted)
    score = job.score(runtime.load(path).run, io=read_io(path), resample=True)
    where = "" if runtime.reason is None else f" ({runtime})"
    job.log(f"{stage}: " + ", ".join(f"{name} {value:.2f}" for name, value in score.metrics.items()) + where)
    return {
        "stage": stage,
        "file": path.name,
        "target": wanted.name,
        "precision": precision,
        "engine": runtime.name,
        "engine_version": engine(runtime.name).version(),
        "stand_in": runtime.reason,
        **cost,
        "size_bytes": path.stat().st_size,
        **modelled_traffic(path, wanted),
        "metrics": score.metrics,
        "metrics_torch": metrics_torch,
        "n": score.n,
        "skipped": score.skipped,
        "correct": "".join("1" if hit else "0" for hit in score.correct),
        "resampled": {name: packed(np.array(values)) for name, values in score.resampled.items()},
    }


# Sealing


def _seal(
    job: Job, steps: list[dict[str, Any]], files: list[str], sealed: dict[str, Any], started: datetime.datetime
) -> None:
    """Write the golden vectors, the sample ids and, last, the manifest that makes the folder a bundle."""
    _write_golden(job, [name for name in files if name.startswith("model.")])
    roles = sorted(job.data.roles.items())
    ids = {name: list(samples.ids) for name, samples in roles}
    write_json(job.out / "data.json", {"schema": "edgekit/data/1", "roles": ids})
    manifest = {
        "schema": bundles.SCHEMA,
        "source": to_json(job.source),
        "edits": [],
        "aliases": {},
        "golden_db": GOLDEN_DB,
        **sealed,
        "recipe": {"name": job.recipe.name, "tables": to_json(job.recipe.tables)},
        "seed": job.seed,
        "versions": versions(),
        "input": to_json(job.recipe.input),
        "output": to_json(job.recipe.output),
        "data": {name: {"n": len(samples), "sha256": samples.sha256} for name, samples in roles},
        "steps": [sized(row, job.out) for row in steps],
        "files": bundles.hashes(job.out, [*files, GOLDEN, "data.json"]),
        "runs": {
            "started": started.isoformat(timespec="seconds"),
            "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "python": platform.python_version(),
            "command": job.command,
        },
    }
    write_json(job.out / MANIFEST, manifest)


def _write_golden(job: Job, models: list[str]) -> None:
    from safetensors.numpy import save

    tensors = {"input": job.recipe.shipped[0].normalised(job.pixels(8))}
    for wanted in job.targets:
        for name in models:
            if name.startswith(f"model.{wanted.name}."):
                tensors[name] = runner(wanted).load(job.out / name).run(tensors["input"])
    write_bytes(job.out / GOLDEN, save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))
