"""Segmentation from masks to a bundle, and the losses and training of dense labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import edgekit
from edgekit import data, deploy, report
from edgekit.data import IGNORE, Input, Output
from edgekit.errors import BadInput
from edgekit.evaluate import evaluate
from edgekit.job import torch_predict

RECIPE = """
[input]
size = 64
mean = [0.5]
std = [0.5]

[output]
task = "segment"
classes = 3

[[pass]]
name = "prune"
budget = { macs = 0.8 }

[[pass]]
name = "PASS"
epochs = EPOCHS
batch = 8
lr = 0.1

[[rewrite]]
name = "fold"

[[rewrite]]
name = "int8"
images = 4

[gates]
miou = [{ max_drop = 100.0 }, { min = 101.0 }]
pixel_accuracy = { min = 1.0 }
"""


def shapes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise 64×64×3 with a red square (1) and a blue disc (2), and its mask, whose outermost pixels are ignored."""
    rng = np.random.default_rng(seed)
    image, mask = rng.integers(0, 130, (64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    row, column = np.indices((64, 64))
    top, left, y, x = (int(value) for value in rng.integers((2, 2, 12, 40), (40, 20, 52, 54)))
    mask[top : top + 20, left : left + 16] = 1
    mask[(row - y) ** 2 + (column - x) ** 2 < 81] = 2
    image[mask == 1, 0] += 120
    image[mask == 2, 2] += 120
    mask[[0, -1]] = mask[:, [0, -1]] = IGNORE
    return image, mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for index in range(60):
        image, mask = shapes(index)
        Image.fromarray(image).save(root / "images" / f"{index:02}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index:02}.png")
    return root


def compressed(model: str, folder: Path, out: Path, train: str, epochs: int, overrides: Sequence[str] = ()):
    recipe = out.with_suffix(".toml")
    recipe.write_text(RECIPE.replace("PASS", train).replace("EPOCHS", str(epochs)))
    return edgekit.compress(model, str(recipe), f"masks:{folder}", out, runs=8, overrides=overrides)


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny") / "out"
    # The teacher knows nothing: what the student learns, it learns from the masks.
    return compressed("tests.nets:tiny_segment", folder, out, "distil", 8, ["distil.loss.alpha=0.1"])


def check_scores(bundle, folder):
    """The file's score is the row's, and the float file answers as PyTorch does."""
    row = report.shipped(bundle)[-1]
    assert row["precision"] == "int8" and row["int8_convs"] > 0 and row["correct"] == ""
    again = deploy.evaluate_file(bundle.model("onnxruntime", "int8"), [f"masks:{folder}"], "onnxruntime", None)
    assert again["metrics"] == row["metrics"] and list(again["metrics"]) == ["miou", "pixel_accuracy"]
    fp32 = next(item for item in report.shipped(bundle) if item["precision"] == "fp32")
    assert fp32["metrics"]["miou"] == pytest.approx(fp32["metrics_torch"]["miou"], abs=0.2)
    return row


def test_a_segmentation_network_goes_through_compress(bundle, folder):
    row, fp32 = check_scores(bundle, folder), bundle.manifest["steps"][-2]
    base = report.base_row(bundle)
    assert base["miou"] < 40 and row["miou"] > 60
    assert row["macs"] < 0.81 * base["macs"]
    module = edgekit.load(bundle.path, trust=True)
    settings, output = Input(64, mean=(0.5,), std=(0.5,)), Output("segment", classes=3)
    samples = data.load([f"masks:{folder}"]).role("test")
    assert evaluate(torch_predict(module), samples, settings, output).metrics == pytest.approx(fp32["metrics_torch"])


def test_the_table_shows_miou_and_gates_judge_it(bundle):
    text = report.markdown(bundle)
    assert "| mIoU torch | mIoU file |" in text and "top-1" not in text
    assert f"{report.shipped(bundle)[-1]['miou']:.2f}" in text
    verdicts = bundle.latest("gates")["verdicts"]
    found = {(item["metric"], item["rule"], item["outcome"]) for item in verdicts}
    assert found == {("miou", "max_drop", "pass"), ("miou", "min", "fail"), ("pixel_accuracy", "min", "pass")}
    paired = [item for item in verdicts if item["rule"] == "max_drop"]
    assert all(item["low"] < item["value"] < item["high"] < 0 for item in paired), "the student learned"


@pytest.mark.slow
def test_fc_hardnet_goes_through_compress(folder, tmp_path):
    made = compressed("fc_hardnet_70?classes=3", folder, tmp_path / "out", "finetune", 1)
    row = check_scores(made, folder)
    assert row["macs"] < 0.81 * report.base_row(made)["macs"] and row["int8_convs"] > 50


def test_samples_of_another_task_are_refused_before_training(folder, tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('[input]\nsize = 64\n[output]\nclasses = 3\n[[pass]]\nname = "finetune"\n')
    with pytest.raises(BadInput, match=r"data is for 'segment' and \[output\] task = 'classify'.*task = 'segment'"):
        edgekit.compress("tests.nets:tiny_segment", str(recipe), f"masks:{folder}", tmp_path / "o")
    assert not (tmp_path / "o").exists()


# Labels


def test_labels_move_behind_the_offset_and_ignored_pixels_stay():
    labels = np.array([[[0, 2, IGNORE]]])
    assert Output("segment", class_offset=1).channels(labels).tolist() == [[[1, 3, IGNORE]]]
    assert Output("segment", class_offset=1).channels(torch.from_numpy(labels)).tolist() == [[[1, 3, IGNORE]]]
    assert Output(class_offset=1).channels(np.array([0, IGNORE])).tolist() == [1, 256]
