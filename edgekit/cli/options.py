"""What several commands take and how they print."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

PATH = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
trust_option = click.option("--trust", is_flag=True, help="Let the bundle's source run its own code.")
threads_option = click.option(
    "--threads", type=click.IntRange(0), default=1, show_default=True, help="Threads of one inference."
)
batch_option = click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Images of one inference."
)
board_option = click.option("--board", help="Whose caches, bandwidth and peak count, e.g. raspberry_pi_4.")
llc_option = click.option("--llc", metavar="SIZE", help="The last-level cache alone; default: 2MiB.")
SOURCES = "digits, folder:, csv:, npz:, wds:, masks:, coco:, synthetic or python:."
data_option = click.option("--data", "data", multiple=True, metavar="[ROLE=]DATA", help=SOURCES)
io_option = click.option("--io", "io_file", type=PATH, help="TOML with [input] and [output] for a foreign ONNX file.")


def say(message: str) -> None:
    click.echo(message, err=True)


def emit(document: Any) -> None:
    click.echo(json.dumps(document, indent=1))


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that runs a recipe takes."""
    options = (
        click.argument("model"),
        click.option("--recipe", required=True, help="Name of a shipped recipe, or path of a TOML file."),
        click.option("--data", "data", multiple=True, required=True, metavar="[ROLE=]DATA", help=SOURCES),
        click.option("--out", type=PATH, required=True, help="Folder of the new bundle."),
        click.option("--seed", default=0, show_default=True),
        click.option("--set", "overrides", multiple=True, metavar="STEP.FIELD=VALUE", help="Override the recipe."),
        click.option("--resume", is_flag=True, help="Go on where a killed run stopped."),
        click.option(
            "--on-error", type=click.Choice(["stop", "skip"]), default="stop", show_default=True,
            help="At an image that cannot be decoded.",
        ),
        click.option(
            "--runs", type=click.IntRange(8), default=50, show_default=True, help="Rounds of the latency measurement."
        ),
        threads_option,
        io_option,
        json_option,
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that can work on devices takes."""
    device = click.option(
        "--device", "devices", multiple=True, metavar="ssh://[USER@]HOST[:PORT]", help="Where; may be given repeatedly."
    )
    fleet = click.option("--fleet", type=PATH, help='TOML of devices: NAME = "ssh://…", a line each.')
    return device(fleet(command))
