"""The same int8 files on other processors: what the lab finds, what the static check foretold, and what both take.

    python tools/benchmarks/lab.py --nncf-python NNCF/bin/python     # about three hours on two free cores
    python tools/benchmarks/lab.py --parts setup static native latency
    python tools/benchmarks/lab.py --images 4          # a try; its rows are kept apart
    python tools/benchmarks/lab.py --write             # the JSON from what there is

It goes on where it was stopped, and needs a host with VNNI, whose answers are those of exact sums. The files are those
of `int8.py`, fold 0, which says how NNCF's environment is made; without one its files are left out, and the JSON says
so. Parts:

- setup: `edgekit lab setup` into an empty cache.
- static: on ten files the layers that the static check calls unsafe, and those that overflow as a Haswell on two
  pictures, each layer given what it is given natively.
- native: edgekit's files against float32 on the 800 pictures of fold 0 that calibrated nothing.
- latency: the portable file and the full-range file interleaved.
- emulated: SQNR and top-1 of each file as each processor, against the native run.
- pace: how long 100 pictures take as one processor on two cores, with nothing kept from earlier.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import claim, keep, kept, write
from int8_files import DATA, NETWORKS, OURS, SEED, PeerFailed, digest, fold_indices, made, predict, prepare, pythons_of
from int8_files import WORK as INT8
from lab_layers import saturating

from edgekit import isa
from edgekit.devices.cpus import cpus
from edgekit.files import file_sha256
from edgekit.lab.emulator import host_python
from edgekit.lab.run import Plan, run
from edgekit.machine import int8_saturates
from edgekit.parity import sqnr_db
from edgekit.profile import time_series
from edgekit.progress import track
from edgekit.statistics import ratio_interval

FOLDER, WORK = INT8 / "files", INT8.with_name("lab")
FILES = ("portable", "vnni", "ort_minmax", "nncf_default")
STATIC = (*FILES, "ort_portable")
SAFE = ("portable", "ort_portable")
IMAGES, ROUNDS, OVERFLOWS_AS, ON = 100, 300, "haswell", 2
ORDER = ("haswell", "cortex-a53", "nehalem", "cortex-a76", "cortex-a72", "neoverse-n1")
CORES = 2
SETUP_S, HUNDRED_S, DROP, LATENCY_RATIO, SQNR_DB, AGREEMENT = 180, 300, 0.8, 1.03, 40, 99
Rows = list[dict[str, Any]]
PYTHONS: dict[str, str] = {}
"""That make the peers' files."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--nncf-python", metavar="PYTHON", help="one that has nncf installed")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--processes", type=int, default=0, help="of the part emulated; default: one a core")
    parser.add_argument("--write", action="store_true", help="measure nothing")
    options = parser.parse_args()
    PYTHONS.update(pythons_of(options.nncf_python, None))
    store = WORK / ("rows.jsonl" if options.images == IMAGES else f"rows.{options.images}.jsonl")
    if not options.write:
        if int8_saturates():
            raise SystemExit("this host has no VNNI: its own answers are those that are looked for")
        for part in options.parts:
            PARTS[part](store, Plan(options.images, options.processes))
    rows = [row for row in kept(store) if "file" not in row or row["source"] == source(row["network"], row["file"])]
    if options.images == IMAGES:
        missing = [
            f"{network} {file}: left out, its maker is not there or failed"
            for network, file in pairs(STATIC)
            if not there(network, file)
        ]
        write("lab", rows, claims(rows), SEED, missing=missing)
    else:
        print(json.dumps(claims(rows), indent=1))


def measure(store: Path, find: Callable[[], dict[str, Any]], **key: Any) -> None:
    """Keep what `find` finds under its key, if it is not kept yet."""
    if "file" in key:
        key["source"] = source(key["network"], key["file"])
    if not any(key.items() <= row.items() for row in kept(store)):
        print(json.dumps(keep(store, key | find())), flush=True)


def pairs(files: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(network, file) for network in NETWORKS for file in files]


