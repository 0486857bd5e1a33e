"""Fewer bits a weight: bytes of the packed file against what its answers lose, and what coding and decoding cost.

    python tools/benchmarks/coding.py                   # all parts; goes on where it was stopped
    python tools/benchmarks/coding.py speed decode      # those parts
    python tools/benchmarks/coding.py speed --fresh     # measure again what there is
    python tools/benchmarks/coding.py --write           # the JSON from what there is

About half an hour on one core. Finished rows are kept in out/benchmarks/coding until the sources that made them change;
the JSON has all there are. Parts:

- sizes: ResNet-18 coded by `vq`, random weights, by the papers' convention.
- squeezenet, archives: coding_squeezenet.py.
- speed: coding_speed.py. entropy, decode: coding_entropy.py. codebooks: coding_codebooks.py.

Times mean something on a quiet machine only: those of speed, decode and codebooks.
"""

import argparse
import functools
from collections.abc import Callable

import coding_codebooks
import coding_entropy
import coding_speed
import coding_squeezenet
import torch
from coding_common import SEED, forget, kept, once
from common import claim, write
from int8_files import IMAGENET
from prune_common import Row, context, silent

from edgekit.context import RewriteContext
from edgekit.data import Output
from edgekit.export import export, finish, serialise
from edgekit.net import Net, parse_spec
from edgekit.nets.resnet import resnet_18
from edgekit.passes import VQ
from edgekit.passes.vq import convention_bytes
from edgekit.rewrites import Fold
from edgekit.schema import parse
from edgekit.targets import target
from edgekit.transport.pack import transport_bytes

MIB = 2**20
REGIMES = {
    "small": ({"conv": 9, "pointwise": 4, "linear": 4}, 1.541),
    "large": ({"conv": 18, "pointwise": 4, "linear": 4}, 1.029),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--fresh", action="store_true", help="forget the rows of these parts, e.g. of a busy machine")
    parser.add_argument("--write", action="store_true", help="measure nothing")
    given = parser.parse_args()
    if wrong := set(given.parts) - PARTS.keys():
        parser.error(f"no part {min(wrong)!r}; there are {', '.join(PARTS)}")
    for part in [] if given.write else given.parts or PARTS:
        if given.fresh:
            forget(part)
        PARTS[part][0]()
    rows = [row for part in PARTS for row in kept(part)]
    write("coding", rows, [item for _, claimed in PARTS.values() for item in claimed()], SEED)


def sizes() -> None:
    for name in REGIMES:
        once("sizes", functools.partial(convention, name), [{"name": "vq"}], network="resnet_18", regime=name)


def convention(name: str) -> Row:
    """ResNet-18 by the convention: k = 256, the linear layer's 2048."""
    torch.manual_seed(SEED)
    base = Net(parse_spec("resnet_18"), (), resnet_18())
    m, _ = REGIMES[name]
    k = {"conv": 256, "pointwise": 256, "linear": 2048}
    settings = parse(VQ, {"k": k, "m": m, "method": {"name": "kmeans", "iterations": 1}}, "tools/benchmarks/coding.py")
    net = settings(base, context(base, IMAGENET, log=silent))
    wanted, output = target("onnxruntime"), Output(classes=1000)
    folded = Fold()(
        export(net.module, IMAGENET, output, wanted).model, RewriteContext(wanted, IMAGENET, output, None, SEED, silent)
    )
    content = serialise(finish(folded, wanted, IMAGENET, output))
    return {
        "mib": convention_bytes(net.module) / MIB,
        "size_bytes": len(content),
        "transport_bytes": transport_bytes(content),
    }


def sizes_claims() -> list[Row]:
    found = []
    for row in kept("sizes"):
        published = REGIMES[row["regime"]][1]
        ok = round(row["mib"], 3) == published
        name = f"coding.resnet_18.{row['regime']}"
        found.append(claim(name, f"{published} MiB, as published", row["mib"], "MiB", ok))
        for kind, limit in (("transport_bytes", 1.03), ("size_bytes", 1.10)):
            share = row[kind] / MIB / row["mib"]
            found.append(claim(f"{name}.{kind}", f"≤ {limit} of the convention's", share, "", share <= limit))
    return found


# Part -> what measures it and what is claimed of it.
PARTS: dict[str, tuple[Callable[[], None], Callable[[], list[Row]]]] = {
    "sizes": (sizes, sizes_claims),
    "squeezenet": (coding_squeezenet.squeezenet, coding_squeezenet.claims),
    "archives": (coding_squeezenet.archives, list),
    "speed": (coding_speed.speed, coding_speed.claims),
    "entropy": (coding_entropy.entropy, coding_entropy.entropy_claims),
    "decode": (coding_entropy.decode, coding_entropy.decode_claims),
    "codebooks": (coding_codebooks.codebooks, coding_codebooks.claims),
}

if __name__ == "__main__":
    main()
