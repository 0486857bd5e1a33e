"""A cut network made by hand for benchmarks of the runtime: 224 × 224 pictures, latent 24 × 28 × 28, 1000 classes."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit import bundle
from edgekit.files import write_bytes, write_json
from edgekit.split import artifact
from edgekit.split.tables import Tables, from_counts

SHAPE, LEVELS, CLASSES = (24, 28, 28), 48, 1000
IMAGE = (3, 224, 224)
WIDTHS = (64, 128)


def tables() -> Tables:
    """Laplace-like symbols, from narrow to wide channels: about 3.5 bits a symbol."""
    symbol, widths = np.arange(LEVELS), np.geomspace(0.7, 6, SHAPE[0])
    return from_counts([np.round(1e6 * np.exp(-np.abs(symbol - LEVELS // 2) / width)).astype(int) for width in widths])


def _write(path: Path, nodes: list, x: tuple, y: tuple, constants: dict[str, np.ndarray]) -> None:
    made = helper.make_graph(
        nodes, "made",
        [helper.make_tensor_value_info(x[0], x[1], ["n", *x[2]])],
        [helper.make_tensor_value_info(y[0], y[1], ["n", *y[2]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    write_bytes(path, model.SerializeToString())


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def _head(rng: np.random.Generator, path: Path) -> None:
    constants = {
        "w": 8 * _normal(rng, SHAPE[0], 3, 8, 8),
        "middle": np.float32(LEVELS // 2),
        "zero": np.float32(0),
        "top": np.float32(LEVELS - 1),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[8, 8], kernel_shape=[8, 8]),
        helper.make_node("Round", ["a"], ["b"]),
        helper.make_node("Add", ["b", "middle"], ["c"]),
        helper.make_node("Clip", ["c", "zero", "top"], ["d"]),
        helper.make_node("Cast", ["d"], ["latent"], to=TensorProto.UINT8),
    ]
    latent = ("latent", TensorProto.UINT8, SHAPE)
    _write(path, nodes, ("x", TensorProto.FLOAT, IMAGE), latent, {k: np.asarray(v) for k, v in constants.items()})


def _tail(rng: np.random.Generator, path: Path) -> None:
    constants: dict[str, np.ndarray] = {"middle": np.asarray(np.float32(LEVELS // 2))}
    nodes = [
        helper.make_node("Cast", ["latent"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["f", "middle"], ["c0"]),
    ]
    width = SHAPE[0]
    for index, wider in enumerate(WIDTHS):
        constants[f"w{index}"] = _normal(rng, wider, width, 3, 3)
        given, made = [f"c{index}", f"w{index}"], f"r{index}"
        nodes.append(helper.make_node("Conv", given, [made], strides=[2, 2], pads=[1] * 4, kernel_shape=[3, 3]))
        nodes.append(helper.make_node("Relu", [made], [f"c{index + 1}"]))
        width = wider
    constants["fc"] = _normal(rng, width, CLASSES)
    nodes += [
        helper.make_node("GlobalAveragePool", [f"c{len(WIDTHS)}"], ["g"]),
        helper.make_node("Flatten", ["g"], ["h"]),
        helper.make_node("MatMul", ["h", "fc"], ["y"]),
    ]
    _write(path, nodes, ("latent", TensorProto.UINT8, SHAPE), ("y", TensorProto.FLOAT, (CLASSES,)), constants)


def make(folder: Path) -> Path:
    """Write the bundle into a new folder."""
    rng, names = np.random.default_rng(0), [f"{part}.onnxruntime.fp32.onnx" for part in ("head", "tail")]
    _head(rng, folder / names[0])
    _tail(rng, folder / names[1])
    head, tail = (artifact.part(folder, name) for name in names)
    artifact.write(folder, artifact.Split("made", "entropic", head, tail, artifact.Latent("latent", SHAPE), tables()))
    manifest = {"schema": bundle.SCHEMA, "source": {"kind": "onnx"}, "edits": [], "steps": []}
    manifest |= {"input": {"size": list(IMAGE[1:])}, "output": {"task": "classify", "classes": CLASSES}}
    files = bundle.hashes(folder, [*names, artifact.FILE])
    write_json(folder / bundle.MANIFEST, {**manifest, "files": files})
    return folder