@functools.cache
def there(network: str, file: str) -> Path | None:
    """Where a file is, made where it is not; None where its maker is not there, or failed."""
    path = FOLDER / f"{network}.{file}.0.{digest(file)}.onnx"
    if not path.is_file() and (file in OURS or file in PYTHONS):
        with contextlib.suppress(PeerFailed):
            made(prepare(network), file, 0, PYTHONS)
    return path if path.is_file() else None


@functools.cache
def source(network: str, file: str) -> str | None:
    """By the content of a file, what was measured of it; None where it is not there."""
    path = there(network, file)
    return file_sha256(path)[:12] if path else None


# Parts


def measure_setup(store: Path, _plan: Plan) -> None:
    measure(store, set_up, part="setup")


def set_up() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "edgekit", "lab", "setup"]
        subprocess.run(command, check=True, env={**os.environ, "EDGEKIT_CACHE": folder})
        return {"seconds": time.perf_counter() - begin}


def measure_static(store: Path, _plan: Plan) -> None:
    for network, file in pairs(STATIC):
        if path := there(network, file):
            measure(store, functools.partial(looked_at, network, path), part="static", network=network, file=file)


def looked_at(network: str, path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    unsafe = {layer.layer for layer in isa.layers(content) if not layer.safe}
    with tempfile.TemporaryDirectory() as folder:
        on = host_python(cpus()[OVERFLOWS_AS], Path(folder) / "jobs")
        images = prepare(network).images[:ON]
        found, layers = saturating(path.name, content, images, on, Path(folder) / "kept")
    return {"layers": layers, "unsafe": len(unsafe), "overflowed": len(found), "unforetold": sorted({*found} - unsafe)}


def measure_native(store: Path, _plan: Plan) -> None:
    for network, file in pairs(("portable", "vnni")):
        measure(store, functools.partial(scored, network, file), part="native", network=network, file=file)


def scored(network: str, file: str) -> dict[str, Any]:
    bench, (_, rest) = prepare(network), fold_indices(0)
    exact = bench.output.scores(bench.logits[rest])
    found = bench.output.scores(predict(made(bench, file, 0, {})[0], bench.images[rest], True))
    top1 = [100 * float((scores.argmax(1) == bench.labels[rest]).mean()) for scores in (exact, found)]
    return {"n": len(rest), "top1": top1[1], "drop": top1[0] - top1[1], "sqnr_db": sqnr_db(exact, found)}


def measure_latency(store: Path, _plan: Plan) -> None:
    for network in NETWORKS:
        measure(store, functools.partial(timed, network), part="latency", network=network, file="portable")


def timed(network: str) -> dict[str, Any]:
    paths = [there(network, file) for file in ("portable", "vnni")]
    portable, full = time_series([path for path in paths if path], "onnxruntime", ROUNDS, 1, SEED, track)
    return {"ratio": ratio_interval(portable, full)}


def measure_emulated(store: Path, plan: Plan) -> None:
    for cpu in ORDER:
        for network, file in pairs(FILES):
            if path := there(network, file):
                find = functools.partial(as_cpu, path, cpu, plan)
                measure(store, find, part="emulated", network=network, file=file, cpu=cpu)


def as_cpu(path: Path, cpu: str, plan: Plan) -> dict[str, Any]:
    pictures = [f"test=csv:{DATA / 'nips17' / 'labels.csv'}"]
    here, row = run([path], cpu, pictures, plan, track=track, log=print)["rows"]
    return {
        "n": row["n"],
        "native_top1": here["metrics"]["top1"],
        "top1": row["metrics"]["top1"],
        "agreement": row["agreement"],
        "sqnr_db": row["sqnr_db"],
        "ran": row["ran"],
        "seconds": row["seconds"],
    }


def measure_pace(store: Path, plan: Plan) -> None:
    for network in NETWORKS:
        if path := there(network, "portable"):
            find = functools.partial(paced, path, dataclasses.replace(plan, processes=CORES))
            measure(store, find, part="pace", network=network, file="portable", cpu=OVERFLOWS_AS)


def paced(path: Path, plan: Plan) -> dict[str, Any]:
    """How long it takes with nothing kept from earlier."""
    known = os.environ.get("EDGEKIT_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["EDGEKIT_CACHE"] = folder
        try:
            return as_cpu(path, OVERFLOWS_AS, plan)
        finally:
            os.environ.pop("EDGEKIT_CACHE")
            os.environ.update({"EDGEKIT_CACHE": known} if known else {})


PARTS: dict[str, Callable[[Path, Plan], None]] = {
    "setup": measure_setup,
    "static": measure_static,
    "native": measure_native,
    "latency": measure_latency,
    "emulated": measure_emulated,
    "pace": measure_pace,
}

# Claims


def claims(rows: Rows) -> Rows:
    """Of what was measured so far."""
    found = []
    for row in of(rows, "setup"):
        ok = row["seconds"] <= SETUP_S
        found.append(claim("lab.setup_s", f"≤ {SETUP_S} s from nothing", row["seconds"], "s", ok))
    return found + static_claims(of(rows, "static")) + file_claims(rows) + emulated_claims(of(rows, "emulated"))


def of(rows: Rows, part: str) -> Rows:
    return [row for row in rows if row["part"] == part]


def static_claims(rows: Rows) -> Rows:
    if not rows:
        return []
    missed, overflowed = sum(len(row["unforetold"]) for row in rows), sum(row["overflowed"] for row in rows)
    wrong = sum(row["unsafe"] for row in rows if row["file"] in SAFE)
    asked = f"every layer that overflows under emulation ({overflowed} in {len(rows)} files) is called unsafe"
    return [
        claim("lab.static.missed", asked, missed, "layers", missed == 0),
        claim(
            "lab.static.portable_unsafe", "no layer of a portable file is called unsafe", wrong, "layers", wrong == 0
        ),
    ]


def file_claims(rows: Rows) -> Rows:
    found = []
    for row in of(rows, "native"):
        if row["file"] == "portable":
            asked, ok = f"≤ {DROP} points natively, {row['n']} pictures", row["drop"] <= DROP
            found.append(claim(f"lab.{row['network']}.portable.drop", asked, row["drop"], "points", ok))
    for row in of(rows, "latency"):
        high = row["ratio"]["high"]
        asked = f"≤ {LATENCY_RATIO} of the full-range file's time, upper end of the interval"
        found.append(claim(f"lab.{row['network']}.portable.latency_ratio", asked, high, "ratio", high <= LATENCY_RATIO))
    for row in of(rows, "pace"):
        asked = f"≤ {HUNDRED_S} s for {row['ran']} pictures as {row['cpu']} on {CORES} cores"
        found.append(claim(f"lab.{row['network']}.pace_s", asked, row["seconds"], "s", row["seconds"] <= HUNDRED_S))
    return found


def emulated_claims(rows: Rows) -> Rows:
    found = []
    for network in dict.fromkeys(row["network"] for row in rows):
        portable = [row for row in rows if (row["network"], row["file"]) == (network, "portable")]
        if portable:
            where = (
                f"on each of {', '.join(row['cpu'] for row in portable)}, {min(row['n'] for row in portable)} pictures"
            )
            for key, limit, unit in (("agreement", AGREEMENT, "%"), ("sqnr_db", SQNR_DB, "dB")):
                least = min(row[key] for row in portable)
                asked = f"≥ {limit} {unit} against the native answers {where}"
                found.append(claim(f"lab.{network}.portable.{key}", asked, least, unit, least >= limit))
    default = [row["sqnr_db"] for row in rows if (row["file"], row["cpu"]) == ("ort_minmax", OVERFLOWS_AS)]
    if default:
        asked = f"ONNX Runtime's default files are shown to be wrong as {OVERFLOWS_AS}: below {SQNR_DB} dB"
        found.append(claim("lab.ort_minmax.sqnr_db", asked, max(default), "dB", max(default) < SQNR_DB))
    return found


if __name__ == "__main__":
    main()
