"""Trained power-of-two weights: levels, gradients by hand, starts, training, and the file they end in."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import onnx_codes
from edgekit.coded import coded_weights, originals, trained_codes
from edgekit.errors import BadInput
from edgekit.export import export
from edgekit.net import Net, build, edits_from_json, edits_to_json, parse_spec, state_sha256
from edgekit.parity import sqnr_db
from edgekit.passes import Finetune, Shift
from edgekit.recipe import load
from edgekit.rewrites import Fold
from edgekit.shift import METHODS
from edgekit.shift.base import least_squares
from edgekit.targets import target
from tests.conftest import IO
from tests.nets import tiny
from tests.onnx_models import run
from tests.test_export import context as rewriting
from tests.test_train import Interrupted, context, interrupt_after

LN2 = math.log(2)
SOURCE = parse_spec("tests.nets:tiny")
EVERY = [(name, bits) for name, method in METHODS.items() for bits in method.LEVELS]
LEVELS = {
    ("denseshift", 2): [1, 2],
    ("denseshift", 3): [1, 2, 4, 8],
    ("denseshift", 4): [1, 2, 4, 8, 16, 32, 64, 128],
    ("s3", 2): [0, 1],
    ("s3", 3): [0, 1, 2, 4],
    ("deepshift_q", 2): [1 / 2, 1],
    ("deepshift_q", 3): [1 / 8, 1 / 4, 1 / 2, 1],
    ("deepshift_ps", 2): [0, 1],
    ("deepshift_ps", 3): [0, 1 / 4, 1 / 2, 1],
    ("apot", 2): [0, 1],
    ("apot", 3): [0, 1, 2, 4],  # of 4: 0, 1/4, 1/2, 1
    ("apot", 4): [0, 1, 2, 3, 4, 6, 8, 10],
    ("apot", 5): [0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48],
}


def weight(seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(seed))


def started(name: str, bits: int, of: torch.Tensor) -> tuple[nn.Module, list[torch.Tensor]]:
    """A method's parametrisation and its latents near to a weight."""
    code = METHODS[name](bits)
    found = code.right_inverse(of)
    return code, [found.clone()] if isinstance(found, torch.Tensor) else list(found)


def gradients(name: str, bits: int, *latents: list[float]) -> tuple[list[float], list[list[float]]]:
    """The weights of one output channel with these latents, and the gradient of their sum for each latent."""
    values = [torch.tensor(latent).reshape(1, -1).requires_grad_() for latent in latents]
    if name in ("denseshift", "s3"):
        values[0] = values[0].detach()[0].requires_grad_()
    made = METHODS[name](bits).eval()(*values)
    return made.flatten().tolist(), [g.flatten().tolist() for g in torch.autograd.grad(made.sum(), values)]


# Levels


@pytest.mark.parametrize(("name", "bits"), LEVELS)
def test_levels_are_the_published_ones(name, bits):
    codebook = METHODS[name](bits).codebook.tolist()
    assert codebook == sorted({sign * level for level in LEVELS[name, bits] for sign in (-1.0, 1.0)})


@pytest.mark.parametrize(("name", "bits"), EVERY)
def test_a_weight_is_its_codes_to_the_bit(name, bits):
    code, latents = started(name, bits, 10 * weight())
    for each in (latents, [latent + 0.05 * torch.randn_like(latent) for latent in latents]):
        made, codes = code.eval()(*each), code.codes_of(*each)
        assert torch.equal(made, codes.decode()) and made.shape == (8, 6, 3, 3)
        assert codes.codebook.shape == (len(code.codebook), 1) and len(code.codebook) <= 2**bits
        assert codes.codes.unique().numel() > 1


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_shift_is_the_number_of_ones_at_the_end(bits):
    count = 2 ** (bits - 1) - 1
    rows = torch.cartesian_prod(*[torch.tensor([-0.5, 0.5])] * count).reshape(-1, count)
    latents = [torch.tensor([2.0**count]), -torch.ones(1, len(rows)), *rows.T[:, None]]
    ones = [next((i for i, bit in enumerate(reversed(row)) if bit < 0), count) for row in rows.tolist()]
    assert METHODS["denseshift"](bits)(*latents)[0].tolist() == [-(2.0**s) for s in ones]


