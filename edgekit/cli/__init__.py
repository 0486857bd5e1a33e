"""The commands. No logic: each parses its arguments, calls one function and prints what came back."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import click

from edgekit import __version__
from edgekit.cli.devices import device, evaluate
from edgekit.cli.lab import lab
from edgekit.cli.options import (
    PATH,
    batch_option,
    board_option,
    data_option,
    device_options,
    emit,
    io_option,
    json_option,
    llc_option,
    run_options,
    say,
    threads_option,
    trust_option,
)
from edgekit.cli.pairs import compare, traffic
from edgekit.cli.split import split
from edgekit.cli.split_train import sweep
from edgekit.errors import EdgekitError
from edgekit.progress import track


class Commands(click.Group):
    """Errors become messages and exit codes: 2 bad input, 1 gate, 3 inconclusive, 70 internal, 130 Ctrl-C."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        sys.path.append("")  # so that `package.module:factory` finds the user's own modules
        try:
            sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}) or 0)
        except click.ClickException as error:
            error.show()
            sys.exit(2)
        except (KeyboardInterrupt, click.Abort):
            say("interrupted")
            sys.exit(130)
        except EdgekitError as error:
            say(f"error: {error}")
            sys.exit(error.exit_code)
        except Exception:
            traceback.print_exc()
            say("error: this is a fault of edgekit; please report it with the lines above")
            sys.exit(70)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="edgekit")
def main() -> None:
    """Make vision networks smaller and faster, export them, measure the file that ships, and gate it.

    \b
    edgekit compress mobilenet_v2_digits --recipe quickstart --data digits --out out/quickstart
    """


@main.command()
@json_option
def models(as_json: bool) -> None:
    """List the zoo: name, parameters, MACs, CIO, published accuracy and its source.

    \b
    edgekit models --json
    """
    from edgekit import catalogue, terminal

    listed = catalogue.model_rows()
    emit({"schema": "edgekit/models/1", "models": listed}) if as_json else terminal.show(catalogue.table(listed))


@main.command()
@click.argument("model")
@click.option("--input-size", type=click.IntRange(1), help="Height and width; default: the card's.")
@click.option("--phones", is_flag=True, help="How many nodes of an ONNX file XNNPACK, NNAPI and CoreML would take.")
@click.option("--cuts", is_flag=True, help="Instead, where it can be cut in two, and what would cross.")
@click.option("--bandwidth", metavar="RATE", help="With --cuts: of the link, e.g. 10Mbit; predicts the time it takes.")
@click.option("--server-speed", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True,
              help="With --bandwidth: how many times as fast as this machine the server is.")  # fmt: skip
@json_option
def inspect(
    model: str,
    input_size: int | None,
    phones: bool,
    cuts: bool,
    bandwidth: str | None,
    server_speed: float,
    as_json: bool,
) -> None:
    """Show a network layer by layer: shapes, parameters, MACs, CIO, bytes.

    \b
    edgekit inspect "mobilenet_v2?width=0.5" --input-size 192
    edgekit inspect model.onnx --phones
    edgekit inspect mobilenet_v2 --cuts --bandwidth 10Mbit --server-speed 10
    """
    from edgekit import tables
    from edgekit.cut_table import cut_table, show_cuts
    from edgekit.inspection import inspect_model

    if cuts:
        table = cut_table(model, input_size, bandwidth, server_speed)
        emit(table) if as_json else show_cuts(table)
        return
    found = inspect_model(model, input_size, phones)
    emit(found) if as_json else tables.show_inspection(found)


@main.command()
@run_options
def compress(as_json: bool, **given: Any) -> int:
    """Run a recipe on a model: passes, export, rewrites, bundle, profile and the recipe's gates.

    \b
    edgekit compress mobilenet_v2_digits --recipe quickstart --data digits --out out/quickstart
    edgekit compress model.onnx --recipe int8 --data csv:labels.csv --io io.toml --out out/int8
    """
    from edgekit import run, tables

    bundle = run.compress(**given, track=track, log=say)
    return tables.show_report(bundle, as_json)


@main.command()
@run_options
def train(as_json: bool, **given: Any) -> int:
    """Train a network by a recipe whose passes train it; everything else as in compress.

    \b
    edgekit train "cifar_resnet_20?width=8" --recipe train --data npz:cifar.npz --out out/resnet
    torchrun --nproc-per-node 4 -m edgekit train …     shares each batch over four processes
    """
    from edgekit import parallel, run, tables

    bundle = run.train(**given, track=track, log=say)
    return tables.show_report(bundle, as_json) if parallel.join().first else 0


