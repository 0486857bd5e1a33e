"""Trained power-of-two weights: their levels, their gradients by hand, and where they begin."""

import math

import pytest
import torch
from torch import nn

from edgekit.shift import METHODS
from edgekit.shift.base import least_squares

LN2 = math.log(2)
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
