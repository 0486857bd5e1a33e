"""Load that comes and goes: processes that burn a core each, in bursts of random length with pauses of random length.

python tools/benchmarks/bursts.py 0      # one of them, by its seed; ends with whoever started it
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator

BURST_S = PAUSE_S = 0.5
"""Means of exponential distributions."""


@contextlib.contextmanager
def bursts(count: int, seed: int = 0) -> Iterator[None]:
    """Disturb the machine with `count` processes for as long as the context lasts."""
    started = [subprocess.Popen([sys.executable, __file__, str(seed + index)]) for index in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()


def burn(seed: int) -> None:
    rng, parent = random.Random(seed), os.getppid()
    while os.getppid() == parent:  # nobody else stops it when its starter is killed
        end = time.perf_counter() + rng.expovariate(1 / BURST_S)
        while time.perf_counter() < end:
            pass
        time.sleep(rng.expovariate(1 / PAUSE_S))


if __name__ == "__main__":
    burn(int(sys.argv[1]))