@main.command()
@click.argument("source", metavar="BUNDLE_OR_ONNX", type=PATH)
@click.option("--target", required=True, help="The target whose form the file takes.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), help="Default: the recipe's last.")
@click.option(
    "--format",
    type=click.Choice(["onnx", "ort"]),
    default="onnx",
    show_default=True,
    help="ort: ONNX Runtime's own, for phones.",
)
@click.option("--part", type=click.Choice(["head", "tail"]), help="Of a network that is cut; default: the whole.")
@click.option("--out", type=PATH, required=True)
@data_option
@io_option
@trust_option
def export(
    source: Path,
    target: str,
    precision: str | None,
    format: str,
    part: str | None,
    out: Path,
    data: tuple[str, ...],
    io_file: Path | None,
    trust: bool,
) -> None:
    """Write a bundle's network, or an ONNX file, in the form of a target.

    \b
    edgekit export out/quickstart --target onnxruntime --out model.onnx
    edgekit export out/quickstart --target tensorrt --data digits --out model.onnx
    edgekit export out/quickstart --target onnxruntime --format ort --out model.ort
    edgekit export out/cut --target tensorrt --part head --out head.onnx
    """
    from edgekit.deploy import export_file

    say(export_file(source, target, precision, out, list(data), io_file, trust, track, format == "ort", part))


@main.command()
@click.argument("source", metavar="BUNDLE_OR_ONNX", type=PATH)
@click.option("--out", type=PATH, required=True, help="The file to write, model.ekz.")
@click.option("--target", help="Which of a bundle's files.")
@click.option("--precision", help="Which of a bundle's files.")
@click.option("--base", type=PATH, help="Bundle or ONNX file that the device has: write the difference to it.")
@json_option
def pack(source: Path, out: Path, target: str | None, precision: str | None, base: Path | None, as_json: bool) -> None:
    """Write the transport form of a file, for updates over the air: entropy-coded, the same bytes when unpacked.

    \b
    edgekit pack out/quickstart --precision int8 --out model.ekz
    edgekit pack out/new --precision int8 --base out/old --out update.ekz
    """
    from edgekit import tables
    from edgekit.transport.commands import pack_file

    found = pack_file(source, out, target, precision, base)
    emit(found) if as_json else tables.show_packed(found)


@main.command()
@click.argument("path", metavar="EKZ", type=PATH)
@click.option("--out", type=PATH, required=True, help="The ONNX file to write.")
@click.option("--base", type=PATH, help="For a difference: the ONNX file it was made against, or its bundle.")
def unpack(path: Path, out: Path, base: Path | None) -> None:
    """Write the ONNX file that was packed. On a device, edgekit/transport/unpack.py does it by itself.

    \b
    edgekit unpack model.ekz --out model.onnx
    edgekit unpack update.ekz --base old.onnx --out new.onnx
    """
    from edgekit.transport.commands import unpack_file

    say(f"{out}: {unpack_file(path, out, base):,} bytes")


@main.command()
@click.argument("paths", metavar="FILE_OR_BUNDLE…", type=PATH, nargs=-1, required=True)
@click.option("--runs", type=int, help="Rounds; each file runs once in each. Default: 100.")
@click.option("--seconds", type=float, help="Instead of a number of rounds, how long they go on.")
@threads_option
@batch_option
@click.option("--engine", help="What runs a file; default: onnxruntime. A bundle's files run in their own engines.")
@click.option("--throughput", is_flag=True, help="Also images a second with every core at work.")
@click.option("--sustained", metavar="TIME", help="Also each file without a pause for this long, e.g. 5m.")
@click.option("--layers", is_flag=True, help="Also the time of each layer, and its modelled traffic.")
@board_option
@llc_option
@trust_option
@click.option("--layer-table", is_flag=True, help="Instead, of zoo MODELs: layer times for budgets of latency.")
@click.option("--input-size", type=click.IntRange(1), help="With --layer-table: height and width; default: the card's.")
@device_options
@json_option
def profile(
    paths: tuple[Path, ...],
    layer_table: bool,
    input_size: int | None,
    engine: str | None,
    sustained: str | None,
    devices: tuple[str, ...],
    fleet: Path | None,
    trust: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Measure latency: all files and those of bundles interleaved, with bootstrap intervals.

    \b
    edgekit profile out/quickstart --runs 200
    edgekit profile model.onnx other.onnx --seconds 30 --layers
    edgekit profile out/quickstart --layers --board raspberry_pi_4 --device ssh://pi@pi4.local
    edgekit profile model.onnx --device ssh://pi@pi4.local --device ssh://pi@pi5.local
    edgekit profile mobilenet_v2 --layer-table --device ssh://pi@pi4.local
    """
    from edgekit import tables
    from edgekit.deploy import profile_on_devices, profile_paths
    from edgekit.profile import Plan, seconds_of

    plan = Plan(**settings, sustained_s=seconds_of(sustained) if sustained else None)
    if layer_table:
        from edgekit.on_device import layer_tables

        measured = layer_tables(list(map(str, paths)), plan, engine, input_size, devices, fleet, track, say)
        emit(measured) if as_json else tables.show_layer_tables(measured)
        return 2 if measured["failed"] else 0
    if input_size:
        raise click.UsageError("--input-size goes with --layer-table; a file has the size that it was exported with")
    if devices or fleet:
        there = profile_on_devices(paths, plan, engine, devices, fleet, track, say)
        emit(there) if as_json else tables.show_fleet(there)
        return 2 if there["failed"] else 0
    found = profile_paths(paths, plan, engine, trust, track)
    emit(found) if as_json else tables.show_profile(found)
    return 0


@main.command()
@click.argument("bundle", type=PATH)
@click.option("--gates", "gates_file", type=PATH, required=True, help="TOML of gates.")
@click.option(
    "--baseline", type=PATH, help="Bundle or JSON to compare with; default: the bundle's uncompressed network."
)
@click.option("--allow", multiple=True, type=click.Choice(["data", "target"]), help="Accept a baseline of another one.")
@click.option("--update-baseline", "update", type=PATH, help="Write this bundle's figures here, as the next baseline.")
@click.option("--seconds", type=click.FloatRange(1), default=60, show_default=True, help="For each ratio of latencies.")
@click.option("--junit", type=PATH, help="Write JUnit XML here.")
@click.option("--markdown", type=PATH, help="Write Markdown here.")
@json_option
def gate(bundle: Path, gates_file: Path, allow: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Judge a bundle; exits 0 where all gates pass, 1 where one fails, 3 where one is inconclusive.

    \b
    edgekit gate out/quickstart --gates gates.toml --junit gates.xml
    edgekit gate out/new --gates gates.toml --baseline baseline.json
    edgekit gate out/new --gates gates.toml --update-baseline baseline.json
    """
    from edgekit import tables
    from edgekit.deploy import gate_bundle
    from edgekit.gate import exit_code

    verdicts = gate_bundle(bundle, gates_file, allowed=allow, track=track, **given)
    tables.show_verdicts(verdicts, as_json)
    return exit_code(verdicts)


@main.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE…", type=PATH)
@click.option("--out", type=PATH, help="Write one HTML file with tables and plots here.")
@click.option("--plots", type=PATH, help="Write each plot as PNG and SVG into this folder.")
@click.option("--card", type=PATH, help="Write the model card, in Markdown, here.")
@click.option("--markdown", is_flag=True, help="Markdown on stdout, for a comment on a pull request.")
@json_option
def report(bundles: tuple[Path, ...], markdown: bool, as_json: bool, **wanted: Path | None) -> None:
    """Show what bundles hold: on the terminal, or as one HTML file, plots or a model card.

    \b
    edgekit report out/quickstart --out report.html
    edgekit report out/* --plots figures
    """
    from edgekit import tables
    from edgekit.bundle import open_bundle
    from edgekit.report import write_reports

    opened = [open_bundle(path) for path in bundles]
    for line in write_reports(opened, **wanted):
        say(line)
    if markdown or as_json or not any(wanted.values()):
        tables.show_reports(opened, as_json, markdown)


@main.command()
@click.argument("path", metavar="BUNDLE_OR_ONNX", type=PATH)
@json_option
def verify(path: Path, as_json: bool) -> None:
    """Check every hash of a bundle and run its golden vectors through the engine on this machine.

    \b
    edgekit verify out/quickstart
    """
    from edgekit import tables
    from edgekit.verify import verify as check

    found = check(path)
    emit(found) if as_json else tables.show_verified(found)


@main.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option("--data", "data", multiple=True, required=True, metavar="[ROLE=]DATA", help="Calibration pictures.")
@click.option("--images", type=click.IntRange(1), default=16, show_default=True)
@io_option
@json_option
def bisect(first: Path, second: Path, data: tuple[str, ...], images: int, io_file: Path | None, as_json: bool) -> None:
    """Name the layers where SECOND begins to differ from FIRST, e.g. an int8 file from its float file.

    \b
    edgekit bisect out/q/model.onnxruntime.fp32.onnx out/q/model.onnxruntime.int8.onnx --data digits
    """
    from edgekit import tables
    from edgekit.bisect import bisect as compare

    found = compare(first, second, list(data), images, io_file, track)
    emit(found) if as_json else tables.show_bisection(found)


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Show versions, CPU features that matter, engines and extras, and how to get what is missing.

    \b
    edgekit doctor --json
    """
    from edgekit import tables
    from edgekit.doctor import examine

    found = examine()
    emit(found) if as_json else tables.show_doctor(found)


for command in (compare, device, evaluate, lab, split, traffic):
    main.add_command(command)
split.add_command(sweep)
