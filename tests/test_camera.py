"""Camera-ready files: the answers of the plain file from pixels, and classes instead of scores."""

import dataclasses
import json
import shutil

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import edgekit
from edgekit.bisect import bisect
from edgekit.data import Input, Output
from edgekit.deploy import evaluate_file, export_file, profile_paths
from edgekit.engines import engine
from edgekit.errors import BadInput, ParityError
from edgekit.evaluate import classify_hits, evaluate
from edgekit.metrics.classify import chosen_hits
from edgekit.onnx_file import read, read_io
from edgekit.parity import agreement, sqnr_db
from edgekit.profile import Plan
from edgekit.recipe import from_tables
from edgekit.rewrites import Fp16
from edgekit.rewrites.camera import camera_ready
from edgekit.shipping import ship
from edgekit.targets import target
from edgekit.verify import verify
from tests.onnx_models import array, graph, ints, one, run, scalar
from tests.test_export import context
from tests.test_metrics import with_masks

TARGET = target("onnxruntime")
IMAGENET = Input(8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CAMERA = dataclasses.replace(IMAGENET, form="uint8_nhwc")
PLAIN = Output(classes=6)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)


def conv(*weight: int, **attributes) -> onnx.ModelProto:
    return one("Conv", array(*weight), array(weight[0]), shape=(3, 8, 8), name="conv", **attributes)


def padded(value: np.ndarray | None, **attributes) -> onnx.ModelProto:
    """A Pad node of its own in front of a convolution with stride, as TensorFlow's networks have it."""
    pad = helper.make_node("Pad", ["x", "pads", "value"] if value is not None else ["x", "pads"], ["p"], **attributes)
    layer = helper.make_node("Conv", ["p", "w", "b"], ["y"], strides=[2, 2], name="conv")
    constants = {"pads": ints(0, 0, 0, 0, 0, 0, 1, 1), "w": array(6, 3, 3, 3), "b": array(6)}
    return graph([pad, layer], (3, 8, 8), constants | ({"value": value} if value is not None else {}))


def tied() -> onnx.ModelProto:
    """One weight for two convolutions, the second of which reads something else than the picture."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Conv", ["a", "w"], ["y"])]
    return graph(nodes, (3, 8, 8), {"w": array(3, 3, 1, 1)})


def branches() -> onnx.ModelProto:
    """Two convolutions read the picture, and something its shape."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Reshape", ["c", "s"], ["y"]),
    ]
    return graph(nodes, (3, 8, 8), {"w": array(3, 3, 3, 3), "v": array(3, 3, 1, 1)})


FOLDED = {
    "no padding": lambda: conv(6, 3, 3, 3),
    "padding": lambda: conv(6, 3, 3, 3, pads=[1, 1, 1, 1]),
    "stride": lambda: conv(6, 3, 3, 3, pads=[0, 0, 1, 1], strides=[2, 2]),
    "depthwise": lambda: conv(6, 1, 3, 3, pads=[1, 1, 1, 1], group=3),
    "zeros around": lambda: padded(scalar(0.0)),
    "reflection around": lambda: padded(None, mode="reflect"),
    "two branches": branches,
}
MULTIPLIED = {
    "sevens around": lambda: padded(scalar(7.0)),
    "shared weight": tied,
    "no convolution": lambda: one("Relu", shape=(3, 8, 8)),
    "picture passes by": lambda: graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Concat", ["a", "x"], ["y"], axis=1),
        ],
        (3, 8, 8),
        {"w": array(4, 3, 3, 3)},
    ),
}


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("name", [*FOLDED, *MULTIPLIED])
def test_pixels_give_the_answers_of_the_normalised_picture(name):
    model = (FOLDED | MULTIPLIED)[name]()
    before = model.SerializeToString()
    made = camera_ready(model, TARGET, CAMERA, PLAIN)
    expected = run(model, IMAGENET.normalised(PIXELS))
    assert sqnr_db(expected, run(made, CAMERA.normalised(PIXELS))) > 110
    assert kinds(made)[:3] == ["Cast", "Transpose", "Sub"] and ("Mul" in kinds(made)) == (name in MULTIPLIED)
    assert model.SerializeToString() == before, "the model that was given stays as it was"


