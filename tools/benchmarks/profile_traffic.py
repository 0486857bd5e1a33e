"""Modelled memory traffic against what cachegrind measures around ONNX Runtime.

    python tools/benchmarks/profile_traffic.py measure     # hours on a busy machine; resumes where it was stopped
    python tools/benchmarks/profile_traffic.py             # results and plot of what is measured so far

Twelve networks of the zoo up to 2.2 GMACs at 224², batch 1, fp32 and int8, last-level caches of 512 KiB and 2 MiB (16
ways), four networks at 8 MiB too. Measured points are kept by the file's hash and the cache's size.
"""

import argparse
import json
from collections.abc import Iterator

from profile_files import PRECISIONS, WORK, path_of

from edgekit.devices.boards import Cache, Caches
from edgekit.files import file_sha256
from edgekit.traffic.measured import measure

POINTS = WORK / "measured.jsonl"
MIB = 2**20
NETWORKS = (
    "mobilenet_v3_small",
    "pp_lcnet",
    "mobilenet_v2",
    "squeezenet_1_1",
    "mobilenet_v3_large",
    "hardnet_39ds",
    "mobilenet_v1",
    "csp_mobilenet_v2",
    "hardnet_68ds",
    "resnet_18",
    "vovnet_v2_19_dw",
    "vovnet_27_slim",
)
LARGE = ("mobilenet_v2", "squeezenet_1_1", "hardnet_39ds", "resnet_18")
"""Measured at 8 MiB too."""

Point = tuple[str, str, int]
"""(network, precision, size of the last-level cache in bytes)"""


def points() -> Iterator[Point]:
    """All points, so that what is there first says most: small networks first, 8 MiB last."""
    for name in NETWORKS:
        yield from ((name, precision, size) for precision in PRECISIONS for size in (2 * MIB, MIB // 2))
    for name in LARGE:
        yield from ((name, precision, 8 * MIB) for precision in PRECISIONS)


def known() -> dict[tuple[str, int], dict]:
    """What was measured, by the file's hash and the cache's size."""
    lines = POINTS.read_text().splitlines() if POINTS.is_file() else []
    return {(row["sha256"], row["llc_bytes"]): row for row in map(json.loads, lines)}


def measure_all() -> None:
    for name, precision, size in points():
        path = path_of(name, precision)
        digest = file_sha256(path)
        if (digest, size) in known():
            continue
        found = measure(path, "cachegrind", Caches(Cache(size)))
        row = {"network": name, "precision": precision, "llc_bytes": size, "sha256": digest}
        row |= {"traffic_measured_bytes": found.traffic_bytes, "parts": found.parts}
        row |= {"provider": found.provider, **found.detail}
        with POINTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name} {precision} {size / MIB:g} MiB: {found.traffic_bytes / 1e6:.2f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=["measure", "report"], default="report")
    if parser.parse_args().what == "measure":
        measure_all()


if __name__ == "__main__":
    main()
