"""What the commands on finished files do: export, profile, compare, gate and evaluate."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx

from edgekit import data as datasets
from edgekit import isa, profile, report
from edgekit.baseline import open_baseline, write_baseline
from edgekit.bundle import Bundle, load_net, open_bundle
from edgekit.context import RewriteContext, Track, no_progress
from edgekit.data import check_plain
from edgekit.devices.address import addresses
from edgekit.engines import Runner, engine, runner
from edgekit.engines.tensorrt import TENSORRT, build_script
from edgekit.errors import BadInput
from edgekit.evaluate import evaluate
from edgekit.export import export, finish, serialise
from edgekit.files import read_toml, write_bytes
from edgekit.gate import Verdict
from edgekit.judge import SECONDS, judge
from edgekit.onnx_file import input_shapes, read, read_io
from edgekit.onnx_split import halves, has_latent
from edgekit.phones import to_ort
from edgekit.profile import Plan, Subject
from edgekit.profile.compare import compare
from edgekit.profile.remote import profile_there
from edgekit.recipe import Recipe, from_tables, parse_gates
from edgekit.rewrites.fold import Fold
from edgekit.rewrites.fp16 import Fp16
from edgekit.rewrites.split import Split
from edgekit.shipping import GOLDEN_DB, ship
from edgekit.targets import Target, target


def export_file(
    source: Path,
    target_name: str,
    precision: str | None,
    out: Path,
    specs: list[str],
    io_file: Path | None,
    trust: bool,
    track: Track = no_progress,
    ort_format: bool = False,
    part: str | None = None,
) -> str:
    """Write `source` in the form of a target; returns lines that say what was written.

    A bundle's own file is copied where it has one for that target; otherwise the recipe's rewrites are run again for
    the target, which needs calibration images (`specs`) for int8. A target that is built on the device gets a script
    beside the file that builds it there; with `ort_format` the file is in ONNX Runtime's own format, for phones, with
    the list of the operators it needs beside it. `part` is "head" or "tail" of a network that is cut.

    Raises:
        BadInput: unknown target, `out` or what goes beside it exists, calibration images are needed and not given, ORT
            format is asked for a target that another engine runs, or a part of a network that is not cut.
    """
    wanted = target(target_name)
    if ort_format and wanted.engine != "onnxruntime":
        raise BadInput(
            f"ORT format is ONNX Runtime's own, and {wanted.name} is run by {wanted.engine}; give --format onnx"
        )
    beside = _beside(out, wanted, ort_format)
    for path in (out, beside):
        if path is not None and path.exists():
            raise BadInput(f"{path}: exists; give another --out")
    if source.is_dir():
        content, precision = _from_bundle(open_bundle(source), wanted, precision, specs, trust, track)
    else:
        content, precision = _from_onnx(source, wanted, precision, io_file), precision or "fp32"
    if part:
        content = _part(content, part, source)
    operators = b""
    if ort_format:
        content, operators = to_ort(content)
    write_bytes(out, content)
    line = f"{out}: {precision} for {wanted.name}, {len(content):,} bytes"
    if not ort_format and wanted.engine == "onnxruntime" and (warning := isa.warning(out)):
        line += f"\n{out}: {warning}"
    if beside is None:
        return line
    if ort_format:
        write_bytes(beside, operators)
        return f"{line}\n{beside}: the operators that a minimal build of ONNX Runtime needs for it"
    runtime = TENSORRT[wanted.engine]
    write_bytes(beside, build_script(runtime, out.name, input_shapes(out)).encode())
    beside.chmod(0o755)
    return f"{line}\n{beside}: builds its engine with {runtime.tool} on the device; no engine was built or run here"


def _part(content: bytes, part: str, source: Path) -> bytes:
    model = onnx.load_from_string(content)
    if not has_latent(model):
        raise BadInput(f"{source}: is not cut in that form, so it has no {part}; leave out --part")
    head, tail = halves(model)
    return serialise(head if part == "head" else tail)


def _beside(out: Path, wanted: Target, ort_format: bool) -> Path | None:
    """The second file of an export, where there is one."""
    if ort_format:
        return out.with_name(f"{out.stem}.required_operators.config")
    return out.with_name(f"{out.stem}.build.sh") if wanted.engine in TENSORRT else None


def _from_bundle(
    bundle: Bundle, wanted: Target, precision: str | None, specs: list[str], trust: bool, track: Track
) -> tuple[bytes, str]:
    made = from_tables(bundle.manifest["recipe"]["tables"], bundle.manifest["recipe"]["name"], str(bundle.path))
    precisions = ["fp32", *(step.run.precision for step in made.rewrites if step.run.precision)]
    precision = precision or precisions[-1]
    if precision not in precisions:
        raise BadInput(f"{bundle.path}: its recipe makes {', '.join(precisions)}, not {precision}")
    path = bundle.path / f"model.{wanted.name}.{precision}.onnx"
    if path in bundle.models:
        return path.read_bytes(), precision
    data = datasets.load(specs, labels=made.output.labels) if specs else None
    if precision == "int8" and data is None:
        raise BadInput(f"{precision} for {wanted.name} is made anew: give its calibration images with --data")
    return serialise(_rebuilt(bundle, made, wanted, precision, data, trust, track)), precision


def _rebuilt(bundle: Bundle, made: Recipe, wanted: Target, precision: str, data: Any, trust: bool, track: Track) -> Any:
    if not bundle.has_module:
        model = read(bundle.base)
    else:
        model = export(load_net(bundle, trust).module, made.input, made.output, wanted, made.export.batch).model
    ctx = RewriteContext(wanted, made.input, made.output, data, bundle.manifest["seed"], lambda _line: None, track)
    for step in made.rewrites:
        cut = isinstance(step.run, Split) and precision != "fp32"  # what follows quantises the cut network
        if step.run.precision in (None, precision) or cut:
            model = finish(step.run(model, ctx), wanted, made.input, made.output)
    return ship(model, wanted, made.plain, made.shipped, GOLDEN_DB[precision])[0]


def _from_onnx(path: Path, wanted: Target, precision: str | None, io_file: Path | None) -> bytes:
    if precision == "int8":
        raise BadInput(f"{path}: to quantise a file, use `edgekit compress {path} --recipe int8`")
    input, output = read_io(path, io_file)
    check_plain(input, output, str(path))
    ctx = RewriteContext(wanted, input, output, None, 0, lambda _line: None)
    model = Fold()(read(path), ctx)
    if precision == "fp16":
        model = Fp16()(model, ctx)
    return serialise(finish(model, wanted, input, output))


def profile_paths(
    paths: Sequence[Path],
    plan: Plan,
    engine_name: str | None = None,
    trust: bool = False,
    track: Track = no_progress,
) -> dict[str, Any]:
    """Profile files and bundles, all interleaved; the result of one bundle alone is kept in it.

    Args:
        engine_name: what runs files, ONNX Runtime by default. The files of a bundle run in their targets' engines;
            "torch" runs the module of a bundle instead.
        trust: whether that module's source may run the user's code.

    Raises:
        BadInput: neither a bundle nor a file that the engine can load, or another engine was named for a bundle.
    """
    if len(paths) == 1 and paths[0].is_dir() and engine_name is None:
        return profile.profile_bundle(open_bundle(paths[0]), plan, end_to_end=True, track=track)
    subjects = [subject for path in paths for subject in _subjects(path, engine_name, trust)]
    return profile.profile(_told_apart(subjects), plan, end_to_end=True, track=track)


def profile_on_devices(
    paths: Sequence[Path],
    plan: Plan,
    engine_name: str | None,
    devices: Sequence[str],
    fleet: Path | None,
    track: Track = no_progress,
    log: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Profile files and bundles on devices, given as addresses and as a file of them; of one bundle alone the results
    are kept in it.

    Raises:
        BadInput: as `profile_paths`, a device that is none, or no device could measure.
    """
    there = addresses(devices, fleet)
    if engine_name is not None and any(path.is_dir() for path in paths):
        raise BadInput("the files of a bundle run in their targets' engines; leave out --engine, or name its files")
    subjects = [
        subject
        for path in paths
        for subject in (profile.subjects(open_bundle(path)) if path.is_dir() else [_file(path, engine_name)])
    ]
    found = profile_there(_told_apart(subjects), plan, there, track, log)
    if len(paths) == 1 and paths[0].is_dir():
        bundle = open_bundle(paths[0])
        for measured in found["profiles"]:
            bundle.add("profile", measured)
    return found


