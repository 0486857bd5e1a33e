"""Small ONNX files for the tests of the transport form."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.export import serialise


def model(*constants: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> bytes:
    """A file with these initialisers."""
    graph = helper.make_graph(list(nodes), "test", [], [], list(constants))
    return serialise(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def raw(name: str, kind: int, data: bytes | np.ndarray) -> onnx.TensorProto:
    """A tensor of these bytes; its shape does not matter to the transport form."""
    return TensorProto(
        name=name, data_type=kind, dims=[len(data)], raw_data=data if isinstance(data, bytes) else data.tobytes()
    )


def laplace(n: int, scale: float = 20.0, seed: int = 0) -> np.ndarray:
    """int8 weights."""
    return np.random.default_rng(seed).laplace(0, scale, n).round().clip(-127, 127).astype(np.int8)


def codes(n: int, seed: int = 0) -> np.ndarray:
    """4-bit codes, one a byte."""
    return np.random.default_rng(seed).binomial(15, 0.4, n).astype(np.uint8)


def two_a_byte(values: np.ndarray) -> np.ndarray:
    return values[0::2] | values[1::2] << 4


def floats(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=n).astype(np.float32)


def small(seed: int = 0) -> bytes:
    """A file with one tensor of each way to be coded."""
    repeated = np.tile(floats(7, seed), 60)
    return model(
        raw("int8", TensorProto.INT8, laplace(400, seed=seed)),
        raw("uint4", TensorProto.UINT4, two_a_byte(codes(300, seed))),
        raw("float", TensorProto.FLOAT, floats(90, seed)),
        raw("constant", TensorProto.INT32, np.zeros(40, np.int32).tobytes()),
        raw("repeated", TensorProto.FLOAT, repeated.tobytes()),
    )


def arithmetic() -> bytes:
    """As `small`, without random numbers: what is stored in the tests was made from it."""
    i = np.arange(600)
    few = (i * i * i % 101) * (i * i % 7) // 50
    return model(
        raw("int8", TensorProto.INT8, (few - 6).astype(np.int8)),
        raw("uint4", TensorProto.UINT4, two_a_byte((few % 16).astype(np.uint8))),
        raw("float", TensorProto.FLOAT, (2**30 + few[:60] * 2**20 + i[:60] * 40503 % 2**20).astype(np.int32).tobytes()),
        raw("stored", TensorProto.INT16, (i[:90] ** 3 * 40503 // 77 % 256 + 256 * few[:90]).astype(np.int16).tobytes()),
        raw("constant", TensorProto.INT32, np.full(40, 7, np.int32).tobytes()),
        raw("repeated", TensorProto.FLOAT, (i % 9 * 2**24 + i % 9 * 77777).astype(np.int32).tobytes()),
    )