# Gradients by hand


def test_gradient_of_denseshift():
    """s = 1 from b = (1, 0, 1): ∂s/∂t = (0, 2, 1), by t₃'s and t₂'s place in (s₂ + 1) b(t₃), (s₁ + 1) b(t₂)."""
    made, (peak, first, *bits) = gradients("denseshift", 3, [4.0], [-0.5], [0.3], [-0.2], [0.1])
    factor, slope = 4.0 / 8, -1 / (2 * math.sqrt(2))
    assert made == [-2 * factor] and peak == [-2 / 8]
    assert [first, *bits] == [[pytest.approx(factor * d)] for d in (math.sqrt(2), 0, slope * 2, slope)]


def test_gradient_of_s3():
    made, (peak, first, dense, one, two) = gradients("s3", 3, [4.0], [0.5, -0.5], [0.2, -0.2], [0.1, 0.1], [-0.1, 0.3])
    assert made == [2, 0] and peak == [0.5]
    assert first == [2, 0] and dense == [2, -4]
    assert one == pytest.approx([2 * LN2, 0]) and two == pytest.approx([2 * LN2, 0])


def test_gradient_of_deepshift():
    made, (shift, sign) = gradients("deepshift_ps", 4, [-1.2, -1.2, -2.6], [-0.8, 0.3, 0.6])
    assert made == [-0.5, 0, 0.125]
    assert shift == pytest.approx([-0.5 * LN2, 0, 0.125 * LN2]) and sign == [1, 1, 1]
    made, (x,) = gradients("deepshift_q", 3, [0.4, -0.01, 3.0])
    assert made == [0.5, -0.125, 1] and x == [1, 1, 1]


@pytest.mark.parametrize(("bits", "clipped"), [(2, 1.0), (4, 0.0)])
def test_gradient_of_apot(bits, clipped):
    """α: ±1 of a clipped weight and level − x of another; a clipped weight passes its own on with 2 bits alone."""
    code, (gain, clip, latent) = started("apot", bits, weight())
    clip = torch.tensor(1.5, requires_grad=True)
    latent.requires_grad_()
    code(gain, clip, latent).sum().backward()
    other = weight().requires_grad_()
    x = (other - other.mean()) / other.std(correction=0) / 1.5
    inside = x.detach().abs() <= 1
    level = code.codebook[code.code(gain, clip, latent)] / code.top
    by_channel = gain[:, None, None, None]
    expected = by_channel * torch.where(inside, level - x, x.sign())
    torch.testing.assert_close(clip.grad, expected.sum().detach(), rtol=1e-4, atol=1e-6)
    (by_channel * 1.5 * x * torch.where(inside, 1.0, clipped)).sum().backward()
    assert 10 < (~inside).sum() < 100
    torch.testing.assert_close(latent.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "before", "after"), [
    ("deepshift_q", [[0.01, -0.3, -3.0, 0.0]], [[0.125, -0.3, -1.0, 0.125]]),
    ("deepshift_ps", [[-9.0, -1.5, 2.0, 0.0], [0.7] * 4], [[-2.0, -1.5, 0.0, 0.0], [0.7] * 4]),
])  # fmt: skip
def test_deepshift_puts_its_latents_back_before_a_step(name, before, after):
    latents = [torch.tensor(values).reshape(1, -1) for values in before]
    code = METHODS[name](3).eval()
    made = code(*latents)
    assert [latent[0].tolist() for latent in latents] == [pytest.approx(values) for values in before]
    assert torch.equal(made, code.train()(*latents))
    assert [latent[0].tolist() for latent in latents] == [pytest.approx(values) for values in after]


# Starts


