"""The closed forms of the architecture search."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from edgekit.passes.tas.choices import (
    Choices,
    cost_loss,
    depth_choices,
    interpolation,
    temperature,
    width_choices,
)
from edgekit.passes.tas.space import affordable


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_widths_and_depths_are_those_of_the_reference():
    assert width_choices(16) == (4, 6, 8, 9, 11, 12, 14, 16)
    assert width_choices(32) == (9, 12, 16, 19, 22, 25, 28, 32)
    assert width_choices(64) == (19, 25, 32, 38, 44, 51, 57, 64)
    assert width_choices(32, 8) == (16, 24, 32) and width_choices(20, 8) == (8, 16, 20) and width_choices(3) == (2, 3)
    assert [depth_choices(n) for n in (2, 3, 5, 6)] == [(1, 2), (1, 2, 3), (1, 3, 5), (1, 3, 5, 6)]


def test_interpolation_is_adaptive_pooling_along_the_channels():
    """By hand for 3 → 5 channels: windows [0, 1), [0, 2), [1, 2), [1, 3), [2, 3)."""
    half = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert torch.equal(interpolation(3, 5), torch.tensor(half))
    for size, wanted in itertools.product((4, 9, 11, 16), repeat=2):
        x = torch.randn(2, size, 3, 3, dtype=torch.float64)
        expected = F.adaptive_avg_pool3d(x[:, None], (wanted, 3, 3))[:, 0]
        found = torch.einsum("oc,bchw->bohw", interpolation(size, wanted).double(), x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_temperature_is_a_half_cosine():
    assert [temperature(done, 5.0, 0.1) for done in (0, 1)] == [5.0, 0.1]
    assert temperature(0.5, 5.0, 0.1) == pytest.approx(2.55)
    assert temperature(0.25, 5.0, 0.1) == pytest.approx(0.1 + 4.9 * (1 + math.sqrt(0.5)) / 2)


def test_two_options_are_drawn_without_replacement_as_often_as_enumeration_says():
    """With τ = 1 the pair of the drawing is that of two Gumbel races; the noise averaged out, P(a) is known exactly."""
    choices = Choices([(1, 2, 3)], generator())
    choices.logits.data = torch.tensor([[0.0, 1.0, 2.0]])
    noise, tau, draws = generator(), 0.7, 4000
    weights = choices.log_probabilities().exp()[0]
    frozen = Fixed(choices, choices.log_probabilities() / tau)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        places, shares = frozen.two(tau, noise)
        first, second = places[0]
        assert first != second and shares.sum().item() == pytest.approx(1)
        wanted = torch.softmax(frozen.o[0, places[0]], 0)
        torch.testing.assert_close(shares[0], wanted)
        counts[first, second] = counts.get((first, second), 0) + 1
    p = torch.softmax(weights.log() / tau, 0).tolist()
    for a, b in itertools.permutations(range(3), 2):
        exact = p[a] * p[b] / (1 - p[a])
        assert counts[a, b] / draws == pytest.approx(exact, abs=4 * math.sqrt(exact / draws))


class Fixed(Choices):
    """With o given, so that the drawing alone is random."""

    def __init__(self, like: Choices, o: torch.Tensor) -> None:
        super().__init__(like.options, generator())
        self.o = o

    def perturbed(self, _tau, _generator) -> torch.Tensor:
        return self.o


def test_the_noise_is_gumbels():
    """Of o the largest is option i with probability softmax(logits)_i, at any τ (Gumbel, 1954)."""
    choices = Choices([(1, 2, 3), (4, 5)], generator())
    choices.logits.data = torch.tensor([[0.0, 1.0, 2.0], [0.0, math.log(3), 9.0]])  # the last is no option
    noise, draws = generator(), 4000
    found = sum(F.one_hot(choices.perturbed(0.3, noise).argmax(1), 3) for _ in range(draws)) / draws
    exact = torch.stack([torch.softmax(torch.tensor([0.0, 1.0, 2.0]), 0), torch.tensor([0.25, 0.75, 0])])
    torch.testing.assert_close(found, exact, rtol=0, atol=4 * 0.5 / math.sqrt(draws))
    assert choices.expected().tolist() == pytest.approx([float(exact[0] @ torch.tensor([1.0, 2, 3])), 4.75])
    assert choices.entropy() == pytest.approx(float(-(exact[:, :2] * exact[:, :2].log()).sum() / 2
                                              - exact[0, 2] * exact[0, 2].log() / 2))  # fmt: skip
    two = [choices.two(1e-6, noise) for _ in range(20)]
    assert all(set(places[1]) == {0, 1} and torch.isfinite(shares).all() for places, shares in two)


def test_the_cost_counts_only_outside_the_tolerance():
    expected = torch.tensor(0.4, requires_grad=True)
    assert cost_loss(expected, 0.51, 0.5, 0.05).item() == pytest.approx(math.log(0.4))
    assert cost_loss(expected, 0.44, 0.5, 0.05).item() == pytest.approx(-math.log(0.4))
    assert [cost_loss(expected, found, 0.5, 0.05).item() for found in (0.5, 0.46)] == [0, 0]


def test_a_probable_choice_within_the_budget():
    scores = [[-3.0, -1.0, -0.1], [-0.2, -5.0], [-2.6, -2.0, -0.3]]
    costs = [[1, 2, 3], [1, 4], [1, 2, 6]]

    def cost(picked):
        return sum(row[place] for row, place in zip(costs, picked))

    assert affordable(scores, [2, 0, 2], cost, 0, 10) == [2, 0, 2]
    assert affordable(scores, [2, 0, 2], cost, 0, 6) == [2, 0, 1]  # 1.7 for 4, before 2.3 for 5 and 0.9 for 1
    assert affordable(scores, [2, 0, 2], cost, 0, 5) == [2, 0, 0]  # 0.6 for 1, before 0.9 for 1
    assert affordable(scores, [2, 0, 2], cost, 0, 3) == [0, 0, 0]
    scores = [[-0.1, -1.0, -3.0], [-0.2, -1.7], [-0.3, -2.0, -2.6]]
    assert affordable(scores, [0, 0, 0], cost, 6, 7) == [0, 1, 0]  # 1.5 for 3, before 0.9 for 1
    assert affordable(scores, [0, 0, 0], cost, 4, 5) == [1, 0, 0]  # where that does not fit
    assert affordable(scores, [0, 0, 0], cost, 9, 5) == [1, 0, 1], "as near as there is"


def test_what_went_too_early_comes_back():
    """The first step is 0.1 for 1, the second 1.9 for 9, which alone is enough."""
    costs = [[1, 2], [1, 10]]
    found = affordable([[-0.8, -0.7], [-2.0, -0.1]], [1, 1], lambda p: costs[0][p[0]] + costs[1][p[1]], 0, 10)
    assert found == [1, 0]
