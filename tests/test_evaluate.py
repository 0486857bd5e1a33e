"""edgekit.evaluate: scores in closed form, and what cannot be scored."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import data
from edgekit.data import Input, Output, Samples
from edgekit.errors import BadInput
from edgekit.evaluate import METRICS, classify_hits, classify_metrics, evaluate
from tests.test_data import PLAIN, class_folders, memory

# Row i ranks the classes 0, 1, 2, … in that order, so the label is its own rank.
RANKED = np.tile(-np.arange(10.0), (10, 1))


def one_hot(labels: np.ndarray, width: int) -> np.ndarray:
    return np.eye(width, dtype=np.float32)[labels]


def test_top1_and_top5_are_shares_of_ranks():
    assert classify_metrics(RANKED, np.arange(10)) == {"top1": 10.0, "top5": 50.0}
    assert classify_metrics(RANKED[:4], np.array([0, 0, 0, 5])) == {"top1": 75.0, "top5": 75.0}


def test_top5_needs_more_than_5_classes():
    assert classify_metrics(RANKED[:, :5], np.full(10, 4)) == {"top1": 0.0}
    assert classify_metrics(RANKED[:, :6], np.full(10, 4)) == {"top1": 0.0, "top5": 100.0}


def test_ties_count_for_the_first_in_top1_and_for_all_in_top5():
    logits = np.zeros((10, 10))
    hits = classify_hits(logits, np.arange(10))
    assert hits["top1"].tolist() == [True] + [False] * 9 and hits["top5"].all()


@given(st.data())
def test_permuting_the_classes_changes_nothing(draw):
    rng = np.random.default_rng(draw.draw(st.integers(0, 2**32)))
    logits, labels = rng.normal(size=(20, 12)), rng.integers(0, 12, 20)
    order = np.array(draw.draw(st.permutations(range(12))))
    assert classify_metrics(logits, labels) == classify_metrics(logits[:, order], np.argsort(order)[labels])
    metrics = classify_metrics(logits, labels)
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.full((1, 10), np.nan), [0], "NaN"),
        (np.where(np.arange(10) == 7, np.nan, 0)[None], [0], "NaN"),
        (RANKED, [10] * 10, "label 10 is outside the network's 10 classes"),
        (RANKED, [-1] * 10, "label -1"),
        (RANKED, [0] * 9, r"got \(10, 10\) and \(9,\)"),
        (RANKED[:, None], [0] * 10, "logits must be"),
        (RANKED[:0], [], "no samples"),
    ],
)
def test_logits_that_cannot_be_scored(logits, labels, message):
    with pytest.raises(BadInput, match=message):
        classify_metrics(logits, np.array(labels, np.int64))


def test_infinite_logits_are_ranked():
    assert classify_metrics(np.array([[-np.inf, np.inf, 0]]), np.array([1])) == {"top1": 100.0}


def scripted(samples: Samples, wrong: set[int], width: int = 3):
    """A network that answers by the order in which it is called: right but for the samples in `wrong`."""
    start = 0

    def predict(x: np.ndarray) -> np.ndarray:
        nonlocal start
        labels = samples.labels[start : start + len(x)].copy()
        for index in range(len(x)):
            labels[index] = (labels[index] + (start + index in wrong)) % 3
        start += len(x)
        return one_hot(labels, width)

    return predict


def test_evaluate_scores_every_sample():
    samples = memory(7)
    score = evaluate(scripted(samples, {2, 6}), samples, PLAIN, Output(), batch_size=3)
    assert score.correct == (True, True, False, True, True, True, False)
    assert (score.n, score.skipped) == (7, 0) and score.metrics == {"top1": pytest.approx(500 / 7)}


def test_evaluate_drops_the_class_offset_and_feeds_the_input():
    samples, seen = memory(6), []

    def predict(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return np.concatenate([np.full((len(x), 1), 9.0), one_hot(samples.labels, 3)], axis=1)

    score = evaluate(predict, samples, Input(5, "gray", mean=(2.0,)), Output(classes=3, class_offset=1))
    assert score.metrics == {"top1": 100.0}
    assert seen[0].shape == (6, 1, 5, 5) and seen[0].dtype == np.float32 and seen[0].max() <= -1


def test_evaluate_counts_what_it_skips(tmp_path):
    class_folders(tmp_path, 6)
    (tmp_path / "cat" / "002.png").write_bytes(b"broken")
    spec = f"test=folder:{tmp_path}"
    always_dog = lambda x: one_hot(np.ones(len(x), int), 2)  # noqa: E731
    score = evaluate(always_dog, data.load([spec], on_error="skip").role("test"), PLAIN, Output())
    assert (score.n, score.skipped) == (5, 1) and score.metrics == {"top1": 60.0}
    assert score.correct == (False, False, True, True, True)
    with pytest.raises(BadInput, match=r"cat/002.png"):
        evaluate(always_dog, data.load([spec]).role("test"), PLAIN, Output())
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(BadInput, match="none of 6 samples could be scored; 6 could not be decoded"):
        evaluate(always_dog, data.load([spec], on_error="skip").role("test"), PLAIN, Output())


@pytest.mark.parametrize(
    ("predict", "output", "message"),
    [
        (lambda x: np.zeros((len(x), 2)), Output(), r"m/0002: label 2 is outside the 2 classes"),
        (lambda x: np.zeros((len(x), 3)), Output(classes=4), "expects 4 classes"),
        (lambda x: np.zeros((len(x) - 1, 3)), Output(), "3 outputs for a batch of 4"),
        (lambda x: np.zeros(len(x)), Output(), "output is"),
        (lambda x: np.full((len(x), 3), np.nan), Output(), "NaN"),
        (
            lambda x: np.zeros((len(x), 3)),
            Output("detect"),
            "data is for 'classify'.*task = 'detect'; give --data coco:",
        ),
    ],
)
def test_networks_that_cannot_be_scored(predict, output, message):
    with pytest.raises(BadInput, match=message):
        evaluate(predict, memory(4), PLAIN, output)


def test_named_classes_must_be_as_many_as_outputs():
    samples = memory(4, classes=("a", "b", "c"))
    with pytest.raises(BadInput, match="names 3 classes and the network has 1000"):
        evaluate(lambda x: np.zeros((len(x), 1000)), samples, PLAIN, Output())


def test_progress_sees_every_batch():
    seen = []

    def progress(batches, label, total):
        for batch in batches:
            seen.append((label, total))
            yield batch

    samples = memory(7)
    evaluate(scripted(samples, set()), samples, PLAIN, Output(), batch_size=3, progress=progress)
    assert seen == [("scoring", 3)] * 3


def test_score_is_frozen_and_every_task_has_a_known_name():
    score = evaluate(scripted(memory(3), set()), memory(3), PLAIN, Output())
    with pytest.raises(dataclasses.FrozenInstanceError):
        score.n = 4
    assert all(Output(task).task in METRICS for task in METRICS)