@pytest.mark.parametrize("levels", [LEVELS[key] for key in LEVELS if key[0] in ("denseshift", "s3")], ids=str)
@pytest.mark.parametrize("power", [1, 2], ids=["normal", "heavy"])
def test_the_scale_has_the_least_squared_error(levels, power):
    sizes = torch.randn(16, 200, generator=torch.Generator().manual_seed(1)).abs() ** power
    sizes[0] = 0

    def error(scale: torch.Tensor) -> torch.Tensor:
        grid = torch.tensor(levels) * scale[:, None]
        return (sizes[:, :, None] - grid[:, None]).abs().amin(2).square().sum(1)

    best = torch.stack([error(sizes.amax(1) / levels[-1] * 2 ** (-step / 100)) for step in range(600)]).amin(0)
    found = least_squares(sizes, [float(level) for level in levels])
    assert (error(found) <= 1.005 * best).all() and found[0] == 0


@pytest.mark.parametrize(("name", "bits"), [key for key in EVERY if key[0] in ("denseshift", "s3")])
def test_a_start_from_weights_has_the_nearest_levels(name, bits):
    code, latents = started(name, bits, weight())
    factor = code.factor(*latents)[:, None, None, None, None]
    nearest = (weight()[..., None] - factor * code.codebook).abs().argmin(-1)
    assert torch.equal(code.code(*latents), nearest)
    crossed = weight() * 0.25  # latents are linear in the weight, so that they flip where it passes its boundary
    moved = [a + 0.5 * (b - a) for a, b in zip(latents[1:], _at(code, latents[0], crossed))]
    halfway = (0.625 * weight()[..., None] - factor * code.codebook).abs().argmin(-1)
    assert torch.equal(code.code(latents[0], *moved), halfway)


def _at(code: nn.Module, peak: torch.Tensor, of: torch.Tensor) -> list[torch.Tensor]:
    """The latents of another weight at the same peak."""
    unit = (peak / code.top)[:, None, None, None]
    sizes = [unit * (of.abs() - unit * (low + high) / 2) for low, high in zip(code.levels, code.levels[1:])]
    return [unit * of, *(reversed(sizes) if code.levels[0] else sizes)]


def test_deepshift_starts_at_the_nearest_power():
    x = torch.tensor([[0.3, -0.02, 0.7, 0.1, 1e-4, 0.0]])
    assert _weight("deepshift_q", 4, x) == [0.25, -1 / 64, 0.5, 0.125, 1 / 128, 1 / 128]
    assert _weight("deepshift_ps", 4, x) == [0.25, -1 / 64, 0.5, 0.125, 0, 0]


def _weight(name: str, bits: int, of: torch.Tensor) -> list[float]:
    code, latents = started(name, bits, of)
    return code.eval()(*latents)[0].tolist()


@pytest.mark.parametrize("bits", METHODS["apot"].LEVELS)
def test_apot_starts_near_the_weight(bits):
    code, latents = started("apot", bits, weight())
    noise = (code(*latents) - weight()).square().sum() / weight().square().sum()
    assert noise < 0.25 * 0.45 ** (bits - 2)


def test_a_start_from_scratch_is_the_papers():
    big, generator = torch.zeros(64, 32, 3, 3), torch.Generator().manual_seed(0)
    fresh = {name: METHODS[name](3).scratch(big, generator) for name in METHODS}
    assert all(latent.std().item() == pytest.approx(1e-3, rel=0.02) for latent in fresh["denseshift"][1:])
    _, first, dense, *rest = fresh["s3"]
    assert first.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert dense.min() > 0 and all(bit.max() < 0 for bit in rest)
    shift, sign = fresh["deepshift_ps"]
    assert -2 <= shift.min() < -1.99 and 0 >= shift.max() > -0.01 and sign.abs().max() <= 1
    assert fresh["apot"][1] == 3
    for name in ("denseshift", "s3"):
        made = METHODS[name](3)(*fresh[name])
        assert made.square().mean().item() == pytest.approx(2 / (9 * 32), rel=1e-3), "He's variance"
    assert METHODS["s3"](3)(*fresh["s3"]).abs().unique().numel() == 1


