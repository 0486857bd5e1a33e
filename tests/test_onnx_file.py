"""ONNX files that strangers wrote: what is read, and what is refused before anything is allocated or opened."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import onnx_data
from edgekit.errors import BadInput
from edgekit.onnx_file import fingerprint, read

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def model(**node) -> onnx.ModelProto:
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product", **node)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my.company", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def save(folder: Path, made: onnx.ModelProto) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    return folder / "model.onnx"


def external(location: str = "weights.bin", **places: object) -> onnx.ModelProto:
    """The model with its weight elsewhere."""
    made = model()
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **places}.items():
        weight.external_data.add(key=key, value=str(value))
    return made


def values(made: onnx.ModelProto) -> np.ndarray:
    return numpy_helper.to_array(made.graph.initializer[0])


def test_a_file_is_read(tmp_path):
    path = save(tmp_path, model())
    assert np.array_equal(values(read(path)), WEIGHT)


@pytest.mark.parametrize("places", [{}, {"offset": 16}, {"offset": 16, "length": 48}])
def test_external_data_beside_the_file_is_taken_in(tmp_path, places):
    path = save(tmp_path, external(**places))
    (tmp_path / "weights.bin").write_bytes(b"\0" * int(places.get("offset", 0)) + WEIGHT.tobytes() + b"more")
    found = read(path)
    assert np.array_equal(values(found), WEIGHT)
    assert not found.graph.initializer[0].external_data


def test_external_data_in_a_folder_below(tmp_path):
    path = save(tmp_path, external("data/w.bin"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "w.bin").write_bytes(WEIGHT.tobytes())
    assert np.array_equal(values(read(path)), WEIGHT)


@pytest.fixture
def secret(tmp_path) -> Path:
    """A file of the right size that belongs to somebody else."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_bytes(WEIGHT.tobytes())
    return tmp_path / "other" / "secret"


def symlink(folder: Path, secret: Path) -> str:
    (folder / "weights.bin").symlink_to(secret)
    return "weights.bin"


def linked_folder(folder: Path, secret: Path) -> str:
    (folder / "below").symlink_to(secret.parent, target_is_directory=True)
    return "below/secret"


def hardlink(folder: Path, secret: Path) -> str:
    os.link(secret, folder / "weights.bin")
    return "weights.bin"


def fifo(folder: Path, _secret: Path) -> str:
    os.mkfifo(folder / "weights.bin")
    return "weights.bin"


def folder_itself(folder: Path, _secret: Path) -> str:
    (folder / "weights.bin").mkdir()
    return "weights.bin"


TRICKS = {
    "outside": lambda *_: "../other/secret",
    "outside and back": lambda *_: "../model/../other/secret",
    "absolute": lambda _folder, secret: str(secret),
    "nothing": lambda *_: "",
    "a null": lambda *_: "weights.bin\0",
    "missing": lambda *_: "nowhere.bin",
    "symbolic link": symlink,
    "linked folder": linked_folder,
    "hard link": hardlink,
    "pipe": fifo,
    "folder": folder_itself,
}


@pytest.mark.parametrize("trick", TRICKS)
def test_external_data_from_elsewhere_is_refused(tmp_path, secret, trick):
    folder = tmp_path / "model"
    folder.mkdir()
    path = save(folder, external(TRICKS[trick](folder, secret)))
    with pytest.raises(BadInput, match=r"'w'.*external data"):
        read(path)


@pytest.mark.parametrize(
    "places",
    [
        {"offset": 2**62},
        {"offset": -16},
        {"offset": 1},
        {"offset": "one"},
        {"length": 2**62},
        {"length": 47},
        {"offset": 2**63, "length": 48},
    ],
    ids=str,
)
def test_external_data_beyond_the_file_is_refused(tmp_path, places):
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    with pytest.raises(BadInput, match=r"'w'.*external data"):
        read(save(tmp_path, external(**places)))


