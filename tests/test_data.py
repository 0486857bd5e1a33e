"""edgekit.data: geometry and arithmetic of the input, sources, splits, and every kind of data that cannot be used."""

import csv
import gc
import hashlib
import math
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekit import data
from edgekit.data import Input, Output, Sample, Samples, check_labels, role_of
from edgekit.data.samples import in_order
from edgekit.errors import BadInput
from edgekit.schema import parse, to_json

PLAIN = Input(8, scale=1.0)


def picture(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def class_folders(root: Path, n: int = 6, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for index in range(n):
        save(root / names[index % len(names)] / f"{index:03}.png", picture(index))
    return root


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def memory(n: int, *, classes: tuple[str, ...] | None = None) -> Samples:
    images = [picture(index) for index in range(n)]
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    make = [Sample(f"m/{i:04}", i % 3, lambda i=i: images[i], hashes[i]) for i in range(n)]
    return Samples(tuple(make), classes)


# Input: arithmetic


def test_normalisation_is_the_formula():
    input = Input(1, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    x = input.apply(np.array([[[0, 128, 255]]], np.uint8))
    assert x.dtype == np.float32 and x.shape == (3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_array_equal(x[:, 0, 0], np.array(expected, np.float32))


def test_tensorflow_scaling():
    x = Input(1, scale=1 / 127.5, mean=(1.0,)).apply(np.array([[[0, 51, 255]]], np.uint8))
    np.testing.assert_allclose(x[:, 0, 0], [-1, -0.6, 1], atol=1e-7)


def test_a_single_value_stands_for_every_channel():
    assert parse(Input, {"size": 8, "mean": 0.5, "std": [0.25]}, "r") == Input(8, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert Input(8, "gray").mean == (0.0,)


def test_input_survives_json():
    input = Input((4, 6), "bgr", "pad", mean=(1.0, 2.0, 3.0))
    assert parse(Input, to_json(input), "r") == input


def test_normalised_wants_uint8_of_its_channels():
    for wrong in (np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 1, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8)):
        with pytest.raises(BadInput, match=r"uint8 \(B, 3, H, W\)"):
            PLAIN.normalised(wrong)


# Input: geometry and channels


def test_bgr_is_rgb_reversed():
    image = picture(0)
    np.testing.assert_array_equal(Input(8, "bgr").resized(image), Input(8).resized(image)[::-1])
    np.testing.assert_array_equal(Input(8).resized(image), image.transpose(2, 0, 1))


def test_gray_and_alpha():
    gray = picture(0)[..., 0]
    np.testing.assert_array_equal(Input(8).resized(gray), np.stack([gray] * 3))
    assert Input(8, "gray").resized(np.full((8, 8, 3), (0, 255, 0), np.uint8))[0, 0, 0] == 150  # 0.587 · 255
    clear = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 51]]], np.uint8)
    seen = Input((1, 3)).resized(clear)
    np.testing.assert_array_equal(seen[:, 0].T, [[255, 255, 255], [10, 20, 30], [204, 204, 204]])


def test_letterbox_centres_on_zeros():
    out = Input((8, 8), resize="pad").resized(np.full((10, 40, 3), 200, np.uint8))  # 8×8 from 10×40: 2 rows of 8
    assert (out[:, 3:5] == 200).all() and (out[:, :3] == 0).all() and (out[:, 5:] == 0).all()


