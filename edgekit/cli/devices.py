"""The commands that may work on devices alone."""

from __future__ import annotations

from pathlib import Path

import click

from edgekit.cli.options import PATH, device_options, emit, io_option, json_option, say
from edgekit.progress import track


@click.command()
@click.argument("file", type=PATH)
@click.option("--data", "data", multiple=True, required=True, metavar="[ROLE=]DATA", help="The role `test` is scored.")
@click.option("--engine", help="What runs the file; default: onnxruntime.")
@click.option("--target", help="Whose form the file has: its engine scores it, or what stands in for that here.")
@device_options
@io_option
@json_option
def evaluate(
    file: Path,
    data: tuple[str, ...],
    engine: str | None,
    target: str | None,
    devices: tuple[str, ...],
    fleet: Path | None,
    io_file: Path | None,
    as_json: bool,
) -> int:
    """Score a deployed file on the task's metrics; on devices, and where they answer differently from this machine.

    \b
    edgekit evaluate model.onnx --data test=csv:labels.csv --io io.toml
    edgekit evaluate net.onnx --target tensorrt --data test=csv:labels.csv
    edgekit evaluate model.onnx --device ssh://pi@raspberrypi.local --data test=csv:labels.csv
    """
    from edgekit import tables
    from edgekit.deploy import evaluate_file

    if devices or fleet:
        from edgekit.on_device import evaluate_there

        there = evaluate_there(file, list(data), devices, fleet, engine, target, io_file, track, say)
        emit(there) if as_json else tables.show_device_scores(there)
        return 2 if there["failed"] else 0
    found = evaluate_file(file, list(data), engine, io_file, track, target)
    emit(found) if as_json else tables.show_score(found)
    return 0


@click.command()
@click.argument("address", metavar="ssh://[USER@]HOST[:PORT]")
@click.option("--clean", is_flag=True, help="End what edgekit runs there and remove all that it keeps there.")
@json_option
def device(address: str, clean: bool, as_json: bool) -> None:
    """Show whether files can be measured on a device, and what edgekit keeps there.

    \b
    edgekit device ssh://pi@raspberrypi.local
    edgekit device ssh://pi@raspberrypi.local --clean
    """
    from edgekit import tables
    from edgekit.devices.device import examine

    found = examine(address, clean)
    emit(found) if as_json else tables.show_device(found)
