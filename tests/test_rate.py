"""Feature matching as the first stage of a cut network sums it, and what its bits add."""

import contextlib

import numpy as np
import pytest
import torch

from edgekit.bottlenecks import inserted
from edgekit.bottlenecks.edit import InsertBottleneck
from edgekit.errors import BadInput
from edgekit.train.losses.cross_entropy import CrossEntropy
from edgekit.train.losses.features import Features
from edgekit.train.losses.rate import Rate
from edgekit.train.objective import Setup, Views
from tests.nets import tiny

SHAPE = (3, 16, 16)


def setup_of(student, *teachers) -> Setup:
    return Setup(student, teachers, SHAPE, 4, 10, lambda: iter(()), contextlib.ExitStack())


def views_of(images) -> Views:
    return Views(images, torch.arange(len(images)) % 4, None, torch.arange(len(images)), 0, 1)


def test_summed_features_are_the_squares_of_a_picture():
    student, teacher = tiny(), tiny()
    teacher.stem.conv.weight.data.mul_(1.5)
    images = torch.randn(3, *SHAPE)
    term = Features(stages=("stem",), teacher_stages=("stem",), summed=True, ce=0.0).build(setup_of(student, teacher))
    with torch.no_grad():
        squares = (student.stem(images) - teacher.stem(images)).square()
        assert torch.allclose(term(student(images), views_of(images)), squares.sum((1, 2, 3)).mean(), rtol=1e-5)


def cut() -> torch.nn.Module:
    torch.manual_seed(0)
    made = tiny()
    InsertBottleneck("stem", "entropic", channels=3, stride=2, shape=SHAPE, size="mobile").apply(made)
    return made


def test_the_rate_is_beta_times_a_pictures_bits():
    student, images = cut().train(), torch.randn(3, *SHAPE)
    setup = setup_of(student)
    term = Rate(CrossEntropy(), beta=0.25, prior_lr=0.01).build(setup)
    arrived = []
    prior = inserted(student)[1].latent
    prior.register_forward_hook(lambda _module, _given, output: arrived.append(output.detach()))
    logits = student(images)
    found = term(logits, views_of(images)).item()
    bits = -np.log2(prior.likelihood(arrived[0]).detach().numpy()).sum(axis=(1, 2, 3)).mean()
    plain = torch.nn.functional.cross_entropy(logits, torch.arange(3)).item()
    assert found == pytest.approx(plain + 0.25 * bits, rel=1e-5)
    setup.closing.close()
    assert not term.state_dict()  # the prior is the student's


def test_the_prior_trains_at_its_own_rate():
    student = cut()
    (group,) = Rate(CrossEntropy(), beta=1.0, prior_lr=0.5).build(setup_of(student)).parameter_groups()
    assert group["lr"] == 0.5 and group["weight_decay"] == 0
    assert [id(p) for p in group["params"]] == [id(p) for p in inserted(student)[1].latent.parameters()]


@pytest.mark.parametrize("kind", [None, "reduction"])
def test_without_a_prior_there_is_no_rate(kind):
    student = tiny()
    if kind:
        InsertBottleneck("stem", kind, channels=3, stride=2, shape=SHAPE, size="mobile").apply(student)
    with pytest.raises(BadInput, match="entropic bottleneck"):
        Rate(CrossEntropy(), beta=1.0, prior_lr=0.1).build(setup_of(student))
