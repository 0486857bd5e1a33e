"""Coded weights in the file: their bytes, that runtimes decode them, and what folding leaves of them."""

import copy
import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from edgekit.coded import Codes, CodeWeight, coded_weights
from edgekit.context import RewriteContext
from edgekit.data import Input, Output
from edgekit.export import export, serialise
from edgekit.graph_onnx import onnx_cost
from edgekit.job import torch_predict
from edgekit.net import Net
from edgekit.onnx_codes import Stored, put_back, stored, taken_out, write
from edgekit.onnx_codes import coded_weights as forms_of
from edgekit.parity import sqnr_db
from edgekit.rewrites import Fold
from edgekit.targets import target
from tests.nets import tiny
from tests.onnx_models import array, graph, run
from tests.test_coded import X, coded_mobilenet, random_codes, with_codes
from tests.test_prune import net_of

INPUT, OUTPUT = Input(size=32), Output(classes=4)


def context(name: str = "onnxruntime") -> RewriteContext:
    return RewriteContext(target(name), INPUT, OUTPUT, None, 0, lambda _line: None)


@pytest.fixture(scope="module")
def coded() -> Net:
    return coded_mobilenet()


@pytest.fixture(scope="module")
def model(coded) -> onnx.ModelProto:
    return export(coded.module, INPUT, OUTPUT, target("onnxruntime")).model


@pytest.fixture(scope="module")
def folded(model) -> onnx.ModelProto:
    return Fold()(model, context())