def test_crop_is_the_centre_of_the_shorter_side():
    # 256 shorter, 224 centre: of 256×512 columns 144 to 368 and rows 16 to 240 remain, unscaled.
    rows, columns = np.mgrid[:256, :512]
    image = np.stack([rows, columns // 2, columns % 2], axis=2).astype(np.uint8)
    for picture, axes in ((image, (0, 1, 2)), (image.transpose(1, 0, 2), (0, 2, 1))):
        out = Input(224, resize="crop").resized(picture).transpose(axes)
        np.testing.assert_array_equal(out, image[16:240, 144:368].transpose(2, 0, 1))


def test_squash_is_pillows_antialiased_bilinear():
    image = picture(0, 29, 31)
    expected = Image.fromarray(image).resize((14, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(Input((12, 14)).resized(image), np.asarray(expected).transpose(2, 0, 1))
    checkers = np.indices((32, 32)).sum(0) % 2 * np.uint8(255)
    assert abs(int(Input(8, "gray").resized(checkers.astype(np.uint8))[0, 4, 4]) - 128) < 8


def test_interpolation_is_used():
    checkers = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
    assert set(np.unique(Input(13, "gray", interpolation="nearest").resized(checkers))) == {0, 255}
    bilinear, bicubic = (Input(13, interpolation=kind).resized(picture(0)) for kind in ("bilinear", "bicubic"))
    assert (bilinear != bicubic).any()


@settings(max_examples=150)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    channels=st.sampled_from([None, 1, 3, 4]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(["rgb", "bgr", "gray"]),
    resize=st.sampled_from(["squash", "crop", "pad"]),
    crop=st.floats(0.05, 1),
)
def test_any_picture_gets_the_input_shape(shape, channels, size, kind, resize, crop):
    image = np.full(shape if channels is None else (*shape, channels), 255, np.uint8)
    input = Input(size, kind, resize, crop)
    out = input.resized(image)
    assert out.shape == input.shape == (1 if kind == "gray" else 3, *size) and out.dtype == np.uint8
    assert resize == "pad" or (out == 255).all()  # a white picture stays white; only padding adds zeros
    assert (out == 255).any()
    assert input.apply(image).shape == input.shape


def test_none_wants_the_exact_size():
    assert Input(8, resize="none").resized(picture(0)).shape == (3, 8, 8)
    with pytest.raises(BadInput, match=r"8×9 where.*8×8.*resize = 'squash'"):
        Input(8, resize="none").resized(picture(0, 8, 9))


def test_a_picture_too_thin_to_crop_is_refused():
    with pytest.raises(BadInput, match="too long and thin"):
        Input(8000, resize="crop").resized(np.zeros((1, 40), np.uint8))


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 2), np.uint8), np.zeros((8, 8), np.float32), np.zeros((0, 8), np.uint8), np.uint8(3)]
)
def test_arrays_that_are_no_pictures(image):
    with pytest.raises(BadInput, match="a picture must be uint8"):
        PLAIN.resized(image)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"size": 0}, "size = 0 must be from 1"),
        ({"size": [8, -1]}, r"size = \(8, -1\) must be from 1"),
        ({"size": 10**9}, "16384"),
        ({"size": [1, 2, 3]}, "size"),
        ({"size": "big"}, "size.*'big'"),
        ({}, "size is missing"),
        ({"size": 8, "std": [1, 0, 1]}, "std.*above 0"),
        ({"size": 8, "std": 0}, "std.*above 0"),
        ({"size": 8, "std": [-1]}, "std.*above 0"),
        ({"size": 8, "std": [1, 1]}, "std has 2 values; rgb needs 3"),
        ({"size": 8, "mean": []}, "mean has 0 values"),
        ({"size": 8, "mean": math.nan}, "mean.*finite"),
        ({"size": 8, "channels": "gray", "mean": [1, 2, 3]}, "gray needs 1"),
        ({"size": 8, "scale": 0}, "scale"),
        ({"size": 8, "scale": math.inf}, "scale"),
        ({"size": 8, "crop": 0}, "crop"),
        ({"size": 8, "crop": 1.5}, "crop"),
        ({"size": 8, "resize": "cut"}, "resize.*'squash'"),
        ({"size": 8, "chanels": "rgb"}, "did you mean 'channels'"),
    ],
)
def test_malformed_input_tables(table, message):
    with pytest.raises(BadInput, match=message) as error:
        parse(Input, table, "r.toml: [input]")
    assert "r.toml: [input]" in str(error.value)


# Output


def test_scores_drop_the_offset():
    logits = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(Output(class_offset=1, classes=5).scores(logits), logits[:, 1:])
    assert Output().scores(logits).shape == (2, 6)
    assert Output("segment", class_offset=2).scores(np.zeros((1, 6, 4, 4))).shape == (1, 4, 4, 4)
    assert Output(labels=("a", "b")).classes == 2


@pytest.mark.parametrize("output", [Output(classes=6, class_offset=1), Output(class_offset=6), Output(classes=5)])
def test_scores_of_another_width_are_refused(output):
    with pytest.raises(BadInput, match="class_offset"):
        output.scores(np.zeros((2, 6)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"labels": ["a", "a"]}, "labels must all differ"),
        ({"labels": ["a", "b"], "classes": 3}, "names 2 classes, but classes = 3"),
        ({"classes": 0}, "classes = 0"),
        ({"class_offset": -1}, "class_offset = -1"),
        ({"task": "clasify"}, "task"),
    ],
)
def test_malformed_output_tables(table, message):
    with pytest.raises(BadInput, match=message):
        parse(Output, table, "[output]")


