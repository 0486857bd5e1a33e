"""The crossing: names, bookkeeping, stripping, parity; and what the rewrites do to the file."""

import numpy as np
import onnx
import pytest
import torch

from edgekit import isa
from edgekit.context import RewriteContext
from edgekit.data import Input, Output
from edgekit.engines import engine
from edgekit.errors import BadInput, ParityError
from edgekit.export import Exported, export, serialise
from edgekit.graph import trace
from edgekit.graph_onnx import onnx_cost
from edgekit.job import torch_predict
from edgekit.onnx_file import read, read_io
from edgekit.parity import sqnr_db
from edgekit.rewrites import Fold, Int8
from edgekit.rewrites.int8 import count_quantised
from edgekit.targets import target
from tests.nets import tiny
from tests.onnx_models import run

INPUT, OUTPUT = Input(size=16, mean=(0.5,), std=(0.5,)), Output(classes=4)


def context(**changes) -> RewriteContext:
    return RewriteContext(target("onnxruntime"), INPUT, OUTPUT, changes.get("data"), 0, lambda _line: None)


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return tiny()


@pytest.fixture(scope="module")
def exported(module) -> Exported:
    return export(module, INPUT, OUTPUT, target("onnxruntime"))


@pytest.fixture(scope="module")
def folded(exported) -> onnx.ModelProto:
    return Fold()(exported.model, context())


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, 3, 16, 16), np.float32)


def test_nodes_are_named_by_module_path(exported, folded):
    convolutions = {"stem.conv", "expand.conv", "depthwise.conv", "project.conv", "head.conv"}
    for model in (exported.model, folded):
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert {node.name for node in model.graph.node if node.op_type == "Conv"} == convolutions
    assert "Add" in {node.name for node in folded.graph.node}


def test_initialisers_are_the_state_dict(exported, module):
    state = module.state_dict()
    assert set(exported.tensors.values()) == {key for key in state if "num_batches" not in key}
    for init in exported.model.graph.initializer:
        if init.name in exported.tensors:
            assert np.array_equal(onnx.numpy_helper.to_array(init), state[exported.tensors[init.name]].numpy())


def test_nothing_of_the_machine_is_left(exported):
    model = exported.model
    assert {prop.key for prop in model.metadata_props} == {"edgekit.input", "edgekit.output"}
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.value_info):
        assert not item.doc_string and not item.metadata_props
    assert b".py" not in serialise(model)


def test_the_file_says_how_to_feed_it(exported, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(serialise(exported.model))
    assert read_io(path) == (INPUT, OUTPUT)
    wanted = target("onnxruntime")
    assert read(path).ir_version == wanted.ir_version and read(path).opset_import[0].version == wanted.opset


def test_parity_at_every_batch_size(exported, folded, module, x):
    for batch in (1, 2, 4):
        expected = torch_predict(module)(x[:batch])
        assert sqnr_db(expected, run(exported.model, x[:batch])) > 100
        assert sqnr_db(expected, run(folded, x[:batch])) > 100


def test_a_fixed_batch_file_takes_any_number_of_images(module, x):
    model = export(module, INPUT, OUTPUT, target("onnxruntime"), batch=3).model
    session = engine("onnxruntime").load(serialise(model))
    assert session.batch == 3
    assert sqnr_db(torch_predict(module)(x), session.run(x)) > 100


def test_fold_removes_batch_norm_and_leaves_its_input_alone(exported, folded):
    before = serialise(exported.model)
    again = Fold()(exported.model, context())
    assert serialise(exported.model) == before and serialise(again) == serialise(folded)
    kinds = {node.op_type for node in folded.graph.node}
    assert "BatchNormalization" not in kinds and "GlobalAveragePool" in kinds
    names = {init.name for init in folded.graph.initializer}
    assert all(
        f"{layer}.conv.{part}" in names for layer in ("stem", "depthwise", "head") for part in ("weight", "bias")
    )


def test_fold_is_the_closed_form():
    """One channel: y = gamma (w x − mu) / sqrt(var + eps) + beta."""
    norm = torch.nn.BatchNorm2d(1)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 1, 1, bias=False), norm).eval()
    norm.weight.data[:], norm.bias.data[:], norm.running_mean[:], norm.running_var[:] = 3.0, 5.0, 7.0, 4.0
    model = Fold()(export(net, INPUT, OUTPUT, target("onnxruntime")).model, context())
    values = {init.name: onnx.numpy_helper.to_array(init) for init in model.graph.initializer}
    scale = 3.0 / np.sqrt(4.0 + 1e-5)
    assert values["0.weight"] == pytest.approx(net[0].weight.detach().numpy() * scale, rel=1e-6)
    assert values["0.bias"] == pytest.approx(5.0 - 7.0 * scale, rel=1e-6)


def test_a_shared_convolution_is_not_folded_twice(x):
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.a, self.b = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
            self.b.weight.data[:] = 2.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.a(self.conv(x)) + self.b(self.conv(x))).flatten(1)

    net = Shared().eval()
    model = Fold()(export(net, INPUT, OUTPUT, target("onnxruntime")).model, context())
    assert sqnr_db(torch_predict(net)(x), run(model, x)) > 100


def test_costs_of_the_file_are_those_of_the_module(folded, module):
    ours, theirs = trace(module, (3, 16, 16)).cost(), onnx_cost(folded)
    assert {key: theirs[key] for key in ("macs", "cio", "cio_paper")} == {
        key: ours[key] for key in ("macs", "cio", "cio_paper")
    }


@pytest.fixture(scope="module")
def quantised(folded, data) -> onnx.ModelProto:
    from edgekit import data as datasets

    return Int8(images=16)(folded, context(data=datasets.load([data])))


def test_int8_sums_of_neighbours_fit_16_bits(quantised):
    """So that no pair of products saturates on x86 without VNNI."""
    assert isa.is_safe(quantised.SerializeToString())
    assert count_quantised(quantised) == 6


def test_int8_is_close_and_the_same_with_and_without_optimisation(quantised, folded, data):
    from edgekit import data as datasets

    images = next(datasets.load([data]).role("test").batches(INPUT, 32))[0]
    assert sqnr_db(run(folded, images), run(quantised, images)) > 20
    assert sqnr_db(run(quantised, images, optimise=False), run(quantised, images)) > 20


def test_rewrites_refuse_what_is_quantised_already(quantised):
    for rewrite in (Fold(), Int8()):
        with pytest.raises(BadInput, match="quantised already"):
            rewrite(quantised, context())


def test_int8_needs_images(folded):
    with pytest.raises(BadInput, match="calibration images"):
        Int8()(folded, context())


def test_a_network_that_cannot_be_exported_says_why():
    class Sorted(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svd(x.flatten(1))[1]

    with pytest.raises(BadInput, match="cannot be exported"):
        export(Sorted(), INPUT, OUTPUT, target("onnxruntime"))


@pytest.mark.parametrize("found", [np.zeros((2, 3)), np.full((1, 3), np.nan)])
def test_parity_refuses_other_shapes_and_nan(found):
    with pytest.raises(ParityError):
        sqnr_db(np.ones((1, 3)), found)


def test_sqnr_closed_form():
    assert sqnr_db(np.ones(100), np.full(100, 1.1)) == pytest.approx(20.0)
    assert sqnr_db(np.ones(3), np.ones(3)) == 300.0


@pytest.mark.parametrize("content", [b"", b"junk", "half"])
def test_a_damaged_onnx_file(exported, tmp_path, content):
    path = tmp_path / "m.onnx"
    whole = serialise(exported.model)
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(BadInput, match=r"m\.onnx"):
        read(path)