def values(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {init.name: numpy_helper.to_array(init) for init in model.graph.initializer}


def contents(model: onnx.ModelProto) -> list[list[bytes]]:
    """Everything in the graph, whatever its order."""
    graph = model.graph
    fields = graph.node, graph.initializer, graph.input, graph.output, graph.value_info
    return [sorted(item.SerializeToString(deterministic=True) for item in field) for field in fields]


def kinds(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def inputs(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.input]


def same_codes(ours: Stored, theirs: Stored) -> bool:
    return np.array_equal(ours.codes, theirs.codes) and np.array_equal(ours.table, theirs.table)


# Bytes


@pytest.mark.parametrize(("k", "p"), [(2, 8), (2, 7), (3, 5), (4, 4), (5, 3), (6, 3), (7, 2), (16, 2), (17, 1)])
def test_as_many_codes_share_a_byte_as_fit(k, p):
    codes = random_codes(k, 1, (p, 10007))
    form = stored(codes)
    assert form.codes.dtype == np.uint8 and form.codes.shape == (10007,) and form.table.shape == (k**p, p)
    assert np.array_equal(form.decode(), codes.decode().numpy())


@given(st.integers(1, 300), st.integers(1, 4), st.integers(1, 6), st.integers(1, 400), st.booleans(), st.booleans())
@settings(max_examples=50)
def test_what_is_stored_decodes_and_takes_no_more_than_unpacked(k, m, rows, columns, whole, factor):
    codes = random_codes(k, m, (rows, columns * m), whole=whole, factor=factor)
    form = stored(codes)
    assert np.array_equal(form.decode(), codes.decode().numpy())
    assert form.table.dtype == (np.int8 if whole else np.float32)
    assert form.codes.dtype == (np.uint8 if len(form.table) <= 256 else np.uint16)
    unpacked = len(codes.codes) * (1 if k <= 256 else 2) + k * m * form.table.itemsize
    assert form.codes.nbytes + form.table.nbytes <= unpacked


@pytest.mark.parametrize(
    ("level", "kind"), [(0.5, "float16"), (128.0, "float16"), (0.1, "float32"), (1e6, "float32"), (math.nan, "float32")]
)
def test_what_int8_does_not_hold_stays_float(level, kind):
    codes = Codes(torch.tensor([0, 1]), torch.tensor([[1.0], [level]]), None, (1, 2))
    assert stored(codes).table.dtype == kind


@pytest.mark.parametrize(
    ("k", "whole", "kind"), [(3, False, "uint8"), (3, True, "uint8"), (300, True, "uint16"), (70000, False, "uint32")]
)
@pytest.mark.parametrize("factor", [False, True])
def test_a_graph_decodes_every_form(k, whole, kind, factor):
    codes = random_codes(k, 2, (4, 40, 1000), whole=whole, factor=factor)
    made = graph([helper.make_node("Add", ["x", "w"], ["y"], name="add")], (4, 40, 1000), {})
    write(made, "w", form := stored(codes))
    assert form.codes.dtype == kind and same_codes(forms_of(made)["w"], form)
    assert np.array_equal(run(made, np.zeros((1, 4, 40, 1000), np.float32))[0], codes.decode().numpy())


# Files


def test_the_file_is_small_and_answers_as_the_module(model, coded):
    onnx.checker.check_model(model, full_check=True)
    found, wanted = forms_of(model), coded_weights(coded.module)
    assert inputs(model) == ["input"] and found.keys() == wanted.keys() and not found.keys() & values(model).keys()
    assert all(np.array_equal(form.decode(), wanted[name].decode().numpy()) for name, form in found.items())
    assert sqnr_db(torch_predict(coded.module)(X), run(model, X)) > 100
    expanded = len(serialise(put_back(*taken_out(model), decode=True)))
    saved = sum(form.decode().nbytes - form.codes.nbytes - form.table.nbytes for form in found.values())
    assert saved > 0.5 * expanded and len(serialise(model)) < expanded - saved + 1000 * len(found)


def test_batch_norm_lands_in_the_factors(model, folded, coded):
    assert "BatchNormalization" in kinds(model) and "BatchNormalization" not in kinds(folded)
    onnx.checker.check_model(folded, full_check=True)
    ours, theirs, norms = forms_of(folded), forms_of(model), coded.module.state_dict()
    assert inputs(folded) == ["input"] and ours.keys() == theirs.keys()
    assert {form.factor is None for form in theirs.values()} == {True, False}
    for name, form in ours.items():
        assert same_codes(form, theirs[name])
        if name.endswith(".conv.weight"):
            norm = name.removesuffix("conv.weight") + "norm"
            scale = norms[f"{norm}.weight"] / (norms[f"{norm}.running_var"] + 1e-5).sqrt()
            factor = 1.0 if theirs[name].factor is None else theirs[name].factor
            assert form.factor == pytest.approx(factor * scale.numpy(), rel=1e-6)
    assert ours["classifier.linear.weight"].factor is None
    assert sqnr_db(torch_predict(coded.module)(X), run(folded, X)) > 100


def test_fold_leaves_its_input_alone(model):
    before = serialise(model)
    assert serialise(Fold()(model, context())) == serialise(Fold()(model, context())) and serialise(model) == before


def test_parameters_of_the_file_are_those_of_its_plain_form(folded):
    assert onnx_cost(folded) == onnx_cost(put_back(*taken_out(folded), decode=True))


def test_taken_out_and_put_back_are_inverse(model):
    before = serialise(model)
    bare, forms = taken_out(model)
    assert serialise(model) == before and "Gather" not in kinds(bare) and set(inputs(bare)) == {"input", *forms}
    assert not any(name.startswith(tuple(forms)) for name in values(bare))
    again = put_back(copy.deepcopy(bare), forms)
    assert contents(again) == contents(model)
    expanded = put_back(bare, forms, decode=True)
    assert not forms_of(expanded) and "Gather" not in kinds(expanded) and inputs(expanded) == ["input"]
    assert all(np.array_equal(values(expanded)[name], form.decode()) for name, form in forms.items())
    assert sqnr_db(run(model, X), run(expanded, X)) > 100


def test_a_target_that_does_not_decode_gets_plain_weights():
    net = with_codes(net_of(tiny()), CodeWeight("stem.conv", 8, 9, True), CodeWeight("head.conv", 16, 4))
    made = export(net.module, INPUT, OUTPUT, target("tensorrt")).model
    for name, codes in coded_weights(net.module).items():
        assert np.array_equal(values(made)[name], codes.decode().numpy())
    for each in (made, Fold()(made, context("tensorrt"))):
        assert "Gather" not in kinds(each) and not forms_of(each)
        assert sqnr_db(torch_predict(net.module)(X), run(each, X)) > 100


def test_a_module_named_decode_is_not_taken_for_codes():
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="net.decode.conv")
    found = graph([conv], (4, 8, 8), {"w": array(4, 4, 1, 1)}, result=["n", 4, 8, 8])
    assert not forms_of(found)
    assert [node.name for node in Fold()(found, context()).graph.node] == ["net.decode.conv"]
