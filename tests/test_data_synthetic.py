"""Made-up pictures: what they look like, and that they are for calibration only."""

import numpy as np
import pytest

import edgekit
from edgekit import data
from edgekit.data import check_labels
from edgekit.data.synthetic import RADII, _radii, dead_leaves
from edgekit.errors import BadInput


def test_the_same_pictures_every_time_and_no_two_alike():
    samples = data.load(["calibrate=synthetic:5"]).role("calibrate")
    again = data.load(["synthetic:5"]).role("calibrate")
    assert samples.ids == again.ids and samples.sha256 == again.sha256 and not samples.labelled
    pictures = [sample.read() for sample in samples]
    assert all(np.array_equal(a, b.read()) for a, b in zip(pictures, again))
    assert len({picture.tobytes() for picture in pictures}) == 5
    assert all(picture.shape == (256, 256, 3) and picture.dtype == np.uint8 for picture in pictures)


def test_radii_follow_the_inverse_cube():
    """P(r > x) = (x^-2 - high^-2) / (low^-2 - high^-2)."""
    radii = _radii(np.random.default_rng(0), 200_000)
    low, high = RADII
    for x in (8.0, 15.0, 40.0):
        wanted = (x**-2 - high**-2) / (low**-2 - high**-2)
        assert abs((radii > x).mean() - wanted) < 4 * (wanted / 200_000) ** 0.5


def test_the_spectrum_falls_as_that_of_photographs():
    """Power ~ f^-a; photographs have a near 2."""
    power = 0
    for seed in range(12):
        grey = dead_leaves(seed).mean(2)
        power = power + np.abs(np.fft.fft2((grey - grey.mean()) * np.outer(np.hanning(256), np.hanning(256)))) ** 2
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    bins = [(0.01 * 2**k, 0.01 * 2 ** (k + 1)) for k in range(4)]
    mean = [np.mean(power[(radius >= a) & (radius < b)]) for a, b in bins]
    slope = np.polyfit([np.log(a * b) / 2 for a, b in bins], np.log(mean), 1)[0]
    assert -3.2 < slope < -1.2


def test_they_are_for_calibration_only():
    assert list(data.load(["synthetic"]).roles) == ["calibrate"]
    with pytest.raises(BadInput, match=r"splits of its own, calibrate, and no 'train'"):
        data.load(["train=synthetic"])
    with pytest.raises(BadInput, match=r"synthetic/000000: has no label .*calibration only"):
        check_labels(data.load(["synthetic"]).role("calibrate"), 10)


@pytest.mark.parametrize("text", ["0", "x", "100001", "-3", "1e3"])
def test_a_count_that_is_none(text):
    with pytest.raises(BadInput, match="write synthetic, or synthetic:N"):
        data.load([f"calibrate=synthetic:{text}"])


def test_int8_without_a_picture_of_ones_own(bundle, data, tmp_path):
    """DFQ's use: calibrated on made-up pictures, scored on the real ones."""
    file, recipe = bundle.model("onnxruntime", "fp32"), tmp_path / "int8.toml"
    recipe.write_text('[[rewrite]]\nname = "int8"\nimages = 8\n')
    made = edgekit.compress(str(file), str(recipe), [f"test={data}", "calibrate=synthetic:8"], tmp_path / "out", runs=8)
    base, *_, quantised = made.manifest["steps"]
    assert quantised["int8_convs"] == 5 and quantised["parity_db"] > 15
    assert base["metrics"]["top1"] - quantised["metrics"]["top1"] < 5