# Batches and samples


def test_batches_keep_order_and_hold_every_sample():
    samples = memory(7)
    got = list(samples.batches(PLAIN, 3, order=[6, 0, 1, 5, 2, 3, 4]))
    assert [indices for _, _, indices in got] == [[6, 0, 1], [5, 2, 3], [4]]
    for x, labels, indices in got:
        assert x.dtype == np.float32 and labels.dtype == np.int64
        assert labels.tolist() == [samples[index].label for index in indices]
        np.testing.assert_array_equal(x, np.stack([picture(i).transpose(2, 0, 1) for i in indices]).astype(np.float32))


def test_batches_read_only_a_little_ahead():
    read: list[int] = []
    image = picture(0)
    samples = Samples(tuple(Sample(f"{i:03}", 0, lambda i=i: read.append(i) or image, "") for i in range(500)))
    batches = samples.batches(PLAIN, 4)
    assert next(batches)[2] == [0, 1, 2, 3]
    del batches
    assert 4 <= len(read) < 50


def test_batches_that_nobody_reads_to_their_end_are_gone_at_once():
    """And not when the garbage collector comes, in whichever thread, to wait there for others."""
    gc.disable()
    try:
        batches = memory(40).batches(PLAIN, 4)
        next(batches)
        left = weakref.ref(batches)
        del batches
        assert left() is None
    finally:
        gc.enable()


def test_closing_waits_for_no_thread():
    release = threading.Event()
    results = in_order(lambda number: release.wait() if number else number, range(9), ahead=4)
    assert next(results) == 0
    closing = threading.Thread(target=results.close)
    closing.start()
    closing.join(10)
    stuck = closing.is_alive()
    release.set()
    assert not stuck


def test_batches_refuse_nonsense():
    with pytest.raises(BadInput, match="batch_size"):
        memory(2).batches(PLAIN, 0)
    for index in (-1, 2):
        with pytest.raises(BadInput, match=f"no sample {index}"):
            memory(2).batches(PLAIN, 1, order=[index])


def test_subset_is_seeded_nested_and_within():
    samples = memory(40)
    small, large = samples.subset(5, seed=1), samples.subset(20, seed=1)
    assert len(small) == 5 and set(small.ids) < set(large.ids) < set(samples.ids)
    assert small == samples.subset(5, seed=1) and small.ids != samples.subset(5, seed=2).ids
    assert list(large.ids) == sorted(large.ids) and samples.subset(100, seed=0).ids == samples.ids
    with pytest.raises(BadInput, match="at least 1"):
        samples.subset(0, seed=0)


def test_samples_hash_covers_ids_contents_and_labels():
    one = Sample("a", 0, lambda: picture(0), "f" * 64)
    hashes = {
        Samples((one,)).sha256,
        Samples((Sample("b", 0, one.read, one.sha256),)).sha256,
        Samples((Sample("a", 1, one.read, one.sha256),)).sha256,
        Samples((Sample("a", 0, one.read, "e" * 64),)).sha256,
        Samples((one, one)).sha256,
    }
    assert len(hashes) == 5


def test_labels_outside_the_classes_are_named():
    check_labels(memory(6), 3)
    with pytest.raises(BadInput, match=r"m/0002: label 2 is outside the 2 classes"):
        check_labels(memory(6), 2)
    with pytest.raises(BadInput, match=r"no label \(-1\)"):
        check_labels(Samples((Sample("a", -1, lambda: picture(0), ""),)), 2)


def test_names_of_another_number_of_classes_are_refused():
    with pytest.raises(BadInput, match=r"names 3 classes and the network has 1000; write \[output\] labels"):
        check_labels(memory(6, classes=("a", "b", "c")), 1000)


# Splits


