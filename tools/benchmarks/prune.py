"""What pruning promises, measured: coverage, speed, accuracy after it, and budgets of latency that are kept.

    python tools/benchmarks/prune.py                        # all parts, hours on one core; goes on where it was stopped
    python tools/benchmarks/prune.py coverage times         # those parts
    python tools/benchmarks/prune.py times --only resnet_50 # some of a part's networks
    python tools/benchmarks/prune.py --write                # the JSON from what there is

Torch-Pruning, the peer, is installed by `pip install --no-deps torch-pruning==1.6.1`; without it its rows are left out,
and that is said. Finished rows are kept in out/benchmarks/prune and never measured again; the JSON has all there are.
Each part's file says what it does: prune_coverage.py, prune_latency.py, prune_cifar.py and prune_nips.py.
"""

import argparse
from collections.abc import Callable

import prune_cifar
import prune_coverage
import prune_latency
import prune_nips
import prune_peer
from common import write
from prune_common import Row, forget, kept

# Part -> what measures it and what is claimed of it.
PARTS: dict[str, tuple[Callable[[list[str]], None], Callable[[], list[Row]]]] = {
    "coverage": (prune_coverage.coverage, prune_coverage.coverage_claims),
    "times": (prune_coverage.times, prune_coverage.times_claims),
    "latency": (prune_latency.latency, prune_latency.claims),
    "cifar": (prune_cifar.cifar, prune_cifar.claims),
    "nips": (prune_nips.nips, prune_nips.claims),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--only", nargs="+", default=[], help="of a part's networks or runs, by name")
    parser.add_argument(
        "--fresh", action="store_true", help="forget the rows of an earlier run, e.g. on a busy machine"
    )
    parser.add_argument("--write", action="store_true", help="measure nothing")
    given = parser.parse_args()
    if wrong := set(given.parts) - PARTS.keys():
        parser.error(f"no part {min(wrong)!r}; there are {', '.join(PARTS)}")
    for part in [] if given.write else given.parts or PARTS:
        if given.fresh:
            forget(part, given.only)
        PARTS[part][0](given.only)
        result()
    if given.write:
        result()


def result() -> None:
    rows = [row for part in PARTS for row in kept(part)]
    claims = [item for _, claimed in PARTS.values() for item in claimed()]
    write("prune", rows, claims, peer=prune_peer.missing() or f"torch-pruning {prune_peer.VERSION}")


if __name__ == "__main__":
    main()
