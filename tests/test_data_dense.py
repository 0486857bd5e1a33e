"""masks: and coco:, their truths in the geometry of the input, and how each mistake is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekit import data
from edgekit.data import IGNORE, Input, Samples, Truth, check_labels
from edgekit.errors import BadInput
from tests.test_data import PLAIN, picture, save

WIDE = Input((8, 16), scale=1.0)

# Geometry


def placed(resize: str, height: int, width: int, size: tuple[int, int], crop: float) -> Input:
    return Input((height, width) if resize == "none" else size, "gray", resize, crop, scale=1.0)


@settings(max_examples=200)
@given(
    shape=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    size=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    resize=st.sampled_from(["squash", "crop", "pad", "none"]),
    crop=st.floats(0.3, 1),
)
def test_picture_mask_and_box_go_to_the_same_place(shape, size, corners, resize, crop):
    height, width = shape
    y1, y2 = sorted((int(corners[0] * (height - 1)), int(corners[1] * (height - 1))))
    x1, x2 = sorted((int(corners[2] * (width - 1)), int(corners[3] * (width - 1))))
    image = np.zeros(shape, np.uint8)
    image[y1 : y2 + 1, x1 : x2 + 1] = 200
    input = placed(resize, height, width, size, crop)
    mask = input.resized_mask((image > 0).astype(np.uint8))
    nearest = Input(input.size, "gray", resize, crop, "nearest").resized(image)[0]
    np.testing.assert_array_equal(nearest == 200, mask == 1)
    boxes = input.resized_boxes(np.array([[x1, y1, x2 + 1, y2 + 1, 7]]), height, width)
    rows, columns = np.nonzero(mask == 1)
    if len(rows) == 0:  # the box is cut off, or falls between two pixels of a smaller picture
        assert len(boxes) == 0 or (boxes[0, 2:4] - boxes[0, :2]).min() <= 1
        return
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(boxes[0, :4], seen, atol=1.0)
    assert boxes[0, 4] == 7


def test_padding_is_ignored_and_nothing_else():
    mask = Input((8, 8), resize="pad").resized_mask(np.full((10, 40), 3, np.uint8))  # 2 rows of 8
    assert (mask[3:5] == 3).all() and (mask[:3] == IGNORE).all() and (mask[5:] == IGNORE).all()


def test_classes_are_never_mixed():
    mask = picture(0, 40, 40)[..., 0] // 64 * 64
    for resize in ("squash", "crop", "pad"):
        for size in (13, 64):
            out = Input(size, resize=resize, interpolation="bicubic").resized_mask(mask)
            assert set(np.unique(out)) <= {0, 64, 128, 192}


def test_boxes_in_closed_form():
    box = np.array([[10, 20, 30, 60, 2], [0, 0, 4, 4, ~1]])
    squash = Input((50, 100)).resized_boxes(box, 100, 50)  # halved in height, doubled in width
    assert squash.tolist() == [[20, 10, 60, 30, 2], [0, 0, 8, 2, ~1]]
    pad = Input(50, resize="pad").resized_boxes(box, 100, 50)  # 50×25, 12 columns in front
    assert pad.tolist() == [[17, 10, 27, 30, 2], [12, 0, 14, 2, ~1]]
    crop = Input(40, resize="crop", crop=0.8).resized_boxes(box, 100, 50)  # 100×50 unscaled; 30 rows, 5 columns cut
    assert crop.tolist() == [[5, 0, 25, 30, 2]], "the second is cut off"
    assert Input(8).resized_boxes(np.zeros((0, 5)), 4, 4).shape == (0, 5)


def test_a_mask_must_be_uint8_and_fit():
    for wrong in (np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.int64), np.zeros((0, 8), np.uint8)):
        with pytest.raises(BadInput, match="a mask must be uint8"):
            PLAIN.resized_mask(wrong)
    with pytest.raises(BadInput, match="resize = 'none'"):
        Input(8, resize="none").resized_boxes(np.zeros((1, 5)), 9, 8)


# masks:


def mask_set(root: Path, n: int = 3, first: int = 0) -> Path:
    """Pictures 8×8 whose left half is class 0 and whose right half is their number + 1, cornered by IGNORE."""
    for index in range(first, first + n):
        save(root / "images" / f"{index:03}.png", picture(index))
        mask = np.zeros((8, 8), np.uint8)
        mask[:, 4:], mask[0, 0] = index + 1, IGNORE
        save(root / "masks" / f"{index:03}.png", mask)
    return root


def samples_of(root: Path) -> Samples:
    return data.load([f"test=masks:{root}"]).role("test")


def test_masks_come_with_their_pictures(tmp_path):
    samples = samples_of(mask_set(tmp_path))
    assert samples.task == "segment" and samples.ids[0] == "images/000.png"
    x, masks, indices = next(samples.batches(WIDE, 2, order=[2, 0]))
    assert x.shape == (2, 3, 8, 16) and masks.shape == (2, 8, 16) and masks.dtype == np.int64 and indices == [2, 0]
    assert (masks[0, :, 8:] == 3).all() and (masks[1, 1:, :8] == 0).all() and (masks[:, 0, :2] == IGNORE).all()


def test_palette_masks_are_numbers_not_colours(tmp_path):
    mask_set(tmp_path, 1)
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    for bits in (8, 2):  # Pillow writes few colours with few bits
        image = Image.fromarray(numbers).convert("P")
        image.putdata(numbers.ravel().tolist())
        image.putpalette([200, 0, 0, 0, 200, 0, 9, 9, 9])
        image.save(tmp_path / "masks" / "000.png", bits=bits)
        np.testing.assert_array_equal(samples_of(tmp_path)[0].truth.read(), numbers)


def test_the_hash_covers_picture_and_mask_but_roles_only_the_picture(tmp_path):
    before = samples_of(mask_set(tmp_path))
    save(tmp_path / "masks" / "001.png", np.zeros((8, 8), np.uint8))
    after = samples_of(tmp_path)
    assert before.sha256 != after.sha256 and [s.sha256 for s in before] == [s.sha256 for s in after]
    mask_set(tmp_path / "other", 1)
    save(tmp_path / "other" / "masks" / "000.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(BadInput, match=r"1 samples of train are in test too"):
        data.load([f"test=masks:{tmp_path}", f"train=masks:{tmp_path / 'other'}"])


def test_own_splits(tmp_path):
    mask_set(tmp_path / "train", 40)
    mask_set(tmp_path / "val", 3, first=40)
    loaded = data.load([f"masks:{tmp_path}"])
    assert loaded.role("test").ids == tuple(f"val/images/{i:03}.png" for i in (40, 41, 42))
    assert len(loaded.role("train")) + len(loaded.role("calibrate")) == 40
    mask_set(tmp_path / "test", 2, first=50)
    loaded = data.load([f"masks:{tmp_path}"])
    assert [len(loaded.role(role)) for role in data.ROLES] == [40, 3, 2], "val calibrates where there is a test"
    mask_set(tmp_path, 1, first=60)
    with pytest.raises(BadInput, match="holds both images and train"):
        data.load([f"masks:{tmp_path}"])


def rgb_mask(root: Path) -> None:
    save(root / "masks" / "001.png", picture(1))


def gray_4_bits(root: Path) -> None:
    path = root / "masks" / "001.png"
    content = bytearray(path.read_bytes())
    content[24] = 4  # Pillow would read such numbers times 17
    path.write_bytes(content)


MASK_MISTAKES = {
    "missing": (lambda root: (root / "masks" / "001.png").unlink(), r"masks/001.png: is missing.*images/001.png"),
    "size": (
        lambda root: save(root / "masks" / "001.png", np.zeros((8, 9), np.uint8)),
        r"masks/001.png: is 8×9, its picture .*001.png 8×8",
    ),
    "rgb": (rgb_mask, r"masks/001.png: is a RGB PNG of 8 bits; a mask is 8-bit gray or palette"),
    "16 bits": (
        lambda root: save(root / "masks" / "001.png", np.zeros((8, 8), np.uint16)),
        r"001.png: is a gray PNG of 16 bits",
    ),
    "4 bits": (gray_4_bits, r"masks/001.png: is a gray PNG of 4 bits"),
    "jpeg": (lambda root: (root / "masks" / "001.png").write_bytes(b"\xff\xd8" * 20), r"masks/001.png: is no PNG"),
    "empty": (lambda root: (root / "masks" / "001.png").write_bytes(b""), r"masks/001.png: is no PNG"),
    "picture": (lambda root: (root / "images" / "001.png").write_bytes(b"no"), r"images/001.png: cannot be decoded"),
    "twice": (lambda root: save(root / "images" / "001.jpg", picture(1)), "would have the mask of 001.jpg"),
    "no masks": (lambda root: (root / "masks").rename(root / "labels"), "has no folder 'masks'"),
}


@pytest.mark.parametrize("mistake", MASK_MISTAKES)
def test_masks_mistakes(tmp_path, mistake):
    make, message = MASK_MISTAKES[mistake]
    make(mask_set(tmp_path))
    with pytest.raises(BadInput, match=message):
        data.load([f"test=masks:{tmp_path}"])


def test_masks_folder_mistakes(tmp_path):
    for spec, message in (("masks", "write masks:PATH"), (f"masks:{tmp_path}", "has no folder 'images'")):
        with pytest.raises(BadInput, match=message):
            data.load([spec])
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    with pytest.raises(BadInput, match="holds no pictures"):
        data.load([f"masks:{tmp_path}"])


def test_a_broken_mask_stops_or_is_skipped(tmp_path):
    mask_set(tmp_path)
    path = tmp_path / "masks" / "001.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(BadInput, match=r"masks/001.png: cannot be decoded as a mask"):
        list(samples_of(tmp_path).batches(PLAIN, 2))
    batches = data.load([f"test=masks:{tmp_path}"], on_error="skip").role("test").batches(PLAIN, 2)
    assert [indices for _, _, indices in batches] == [[0, 2]] and batches.skipped == [1]


def test_a_truth_of_another_size_is_never_used():
    truth = Truth("segment", "x.png", lambda: np.zeros((8, 9), np.uint8), "")
    samples = Samples((data.Sample("x", -1, lambda: picture(0), "", truth),))
    with pytest.raises(BadInput, match=r"x.png: is 8×9, its picture 8×8"):
        next(samples.batches(PLAIN, 1))


def test_masks_are_no_labels(tmp_path):
    with pytest.raises(
        BadInput, match=r"images/000.png: the data is for 'segment' and .*'classify'; give --data folder:"
    ):
        check_labels(samples_of(mask_set(tmp_path)), 3)


# coco:


def document() -> dict[str, Any]:
    """Two pictures; the categories 7 (cat, class 1) and 3 (dog, class 0)."""
    sizes = {"height": 8, "width": 8}
    return {
        "images": [{"id": 10, "file_name": "a.png", **sizes}, {"id": 11, "file_name": "b.png", **sizes}],
        "annotations": [
            {"image_id": 10, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"image_id": 10, "category_id": 3, "bbox": [0, 0, 8, 8.5], "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def coco(root: Path, content: Any) -> str:
    save(root / "a.png", picture(0))
    save(root / "images" / "b.png", picture(1))
    path = root / "boxes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return f"test=coco:{path}"


def test_boxes_are_corners_with_classes_in_the_order_of_the_ids(tmp_path):
    loaded = data.load([coco(tmp_path, document())])
    samples = loaded.role("test")
    assert samples.task == "detect" and loaded.classes == ("dog", "cat") and samples.ids == ("a.png", "b.png")
    x, boxes, _ = next(samples.batches(WIDE, 2))
    assert x.shape == (2, 3, 8, 16) and boxes[1].shape == (0, 5)
    assert boxes[0].tolist() == [[2, 2, 8, 6, 1], [0, 0, 16, 8, ~0]], "the crowd's half pixel too many is cut off"


def test_labels_renumber_boxes_and_crowds(tmp_path):
    spec = coco(tmp_path, document())
    plain, renumbered = data.load([spec]).role("test"), data.load([spec], labels=("cat", "fox", "dog")).role("test")
    assert renumbered[0].truth.read()[:, 4].tolist() == [0, ~2] and plain[0].truth.read()[:, 4].tolist() == [1, ~0]
    assert renumbered.sha256 != plain.sha256


def changed(path: str, value: Any) -> dict[str, Any]:
    """The document with another value at a path such as images.0.id."""
    whole = entry = document()
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parents:
        entry = entry[part]
    entry[last] = value
    return whole


NO_BOX = r"annotations\[0\]: bbox"
COCO_MISTAKES = [
    ("{", "boxes.json: is no readable JSON"),
    ("[" * 100_000, "is no readable JSON"),
    ("[]", "has no list 'images'"),
    (changed("annotations", {}), "has no list 'annotations'"),
    (changed("categories", []), "categories is empty"),
    (changed("images.0", 5), r"images\[0\] must be an object"),
    (changed("images.1.id", 10), r"images\[1\]: the id 10 or the file 'b.png' stands above"),
    (changed("images.1.file_name", "a.png"), r"images\[1\]: .*'a.png' stands above"),
    (changed("images.0.id", True), r"images\[0\]: id must be a whole number; it is True"),
    (changed("images.0.width", 0), r"images\[0\]: 8×0 is no size"),
    (changed("images.0.width", 10**9), r"images\[0\]: .* is no size"),
    (changed("images.0.width", 9), r"images\[0\]: says 8×9; .*a.png is 8×8"),
    (changed("images.0.file_name", None), r"images\[0\]: file_name must be text"),
    (changed("images.0.file_name", "c.png"), r"images\[0\]: there is no file 'c.png'"),
    (changed("images.0.file_name", "../a.png"), r"images\[0\]: .* leads out of the folder"),
    (changed("images.0.file_name", "/a.png"), r"images\[0\]: .* leads out of the folder"),
    (changed("annotations.0.image_id", 9), r"annotations\[0\]: there is no image with id 9"),
    (changed("annotations.0.category_id", 0), r"annotations\[0\]: there is no category with id 0; known: 3, 7"),
    (changed("annotations.1.iscrowd", 2), r"annotations\[1\]: iscrowd must be 0 or 1"),
    (changed("categories.1.name", "cat"), r"categories\[1\]: .*'cat' stands above"),
    (changed("annotations.0.bbox", None), NO_BOX + " must be four finite numbers"),
    (changed("annotations.0.bbox", [1, 2, 3]), NO_BOX + " must be four finite numbers"),
    (changed("annotations.0.bbox", [1, 2, 3, float("nan")]), NO_BOX + " must be four finite numbers"),
    (changed("annotations.0.bbox", [1, 2, 3, 10**400]), NO_BOX + " must be four finite numbers"),
    (changed("annotations.0.bbox", [1, 2, 0, 4]), NO_BOX + ".* has no area"),
    (changed("annotations.0.bbox", [1, 2, 3, -4]), NO_BOX + ".* has no area"),
    (changed("annotations.0.bbox", [6, 2, 4, 4]), NO_BOX + ".* lies outside its picture of 8×8"),
    (changed("annotations.0.bbox", [8, 2, 0.5, 4]), NO_BOX + ".* lies outside"),
    (changed("annotations.0.bbox", [-2, 2, 4, 4]), NO_BOX + ".* lies outside"),
]


@pytest.mark.parametrize(("content", "message"), COCO_MISTAKES)
def test_coco_mistakes(tmp_path, content, message):
    with pytest.raises(BadInput, match=message):
        data.load([coco(tmp_path, content)])


def test_coco_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("edgekit.data.boxes.LARGEST_JSON_BYTES", 100)
    with pytest.raises(BadInput, match="limit is 1 GiB"):
        data.load([coco(tmp_path, document())])
    with pytest.raises(BadInput, match="write coco:PATH"):
        data.load(["coco:"])


def test_a_picture_with_a_wrong_box_can_be_skipped(tmp_path):
    loaded = data.load([coco(tmp_path, changed("annotations.0.bbox", [1, 2, 0, 4]))], on_error="skip")
    assert loaded.role("test").ids == ("b.png",) and "has no area" in loaded.skipped[0]
