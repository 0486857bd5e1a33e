"""Statistics of latency, on synthetic series: no timing is asserted."""

import math

import numpy as np
import pytest

from edgekit.profile.compare import LOOK, settled, verdict
from edgekit.statistics import interval, ratio_interval, sequence, tails

FLOOR = 0.02


def test_the_interval_covers_the_median_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        found = interval(rng.lognormal(0, 0.2, 50), seed=trial)
        covered += found["low"] <= 1.0 <= found["high"]
    assert 180 <= covered <= 200


def test_a_common_disturbance_cancels_in_the_ratio():
    rng = np.random.default_rng(0)
    load = 1 + 3 * rng.random(200)  # a neighbour slows both alike, round by round
    slow, fast = 1.2 * load * rng.normal(1, 0.01, 200), load * rng.normal(1, 0.01, 200)
    found = ratio_interval(slow, fast)
    alone = interval(fast)
    assert found["median"] == pytest.approx(1.2, rel=0.02)
    assert found["high"] / found["low"] < 1.05 < 1.15 < alone["high"] / alone["low"]


def test_a_series_against_itself_is_one():
    assert ratio_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])["low"] == 1.0


def test_long_series_are_resampled_in_parts():
    values = np.random.default_rng(0).lognormal(0, 0.2, 5001)
    found = interval(values)
    assert found["low"] < np.median(values) < found["high"] and found["high"] / found["low"] < 1.03


@pytest.mark.parametrize(("n", "known"), [(63, set()), (64, {"p90"}), (661, {"p90"}), (662, {"p90", "p99"})])
def test_tails_take_their_samples(n, known):
    assert tails(range(n)).keys() == known


def test_a_tail_is_a_sample_with_that_share_at_or_below_it():
    found = tails(list(range(1, 1001)))
    assert found == {"p90": 900, "p99": 990}


def evidence(n: int, below: int) -> float:
    """e_n by its definition, the integral done by the beta function of whole numbers."""
    return 2**n * math.factorial(below) * math.factorial(n - below) / math.factorial(n + 1)


@pytest.mark.parametrize("n", [14, 15, 40, 101])
def test_the_sequence_holds_the_medians_with_too_little_evidence_against_them(n):
    found = sequence(list(range(1, n + 1)), 0.999)
    kept = [m for m in range(1, n) if evidence(n, m) < 1000]  # a median between m and m + 1 has m samples below it
    assert (found["low"], found["high"], found["n"]) == (kept[0], kept[-1] + 1, n)


def test_too_few_samples_have_no_interval():
    assert evidence(13, 0) < 1000 <= evidence(14, 0)
    assert sequence([1.0] * 13) is None and sequence([1.0] * 14)["median"] == 1.0


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.03, 1.06, "slower"),
        (1.01, 1.06, "undecided"),
        (0.9, 0.97, "faster"),
        (0.9, 0.985, "undecided"),
        (0.985, 1.015, "same"),
    ],
)
def test_a_verdict_takes_the_whole_interval(low, high, expected):
    ratio = {"low": low, "high": high}
    assert verdict(ratio, FLOOR) == expected
    assert settled(ratio, FLOOR) == (expected != "undecided")
    assert not settled(ratio, FLOOR, max_ratio=(low + high) / 2)
    assert verdict(None, FLOOR) == "undecided"


# Comparisons of series as machines make them


def ratios(rng: np.random.Generator, n: int, slowdown: float, jitter: float) -> np.ndarray:
    """Of two files in `n` rounds: a load that drifts (autocorrelated), jumps and hits both, a jitter of each run, and
    runs that were interrupted for up to many times their length."""
    load = np.zeros(n)
    for index, step in enumerate(rng.normal(0, 0.05, n)[1:], 1):
        load[index] = 0.95 * load[index - 1] + step
    load += np.repeat(rng.normal(0, 0.5, n // 50 + 1), 50)[:n]
    times = np.exp(load + rng.normal(0, jitter, (2, n)) * np.exp(load / 2))  # busier is also noisier
    interrupted = rng.random((2, n)) < 0.08
    times[interrupted] *= 1 + rng.pareto(1.1, interrupted.sum())
    return slowdown * times[1] / times[0]


def compared(samples: np.ndarray) -> tuple[str, int]:
    """The verdict and the rounds that it took, looking as `compare` does."""
    n = 0
    while n < len(samples):
        n += max(LOOK, n // LOOK)
        if (found := verdict(sequence(samples[:n].tolist()), FLOOR)) != "undecided":
            return found, n
    return "undecided", n


@pytest.mark.parametrize("jitter", [0.02, 0.3])
def test_a_file_against_itself_is_never_faster_or_slower(jitter):
    rng = np.random.default_rng(1)
    found = [compared(ratios(rng, 1500, 1.0, jitter))[0] for _ in range(300)]
    assert not {"faster", "slower"} & set(found)
    assert jitter > 0.1 or found.count("same") > 290


@pytest.mark.parametrize(("jitter", "rounds"), [(0.02, 200), (0.1, 2000)])
def test_five_percent_are_found(jitter, rounds):
    rng = np.random.default_rng(2)
    found = [compared(ratios(rng, rounds, 1.05, jitter))[0] for _ in range(100)]
    assert found.count("slower") >= 95 and "faster" not in found
    assert compared(1 / ratios(rng, 1500, 1.3, jitter))[0] == "faster"


def test_looking_at_will_is_wrong_as_seldom_as_it_says():
    """At the very edge of the floor, where it is hardest; a test that is made for one look errs far more often."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(400):
        samples = (1.0 + FLOOR) * np.exp(rng.normal(0, 0.1, 1500))
        looks = (sequence(samples[:n].tolist(), 0.95) for n in range(20, 1500, 100))
        wrong += any(found is not None and found["low"] > 1 + FLOOR for found in looks)
    assert wrong <= 20