# The pass


@pytest.fixture(scope="module")
def net() -> Net:
    return Net(SOURCE, (), tiny())


def rebuilt(net: Net) -> nn.Module:
    module = build(net.source, edits_from_json(edits_to_json(net.edits), "test"), trust=True)
    module.load_state_dict(net.module.state_dict())
    return module.eval()


def answer(module: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("start", ["weights", "scratch"])
@pytest.mark.parametrize(("name", "bits"), [("denseshift", 4), ("s3", 2), ("deepshift_q", 5), ("deepshift_ps", 5),
                                            ("apot", 3)])  # fmt: skip
def test_the_pass_keeps_the_invariant(net, images, name, bits, start):
    before, lines = state_sha256(net.module), list[str]()
    done = Shift(name, bits, start)(net, context(images, net, log=lines.append))
    assert torch.equal(answer(rebuilt(done)), answer(done.module)) and state_sha256(net.module) == before
    coded = coded_weights(done.module)
    assert set(coded) == {f"{layer}.conv.weight" for layer in ("expand", "depthwise", "project", "head")}
    share = sum(codes.codes.numel() for codes in coded.values()) / 3040
    assert lines[0].startswith(f"shift: 4 layers, {share:.1%} of the weights, in {bits} bits of {name}")
    again = Shift(name, bits, start)(net, context(images, net, seed=0))
    assert state_sha256(again.module) == state_sha256(done.module)
    other = state_sha256(Shift(name, bits, start)(net, context(images, net, seed=1)).module)
    assert (other == state_sha256(done.module)) == (start == "weights")


def test_which_layers_are_coded(net, images):
    ctx = context(images, net)
    assert len(coded_weights(Shift(ends=True)(net, ctx).module)) == 6
    some = coded_weights(Shift(exclude=("depth*", "stem.*"), ends=True)(net, ctx).module)
    assert set(some) == {
        f"{layer}.weight" for layer in ("expand.conv", "project.conv", "head.conv", "classifier.linear")
    }


@pytest.mark.parametrize(("name", "bits", "start"), [
    ("denseshift", 2, "weights"), ("denseshift", 4, "scratch"), ("s3", 3, "weights"), ("deepshift_q", 5, "weights"),
    ("deepshift_ps", 5, "scratch"), ("apot", 3, "weights"),
])  # fmt: skip
def test_it_learns(net, images, name, bits, start, tmp_path):
    ctx = context(images, net, journal=tmp_path / "log.csv")
    coded = Shift(name, bits, start)(net, ctx)
    how = {"optimiser": "adamw", "lr": 0.01, "weight_decay": 0.0} if name == "deepshift_ps" else {"lr": 0.05}
    done = Finetune(epochs=8, batch=32, score=0, **how)(coded, ctx)
    rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    losses = [float(row[3]) for row in rows[1:]]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert not torch.equal(trained_codes(done.module), trained_codes(coded.module))
    assert torch.equal(answer(rebuilt(done)), answer(done.module))


# The freezing rate


def test_what_froze_is_what_the_epoch_left(net, images, tmp_path):
    lines: list[str] = []
    ctx = context(images, net, journal=tmp_path / "log.csv", log=lines.append)
    coded = Shift("denseshift", 4)(net, ctx)
    done = Finetune(epochs=1, batch=64, lr=0.05)(coded, ctx)
    same = trained_codes(coded.module) == trained_codes(done.module)
    header, *rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert header == ["step", "epoch", "lr", "loss", "frozen", "top1"]
    assert float(rows[-1][4]) == pytest.approx(100 * same.float().mean().item()) and 50 < float(rows[-1][4]) < 100
    assert f"frozen {float(rows[-1][4]):.2f}, top1 50.00" in lines[-1]


def test_an_interrupted_epoch_counts_from_its_beginning(net, images, tmp_path):
    whole = context(images, net, journal=tmp_path / "whole.csv")
    coded = Shift("s3", 3)(net, whole)
    settings = Finetune(epochs=2, batch=64, lr=0.05, save_s=0.0)
    expected = state_sha256(settings(coded, whole).module)
    cut = context(images, net, state=tmp_path / "state", journal=tmp_path / "cut.csv", track=interrupt_after(6))
    with pytest.raises(Interrupted):
        settings(coded, cut)
    assert state_sha256(settings(coded, dataclasses.replace(cut, track=whole.track)).module) == expected
    assert (tmp_path / "cut.csv").read_text() == (tmp_path / "whole.csv").read_text()


# The file


@pytest.mark.parametrize(("name", "bits", "dtype", "codes_bytes"), [
    ("denseshift", 4, np.float32, 768), ("s3", 2, np.int8, 768 // 3),
    ("deepshift_q", 5, np.float32, 768),
])  # fmt: skip
def test_the_file_holds_the_codes(net, images, name, bits, dtype, codes_bytes):
    """768 weights: several codes a byte where that table is small, and an int8 table where its numbers are."""
    done = Shift(name, bits, "scratch")(net, context(images, net))
    ctx = rewriting()
    exported = export(done.module, ctx.input, ctx.output, target("onnxruntime"))
    folded = Fold()(exported.model, ctx)
    x = np.random.default_rng(0).standard_normal((4, 3, 16, 16), np.float32)
    with torch.no_grad():
        assert sqnr_db(done.module(torch.from_numpy(x)).numpy(), run(folded, x)) > 100
    forms = onnx_codes.coded_weights(folded)
    assert set(forms) == set(coded_weights(done.module))
    form = forms["expand.conv.weight"]
    assert form.table.dtype == dtype and form.codes.nbytes == codes_bytes


# Bad input


@pytest.mark.parametrize(("name", "bits"), [("denseshift", 5), ("denseshift", 1), ("s3", 4), ("deepshift_q", 7),
                                            ("apot", 40)])  # fmt: skip
def test_bits_that_a_method_does_not_have(name, bits, tmp_path):
    message = rf"shift: {name} has 2, .*bits; bits = {bits}"
    (tmp_path / "r.toml").write_text(f'{IO}[[pass]]\nname = "shift"\nmethod = "{name}"\nbits = {bits}\n')
    with pytest.raises(BadInput, match=message):
        load(str(tmp_path / "r.toml"))
    edit = {"edit": "shift_weight", "layer": "expand.conv", "method": name, "bits": bits}
    with pytest.raises(BadInput, match=message):
        build(SOURCE, edits_from_json([edit], "test"), trust=True)
    with pytest.raises(BadInput, match=r"unknown method 'denseshif'; did you mean 'denseshift'"):
        build(SOURCE, edits_from_json([{**edit, "method": "denseshif"}], "test"), trust=True)


def test_layers_that_cannot_be_coded(net, images):
    ctx = context(images, net)
    with pytest.raises(BadInput, match=r"exclude = 'exp\?' matches no convolution or linear layer"):
        Shift(exclude=("exp?",))(net, ctx)
    with pytest.raises(BadInput, match="no layer is left to code"):
        Shift(exclude=("[!sc]*",))(net, ctx)
    with pytest.raises(BadInput, match=r"the weight of expand.conv is kept as codes already"):
        Shift()(Shift()(net, ctx), ctx)


def test_layers_that_share_a_weight(net, images):
    shared = copy.deepcopy(net)
    shared.module.head.conv = copy.deepcopy(shared.module.expand.conv)
    shared.module.head.conv.weight = shared.module.expand.conv.weight
    shared.module.head.norm = nn.BatchNorm2d(48)
    shared.module.classifier.linear = nn.Linear(48, 4)
    with pytest.raises(BadInput, match=r"expand.conv and head.conv share one weight; exclude them"):
        Shift()(shared, context(images, net))
    done = Shift(exclude=("expand.conv", "head.conv"))(shared, context(images, net))
    assert len(originals(done.module.project.conv)) == 5
