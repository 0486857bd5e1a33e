"""What `edgekit split serve`, `run` and `bench` do with their arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekit import data as datasets
from edgekit.bundle import open_bundle
from edgekit.data import Progress
from edgekit.errors import BadInput
from edgekit.files import write_json
from edgekit.split import bench as benchmark
from edgekit.split import credentials, device
from edgekit.split.client import Client, Plan, stream
from edgekit.split.models import WHOLE
from edgekit.split.plot import write_plots
from edgekit.split.remote import Address, Remote


def named(bundles: Sequence[str]) -> dict[str, Path]:
    """Paths by the names of their models, from `[NAME=]PATH` each; without a name it is the folder's.

    Raises:
        BadInput: a name twice, or one that cannot stand in a URL.
    """
    found: dict[str, Path] = {}
    for text in bundles:
        name, _, path = text.partition("=") if "=" in text else (Path(text).absolute().name, "", text)
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name.endswith(WHOLE):
            raise BadInput(f"{name!r} is no name for a model: letters, digits, . _ and -, and no {WHOLE} at the end")
        if name in found:
            raise BadInput(f"two bundles are named {name}; write NAME=PATH for one")
        found[name] = Path(path)
    return found


def address(
    url: str, model: str, token_file: Path | None, ca: Path | None, insecure: bool, timeout_s: float
) -> Address:
    """Where a model is served. Raises BadInput where the URL or the token cannot be used."""
    found = credentials.tokens(token_file)
    return Address(url, model, found[0].decode() if found else None, ca, insecure, timeout_s)


def run(
    bundle: Path,
    specs: Sequence[str],
    address: Address,
    plan: Plan,
    key_file: Path | None,
    threads: int,
    progress: Progress,
    say: Callable[[str], Any],
) -> dict[str, Any]:
    """Answer the role `test` of the data with a server's help.

    Raises:
        BadInput: something given cannot be used, or the server refuses it.
        Away: the server is away and the bundle has no whole network.
    """
    near = device.load(bundle, credentials.key(key_file), threads)
    data = datasets.load(list(specs), progress=progress, labels=near.output.labels)
    client = Client(near, Remote(address, plan.in_flight), plan, say)
    found = stream(client, near, data.role("test"), progress)
    link = {"rtt_ms": client.link.rtt_ms, "ms_per_byte": client.link.ms_per_byte}
    given = {"bundle": str(bundle), "server": address.url, "policy": plan.policy}
    return {"schema": "edgekit/split-run/1", **given, "link": link, **found}


def bench(
    bundle: Path,
    specs: Sequence[str],
    plan: benchmark.Plan,
    key_file: Path | None,
    threads: int,
    out: Path | None,
    plots: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Compare the ways of answering the role `test` over links; write the result and its plots where that is asked.

    Raises:
        BadInput: something given cannot be used, or `out` or `plots` is there already.
    """
    if out is not None and out.exists():
        raise BadInput(f"{out}: exists; give another --out")
    near = device.load(bundle, credentials.key(key_file), threads)
    samples = datasets.load(list(specs), progress=progress, labels=near.output.labels).role("test")
    found = benchmark.bench(near, bundle, samples, plan, threads, progress)
    document = {"schema": "edgekit/split-bench/1", "bundle": str(bundle), "seal": open_bundle(bundle).seal, **found}
    if out is not None:
        write_json(out, document)
    if plots is not None:
        write_plots(document, plots)
    return document
