"""Resamples: the same for every network, Poisson distributed, and metrics on them by closed forms."""

import numpy as np
import pytest

from edgekit.data import Output
from edgekit.evaluate import evaluate
from edgekit.metrics import Detect, Segment
from edgekit.metrics.resample import RESAMPLES, packed, times, unpacked
from edgekit.metrics.segment import confusion, segment_metrics
from tests.test_data import memory
from tests.test_metrics import PLAIN, answers, with_boxes, with_masks

RNG = np.random.default_rng(7)


def test_every_picture_counts_about_once():
    drawn = np.stack([times(index) for index in range(400)])
    assert drawn.shape == (400, RESAMPLES) and drawn.dtype == np.uint8
    assert drawn.mean() == pytest.approx(1, abs=0.01) and drawn.var() == pytest.approx(1, abs=0.02)
    apart = np.corrcoef(drawn)[~np.eye(400, dtype=bool)]
    assert abs(apart.mean()) < 0.001 and apart.std() == pytest.approx(RESAMPLES**-0.5, rel=0.1)


def test_the_numbers_are_those_of_baselines_written_before():
    assert times(0)[:12].tolist() == [1, 0, 0, 0, 2, 2, 1, 1, 1, 3, 2, 0]
    assert times(9999)[:12].tolist() == [2, 2, 0, 2, 0, 1, 1, 2, 0, 2, 1, 1]


def test_a_segmentation_is_scored_as_if_its_pictures_came_that_often():
    masks, found = RNG.integers(0, 3, (2, 60, 4, 4))
    metric = Segment(with_masks(*masks), Output("segment"))
    metric.add(answers(found, 3), masks, range(60))
    resampled, drawn = metric.resampled(), np.stack([times(index) for index in range(60)])
    for resample in (0, 7, RESAMPLES - 1):
        repeated = np.repeat(np.arange(60), drawn[:, resample])
        expected = segment_metrics(confusion(answers(found[repeated], 3), masks[repeated]))
        assert {name: values[resample] for name, values in resampled.items()} == pytest.approx(expected)


def test_a_detection_is_scored_as_if_its_pictures_came_that_often():
    truths = [np.c_[spread(3), RNG.integers(0, 2, 3)] for _ in range(30)]
    found = [np.c_[truth[:, :4] + RNG.normal(0, 3, (3, 4)), RNG.random(3), truth[:, 4]] for truth in truths]

    def scored(order) -> Detect:
        metric = Detect(with_boxes(*([[]] * 200)), Output("detect"))
        metric.add([found[index] for index in order], [truths[index] for index in order], range(len(order)))
        return metric

    resampled = scored(range(30)).resampled()
    for resample in (0, 7, RESAMPLES - 1):
        repeated = np.repeat(np.arange(30), [times(index)[resample] for index in range(30)])
        expected = scored(repeated).result()
        assert {name: values[resample] for name, values in resampled.items()} == pytest.approx(expected)


def spread(count: int) -> np.ndarray:
    low = RNG.uniform(0, 60, (count, 2))
    return np.c_[low, low + RNG.uniform(10, 40, (count, 2))]


def test_of_classification_top5_is_resampled_when_asked():
    samples = memory(60)
    logits = RNG.normal(size=(60, 10))
    score = evaluate(lambda x: logits[: len(x)], samples, PLAIN, Output(), batch_size=60, resample=True)
    assert list(score.resampled) == ["top5"] and len(score.resampled["top5"]) == RESAMPLES
    assert np.mean(score.resampled["top5"]) == pytest.approx(score.metrics["top5"], abs=2)
    assert np.std(score.resampled["top5"]) == pytest.approx(100 * (0.25 / 60) ** 0.5, rel=0.25)
    assert evaluate(lambda x: logits[: len(x)], samples, PLAIN, Output(), batch_size=60).resampled == {}


def test_too_few_pictures_are_not_resampled():
    metric = Segment(with_masks(np.zeros((4, 4))), Output("segment"))
    metric.add(answers(np.zeros((1, 4, 4), int), 2), np.zeros((1, 4, 4), int), [0])
    assert metric.resampled() == {} and metric.result()["miou"] == 100
    boxes = Detect(with_boxes([[0, 0, 9, 9, 0]]), Output("detect"))
    boxes.add([np.zeros((0, 6))], [np.array([[0, 0, 9, 9, 0.0]])], [0])
    assert boxes.resampled() == {} and boxes.result()["map"] == 0


def test_packed_values_come_back():
    values = np.linspace(0, 100, RESAMPLES)
    assert len(packed(values)) == 8 * RESAMPLES
    np.testing.assert_allclose(unpacked(packed(values)), values, atol=1e-5)


@pytest.mark.parametrize("values", [np.zeros(3), np.full(RESAMPLES, np.nan), np.full(RESAMPLES, 101.0)])
def test_other_values_are_refused(values):
    with pytest.raises(ValueError, match="resampled values"):
        unpacked(packed(values))
