"""edgekit.metrics for segmentation and detection: closed forms, and outputs that cannot be scored."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.data import IGNORE, Input, Output, Sample, Samples, Truth
from edgekit.errors import BadInput
from edgekit.evaluate import METRICS, evaluate
from edgekit.metrics import Detect, Segment
from edgekit.metrics.detect import judged, overlaps
from edgekit.metrics.segment import confusion, segment_metrics
from edgekit.parallel import World
from tests.test_data import memory

PLAIN = Input(4, "gray", scale=1.0)


def with_masks(*masks: np.ndarray) -> Samples:
    """A black 4×4 picture a mask."""
    black = np.zeros((4, 4), np.uint8)
    truths = [Truth("segment", f"{i}.png", lambda mask=mask: np.uint8(mask), "") for i, mask in enumerate(masks)]
    return Samples(tuple(Sample(f"m/{i}", -1, lambda: black, "", truth) for i, truth in enumerate(truths)))


def with_boxes(*boxes: list, classes: tuple[str, ...] | None = None) -> Samples:
    """A black picture of 100×100 for each list of boxes."""
    black = np.zeros((100, 100), np.uint8)
    truths = [
        Truth("detect", str(i), lambda one=one: np.array(one, float).reshape(-1, 5), "") for i, one in enumerate(boxes)
    ]
    return Samples(tuple(Sample(f"d/{i}", -1, lambda: black, "", truth) for i, truth in enumerate(truths)), classes)


def answers(masks: np.ndarray, classes: int) -> np.ndarray:
    """Logits (B, classes, H, W) whose first largest is the mask."""
    return np.moveaxis(np.eye(classes, dtype=np.float32)[masks], -1, 1)


# Segmentation

HALVES = np.repeat([[0, 1, 1, 1]], 4, axis=0)


def test_miou_in_closed_form():
    counts = np.array([[4, 0, 0], [4, 8, 0], [0, 0, 0]])  # 0: 4 of 8; 1: 8 of 12; 2 occurs nowhere
    assert segment_metrics(counts) == {"miou": pytest.approx(100 * (1 / 2 + 2 / 3) / 2), "pixel_accuracy": 75.0}
    found = np.array([[0, 0, 1, 1]] * 4)
    np.testing.assert_array_equal(confusion(answers(found[None], 3), HALVES[None]), counts)


def test_a_class_that_is_only_answered_counts():
    assert segment_metrics(np.array([[3, 1], [0, 0]])) == {"miou": pytest.approx(75 / 2), "pixel_accuracy": 75.0}


def test_ignored_pixels_count_nowhere():
    mask = np.where(np.indices((4, 4))[0] < 2, HALVES, IGNORE)
    found = np.where(mask == IGNORE, 2, HALVES)
    assert confusion(answers(found[None], 3), mask[None]).sum() == 8
    score = evaluate(lambda _x: answers(found[None], 3), with_masks(mask), PLAIN, Output("segment"))
    assert score.metrics == {"miou": 100.0, "pixel_accuracy": 100.0} and score.correct == () and score.n == 1
    with pytest.raises(BadInput, match="no labelled pixel"):
        evaluate(lambda _x: answers(found[None], 3), with_masks(np.full((4, 4), IGNORE)), PLAIN, Output("segment"))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), batch=st.integers(1, 6))
def test_batches_add_up_to_the_whole(seed, batch):
    rng = np.random.default_rng(seed)
    masks, logits = rng.choice([0, 1, 2, IGNORE], (5, 4, 4)), rng.normal(size=(5, 4, 4, 4))  # a background in front
    start = 0

    def predict(x: np.ndarray) -> np.ndarray:
        nonlocal start
        start += len(x)
        return logits[start - len(x) : start]

    score = evaluate(predict, with_masks(*masks), PLAIN, Output("segment", classes=3, class_offset=1), batch)
    assert score.metrics == segment_metrics(confusion(logits[:, 1:], masks))


def test_counts_do_not_overflow():
    metric = Segment(with_masks(HALVES), Output("segment"))
    metric.add(answers(HALVES[None], 2), HALVES[None], [0])
    metric._counts *= 2**31
    metric.add(answers(HALVES[None], 2), HALVES[None], [0])
    assert metric._counts.dtype == np.int64 and metric._counts.sum() == 16 * (2**31 + 1)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: np.zeros((len(x), 2, 2, 3)), "output is 2×3 and the labels, of its input's size, are 4×4"),
        (lambda x: np.zeros((len(x), 2)), r"logits must be \(B, classes, H, W\)"),
        (lambda x: np.full((len(x), 2, 4, 4), np.nan), "NaN"),
        (
            lambda x: np.zeros((len(x), 1, 4, 4)),
            r"0.png: class 1 is outside the 1 classes 0 to 0; correct it, or write 255",
        ),
        (lambda x: np.zeros((len(x), 256, 4, 4)), "256 outputs; masks number at most 255"),
        (lambda x: np.zeros((len(x), 0, 4, 4)), "expects at least one class"),
    ],
)
def test_segmentations_that_cannot_be_scored(predict, message):
    with pytest.raises(BadInput, match=message):
        evaluate(predict, with_masks(HALVES), PLAIN, Output("segment"))


# Detection

A, B, FAR = [0, 0, 40, 40], [50, 50, 90, 90], [5, 60, 15, 70]


def detect(boxes: list[list], found: list[list], **output) -> dict[str, float]:
    """The metrics of `found` against `boxes`, lists a picture."""
    metric = Detect(with_boxes(*boxes), Output("detect", **output))
    for index, (one, truth) in enumerate(zip(found, boxes)):
        metric.add([np.array(one, float).reshape(-1, 6)], [np.array(truth, float).reshape(-1, 5)], [index])
    return metric.result()


def test_perfect_detections_and_none():
    boxes = [[[*A, 0], [*B, 1]], [[*B, 0]], []]
    found = [[[*A, 0.9, 0], [*B, 0.8, 1]], [[*B, 0.7, 0]], []]
    assert detect(boxes, found) == {"map": 100.0, "map50": 100.0}
    assert detect(boxes, [[], [], []]) == {"map": 0.0, "map50": 0.0}


def test_one_of_two_found():
    # Precision 1 up to recall 0.5: 51 of the 101 recalls 0, 0.01 … 1.
    share = pytest.approx(100 * 51 / 101)
    assert detect([[[*A, 0], [*B, 0]]], [[[*A, 0.9, 0]]]) == {"map": share, "map50": share}


def test_a_duplicate_is_a_false_positive():
    # right, wrong, right: precision 1 up to recall 1/2, then 2/3.
    found = [[[*A, 0.9, 0], [*A, 0.8, 0], [*B, 0.7, 0]]]
    expected = pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert detect([[[*A, 0], [*B, 0]]], found) == {"map": expected, "map50": expected}
    last = [[[*A, 0.9, 0], [*A, 0.6, 0], [*B, 0.7, 0]]]
    assert detect([[[*A, 0], [*B, 0]]], last)["map"] == 100, "what is wrong below every right one costs nothing"


def test_the_threshold_is_that_of_the_overlap():
    # 40×40 against 40×29 inside it: IoU 0.725, right at 0.50 … 0.70, five thresholds of ten.
    assert detect([[[*A, 0]]], [[[0, 0, 40, 29, 0.9, 0]]]) == {"map": pytest.approx(50), "map50": pytest.approx(100)}
    assert overlaps(np.array([[0, 0, 40, 29]]), np.array([A]), np.array([False]))[0, 0] == 0.725


def test_a_crowd_is_ignored_and_only_by_its_class():
    found = [[[*FAR, 0.95, 0], [10, 65, 14, 69, 0.94, 0], [*A, 0.9, 0]]]
    boxes = [[*A, 0], [0, 50, 40, 90, ~0]]  # both false ones lie in the crowd
    assert detect([boxes], found)["map"] == 100
    # In a crowd of another class they are wrong: right only from the third on, precision 1/3.
    assert detect([[[*A, 0], [0, 50, 40, 90, ~1]]], found)["map"] == pytest.approx(100 / 3)
    with pytest.raises(BadInput, match="no box to score"):
        detect([[[*A, ~0]]], [[]])


def test_a_class_without_boxes_is_not_averaged():
    assert detect([[[*A, 0]]], [[[*A, 0.5, 0], [*B, 0.9, 1]]]) == {"map": 100.0, "map50": 100.0}
    assert detect([[[*A, 0], [*B, 1]]], [[[*A, 0.5, 0]]]) == {"map": 50.0, "map50": 50.0}


def test_100_detections_of_a_class_and_picture_count():
    found = [[*FAR, 0.9, 0]] * 99 + [[*A, 0.5, 0], [*B, 0.4, 0]]
    records = judged(np.array(found, float), np.array([[*A, 0], [*B, 0]], float))
    assert len(records) == 100 and (records["right"] > 0).sum() == 1


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_boxes_and_the_scale_of_scores_change_nothing(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 60, (12, 2))
    boxes = np.c_[low, low + rng.uniform(5, 40, (12, 2)), rng.integers(0, 3, 12)]
    noise = boxes[:, :4] + rng.normal(0, 3, (12, 4))
    found = np.c_[noise, rng.permutation(12) / 12, boxes[:, 4]]
    metrics = detect([boxes], [found])
    assert 0 <= metrics["map"] <= metrics["map50"] <= 100
    other = np.c_[found[:, :4], np.exp(3 * found[:, 4]), found[:, 5]]
    assert detect([boxes[rng.permutation(12)]], [other[rng.permutation(12)]]) == pytest.approx(metrics)


def test_offset_and_filled_rows():
    rows = [[*A, 0.9, 1], [*B, 0.8, 0], [0, 0, 0, 0, 0, -1]]  # the class, background, filled up
    assert detect([[[*A, 0]]], [rows], class_offset=1, classes=1) == {"map": 100.0, "map50": 100.0}


def test_boxes_are_compared_in_the_input_s_pixels():
    samples = with_boxes([[*A, 0]], [[*B, 0]])
    halves = np.array([[[0, 0, 20, 20, 0.9, 0]], [[25, 25, 45, 45, 0.8, 0]]])  # (B, n, 6), pictures 100 -> 50
    score = evaluate(lambda x: halves[: len(x)], samples, Input(50, "gray"), Output("detect"))
    assert score.metrics == {"map": 100.0, "map50": 100.0} and (score.n, score.correct) == (2, ())


@pytest.mark.parametrize(
    ("found", "output", "message"),
    [
        (np.zeros((1, 5)), {}, r"must be \(n, 6\).*got \(1, 5\)"),
        (np.array([[*A, np.nan, 0]]), {}, "d/0: the network's boxes hold NaN"),
        (np.array([[*A, 0.5, 7]]), {"classes": 3}, "found class 7; .* classes = 3"),
    ],
)
def test_detections_that_cannot_be_scored(found, output, message):
    with pytest.raises(BadInput, match=message):
        evaluate(lambda _x: [found], with_boxes([[*A, 0]]), PLAIN, Output("detect", **output))


def test_names_must_be_as_many_as_classes():
    with pytest.raises(BadInput, match="names 2 classes and the network has 3"):
        METRICS["detect"](with_boxes([], classes=("a", "b")), Output("detect", classes=3))


# Several processes


def in_processes(size: int, score) -> list:
    """`score(world)` of each of `size` worlds, run side by side in threads that meet where processes would."""
    meeting, box = threading.Barrier(size, timeout=30), [None] * size

    class Together(World):
        def gathered(self, value):
            box[self.rank] = pickle.dumps(value)
            meeting.wait()
            return [pickle.loads(one) for one in box]

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(score, [Together(rank, size) for rank in range(size)]))


RNG = np.random.default_rng(5)
SHARED = {
    "classify": memory(23),
    "segment": with_masks(*RNG.integers(0, 3, (7, 4, 4))),
    "detect": with_boxes(*[[[0, 0, 5 + i, 9, i % 2]] for i in range(7)]),
}


@pytest.mark.parametrize("task", SHARED)
@pytest.mark.parametrize("size", [2, 3])
def test_a_score_in_several_processes_loses_and_repeats_no_sample(task, size):
    def predict(x: np.ndarray):
        if task == "detect":
            return [np.array([[0, 0, 7, 9, 0.5, 0], [0, 0, 6, 9, 0.4, 1]])] * len(x)
        spread = np.arange(3).reshape(3, *[1] * (2 * (task == "segment")))
        return np.sin(37 * x.mean(1 if task == "segment" else (1, 2, 3))[:, None] + spread).astype(np.float32)

    def score(world: World):
        return evaluate(predict, SHARED[task], PLAIN, Output(task), batch_size=2, world=world)

    whole = score(World())
    assert whole.n == len(SHARED[task])
    assert in_processes(size, score) == [whole] * size