def test_the_weight_is_the_closed_form():
    """One pixel, one channel: w (p · scale − mean) / std = (w · scale / std) (p − mean / scale)."""
    model = one("Conv", np.full((1, 1, 1, 1), 3.0, np.float32), shape=(1, 1, 1), name="conv")
    gray = Input(1, "gray", scale=0.5, mean=(2.0,), std=(4.0,), form="uint8_nhwc")
    made = camera_ready(model, TARGET, gray, PLAIN)
    values = {init.name: numpy_helper.to_array(init) for init in made.graph.initializer}
    assert values["c1"].item() == 3.0 * 0.5 / 4.0 and values["x.Sub.0"].item() == 4.0
    assert run(made, np.full((1, 1, 1, 1), 20, np.uint8)).item() == 3.0 * (20 * 0.5 - 2) / 4


def test_gray_pictures_and_no_mean():
    gray = Input(8, "gray")
    model = one("Conv", array(2, 1, 3, 3), shape=(1, 8, 8), name="conv", pads=[1, 1, 1, 1])
    camera = dataclasses.replace(gray, form="uint8_nhwc")
    made = camera_ready(model, TARGET, camera, PLAIN)
    assert kinds(made) == ["Cast", "Transpose", "Conv"]
    assert made.graph.input[0].type.tensor_type.shape.dim[3].dim_value == 1
    assert sqnr_db(run(model, gray.normalised(PIXELS[:, :1])), run(made, camera.normalised(PIXELS[:, :1]))) > 110


def test_half_precision_keeps_its_weights():
    """W · scale / std would be among the numbers that float16 has few digits for."""
    model = conv(6, 3, 3, 3, pads=[1, 1, 1, 1])
    half = Fp16()(model, context())
    made = camera_ready(half, TARGET, CAMERA, PLAIN)
    assert kinds(made)[:5] == ["Cast", "Transpose", "Sub", "Mul", "Cast"]
    assert sqnr_db(run(half, IMAGENET.normalised(PIXELS)), run(made, CAMERA.normalised(PIXELS))) > 60


# Classes


def classifier(classes: int = 6) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="conv"), helper.make_node("Flatten", ["a"], ["y"])]
    return graph(nodes, (3, 8, 8), {"w": array(classes, 3, 8, 8)}, result=["n", classes])


@pytest.mark.parametrize("offset", [0, 2])
def test_argmax_and_topk_are_those_of_numpy(offset):
    model, x = classifier(), IMAGENET.normalised(PIXELS)
    scores = run(model, x)[:, offset:]
    output = Output(class_offset=offset)
    classes = camera_ready(model, TARGET, IMAGENET, dataclasses.replace(output, form="argmax"))
    found = run(classes, x)
    assert found.dtype == np.int64 and np.array_equal(found, scores.argmax(axis=1))
    best = camera_ready(model, TARGET, IMAGENET, dataclasses.replace(output, form="topk", k=3))
    indices, values = engine("onnxruntime").load(best.SerializeToString()).raw.run(None, {"x": x})
    assert [value.name for value in best.graph.output] == ["y.classes", "y.scores"]
    assert np.array_equal(indices, np.argsort(-scores, axis=1)[:, :3])
    assert np.array_equal(values, np.take_along_axis(scores, indices, axis=1))
    for made in (classes, best):
        onnx.checker.check_model(made, full_check=True)
        written = json.loads(next(prop.value for prop in made.metadata_props if prop.key == "edgekit.output"))
        assert written["classes"] == 6 - offset and written["class_offset"] == 0


@pytest.mark.parametrize(("k", "metrics"), [(5, {"top1", "top5"}), (7, {"top1", "top5"}), (3, {"top1"})])
def test_the_best_classes_are_scored_as_their_scores(k, metrics):
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(40, 9)), rng.integers(0, 9, 40)
    expected = classify_hits(scores, labels)
    found = chosen_hits(np.argsort(-scores, axis=1)[:, :k], labels)
    assert found.keys() == metrics and all(np.array_equal(found[name], expected[name]) for name in metrics)
    assert 0 < found["top1"].mean() < 1


def test_masks_are_scored_as_their_scores():
    model = graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], (3, 4, 4), {"w": array(4, 3, 1, 1)}, result=["n", 4, 4, 4]
    )
    plain = Output("segment", classes=3, class_offset=1)
    made = camera_ready(model, TARGET, IMAGENET, dataclasses.replace(plain, form="argmax"))
    asked = dataclasses.replace(plain, form="argmax", class_offset=0)
    samples = with_masks(*np.random.default_rng(1).choice([0, 1, 2, 255], (3, 4, 4)))
    noise, input = array(3, 3, 4, 4), Input(4)
    scored, chosen = (
        evaluate(lambda _x, one=one: run(one, noise), samples, input, output)
        for one, output in ((model, plain), (made, asked))
    )
    assert scored == chosen and 0 < scored.metrics["miou"] < 100
    with pytest.raises(BadInput, match=r"write \[output\] classes"):
        evaluate(lambda _x: run(made, noise), samples, input, Output("segment", form="argmax"))


