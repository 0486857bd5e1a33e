"""Statistics of latency, on synthetic series: no timing is asserted."""

import numpy as np
import pytest

from edgekit.profile import time_files
from edgekit.statistics import interval, ratio_interval


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


def test_every_file_has_its_record(bundle):
    records = time_files([bundle.base, *bundle.models], "onnxruntime", runs=8, threads=1)
    assert [record["file"] for record in records] == [bundle.base.name, *(path.name for path in bundle.models)]
    assert all(record["latency_ms"]["n"] == 8 and record["ratio_to"] == bundle.base.name for record in records)