def test_digits():
    loaded = data.load(["digits"])
    train, calibrate, test = (loaded.role(role) for role in data.ROLES)
    assert len(train) + len(calibrate) + len(test) == 1797
    assert abs(len(test) - 360) < 51  # three standard deviations of 1797 draws at 20 %
    assert not {*train.ids} & {*test.ids} and not {*train.ids} & {*calibrate.ids} and not {*calibrate.ids} & {*test.ids}
    assert loaded.classes == tuple("0123456789") and set(test.labels) == set(range(10))
    whole = data.load(["test=digits"]).role("test")
    assert whole.ids[7] == "digits/0007" and whole.labels[:5].tolist() == [0, 1, 2, 3, 4]
    first = whole[0].read()
    assert first.shape == (8, 8) and first.dtype == np.uint8
    assert first[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16


def test_shares_of_the_split():
    roles = [role_of(hashlib.sha256(b"%d" % index).hexdigest()) for index in range(2000)]
    for role, share in (("train", 0.7), ("calibrate", 0.1), ("test", 0.2)):
        assert abs(roles.count(role) - 2000 * share) < 4 * math.sqrt(2000 * share * (1 - share))
    edges = [f"{n:08x}" for n in (0, 69, 70, 79, 80, 99, 100)]
    assert [role_of(edge)[0] for edge in edges] == ["t", "t", "c", "c", "t", "t", "t"]
    assert [role_of(edge) == "test" for edge in edges] == [False] * 4 + [True] * 2 + [False]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(30)))
def test_the_order_of_the_files_changes_nothing(tmp_path, order):
    for index in range(30):
        if not (tmp_path / f"{index}.png").exists():
            save(tmp_path / f"{index}.png", picture(index))
    rows = [[f"{index}.png", str(index % 3)] for index in range(30)]
    first = data.load([f"csv:{write_csv(tmp_path / 'a.csv', [['file', 'label'], *rows])}"])
    second = data.load([f"csv:{write_csv(tmp_path / 'b.csv', [['file', 'label'], *(rows[i] for i in order)])}"])
    assert set(first.roles) == set(second.roles)
    assert all(first.roles[role].sha256 == second.roles[role].sha256 for role in first.roles)


def test_a_renamed_file_keeps_its_role(tmp_path):
    before = data.load([f"folder:{class_folders(tmp_path / 'a', 40)}"])
    for path in (tmp_path / "a").rglob("*.png"):
        path.rename(path.with_name("z" + path.name))
    after = data.load([f"folder:{tmp_path / 'a'}"])
    for role in data.ROLES:
        assert {s.sha256 for s in before.role(role)} == {s.sha256 for s in after.role(role)}


def test_one_role_from_a_whole_source(tmp_path):
    root = class_folders(tmp_path / "a=b", 12)
    loaded = data.load([f"test=folder:{root}"])
    assert list(loaded.roles) == ["test"] and len(loaded.role("test")) == 12
    assert sum(map(len, data.load([f"folder:{root}"]).roles.values())) == 12  # the = belongs to the path
    with pytest.raises(BadInput, match=r"no samples for 'train'.*gives test \(12\).*--data train=SPEC"):
        loaded.role("train")
    with pytest.raises(BadInput, match="unknown data role 'tset'; did you mean 'test'"):
        loaded.role("tset")


def test_overlap_with_test_is_refused(tmp_path):
    one, two = class_folders(tmp_path / "one", 6), class_folders(tmp_path / "two", 6)
    with pytest.raises(BadInput, match=r"6 samples of train are in test too, such as cat/000.png"):
        data.load([f"train=folder:{one}", f"test=folder:{two}"])
    data.load([f"train=folder:{one}", f"calibrate=folder:{two}"])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["digts"], "unknown data source 'digts'; did you mean 'digits'"),
        (["./photos"], "unknown data source"),
        (["tst=digits"], "unknown data role 'tst'; did you mean 'test'"),
        (["=digits"], "unknown data role ''"),
        (["digits", "test=digits"], "'test' is given already"),
        (["digits:8"], "write digits"),
        (["folder:/no/such"], "no such folder"),
        (["csv:/no/such.csv"], "no such file"),
        (["npz:/no/such.npz"], "no such file"),
        (["folder"], "write folder:PATH"),
        (["csv"], "write csv:PATH"),
        (["npz:"], "write npz:PATH"),
        (["python:only_a_module"], "write python:package.module:factory"),
    ],
)
def test_malformed_specs(specs, message):
    with pytest.raises(BadInput, match=message):
        data.load(specs)


def test_progress_sees_every_file(tmp_path):
    seen = []

    def progress(items, label, total):
        for item in items:
            seen.append((label, total))
            yield item

    spec = f"folder:{class_folders(tmp_path, 5)}"
    data.load([spec], progress=progress)
    assert seen == [(f"reading {spec}", 5)] * 5