def test_agreement_is_of_first_choices():
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 75.0
    assert agreement(np.array([[1, 2], [3, 4]]), np.array([[1, 9], [4, 3]])) == 50.0
    assert agreement(np.zeros((2, 2, 2), int), np.ones((2, 2, 2), int)) == 0.0
    with pytest.raises(ParityError, match="shapes differ"):
        agreement(np.zeros(2), np.zeros(3))


# A whole run


@pytest.fixture(scope="module")
def camera_bundle(workspace, data):
    """What the fixture `bundle` is, with camera-ready files. Tests must not change it."""
    asked = ["export.input=uint8_nhwc", "export.output=argmax"]
    recipe = str(workspace / "recipe.toml")
    return edgekit.compress("tests.nets:tiny", recipe, data, workspace / "camera", runs=8, overrides=asked)


def test_the_rows_are_of_the_files_that_ship(bundle, camera_bundle):
    rows = {row["file"]: row for row in camera_bundle.manifest["steps"]}
    plain = {row["file"]: row for row in bundle.manifest["steps"]}
    assert [row["stage"] for row in rows.values()] == ["base", "prune", "distil", "export", "int8"]
    for precision, needed in (("fp32", 100), ("int8", 25)):
        name = f"model.onnxruntime.{precision}.onnx"
        assert rows[name]["camera_db"] > needed and rows[name]["correct"] == plain[name]["correct"]
        assert rows[name]["size_bytes"] == (camera_bundle.path / name).stat().st_size != plain[name]["size_bytes"]
        assert rows[name].get("int8_convs") == plain[name].get("int8_convs")
    assert rows[name]["parity_db"] == plain[name]["parity_db"]
    assert {row["file"] for row in camera_bundle.latest("profile")["rows"]} >= {path.name for path in bundle.models}


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_file_alone_is_scored_profiled_and_verified(bundle, camera_bundle, images, data, precision):
    path = camera_bundle.model("onnxruntime", precision)
    input, output = read_io(path)
    assert (input.form, output.form, output.classes) == ("uint8_nhwc", "argmax", 4)
    pixels = next(images.role("test").batches(input, 32))[0]
    assert pixels.dtype == np.uint8 and pixels.shape[1:] == (16, 16, 3)
    scores = (
        engine("onnxruntime")
        .load(bundle.model("onnxruntime", precision))
        .run(next(images.role("test").batches(read_io(bundle.base)[0], 32))[0])
    )
    classes = engine("onnxruntime").load(path).run(pixels)
    assert np.array_equal(classes, scores.argmax(axis=1))
    (row,) = (row for row in camera_bundle.manifest["steps"] if row["file"] == path.name)
    found = evaluate_file(path, [data], None, None)["metrics"]
    assert found == row["metrics"] and found.keys() == {"top1"}
    assert profile_paths([path], Plan(runs=8))["rows"][0]["latency_ms"]["median"] > 0
    assert verify(path)["rows"][0]["same_percent"] == 100


def test_a_bundle_verifies_and_names_other_classes(camera_bundle, tmp_path):
    assert {row["same_percent"] for row in verify(camera_bundle.path)["rows"]} == {100.0}
    from safetensors.numpy import load_file, save_file

    copy = shutil.copytree(camera_bundle.path, tmp_path / "copy")
    golden = load_file(copy / "golden.safetensors")
    assert golden["input"].dtype == np.uint8 and golden["model.onnxruntime.int8.onnx"].dtype == np.int64
    golden["model.onnxruntime.int8.onnx"] = (golden["model.onnxruntime.int8.onnx"] + 1) % 4
    save_file(golden, copy / "golden.safetensors")
    manifest = json.loads((copy / "manifest.json").read_text())
    from edgekit.files import file_sha256

    manifest["files"]["golden.safetensors"]["sha256"] = file_sha256(copy / "golden.safetensors")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ParityError, match=r"int8.onnx 0.0 % same classes, needs 87.5"):
        verify(copy)


def test_a_bundle_makes_camera_ready_files_for_other_targets(camera_bundle, data, tmp_path):
    out = tmp_path / "m.onnx"
    export_file(camera_bundle.path, "onnxruntime-vnni", "int8", out, [data], None, trust=True)
    assert [item.form for item in read_io(out)] == ["uint8_nhwc", "argmax"]
    assert evaluate_file(out, [data], None, None)["metrics"].keys() == {"top1"}


