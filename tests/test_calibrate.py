"""What calibration sees: three draws, values cut off, channels never used."""

import dataclasses

import numpy as np
import pytest

from edgekit.errors import BadInput
from edgekit.quant.calibrate import observed
from edgekit.rewrites import Int8
from tests.test_quant import chain, context, small


def relu():
    return small([("Relu", ("x",), "y", {})], {}, shape=("n", 2, 1, 2))


def batch(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 2, 1, 2)


def test_pictures_are_dealt_to_three_draws():
    batches = [batch(0, top, 1, -5) for top in (1, 2, 4, 3, 2, 5)]  # draws: 1 and 3, 2 and 2, 4 and 5
    seen = observed(relu(), ["x", "y"], batches)
    assert [draw.high for draw in seen["y"].draws] == [3, 2, 5] and seen["y"].all.high == 5 and seen["y"].all.low == 0
    assert seen["y"].spread("minmax", False) == pytest.approx((5 - 2) / 5)
    assert seen["x"].spread("minmax", False) == pytest.approx((10 - 7) / 10)
    assert seen["y"].channels.top.tolist() == [5, 1] and seen["x"].channels.lows.tolist() == [0, -5]
    assert seen["y"].all.counts.sum() == 24


def test_one_picture_is_one_draw():
    seen = observed(relu(), ["y"], [batch(0, 1, 2, 3)])["y"]
    assert len(seen.draws) == 1 and seen.spread("mse", False) == 0


def test_values_that_are_not_finite_are_named():
    with pytest.raises(BadInput, match=r"'y' holds values that are not finite"):
        observed(relu(), ["y"], [batch(0, np.inf, 1, 2)])


def quantised(model, ctx, **settings):
    """The log and the record of a quantised graph of four channels and 6 × 6 pixels."""
    lines, kept = [], {}
    rng = np.random.default_rng(0)
    pictures = [np.abs(rng.standard_normal((1, 4, 6, 6))).astype(np.float32) for _ in range(9)]

    class Context(type(ctx)):
        def calibration(self, images, batch_size=1):  # noqa: ARG002
            yield from pictures[:images]

    fields = {field.name: getattr(ctx, field.name) for field in dataclasses.fields(ctx)}
    made = Context(**{**fields, "log": lines.append, "keep": lambda name, document: kept.update({name: document})})
    Int8(images=9, fit_images=4, **settings)(model, made)
    return lines, next(iter(kept.values()))


def test_the_record_says_how_sure_each_range_is():
    lines, document = quantised(chain(), context())
    assert document["range_spread"].keys() == {"x", "ar", "br", "y"} and max(document["range_spread"].values()) > 0
    assert any("over three draws of the images ranges differ by" in line for line in lines)


def test_a_channel_that_is_never_used_is_named():
    model = chain()
    bias = next(init for init in model.graph.initializer if init.name == "b1")
    values = np.frombuffer(bias.raw_data, np.float32).copy()
    values[3] = -1000
    bias.raw_data = values.tobytes()
    lines, _ = quantised(model, context())
    assert any("ar: channels 3 are 0 on every image" in line for line in lines)
