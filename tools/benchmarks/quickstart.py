"""The quickstart's own figures: its table, its wall time, and how fast the commands answer.

python tools/benchmarks/quickstart.py      # about 3 minutes on 2 cores
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import claim, write

import edgekit
from edgekit import report


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        bundle = edgekit.compress("mobilenet_v2_digits", "quickstart", "digits", Path(folder) / "bundle", runs=200)
        seconds = time.perf_counter() - begin
        keep = "stage params macs cio size_bytes metrics metrics_torch latency_ms latency_ratio n".split()
        rows = [{key: row.get(key) for key in keep} for row in report.rows(bundle)]
    base, last = rows[0], rows[-1]
    ratio = last["size_bytes"] / base["size_bytes"]
    drop = base["metrics"]["top1"] - last["metrics"]["top1"]
    answers = {
        name: answer_seconds(*arguments) for name, arguments in {"help": ["--help"], "models": ["models"]}.items()
    }
    claims = [
        claim("quickstart.size_ratio", "≤ 0.25 of the unpruned fp32 file", ratio, "ratio", ratio <= 0.25),
        claim("quickstart.top1_drop", "≤ 2.0 points", drop, "points", drop <= 2.0),
        claim("quickstart.seconds", "≤ 180 s on 2 cores", seconds, "s", seconds <= 180),
        *(claim(f"quickstart.{name}_seconds", "< 0.5 s", value, "s", value < 0.5) for name, value in answers.items()),
    ]
    write("quickstart", rows, claims)


def answer_seconds(*arguments: str) -> float:
    """Median of nine runs of a command."""
    seconds = []
    for _ in range(9):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "edgekit.cli", *arguments], check=True, capture_output=True)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
