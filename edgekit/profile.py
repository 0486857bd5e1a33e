"""Latency of files, measured so that it can be compared: all files in one run, interleaved in random order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.context import Track, no_progress
from edgekit.engines import engine, noise
from edgekit.machine import machine


def interval(samples: Sequence[float], seed: int = 0, level: float = 0.95) -> dict[str, float]:
    """Median with a bootstrap percentile interval (1,000 resamples)."""
    values = np.asarray(samples, np.float64)
    resampled = np.random.default_rng(seed).choice(values, (1000, len(values)))
    low, high = np.quantile(np.median(resampled, axis=1), [(1 - level) / 2, (1 + level) / 2])
    return {
        "median": float(np.median(values)),
        "low": float(low),
        "high": float(high),
        "level": level,
        "n": len(values),
    }


def ratio_interval(
    samples: Sequence[float], reference: Sequence[float], seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """Ratio of the medians of two interleaved series, with a bootstrap interval that resamples rounds as pairs."""
    pairs = np.stack([np.asarray(samples, np.float64), np.asarray(reference, np.float64)])
    picks = np.random.default_rng(seed).integers(0, pairs.shape[1], (1000, pairs.shape[1]))
    medians = np.median(pairs[:, picks], axis=2)  # (2, 1000)
    low, high = np.quantile(medians[0] / medians[1], [(1 - level) / 2, (1 + level) / 2])
    point = np.median(pairs[0]) / np.median(pairs[1])
    return {"median": float(point), "low": float(low), "high": float(high), "level": level, "n": pairs.shape[1]}


def time_files(
    files: Sequence[Path], engine_name: str, runs: int, threads: int, seed: int = 0, track: Track = no_progress
) -> list[dict[str, Any]]:
    """Time every file at batch 1.

    Args:
        runs: rounds; in each, every file runs once, in a random order.
        threads: threads of one inference.

    Returns:
        A record per file: load_ms, first_ms, latency_ms and latency_ratio (interval, against the first file).
    """
    opened = [_open(file, engine_name, threads) for file in files]
    times = interleave([pair for pair, _ in opened], runs, seed, track)
    return [
        {
            **record,
            "latency_ms": interval(series),
            "latency_ratio": ratio_interval(series, times[0]),
            "ratio_to": files[0].name,
        }
        for (_, record), series in zip(opened, times)
    ]


def time_series(
    files: Sequence[Path], engine_name: str, runs: int, threads: int, seed: int = 0, track: Track = no_progress
) -> list[list[float]]:
    """As `time_files`, but the milliseconds of every round themselves, for comparisons of one's own."""
    return interleave([_open(file, engine_name, threads)[0] for file in files], runs, seed, track)


def _open(file: Path, engine_name: str, threads: int) -> tuple[tuple[Any, np.ndarray], dict[str, Any]]:
    """A session with an input for it, and what opening and the first run took."""
    begin = time.perf_counter()
    session = engine(engine_name).load(file, threads)
    load_ms = (time.perf_counter() - begin) * 1e3
    feed = noise(session, 1)
    return (session, feed), {"file": file.name, "load_ms": load_ms, "first_ms": _run_ms(session, feed)}


def interleave(
    pairs: Sequence[tuple[Any, np.ndarray]], runs: int, seed: int, track: Track = no_progress
) -> list[list[float]]:
    """The milliseconds of `runs` rounds for each (session, input): after a warm-up, each once a round, at random."""
    rng = np.random.default_rng(seed)
    for session, feed in pairs:
        _warm_up(session, feed)
    times: list[list[float]] = [[] for _ in pairs]
    for _ in track(range(runs), "profiling", runs):
        for index in rng.permutation(len(pairs)):
            times[index].append(_run_ms(*pairs[index]))
    return times


def document(
    files: Mapping[str, Sequence[Path]], runs: int, threads: int, track: Track = no_progress
) -> dict[str, Any]:
    """`time_files` for the files of each engine, with what they were measured by and on.

    Files of an engine that cannot run here are not timed: `unmeasured` says why. Another engine's times would say
    nothing about them.
    """
    reasons = {name: engine(name).missing() for name in files}
    usable = {name: group for name, group in files.items() if reasons[name] is None}
    timed = {name: time_files(group, name, runs, threads, track=track) for name, group in usable.items()}
    return {
        "rows": [{**row, "engine": name} for name, rows in timed.items() for row in rows],
        "unmeasured": {file.name: reasons[name] for name, group in files.items() for file in group if reasons[name]},
        "settings": {
            "engines": {name: engine(name).version() for name in usable},
            "threads": threads,
            "batch": 1,
            "runs": runs,
        },
        "machine": machine(),
    }


def _run_ms(session: Any, feed: np.ndarray) -> float:
    begin = time.perf_counter()
    session.run(feed)
    return (time.perf_counter() - begin) * 1e3


def _warm_up(session: Any, feed: np.ndarray, limit_s: float = 0.5) -> None:
    """Run until the last three runs agree within 10 %, or the time is over."""
    last: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < limit_s:
        last = [*last, _run_ms(session, feed)][-3:]
        if len(last) == 3 and max(last) < 1.1 * min(last):
            return
