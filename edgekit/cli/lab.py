"""The commands of the instruction-set lab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import PATH, data_option, emit, io_option, json_option, say
from edgekit.progress import track


@click.group()
def lab() -> None:
    """Does a file answer the same on other processors? Checked from the file, and by emulation.

    \b
    edgekit lab check model.onnx
    edgekit lab setup
    edgekit lab run model.onnx --cpu haswell,cortex-a53 --data test=csv:labels.csv
    edgekit lab count model.onnx
    """


@lab.command()
@click.argument("file", type=PATH)
@json_option
def check(file: Path, as_json: bool) -> int:
    """Say whether int8 sums can overflow on x86 without VNNI, layer by layer; exits 1 where one can.

    \b
    edgekit lab check model.onnx
    """
    from edgekit.isa import check as judge
    from edgekit.lab import tables

    found = judge(file)
    emit(found) if as_json else tables.show_isa(found)
    return 0 if found["safe"] else 1


@lab.command()
def setup() -> None:
    """Make what the emulation of ARM needs, in the user's cache folder: a Python of theirs with ONNX Runtime.

    \b
    edgekit lab setup
    """
    from edgekit.lab.root import setup as make

    make(say)


@lab.command()
@click.argument("paths", metavar="FILE_OR_BUNDLE…", type=PATH, nargs=-1, required=True)
@click.option(
    "--cpu", "cpu_list", required=True, metavar="LIST", help="Such as haswell,cortex-a53; native is always run."
)
@click.option("--samples", type=click.IntRange(1), default=100, show_default=True, help="Pictures of the role test.")
@click.option("--processes", type=click.IntRange(0), default=0, help="Workers at once; default: one a core.")
@click.option("--limit", "limit_s", type=click.FloatRange(0), metavar="SECONDS", help="For each file and CPU.")
@click.option("--layers", is_flag=True, help="Also name the layers that are first to differ.")
@data_option
@io_option
@json_option
def run(
    paths: tuple[Path, ...],
    cpu_list: str,
    data: tuple[str, ...],
    io_file: Path | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Run files as other processors, and compare their answers with those here; a bundle keeps them for its gates.

    Exits 2 where a file crashed on one of them. Answers are kept: a run that was stopped goes on, and more --samples
    run the new ones alone.

    \b
    edgekit lab run model.onnx --cpu nehalem,haswell,cortex-a53 --data test=csv:labels.csv --io io.toml
    edgekit lab run out/quickstart --cpu haswell --data digits --samples 20 --layers
    """
    from edgekit.lab import tables
    from edgekit.lab.run import Plan
    from edgekit.lab.run import run as work

    found = work(paths, cpu_list, list(data), Plan(**settings), io_file, track, say)
    emit(found) if as_json else tables.show_lab(found)
    return 2 if found["failed"] else 0


@lab.command()
@click.argument("paths", metavar="FILE_OR_BUNDLE…", type=PATH, nargs=-1, required=True)
@json_option
def count(paths: tuple[Path, ...], as_json: bool) -> None:
    """Count instructions and cache misses of one inference, by cachegrind: the same in every run; a bundle keeps them.

    \b
    edgekit lab count out/quickstart
    """
    from edgekit.lab import tables
    from edgekit.lab.count import count as work

    found = work(paths, track)
    emit(found) if as_json else tables.show_instructions(found)