def test_openvino_takes_pixels(camera_bundle, images):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    path = camera_bundle.model("onnxruntime", "int8")
    pixels = next(images.role("test").batches(read_io(path)[0], 32))[0]
    session = engine("openvino").load(path)
    assert (session.dtype, session.shape) == (np.uint8, (16, 16, 3))
    assert agreement(engine("onnxruntime").load(path).run(pixels), session.run(pixels)) >= 90


def test_tensorrt_builds_them():
    rtx = engine("tensorrt-rtx")
    if rtx.not_installed():
        pytest.skip("the extra tensorrt-rtx is not installed")
    for model in (FOLDED["padding"](), MULTIPLIED["no convolution"]()):
        assert rtx.build(camera_ready(model, TARGET, CAMERA, PLAIN).SerializeToString())
    assert rtx.build(camera_ready(classifier(), TARGET, CAMERA, Output(form="topk", k=3)).SerializeToString())


# What cannot be


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"input": "uint8"}, "'float_nchw' or 'uint8_nhwc'"),
        ({"output": "top5"}, "'scores', 'argmax' or 'topk'"),
        ({"output": "topk", "k": 0}, "k = 0: Input should be greater than 0"),
        ({"output": "argmax", "task": "detect"}, r"\[export\]: form = 'argmax' is for classification and segmentation"),
        ({"output": "topk", "task": "segment"}, r"\[export\]: form = 'topk' is for classification; write 'argmax'"),
    ],
)
def test_recipes_that_ask_for_what_is_not(section, message):
    tables = {"input": {"size": 8}, "output": {"task": section.pop("task", "classify")}, "export": section}
    with pytest.raises(BadInput, match=message):
        from_tables(tables, "r", "r.toml")


@pytest.mark.parametrize(
    ("model", "output", "message"),
    [
        (classifier(), Output(form="topk", k=7), "k = 7: the network has 6 classes"),
        (classifier(), Output(form="topk", k=5, class_offset=2), "k = 5: the network has 4 classes"),
        (graph([helper.make_node("Split", ["x"], ["y", "z"], axis=2, num_outputs=2)], (3, 8, 8), {}, ("y", "z")),
         Output(form="argmax"), "for a file of one output; it has 2"),
    ],
)  # fmt: skip
def test_networks_without_such_an_output(model, output, message):
    with pytest.raises(BadInput, match=message):
        camera_ready(model, TARGET, IMAGENET, output)


def test_a_finished_file_is_not_compressed_nor_exported_again(camera_bundle, bundle, data, tmp_path):
    path = camera_bundle.model("onnxruntime", "fp32")
    with pytest.raises(BadInput, match=r"\[input\] form = 'uint8_nhwc' is a finished file's; give the plain file"):
        edgekit.compress(str(path), "int8", data, tmp_path / "out")
    with pytest.raises(BadInput, match="is a finished file's"):
        export_file(path, "onnxruntime", None, tmp_path / "m.onnx", [], None, trust=False)
    with pytest.raises(BadInput, match="compare two plain files or two camera-ready ones"):
        bisect(bundle.model("onnxruntime", "fp32"), path, [data], 4)


def test_a_file_that_gives_something_else_than_it_says(bundle, data, tmp_path):
    (tmp_path / "io.toml").write_text('[input]\nsize = 16\n[output]\nclasses = 4\nform = "argmax"\n')
    with pytest.raises(BadInput, match=r"should give classes \(argmax\); it gave float32"):
        evaluate_file(bundle.base, [data], None, tmp_path / "io.toml")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.array([0, 1, 3, 0]), "gave class 3; .* classes = 3"),
        (np.array([0, 1, -1, 0]), "gave class -1"),
        (np.zeros((4, 2), np.int64), r"should give classes \(argmax\); it gave int64 \(4, 2\)"),
    ],
)
def test_classes_that_are_none(found, message):
    with pytest.raises(BadInput, match=message):
        Output(classes=3, form="argmax").chosen(found)


def test_a_file_that_differs_from_the_plain_one_is_not_written(monkeypatch):
    monkeypatch.setattr("edgekit.rewrites.camera._scale_weight", lambda *_: None)
    with pytest.raises(ParityError, match=r"uint8_nhwc differs from the plain one: .* needed 60"):
        ship(classifier(), TARGET, (IMAGENET, PLAIN), (CAMERA, PLAIN), 60.0)


def test_a_plain_file_stays_as_it_is(bundle):
    model = read(bundle.base)
    assert ship(model, TARGET, (IMAGENET, PLAIN), (IMAGENET, PLAIN), 60.0) == (model, None)
