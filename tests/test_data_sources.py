"""The sources of edgekit.data: folders, CSV, .npz and the user's own code, and how each is refused."""

import collections
import hashlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit import data
from edgekit.data import Input, check_labels, decode
from edgekit.errors import BadInput
from tests.test_data import PLAIN, class_folders, picture, save, write_csv

NIPS17 = Path(__file__).parents[2] / "shared/data/nips17/labels.csv"


# folder:


def test_folder_names_classes_and_nests(tmp_path):
    class_folders(tmp_path, 4)
    save(tmp_path / "cat" / "deep" / "er" / "x.JPG", picture(9))
    for ignored in ("cat/notes.txt", ".DS_Store", "dog/._000.png", ".git/a.png"):
        (tmp_path / ignored).parent.mkdir(exist_ok=True)
        (tmp_path / ignored).write_bytes(b"no picture")
    loaded = data.load([f"test=folder:{tmp_path}"])
    samples = loaded.role("test")
    assert loaded.classes == samples.classes == ("cat", "dog")
    assert samples.ids == ("cat/000.png", "cat/002.png", "cat/deep/er/x.JPG", "dog/001.png", "dog/003.png")
    assert samples.labels.tolist() == [0, 0, 0, 1, 1]
    assert samples[0].sha256 == hashlib.sha256((tmp_path / "cat/000.png").read_bytes()).hexdigest()
    np.testing.assert_array_equal(samples[3].read(), picture(1))


def test_labels_order_the_classes(tmp_path):
    spec = f"test=folder:{class_folders(tmp_path, 4)}"
    labels = ("fox", "dog", "cat")
    samples = data.load([spec], labels=labels).role("test")
    assert [labels[sample.label] for sample in samples] == ["cat", "cat", "dog", "dog"] and samples.classes == labels
    with pytest.raises(BadInput, match=r"class 'cat' of the data is not in \[output\] labels: dog, fox"):
        data.load([spec], labels=("dog", "fox"))


def test_numbered_classes_take_any_names():
    labels = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    samples = data.load(["test=digits"], labels=labels).role("test")
    assert samples.labels[:3].tolist() == [0, 1, 2] and samples.classes == labels


def test_classes_agree_between_roles(tmp_path):
    train = class_folders(tmp_path / "a", 6, ("ant", "bee", "cat"))
    test = tmp_path / "b"
    save(test / "cat" / "0.png", picture(100))
    loaded = data.load([f"test=folder:{test}", f"train=folder:{train}"])
    assert loaded.role("test").labels.tolist() == [2] and loaded.role("test").classes == ("ant", "bee", "cat")
    save(test / "dog" / "0.png", picture(101))
    with pytest.raises(BadInput, match="class 'dog' of the data is not in another --data"):
        data.load([f"test=folder:{test}", f"train=folder:{train}"])


def test_folder_mistakes(tmp_path):
    with pytest.raises(BadInput, match="holds no class folders"):
        data.load([f"folder:{tmp_path}"])
    class_folders(tmp_path / "a")
    (tmp_path / "a" / "eel").mkdir()
    with pytest.raises(BadInput, match="eel: holds no pictures"):
        data.load([f"folder:{tmp_path / 'a'}"])
    save(tmp_path / "b" / "x.png", picture(0))
    with pytest.raises(BadInput, match=r"x.png: lies outside every class"):
        data.load([f"folder:{tmp_path / 'b'}"])
    class_folders(tmp_path / "c", names=("train", "val"))
    with pytest.raises(BadInput, match=r"look like roles.*train=folder:"):
        data.load([f"folder:{tmp_path / 'c'}"])


def test_classes_that_are_numbers_agree_by_name(tmp_path):
    class_folders(tmp_path / "a", 3, ("0", "1", "2"))
    for index, name in enumerate(("0", "1", "10", "2")):  # the order of the names as text
        save(tmp_path / "b" / name / "0.png", picture(100 + index))
    loaded = data.load([f"test=folder:{tmp_path / 'a'}", f"train=folder:{tmp_path / 'b'}"])
    assert loaded.role("test").labels.tolist() == [0, 1, 3] and loaded.classes == ("0", "1", "10", "2")
    class_folders(tmp_path / "c", 4, ("ant", "bee", "cat", "dog"))
    with pytest.raises(BadInput, match="class '0' of the data is not in another --data"):
        data.load([f"test=folder:{tmp_path / 'a'}", f"train=folder:{tmp_path / 'c'}"])
    with pytest.raises(BadInput, match="class '0' of the data is not in"):
        data.load([f"folder:{tmp_path / 'b'}"], labels=("zero", "one", "two", "ten"))