def test_the_files_external_data_counts_towards_the_cap(tmp_path, monkeypatch):
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    path = save(tmp_path, external())
    monkeypatch.setattr(onnx_data, "LARGEST_BYTES", path.stat().st_size + 48)
    with pytest.raises(BadInput, match=r"'w'.*2 GiB"):
        read(path)


def test_a_file_of_two_gigabytes_is_refused_unread(tmp_path):
    with open(tmp_path / "large.onnx", "wb") as file:
        file.truncate(2**31)
    with pytest.raises(BadInput, match=r"2\.0 GiB"):
        read(tmp_path / "large.onnx")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.99])
def test_a_truncated_file(tmp_path, share):
    path = save(tmp_path, model())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(BadInput, match=r"model\.onnx: "):
        read(path)


def test_no_file_and_no_onnx(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        read(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("hello, this is no protobuf")
    with pytest.raises(BadInput, match="no ONNX file"):
        read(tmp_path / "text.onnx")


@pytest.mark.parametrize("dims", [[3, 5], [2**40, 2**20], [-3, -4], [3]], ids=str)
def test_bytes_that_are_not_what_the_shape_asks_for(tmp_path, dims):
    made = model()
    made.graph.initializer[0].dims[:] = dims
    with pytest.raises(BadInput, match=r"'w' (holds 48 bytes|has the shape)"):
        read(save(tmp_path, made))


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [
        (TensorProto.FLOAT, [1.0, 2.0], "float_data"),
        (TensorProto.INT64, [1, 2], "int64_data"),
        (TensorProto.UINT8, [1, 2], "int32_data"),
        (TensorProto.FLOAT16, [1, 2], "int32_data"),
        (TensorProto.COMPLEX64, [1, 2, 3, 4], "float_data"),
        (TensorProto.INT4, [0x21], "int32_data"),
    ],
)
def test_typed_values_are_counted_too(tmp_path, kind, value, field):
    made = model()
    extra = made.graph.initializer.add(name="extra", data_type=kind, dims=[2])
    getattr(extra, field).extend(value)
    read(save(tmp_path, made))
    getattr(extra, field).append(3)
    with pytest.raises(BadInput, match="'extra' holds"):
        read(save(tmp_path, made))


def test_an_unknown_type(tmp_path):
    made = model()
    made.graph.initializer[0].data_type = 99
    with pytest.raises(BadInput, match="'w' is of type 99"):
        read(save(tmp_path, made))


def test_a_tensor_inside_a_branch_is_checked_and_so_is_a_node(tmp_path):
    def branch(weight: np.ndarray, domain: str = "") -> onnx.GraphProto:
        constant = helper.make_node("Constant", [], ["c"], name="inner", value=numpy_helper.from_array(weight, "v"))
        constant.domain = domain
        return helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2])])

    made = model()
    inner = branch(np.zeros(2, np.float32))
    made.graph.node.append(helper.make_node("If", ["x"], ["z"], name="if", then_branch=inner, else_branch=inner))
    made.graph.node[1].attribute[0].g.node[0].attribute[0].t.dims[:] = [10**9]
    with pytest.raises(BadInput, match=r"inner\.value' holds 8 bytes"):
        read(save(tmp_path, made))
    made.graph.node[1].attribute[0].g.CopyFrom(branch(np.zeros(2, np.float32), "my.company"))
    with pytest.raises(BadInput, match=r"inner is of the domain 'my\.company'"):
        read(save(tmp_path, made))


def test_a_custom_operator_is_named_with_its_domain(tmp_path):
    with pytest.raises(BadInput, match=r"product is of the domain 'my\.company'"):
        read(save(tmp_path, model(domain="my.company")))


def test_the_fingerprint_covers_weights_beside_the_file(tmp_path):
    path = save(tmp_path, external())
    (tmp_path / "weights.bin").write_bytes(WEIGHT.tobytes())
    before = fingerprint(path)
    assert fingerprint(path) == before
    (tmp_path / "weights.bin").write_bytes((WEIGHT + 1).tobytes())
    assert fingerprint(path) != before
