"""A tiny cut network, sealed in a bundle: the head makes 6 × 8 × 8 symbols of a 3 × 16 × 16 picture, the tail scores
four classes of them."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit import bundle
from edgekit.files import write_json
from edgekit.split import artifact
from edgekit.split.tables import from_counts

INPUT = {"size": 16}
OUTPUT = {"task": "classify", "classes": 4}
SHAPE = (6, 8, 8)
LEVELS = 20


def _model(nodes, x, y, constants) -> bytes:
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(x[0], x[1], ["n", *x[2]])],
        [helper.make_tensor_value_info(y[0], y[1], ["n", *y[2]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _head_nodes():
    return [
        helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("Mul", ["a", "scale"], ["b"]),
        helper.make_node("Round", ["b"], ["c"]),
        helper.make_node("Add", ["c", "middle"], ["d"]),
        helper.make_node("Clip", ["d", "zero", "top"], ["e"]),
        helper.make_node("Cast", ["e"], ["latent"], to=TensorProto.UINT8),
    ]


def _tail_nodes():
    return [
        helper.make_node("Cast", ["latent"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["f", "middle"], ["g"]),
        helper.make_node("Conv", ["g", "v"], ["h"], kernel_shape=[8, 8]),
        helper.make_node("Flatten", ["h"], ["y"]),
    ]


def parts(seed: int = 0) -> dict[str, bytes]:
    """The head, the tail and the uncut network, by what they are."""
    rng = np.random.default_rng(seed)
    head = {
        "w": rng.standard_normal((6, 3, 3, 3)).astype(np.float32),
        "scale": np.float32(2),
        "middle": np.float32(LEVELS // 2),
        "zero": np.float32(0),
        "top": np.float32(LEVELS - 1),
    }
    tail = {"v": rng.standard_normal((4, 6, 8, 8)).astype(np.float32), "middle": head["middle"]}
    x, latent, y = (
        ("x", TensorProto.FLOAT, (3, 16, 16)),
        ("latent", TensorProto.UINT8, SHAPE),
        ("y", TensorProto.FLOAT, (4,)),
    )
    return {
        "head": _model(_head_nodes(), x, latent, head),
        "tail": _model(_tail_nodes(), latent, y, tail),
        "model": _model(_head_nodes() + _tail_nodes(), x, y, head | tail),
    }


def tables():
    symbol = np.arange(LEVELS)
    counts = [1e4 * np.exp(-np.abs(symbol - LEVELS // 2) / (1 + channel)) for channel in range(SHAPE[0])]
    return from_counts([row.astype(np.int64) for row in counts])


def make(folder: Path, seed: int = 0, full: bool = True) -> Path:
    """Write the bundle into a new folder."""
    folder.mkdir(parents=True)
    names = {kind: f"{kind}.onnxruntime.fp32.onnx" for kind in ("head", "tail", *(["model"] if full else []))}
    made = parts(seed)
    for kind, name in names.items():
        (folder / name).write_bytes(made[kind])
    sealed = {kind: artifact.part(folder, name) for kind, name in names.items()}
    latent = artifact.Latent("latent", SHAPE)
    split = artifact.Split(
        "stem", "activation", sealed["head"], sealed["tail"], latent, tables(), full=sealed.get("model")
    )
    artifact.write(folder, split)
    manifest = {"schema": bundle.SCHEMA, "source": {"kind": "onnx"}, "edits": [], "steps": []}
    files = bundle.hashes(folder, [*names.values(), artifact.FILE])
    write_json(folder / bundle.MANIFEST, {**manifest, "input": INPUT, "output": OUTPUT, "files": files})
    return folder