# Decoding


def broken_folder(root: Path) -> Path:
    class_folders(root, 6)
    whole = (root / "cat" / "000.png").read_bytes()
    (root / "cat" / "002.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "003.png").write_bytes(b"not a picture")
    return root


def test_an_undecodable_picture_is_named(tmp_path):
    samples = data.load([f"test=folder:{broken_folder(tmp_path)}"]).role("test")
    with pytest.raises(BadInput, match=r"cat/002.png: cannot be decoded"):
        list(samples.batches(PLAIN, 4))
    with pytest.raises(BadInput, match=r"dog/003.png: cannot be decoded"):
        list(samples.batches(PLAIN, 4, order=[4]))


def test_skip_counts_what_it_leaves_out(tmp_path):
    samples = data.load([f"test=folder:{broken_folder(tmp_path)}"], on_error="skip").role("test")
    batches = samples.batches(PLAIN, 3)
    assert [indices for _, _, indices in batches] == [[0, 2, 3], [5]]
    assert batches.skipped == [1, 4]
    with pytest.raises(BadInput, match="cannot be decoded"):
        list(samples.batches(PLAIN, 3, on_error="stop"))


def test_skip_never_hides_a_wrong_recipe(tmp_path):
    samples = data.load([f"test=folder:{class_folders(tmp_path)}"], on_error="skip").role("test")
    with pytest.raises(BadInput, match=r"cat/000.png: .*8×8 where"):
        list(samples.batches(Input(9, resize="none"), 3))


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("L", ()), ("1", ()), ("RGB", (3,)), ("RGBA", (4,)), ("LA", (4,)), ("P", (3,)), ("CMYK", (3,)), ("I;16", ())],
)
def test_every_mode_decodes(tmp_path, mode, shape):
    colour = Image.fromarray(picture(0, 5, 7))
    if mode == "I;16":
        image = Image.fromarray(np.full((5, 7), 0x12FF, np.uint16))
    else:
        image = colour.convert("L").convert(mode) if mode == "LA" else colour.convert(mode)
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    image.save(path)
    array = decode(path)
    assert array.shape == (5, 7, *shape) and array.dtype == np.uint8
    assert Input(8).resized(array).shape == (3, 8, 8)
    if mode == "I;16":
        assert (array == 0x12).all()
    if mode == "RGB":
        np.testing.assert_array_equal(array, picture(0, 5, 7))


def test_pictures_of_unknown_range_and_other_formats_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadInput, match=r"x.tif: .*mode F"):
        decode(tmp_path / "x.tif")
    Image.fromarray(picture(0)).save(tmp_path / "y.png", format="GIF")
    with pytest.raises(BadInput, match=r"y.png: cannot be decoded"):
        decode(tmp_path / "y.png")


# csv:


def test_csv_with_names_extra_columns_and_an_images_folder(tmp_path):
    save(tmp_path / "a.png", picture(0))
    save(tmp_path / "images" / "b.png", picture(1))
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufefffile,note,label\na.png,x,dog\nb.png,y, cat \n".encode())
    loaded = data.load([f"test=csv:{path}"])
    assert loaded.classes == ("cat", "dog")
    assert [(s.id, s.label) for s in loaded.role("test")] == [("a.png", 1), ("b.png", 0)]
    np.testing.assert_array_equal(loaded.role("test")[1].read(), picture(1))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "class"], ["a.png", "0"]], "no column 'label'.*'class'"),
        ([["path", "label"], ["a.png", "0"]], "no column 'file'"),
        ([], "no column 'file'; its columns are none"),
        ([["file", "label"]], "holds no samples"),
        ([["file", "label"], ["a.png", "0"], ["b.png", "1"]], "line 3: there is no file 'b.png'"),
        ([["file", "label"], ["x" * 5000, "0"]], "line 2: there is no file"),
        ([["file", "label"], ["a.png"]], "line 2 lacks its label"),
        ([["file", "label"], ["", "1"]], "line 2 lacks its file"),
        ([["file", "label"], ["a.png", "0"], ["a.png", "1"]], "line 3: a.png stands on line 2 already"),
        ([["file", "label"], ["a.png", "0"], ["b.png", "o"]], "line 3: label 'o' is no whole number"),
        ([["file", "label"], ["a.png", "3.0"]], "line 2: label '3.0' is no whole number"),
    ],
)
def test_csv_mistakes_are_named_with_their_line(tmp_path, rows, message):
    save(tmp_path / "a.png", picture(0))
    with pytest.raises(BadInput, match=message) as error:
        data.load([f"csv:{write_csv(tmp_path / 'labels.csv', rows)}"])
    assert "labels.csv" in str(error.value)


