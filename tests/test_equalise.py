"""Equalisation and absorption: the function stays, the ranges shrink."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekit.parity import sqnr_db
from edgekit.quant.calibrate import observed
from edgekit.quant.equalise import absorbed, equalised, factors
from edgekit.quant.graph import prepared
from edgekit.rewrites import Int8
from tests.onnx_models import run
from tests.test_quant import chain, context, folded  # noqa: F401  # a fixture

X = np.random.default_rng(0).standard_normal((8, 4, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_equalisation_leaves_the_function_and_evens_the_channels(activation):
    model = prepared(chain(activation))
    before = observed(model, ("ar", "br"), [X])
    result, count = equalised(model, before)
    assert count == 2 and sqnr_db(run(model, X), run(result, X)) > 100
    old, new = before["ar"].channels.top, observed(result, ("ar",), [X])["ar"].channels.top
    assert new.min() / new.max() > 3 * old.min() / old.max()


def test_a_channel_at_the_clip_is_not_scaled():
    found = factors(np.array([6.0, 1.0, 0.0]), np.ones(3), True, 6.0)
    assert found[0] == 1 and found[2] == 1 and 1 < found[1] <= 0.7 * 6


def raised(activation: str, by: float, channels=slice(None)) -> onnx.ModelProto:
    """The chain with channels behind the depthwise layer that never reach 0."""
    model = prepared(chain(activation))
    for init in model.graph.initializer:
        if init.name in ("w2", "b2"):
            value = numpy_helper.to_array(init).copy()
            value *= 0.05
            if init.name == "b2":
                value[channels] += by
            init.CopyFrom(numpy_helper.from_array(value, init.name))
    return model


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_absorption_leaves_the_function_and_shrinks_the_range(activation):
    model = raised(activation, 3.0, slice(1, 5))
    before = observed(model, ("ar", "br"), [X])
    result, count = absorbed(model, before)
    assert count == 4, "the padded depthwise layer takes no constant from the first"
    assert sqnr_db(run(model, X), run(result, X)) > 100
    after = observed(result, ("br",), [X])["br"].channels
    assert after.lows == pytest.approx(0, abs=1e-5) and after.highs[1:5].max() < 3 < before["br"].channels.highs.max()


def test_a_channel_at_the_clip_is_not_absorbed():
    model = raised("Clip", 5.99)
    result, count = absorbed(model, before := observed(model, ("br",), [X]))
    assert count == np.count_nonzero(before["br"].channels.highs < 6) < 8
    assert sqnr_db(run(model, X), run(result, X)) > 100


def test_both_are_steps_of_int8_and_said(folded, images):  # noqa: F811
    lines: list[str] = []
    Int8(images=8, fit_images=8, equalise=True, absorb=True)(folded, context(images, log=lines.append))
    text = "\n".join(lines)
    assert "pairs of layers equalised" in text and "biases absorbed" in text
