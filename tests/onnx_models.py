"""Small ONNX models, and the comparison of a module with the file it came from."""

import json

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekit.engines import engine
from edgekit.export import serialise
from edgekit.onnx_torch import graph_to_json, module_from_graph, to_module
from edgekit.parity import sqnr_db

RNG = np.random.default_rng(0)


def run(model: onnx.ModelProto, x: np.ndarray, **options) -> np.ndarray:
    """What ONNX Runtime answers."""
    return engine("onnxruntime").load(serialise(model), **options).run(x)


def array(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def graph(nodes, shape, constants, outputs=("y",), opset=20, result=None) -> onnx.ModelProto:
    """A model with the input `x` of (batch, *shape), constants by name, and outputs of the shape `result`."""
    made = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, result) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 15 else 10)


def one(op, *operands, shape=(4, 8, 8), outputs=("y",), opset=20, name="node", **attributes) -> onnx.ModelProto:
    """One operator on `x`; operands are arrays, None for one that is left out, and "x" for the input itself."""
    operands = operands if any(isinstance(item, str) for item in operands) else ("x", *operands)
    names = ["" if item is None else item if isinstance(item, str) else f"c{i}" for i, item in enumerate(operands)]
    constants = {name: item for name, item in zip(names, operands) if isinstance(item, np.ndarray)}
    node = helper.make_node(op, names, list(outputs), name=name, **attributes)
    return graph([node], shape, constants, outputs, opset)


def reference(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {model.graph.input[0].name: x})


def check(model: onnx.ModelProto, shape=(4, 8, 8), batch=3, db=100.0) -> torch.nn.Module:
    """Torch agrees with ONNX Runtime at another batch size than the shapes were inferred at, and so does the module
    that is rebuilt from the JSON with the weights loaded."""
    module = to_module(model)
    x = array(batch, *shape)
    expected = reference(model, x)
    rebuilt = module_from_graph(json.loads(json.dumps(graph_to_json(model), allow_nan=False)))
    assert all(not tensor.any() for tensor in rebuilt.state_dict().values())
    rebuilt.load_state_dict(module.state_dict())
    with torch.no_grad():
        found, again = module(torch.from_numpy(x)), rebuilt(torch.from_numpy(x))
    found, again = (value if isinstance(value, tuple) else (value,) for value in (found, again))
    assert len(found) == len(expected)
    for ours, other, theirs in zip(found, again, expected):
        assert tuple(ours.shape) == theirs.shape and theirs.std() > 0
        assert sqnr_db(theirs, ours.numpy()) >= db
        assert torch.equal(ours, other)
    return module