def test_csv_that_is_no_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,0\n")
    with pytest.raises(BadInput, match="cannot be read as a CSV file"):
        data.load([f"csv:{tmp_path / 'labels.csv'}"])


def test_csv_skip_lists_the_missing_files(tmp_path):
    save(tmp_path / "a.png", picture(0))
    path = write_csv(tmp_path / "labels.csv", [["file", "label"], ["a.png", "0"], ["b.png", "1"]])
    loaded = data.load([f"test=csv:{path}"], on_error="skip")
    assert loaded.role("test").ids == ("a.png",)
    assert len(loaded.skipped) == 1 and "line 3" in loaded.skipped[0]


def test_csv_label_outside_the_classes(tmp_path):
    save(tmp_path / "a.png", picture(0))
    path = write_csv(tmp_path / "labels.csv", [["file", "label"], ["a.png", "1000"]])
    with pytest.raises(BadInput, match=r"a.png: label 1000 is outside the 1000 classes"):
        check_labels(data.load([f"test=csv:{path}"]).role("test"), 1000)


@pytest.mark.skipif(not NIPS17.is_file(), reason="needs ../shared/data/nips17, which is not in the repository")
def test_nips17():
    samples = data.load([f"test=csv:{NIPS17}"]).role("test")
    check_labels(samples, 1000)
    assert len(samples) == 1000 and len(set(samples.labels.tolist())) == 430
    x, labels, _ = next(samples.batches(Input(224, scale=1 / 127.5, mean=(1.0,)), 8))
    assert x.shape == (8, 3, 224, 224) and -1 <= x.min() < -0.5 and 0.5 < x.max() <= 1 and len(labels) == 8


# npz:


def write_npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_npz_whole_and_with_its_own_splits(tmp_path):
    x = np.stack([picture(index) for index in range(500)])
    y = (np.arange(500) % 5).astype(np.uint8)
    whole = data.load([write_npz(tmp_path / "a.npz", x=x, y=y, other=np.array([{}], dtype=object))])
    assert sum(map(len, whole.roles.values())) == 500
    split = data.load([write_npz(tmp_path / "b.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:], y_test=y[400:])])
    train, calibrate, test = (split.role(role) for role in data.ROLES)
    assert len(test) == 100 and len(train) + len(calibrate) == 400 and not {*train.ids} & {*calibrate.ids}
    assert abs(len(calibrate) - 50) < 4 * np.sqrt(400 * 1 / 8 * 7 / 8)
    assert test.ids[0] == "b_test/0000" and test.labels[:6].tolist() == [0, 1, 2, 3, 4, 0]
    np.testing.assert_array_equal(test[3].read(), x[403])
    only = data.load([f"test=npz:{tmp_path / 'b.npz'}"])
    assert list(only.roles) == ["test"] and only.role("test").ids == test.ids


def test_npz_of_gray_pictures(tmp_path):
    spec = write_npz(tmp_path / "a.npz", x=np.zeros((2, 8, 8), np.uint8), y=np.arange(2))
    assert next(data.load([f"test={spec}"]).role("test").batches(PLAIN, 2))[0].shape == (2, 3, 8, 8)


X, Y = np.zeros((3, 8, 8, 3), np.uint8), np.zeros(3, np.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "no array 'y'; it has x"),
        ({"y": Y}, "no array 'x'; it has y"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "no array 'y_test'"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y}, "both x and x_test"),
        ({"x": np.array([X, None], object), "y": Y}, "x holds pickled objects"),
        ({"x": X, "y": np.array(["a", None, 3], object)}, "y holds pickled objects"),
        ({"x": X.astype(np.float32), "y": Y}, "x must be uint8 .*float32"),
        ({"x": X.transpose(0, 3, 1, 2), "y": Y}, r"x must be uint8 .*\(3, 3, 8, 8\)"),
        ({"x": X, "y": Y.astype(float)}, "y must be whole numbers .*float64"),
        ({"x": X, "y": Y[:, None]}, r"y must be whole numbers .*\(3, 1\)"),
        ({"x": X, "y": Y[:2]}, "x has 3 pictures and y 2 labels"),
        ({"x": X[:0], "y": Y[:0]}, "holds no samples"),
    ],
)
def test_npz_mistakes(tmp_path, arrays, message):
    with pytest.raises(BadInput, match=message):
        data.load([write_npz(tmp_path / "a.npz", **arrays)])