def _file(path: Path, engine_name: str | None) -> Subject:
    return Subject(path.name, path, engine_name or "onnxruntime")


def _subjects(path: Path, engine_name: str | None, trust: bool) -> list[Subject]:
    if path.is_dir() and engine_name is None:
        return profile.subjects(open_bundle(path))
    if path.is_dir() and engine_name != "torch":
        raise BadInput(
            f"{path}: the files of a bundle run in their targets' engines; leave out --engine, or give --engine torch "
            f"for its module"
        )
    return [dataclasses.replace(_subject(path, engine_name), trust=trust)]


def _subject(path: Path, engine_name: str | None) -> Subject:
    """A file in an engine, or a bundle's module in PyTorch."""
    engine_name = engine_name or "onnxruntime"
    if reason := engine(engine_name).missing():
        raise BadInput(f"{path}: cannot be measured in {engine_name} here: {reason}")
    if not path.is_dir():
        read(path)  # ONNX Runtime itself would follow a link out of the file's folder
    return Subject(path.name, path, engine_name)


def _told_apart(subjects: Sequence[Subject]) -> list[Subject]:
    """With names that tell them apart: of the file, with its folder, or the whole path."""
    for name in (lambda path: path.name, lambda path: f"{path.parent.name}/{path.name}", str):
        named = [dataclasses.replace(subject, name=name(subject.path)) for subject in subjects]
        if len({subject.name for subject in named}) == len(named):
            return named
    raise BadInput("a file was given twice; edgekit compare measures a file against itself")


