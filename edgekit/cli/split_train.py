"""The commands of split computing that train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import PATH, SOURCES, emit, json_option, say
from edgekit.progress import track


class Numbers(click.ParamType):
    """Numbers with commas between them."""

    name = "N,N,…"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> list[float | int]:
        try:
            return [self.kind(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r}: write numbers with commas between them, such as 1,2,4", param, ctx)


@click.command()
@click.argument("model")
@click.option("--recipe", required=True, help="One with a step named split.")
@click.option("--data", "data", multiple=True, required=True, metavar="[ROLE=]DATA", help=SOURCES)
@click.option("--out", type=PATH, required=True, help="Folder of the bundles, and of curve.json.")
@click.option("--beta", type=Numbers(float), help="Weights of a bit, of the pass with an entropic bottleneck.")
@click.option("--channels", type=Numbers(int), help="Channels of the latent, of the pass.")
@click.option("--bits", type=Numbers(int), help="Bits of a symbol, of the rewrite.")
@click.option("--set", "overrides", multiple=True, metavar="STEP.FIELD=VALUE", help="Override the recipe.")
@click.option("--seed", default=0, show_default=True)
@json_option
def sweep(
    model: str, recipe: str, data: tuple[str, ...], out: Path, overrides: tuple[str, ...], seed: int, as_json: bool,
    **swept: list[float | int] | None,
) -> None:  # fmt: skip
    """Run a recipe once for each value, and show accuracy over bytes. The same command takes up a killed sweep.

    \b
    edgekit split sweep cifar_resnet_20 --recipe split.toml --data npz:cifar.npz --out out/curve --beta 0.5,1,2,4
    edgekit split sweep model.onnx --recipe cut.toml --data csv:labels.csv --out out/curve --bits 2,4,6,8
    """
    from edgekit.sweep import show_curve
    from edgekit.sweep import sweep as run

    given = [(field, values) for field, values in swept.items() if values]
    if len(given) != 1:
        raise click.UsageError("give one of --beta, --channels and --bits")
    found = run(model, recipe, data, out, *given[0], overrides=overrides, seed=seed, track=track, log=say)
    emit(found) if as_json else show_curve(found)