def header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_npz_that_claims_more_than_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header((10**9, 64, 64)))
        archive.writestr("y.npy", header((10**9,)))
    with pytest.raises(BadInput, match=r"x.npy claims 4096000000000 bytes and holds 0"):
        data.load([f"npz:{tmp_path / 'a.npz'}"])


def test_npz_with_headers_of_version_2(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, array in (("x.npy", X), ("y.npy", Y)):
            with archive.open(name, "w") as file:
                np.lib.format.write_array(file, array, version=(2, 0))
    assert len(data.load([f"test=npz:{tmp_path / 'a.npz'}"]).role("test")) == 3


def test_npz_whose_arrays_are_none(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"no array at all")
    with pytest.raises(BadInput, match=r"is no readable .npz file"):
        data.load([f"npz:{tmp_path / 'a.npz'}"])


def test_npz_beyond_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.data.arrays.LARGEST_NPZ_BYTES", 100)
    with pytest.raises(BadInput, match="limit is 16 GiB"):
        data.load([write_npz(tmp_path / "a.npz", x=X, y=Y)])


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_npz_that_is_none(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(BadInput, match=r"a.npz"):
        data.load([f"npz:{tmp_path / 'a.npz'}"])


def test_npz_cut_short(tmp_path):
    spec = write_npz(tmp_path / "a.npz", x=X, y=Y)
    whole = (tmp_path / "a.npz").read_bytes()
    for keep in range(0, len(whole), 97):
        (tmp_path / "a.npz").write_bytes(whole[:keep])
        with pytest.raises(BadInput):
            data.load([spec])


# python:

PYTHON = """
import numpy as np
pictures = [(np.full((4, 4, 3), i, np.uint8), np.int64(i % 2)) for i in range(30)]
class Lazy:
    def __len__(self): return 4
    def __getitem__(self, index): return (np.full((4, 4), index, np.uint8), index)
def whole(): return pictures
def lazy(): return {"test": Lazy(), "train": pictures[20:]}
def tested(): return {"test": pictures}
def role(): return {"tset": pictures}
def number(): return 3
def floats(): return [(np.zeros((4, 4)), 0)]
def words(): return [(np.zeros((4, 4), np.uint8), "cat")]
def huge(): return [(np.zeros((4, 4), np.uint8), 2**64)]
def alone(): return [np.zeros((4, 4), np.uint8)]
def nothing(): return {}
def raises(): raise RuntimeError("no such luck")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    name = f"user_data_{os.getpid()}_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(PYTHON)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_python_sources(module):
    whole = data.load([f"test=python:{module}:whole"]).role("test")
    assert whole.ids[12] == "whole/0012" and collections.Counter(whole.labels.tolist()) == {0: 15, 1: 15}
    assert (whole[12].read() == 12).all()
    loaded = data.load([f"python:{module}:lazy"])
    assert loaded.role("test").ids == tuple(f"test/{i:04}" for i in range(4))
    x, labels, _ = next(loaded.role("test").batches(Input(2, "gray", scale=1.0), 4))
    np.testing.assert_array_equal(x[:, 0, 0, 0], labels)
    with pytest.raises(BadInput, match="has splits of its own, test, and no 'calibrate'"):
        data.load([f"calibrate=python:{module}:tested"])


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("role", "unknown data role 'tset'; did you mean 'test'"),
        ("number", "returned int; a sequence"),
        ("floats", "floats/0000: .*must be uint8.*float64"),
        ("words", r"words/0000: is no \(picture, whole number\)"),
        ("huge", "huge/0000: is no"),
        ("alone", "alone/0000: is no"),
        ("nothing", "holds no samples"),
        ("raises", "RuntimeError: no such luck"),
        ("missing", "AttributeError"),
    ],
)
def test_python_mistakes(module, factory, message):
    with pytest.raises(BadInput, match=message):
        data.load([f"python:{module}:{factory}"])


def test_python_module_that_is_not_there():
    with pytest.raises(BadInput, match=r"python:no_such_module:make: .*ModuleNotFoundError"):
        data.load(["python:no_such_module:make"])
