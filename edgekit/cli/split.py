"""The commands of split computing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgekit.cli.options import PATH, SOURCES, emit, json_option, say, threads_option
from edgekit.progress import track

token_option = click.option("--token-file", type=PATH, help="Bearer tokens, one a line; or $EDGEKIT_SPLIT_TOKEN.")
key_option = click.option("--key-file", type=PATH, help="Key of the packets' HMAC, hex; or $EDGEKIT_SPLIT_KEY.")


@click.group()
def split() -> None:
    """Run a cut network: its head on the device, its tail on a server.

    \b
    edgekit split serve out/cut --port 8000
    edgekit split run out/cut --server http://127.0.0.1:8000 --data test=folder:pictures
    """


@split.command()
@click.argument("bundles", metavar="[NAME=]BUNDLE…", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the port.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Most requests of one inference.")
@click.option("--batch-delay-ms", "delay_ms", type=click.FloatRange(0), default=0.0, show_default=True,
              help="How long one may wait for others to share a batch.")  # fmt: skip
@click.option("--waiting", type=click.IntRange(1), default=256, show_default=True, help="Most requests that wait.")
@threads_option
@token_option
@key_option
@click.option("--certificate", type=PATH, help="PEM, for TLS.")
@click.option("--private-key", type=PATH, help="PEM, of the certificate.")
@click.option("--insecure", is_flag=True, help="Be heard beyond this machine without TLS or a token.")
def serve(
    bundles: tuple[str, ...], token_file: Path | None, key_file: Path | None, batch: int, delay_ms: float, waiting: int,
    threads: int, **listen: Any,
) -> None:  # fmt: skip
    """Serve the tails of bundles by the Open Inference Protocol; prints its address on stdout. Ends on SIGTERM.

    A bundle that is exchanged at its path, such as by a symbolic link that is turned, is taken up within seconds.

    \b
    edgekit split serve out/cut --port 8000
    edgekit split serve cam=out/current --host 0.0.0.0 --certificate c.pem --private-key k.pem --token-file tokens
    """
    from edgekit.split import credentials, extra

    extra.check(extra.SERVER)
    from edgekit.split.app import Service
    from edgekit.split.commands import named
    from edgekit.split.repository import Limits
    from edgekit.split.server import Listen
    from edgekit.split.server import serve as run

    limits = Limits(batch, delay_ms, waiting, threads)
    service = Service(named(bundles), limits, credentials.tokens(token_file), credentials.key(key_file))
    run(service, Listen(**listen), click.echo)


def address_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What commands that ask a server take."""
    options = (
        click.option("--server", "url", required=True, metavar="URL", help="e.g. http://127.0.0.1:8000"),
        click.option("--model", help="Its name there; default: the bundle's folder name."),
        token_option,
        key_option,
        click.option("--ca", type=PATH, help="PEM of the authority that the server's certificate is from."),
        click.option("--insecure", is_flag=True, help="Send the token over plain HTTP."),
        click.option("--timeout", "timeout_s", type=click.FloatRange(0.1), default=10.0, show_default=True),
    )
    for option in reversed(options):
        command = option(command)
    return command


@split.command()
@click.argument("bundle", type=PATH)
@address_options
@click.option("--data", "data", multiple=True, required=True, metavar="[ROLE=]DATA", help=SOURCES)
@click.option("--policy", type=click.Choice(["auto", "split", "device", "jpeg"]), default="auto", show_default=True)
@click.option("--quality", type=click.IntRange(1, 95), default=90, show_default=True, help="Of the JPEG.")
@click.option("--in-flight", type=click.IntRange(1), default=2, show_default=True, help="Pictures on the wire at once.")
@threads_option
@json_option
def run(
    bundle: Path, url: str, model: str | None, token_file: Path | None, key_file: Path | None, ca: Path | None,
    insecure: bool, timeout_s: float, data: tuple[str, ...], threads: int, as_json: bool, **plan: Any,
) -> None:  # fmt: skip
    """Answer pictures on this device with a server's help; without the server, by itself where the bundle can.

    \b
    edgekit split run out/cut --server http://127.0.0.1:8000 --data test=folder:pictures
    """
    from edgekit.split import extra

    extra.check(extra.DEVICE)
    from edgekit.split import commands
    from edgekit.split.client import Plan
    from edgekit.split.show import show_run

    there = commands.address(url, model or bundle.absolute().name, token_file, ca, insecure, timeout_s)
    found = commands.run(bundle, data, there, Plan(**plan), key_file, threads, track, say)
    emit(found) if as_json else show_run(found)


@split.command()
@click.argument("bundle", type=PATH)
@click.option("--data", "data", multiple=True, required=True, metavar="[ROLE=]DATA", help=SOURCES)
@click.option("--link", "links", multiple=True, metavar="NAME|RATE/RTT",
              help="lora, 1mbit, lte, 10mbit, wifi, 100mbit, or such as 2.5Mbit/40ms. Default: all.")  # fmt: skip
@click.option("--quality", "qualities", multiple=True, type=click.IntRange(1, 95), help="Of JPEG and WebP.")
@click.option("--images", type=click.IntRange(3), default=30, show_default=True, help="Pictures of a time over a link.")
@click.option("--seconds", type=click.FloatRange(0), default=20.0, show_default=True,
              help="The longest for one way over one link.")  # fmt: skip
@click.option("--out", type=PATH, help="Write the JSON document here.")
@click.option("--plots", type=PATH, help="Write the plots as PNG and SVG into this folder.")
@key_option
@threads_option
@json_option
def bench(
    bundle: Path, data: tuple[str, ...], links: tuple[str, ...], qualities: tuple[int, ...], images: int,
    seconds: float, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Compare, over slow links: cut, plain 8-bit latent, JPEG and WebP to the server, and all on the device.

    Starts a server of its own; the links are made of a proxy on this machine.

    \b
    edgekit split bench out/cut --data test=folder:pictures --link lte --link wifi --plots figures
    """
    from edgekit.split import extra

    extra.check(extra.SERVER + extra.DEVICE)
    from edgekit.split import commands
    from edgekit.split.bench import Plan
    from edgekit.split.link import LINKS, link
    from edgekit.split.show import show_bench

    plan = Plan(tuple(map(link, links or LINKS)), images=images, seconds=seconds)
    plan = dataclasses.replace(plan, qualities=qualities) if qualities else plan
    found = commands.bench(bundle, data, plan, progress=track, **given)
    emit(found) if as_json else show_bench(found)