def compare_files(
    first: Path,
    second: Path,
    plan: Plan,
    floor: float,
    max_ratio: float | None,
    engine_name: str | None = None,
    specs: Sequence[str] = (),
    io_file: Path | None = None,
    track: Track = no_progress,
) -> dict[str, Any]:
    """Decide whether SECOND is faster or slower than FIRST; with data (`specs`) also score both on their role `test`.

    Raises:
        BadInput: a folder, an io file without data, a file that the engine cannot load, or as `evaluate_file`.
    """
    for path in (first, second):
        if path.is_dir():
            raise BadInput(f"{path}: compare takes two files; name one of the bundle's")
    if io_file and not specs:
        raise BadInput("--io says how pictures become the input of a file that is scored; give --data too")
    scores = [evaluate_file(path, list(specs), engine_name, io_file, track) for path in (first, second) if specs]
    one, two = (_subject(path, engine_name) for path in (first, second))
    if one.name == two.name:
        again = f"{second} again" if first == second else str(second)
        one, two = dataclasses.replace(one, name=str(first)), dataclasses.replace(two, name=again)
    found = compare(one, two, plan, floor, max_ratio, track)
    return {**found, "scores": scores} if scores else found


def gate_bundle(
    path: Path,
    gates_file: Path,
    baseline: Path | None = None,
    *,
    allowed: Sequence[str] = (),
    update: Path | None = None,
    junit: Path | None = None,
    markdown: Path | None = None,
    seconds: float = SECONDS,
    track: Track = no_progress,
) -> Sequence[Verdict]:
    """Judge a bundle by a gates file, keep the result in the bundle and write the asked reports.

    Args:
        baseline: a bundle's folder, or the JSON of one; None is the bundle's own uncompressed network.
        allowed: differences to the baseline that are accepted: "data", "target".
        update: write the bundle's own figures there, as the next baseline.
        markdown: where to write; on GitHub it is added to the step's summary, too.
        seconds: for each ratio of latencies to be measured in, at most.

    Raises:
        BadInput: the gates file is empty or wrong, a bundle or baseline cannot be read, or they do not go together.
    """
    tables = read_toml(gates_file)
    gates = parse_gates(tables.get("gates", tables), str(gates_file))
    if not gates:
        raise BadInput(f"{gates_file}: holds no gates; write for example size_bytes = {{ max_ratio = 0.25 }}")
    bundle = open_bundle(path)
    verdicts = judge(bundle, gates, open_baseline(baseline, bundle, allowed) if baseline else None, seconds, track)
    bundle.add("gates", {"verdicts": report.verdicts_json(verdicts)})
    if update:
        write_baseline(update, bundle)
    if junit:
        write_bytes(junit, report.junit(verdicts))
    text = report.verdicts_markdown(verdicts) + "\n"
    if markdown:
        write_bytes(markdown, text.encode())
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(f"### {path.name}\n\n{text}")
    return verdicts


def evaluate_file(
    path: Path,
    specs: list[str],
    engine_name: str | None,
    io_file: Path | None,
    track: Track = no_progress,
    target_name: str | None = None,
) -> dict[str, Any]:
    """Score a file on the role `test` of the data.

    Args:
        engine_name: what runs the file, ONNX Runtime by default.
        target_name: instead of an engine, whose form the file has: its engine scores it, or what stands in.

    Raises:
        BadInput: both an engine and a target, one that is unknown or cannot run here, a file that does not describe its
            input, or data without test images.
    """
    read(path)
    input, output = read_io(path, io_file)
    if engine_name and target_name:
        raise BadInput("give --engine or --target, not both")
    runtime = runner(target(target_name)) if target_name else Runner(engine_name or "onnxruntime")
    session = runtime.load(path)
    samples = datasets.load(specs, progress=track, labels=output.labels).role("test")
    score = evaluate(session.run, samples, input, output, progress=track)
    return {
        "schema": "edgekit/evaluation/1",
        "file": path.name,
        "engine": str(runtime),
        "metrics": score.metrics,
        "n": score.n,
        "skipped": score.skipped,
    }
