"""The commands on files that take no recipe: two compared, one's memory traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import (
    PATH,
    batch_option,
    board_option,
    data_option,
    emit,
    io_option,
    json_option,
    llc_option,
    threads_option,
)
from edgekit.progress import track


@click.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option("--seconds", type=float, default=60.0, show_default=True, help="The longest that it may take.")
@click.option("--floor", default=0.02, show_default=True, help="The least difference that counts, as a share.")
@click.option("--max-ratio", type=float, help="Exit 1 where SECOND takes more than this share of FIRST's time.")
@threads_option
@batch_option
@click.option("--engine", help="What runs both; default: onnxruntime.")
@click.option("--html", type=PATH, help="Write a report of both here.")
@data_option
@io_option
@json_option
def compare(
    first: Path,
    second: Path,
    floor: float,
    max_ratio: float | None,
    engine: str | None,
    html: Path | None,
    data: tuple[str, ...],
    io_file: Path | None,
    as_json: bool,
    **settings: Any,
) -> int:
    """Say whether SECOND is faster or slower than FIRST: paired rounds until it is sure. With --data, score both too.

    Exits 3 where the time was over first; with --max-ratio, 1 where SECOND is beyond that for sure, 0 where within.

    \b
    edgekit compare old.onnx new.onnx --max-ratio 1.05 --html compared.html
    """
    from edgekit import report, tables
    from edgekit.deploy import compare_files
    from edgekit.profile import Plan
    from edgekit.profile.compare import exit_code

    found = compare_files(first, second, Plan(**settings), floor, max_ratio, engine, data, io_file, track)
    if html:
        report.write_page([report.comparison_entry([first, second], found, tables.verdict_lines(found))], html)
    emit(found) if as_json else tables.show_comparison(found)
    return exit_code(found)


@click.command()
@click.argument("file", type=PATH)
@board_option
@llc_option
@click.option("--layers", is_flag=True, help="Layer by layer.")
@click.option("--measure", metavar="PROVIDER", help="Measure it too, by cachegrind, perf or ncu.")
@click.option("--cross-check", "check", metavar="PROGRAM", help="Ask zigzag, too, what an accelerator would move.")
@json_option
def traffic(
    file: Path,
    board: str | None,
    llc: str | None,
    layers: bool,
    measure: str | None,
    check: str | None,
    as_json: bool,
) -> None:
    """Show the memory traffic of an ONNX file in three tiers: CIO, modelled bytes, measured bytes.

    \b
    edgekit traffic model.onnx --board raspberry_pi_4 --layers
    edgekit traffic model.onnx --llc 512KiB --measure cachegrind
    """
    from edgekit import tables
    from edgekit.traffic.commands import traffic_of

    found = traffic_of(file, board, llc, measure, check)
    emit(found) if as_json else tables.show_traffic(found, layers)
