"""The losses against calculations by hand in NumPy on few numbers, and what each must do whatever the numbers."""

import contextlib
import copy
import multiprocessing

import numpy as np
import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from edgekit.data import IGNORE
from edgekit.errors import BadInput
from edgekit.nets.resnet import cifar_resnet_20
from edgekit.train import taps
from edgekit.train.losses import LABEL_LOSSES, TEACHER_LOSSES
from edgekit.train.losses.bias import Bias
from edgekit.train.losses.cross_entropy import CrossEntropy
from edgekit.train.losses.features import Features
from edgekit.train.losses.function_matching import FunctionMatching
from edgekit.train.losses.kd import KD
from edgekit.train.losses.meal_v2 import MealV2
from edgekit.train.losses.nd import ND
from edgekit.train.losses.ofa import OFA
from edgekit.train.losses.ps_kd import PSKD
from edgekit.train.objective import Objective, Setup, Views
from tests.nets import calibrate, tiny, tiny_segment

ALL = LABEL_LOSSES | TEACHER_LOSSES


class Fixed(nn.Module):
    """Answers the same whatever it is asked."""

    def __init__(self, logits) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits))

    def forward(self, _images: torch.Tensor) -> torch.Tensor:
        return self.logits


def setup_of(student=None, *teachers, shape=(2, 1, 1), outputs=2, samples=4, plain=()) -> Setup:
    closing = contextlib.ExitStack()
    return Setup(student or Fixed([[0.0]]), teachers, shape, outputs, samples, lambda: iter(plain), closing)


def views_of(labels, images=None, **fields) -> Views:
    settings = {"targets": None, "indices": torch.arange(len(labels)), "epoch": 0, "epochs": 10} | fields
    images = torch.zeros(len(labels), 2, 1, 1) if images is None else images
    return Views(images, torch.as_tensor(labels), **settings)


def softmax(x) -> np.ndarray:
    powers = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def cross_entropies(logits, labels) -> np.ndarray:
    return -np.log(softmax(np.asarray(logits)))[np.arange(len(labels)), labels]


def same(value: torch.Tensor, expected: torch.Tensor | float) -> None:
    assert value.item() == pytest.approx(float(torch.as_tensor(expected).detach()), rel=1e-5, abs=1e-6)


# Labels and softened answers


def test_distillation_by_hand():
    teacher = setup_of(None, Fixed([[0.0, 2.0]]))
    p, q = softmax([0, 1]), softmax([0.5, 0])  # teacher and student at T = 2
    expected = 0.25 * -np.log(1 / (np.e + 1)) + 0.75 * 4 * (p * np.log(p / q)).sum()
    same(KD(temperature=2.0, alpha=0.75).build(teacher)(torch.tensor([[1.0, 0.0]]), views_of([1])), expected)


def test_two_teachers_answer_with_their_mean():
    logits, views = torch.tensor([[1.0, 0.0]]), views_of([1])
    both = KD(temperature=1.0, alpha=1.0).build(setup_of(None, Fixed([[0.0, 2.0]]), Fixed([[3.0, 0.0]])))
    p, q = (softmax([0, 2]) + softmax([3, 0])) / 2, softmax([1, 0])
    same(both(logits, views), (p * np.log(p / q)).sum())


def test_function_matching_by_hand_ignores_labels():
    term = FunctionMatching(temperature=2.0).build(setup_of(None, Fixed([[0.0, 2.0]])))
    p, q = softmax([0, 1]), softmax([0.5, 0])
    for label in (0, 1):
        same(term(torch.tensor([[1.0, 0.0]]), views_of([label])), (p * np.log(p / q)).sum())


def dense(ignored: float = 0.3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of student and teacher (2, 3, 4, 5) and labels (2, 4, 5), some ignored."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[torch.rand(2, 4, 5, generator=generator) < ignored] = IGNORE
    return student, teacher, labels


def rows(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) as (B·H·W, C)."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def test_dense_cross_entropy_is_the_mean_over_labelled_pixels():
    student, _, labels = dense()
    known = labels.reshape(-1) != IGNORE
    term = CrossEntropy().build(setup_of())
    same(term(student, views_of(labels)), cross_entropies(rows(student)[known], labels.reshape(-1)[known]).mean())
    assert term(student, views_of(torch.full_like(labels, IGNORE))) == 0, "not NaN, which would stop the training"


def test_dense_distillation_is_that_of_every_pixel_on_its_own():
    student, teacher, labels = dense(ignored=0.0)
    loss = KD(temperature=4.0, alpha=0.7)
    flat = loss.build(setup_of(None, Fixed(rows(teacher))))(rows(student), views_of(labels.reshape(-1)))
    same(loss.build(setup_of(None, Fixed(teacher)))(student, views_of(labels)), flat)
    same(KD(alpha=1.0).build(setup_of(None, Fixed(student)))(student, views_of(labels)), 0)


def test_class_255_of_a_classifier_is_not_ignored():
    logits, labels = torch.randn(4, 300), [255, 255, 1, 2]
    same(CrossEntropy().build(setup_of())(logits, views_of(labels)), cross_entropies(logits, labels).mean())


# Norm and direction


def two_layers(embed: torch.Tensor, classify: torch.Tensor) -> nn.Module:
    """Pictures (B, D, 1, 1) to embeddings, to logits."""
    first, last = (nn.Linear(*matrix.shape[::-1], bias=False) for matrix in (embed, classify))
    first.weight.data, last.weight.data = embed, classify
    return nn.Sequential(nn.Flatten(), first, last)


PICTURES = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [-1.0, 1.0]]).reshape(4, 2, 1, 1)
TAUGHT = torch.tensor([0, 0, 1, 1])


def nd_pair(scale: float = 1.0, **fields):
    """Student, ND's term, the embeddings of student and teacher of PICTURES and the teacher's logits, in NumPy."""
    generator = torch.Generator().manual_seed(1)
    embed, other, classify = torch.randn(3, 2, 2, generator=generator)
    student, teacher = two_layers(scale * embed, classify), two_layers(other, classify)
    plain = [(PICTURES[:3], TAUGHT[:3]), (PICTURES[3:], TAUGHT[3:])]
    term = ND(**fields).build(setup_of(student, teacher, plain=plain))
    x = PICTURES.flatten(1).numpy()
    return student, term, x @ (scale * embed).numpy().T, x @ other.numpy().T, x @ other.numpy().T @ classify.numpy().T


def nd_each(s: np.ndarray, t: np.ndarray, labels) -> np.ndarray:
    centres = np.stack([t[:2].mean(0), t[2:].mean(0)])
    toward = (centres / np.linalg.norm(centres, axis=1, keepdims=True))[labels]
    return 1 - (s * toward).sum(1) / np.maximum(np.linalg.norm(s, axis=1), np.linalg.norm(t, axis=1))


def test_nd_by_hand():
    student, term, s, t, answers = nd_pair(temperature=2.0, cls=0.5, kd=3.0, nd=0.7, warm_up=4)
    logits, labels = student(PICTURES), [0, 1, 1, 0]
    mine = logits.detach().numpy()
    p, q = softmax(answers / 2), softmax(mine / 2)
    parts = 0.5 * cross_entropies(mine, labels).mean() + 0.7 * nd_each(s, t, labels).mean()
    soft = 3 * 4 * (p * np.log(p / q)).sum(1).mean()
    for epoch, rise in ((0, 0), (1, 0.25), (4, 1), (9, 1)):
        same(term(logits, views_of(labels, PICTURES, epoch=epoch)), parts + rise * soft)


def test_nd_asks_for_length_where_the_direction_is_right():
    student, term, *_ = nd_pair(cls=0.0, kd=0.0, nd=1.0)
    images = term.directions[TAUGHT, :, None, None]
    for length, expected in ((100.0, 0.0), (1e-5, 1.0), (-100.0, 2.0)):
        student[1].weight.data = length * torch.eye(2)  # longer than the teacher's; much shorter; the wrong way
        value = term(student(images), views_of(TAUGHT, images))
        assert value.item() == pytest.approx(expected, abs=1e-4)


def test_nd_of_a_mixture_is_the_mixture_of_its_losses():
    student, term, s, t, _ = nd_pair(cls=0.0, kd=0.0, nd=1.0)
    targets = torch.tensor([[0.3, 0.7]] * 4)
    expected = 0.3 * nd_each(s, t, [0] * 4) + 0.7 * nd_each(s, t, [1] * 4)
    same(term(student(PICTURES), views_of([0] * 4, PICTURES, targets=targets)), expected.mean())


def test_nd_leaves_out_classes_without_pictures():
    student = two_layers(torch.eye(2), torch.ones(3, 2))
    teacher = two_layers(2 * torch.eye(2), torch.ones(3, 2))
    plain = [(PICTURES, TAUGHT)]  # none of class 2
    term = ND(cls=0.0, kd=0.0, nd=1.0).build(setup_of(student, teacher, outputs=3, plain=plain))
    x = PICTURES.flatten(1).numpy()
    same(term(student(PICTURES), views_of([0, 2, 1, 2], PICTURES)), nd_each(x, 2 * x, [0, 0, 1, 0])[[0, 2]].mean())
    same(term(student(PICTURES), views_of([2] * 4, PICTURES)), 0)


def test_nd_takes_the_mean_over_pixels_of_a_convolutional_head():
    head = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.randn(4, 3, 5, 5)
    term = ND().build(setup_of(head, copy.deepcopy(head), shape=(3, 5, 5), plain=[(images, torch.tensor([1] * 4))]))
    mean = images.mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(term.directions.numpy(), [[0, 0, 0], mean / np.linalg.norm(mean)], rtol=1e-4, atol=1e-6)


def test_nd_projects_an_embedding_of_another_length():
    student, teacher = tiny(), calibrate(cifar_resnet_20(4), (3, 16, 16))
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    term = ND().build(setup_of(student, teacher, shape=(3, 16, 16), outputs=4, plain=[(images, labels)]))
    assert [type(layer) for layer in term.project] == [nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert term.project[2].weight.shape == (64, 32) and term.directions.shape == (4, 64)
    assert set(term.state_dict()) >= {"directions", "project.2.weight"}


# One for all


def ofa_by_hand(logits, teacher, labels, eps: float) -> float:
    y = np.eye(logits.shape[1])[labels]
    return -(((softmax(teacher) + y) ** eps - y) * np.log(softmax(logits))).sum(1).mean()


@pytest.mark.parametrize("eps", [1.0, 1.5])
def test_ofa_by_hand(eps):
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(3, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    images, labels = torch.randn(6, 3, 4, 4), np.array([0, 1, 2, 3, 0, 1])
    answers = torch.randn(6, 4)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 7), nn.Linear(7, 4))
    teacher[2].weight.data.zero_()
    teacher[2].bias.data = answers[0]
    term = OFA(eps=eps).build(setup_of(student, teacher, shape=(3, 4, 4), outputs=4))
    logits = student(images)
    (branch,) = term.branches
    assert branch[0].weight.shape == (7, 5, 1, 1), "the longer of the embeddings of 5 and 7"
    pooled = F.conv2d(images, student[0].weight, student[0].bias).mean((2, 3)).detach().numpy()
    conv, linear = ({k: v.detach().numpy() for k, v in branch[i].named_parameters()} for i in (0, 3))
    branched = (pooled @ conv["weight"][:, :, 0, 0].T + conv["bias"]) @ linear["weight"].T + linear["bias"]
    mine, taught = logits.detach().numpy(), np.tile(answers[0].numpy(), (6, 1))
    expected = cross_entropies(mine, labels).mean() + sum(ofa_by_hand(x, taught, labels, eps) for x in (mine, branched))
    same(term(logits, views_of(labels, images)), expected)
    if eps == 1.0:
        same(term(logits, views_of(labels, images)) - F.cross_entropy(logits, torch.tensor(labels)),
             sum(-(softmax(taught) * np.log(softmax(x))).sum(1).mean() for x in (mine, branched)))  # fmt: skip


def test_ofa_takes_the_largest_class_of_a_mixture():
    student, teacher = tiny(), tiny()
    images = torch.randn(2, 3, 16, 16)
    term = OFA(eps=1.3).build(setup_of(student, teacher, shape=(3, 16, 16), outputs=4))
    targets = torch.tensor([[0.6, 0.4, 0, 0], [0, 0, 0.1, 0.9]])
    logits = student(images)
    mixed, plain = (term(logits, views_of([0, 3], images, targets=given)) for given in (targets, None))
    same(mixed - plain, F.cross_entropy(logits, targets) - F.cross_entropy(logits, torch.tensor([0, 3])))


def test_ofa_branches_end_at_the_last_stage():
    student, teacher = cifar_resnet_20(4), tiny()
    term = OFA().build(setup_of(student, teacher, shape=(3, 16, 16), outputs=4))
    assert term.stages == ("layer1", "layer2", "layer3")
    with torch.no_grad():
        student(torch.randn(2, 3, 16, 16))
        shapes = []
        for name, branch in zip(term.stages, term.branches):
            value = term.taps.values[name]
            for layer in branch[:-3]:
                value = layer(value)
                shapes.append(tuple(value.shape[1:]))
    assert shapes == [(32, 8, 8), (64, 4, 4), (64, 4, 4), (64, 4, 4)]  # two halvings, one, and a 1×1 convolution
    named = OFA(stages=("layer2",)).build(setup_of(student, teacher, shape=(3, 16, 16), outputs=4))
    assert len(named.branches) == 1 and len(named.branches[0][:-3]) == 1


# Self-distillation


def test_ps_kd_by_hand():
    term = PSKD(alpha=0.8).build(setup_of(outputs=3, samples=5))
    generator = torch.Generator().manual_seed(0)
    remembered = np.eye(3)[[0, 1, 2, 0, 1]]  # y until there is an answer
    labels = np.array([0, 1, 2, 0, 1])
    for epoch, order in enumerate([[3, 1, 0], [1, 2, 3], [0, 4, 1], [0, 1, 2]]):
        logits = torch.randn(3, 3, generator=generator)
        share = 0.8 * (epoch + 1) / 4
        target = (1 - share) * np.eye(3)[labels[order]] + share * remembered[order]
        value = term(logits, views_of(labels[order], indices=torch.tensor(order), epoch=epoch, epochs=4))
        same(value, -(target * np.log(softmax(logits.numpy()))).sum(1).mean())
        if epoch == 0:
            same(value, cross_entropies(logits, labels[order]).mean())
        remembered[order] = softmax(logits.numpy())
    assert share == 0.8, "the last epoch's weight is alpha"
    assert set(term.state_dict()) == {"answers", "seen"}


def test_ps_kd_smooths_the_labels_it_is_told_to_smooth():
    term, logits = PSKD().build(setup_of()), torch.tensor([[1.0, -1.0]])
    target = np.array([0.1, 0.9])
    same(term(logits, views_of([1], smoothing=0.2)), -(target * np.log(softmax([1, -1]))).sum())


def in_two_processes(work, folder) -> list:
    """What `work(rank)` gives in each of two processes that can talk to each other."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def run(rank: int) -> None:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        queue.put((rank, work(rank)))
        distributed.destroy_process_group()

    processes = [context.Process(target=run, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    return [found[rank] for rank in range(2)]


def test_ps_kd_remembers_what_other_processes_answered(tmp_path):
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))

    def work(rank: int) -> list:
        term = PSKD().build(setup_of())
        own = slice(2 * rank, 2 * rank + 2)
        term(logits[own], views_of([0, 1], indices=torch.tensor([3, 1, 0, 2])[own]))
        return [term.answers.tolist(), term.seen.tolist()]

    for answers, seen in in_two_processes(work, tmp_path):
        assert seen == [True] * 4
        np.testing.assert_allclose(np.array(answers)[[3, 1, 0, 2]], softmax(logits.numpy()), rtol=1e-6)


# Discriminator


def meal_by_hand(logits: np.ndarray, teachers: list[np.ndarray], layers: list[tuple[np.ndarray, np.ndarray]]) -> float:
    target = np.mean([softmax(teacher) for teacher in teachers], axis=0)
    told = np.concatenate([logits, np.mean(teachers, axis=0)])
    for weight, bias in layers:
        told = np.maximum(told @ weight.T + bias, 0)
    wanted = np.array([[1, 0]] * len(logits) + [[0, 1]] * len(logits))
    bce = np.log1p(np.exp(told)) - wanted * told
    return -(target * np.log(softmax(logits))).sum(1).mean() + bce.mean()


def meal_pair():
    """Logits of a student and two teachers, the term, and its discriminator's layers in NumPy; no ReLU is at 0."""
    generator = torch.Generator().manual_seed(3)
    logits, *answers = torch.rand(3, 4, 5, generator=generator) + 0.1
    term = MealV2().build(setup_of(None, *map(Fixed, answers), outputs=5))
    for parameter in term.parameters():
        parameter.data.uniform_(0.1, 0.9, generator=generator)
    layers = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in term.discriminator[::2]]
    return logits.requires_grad_(), [answer.numpy() for answer in answers], term, layers


def check_slopes(x: torch.Tensor, function) -> None:
    """The gradient at x is what differences of the function say, in sign and size."""
    start, step = x.detach().numpy().astype(np.float64), 1e-3
    slopes = np.zeros_like(start)
    for place in np.ndindex(start.shape):
        shift = np.zeros_like(start)
        shift[place] = step
        slopes[place] = (function(start + shift) - function(start - shift)) / (2 * step)
    np.testing.assert_allclose(x.grad.numpy(), slopes, rtol=1e-3, atol=1e-6)


def test_meal_v2_by_hand_ignores_labels():
    logits, answers, term, layers = meal_pair()
    expected = meal_by_hand(logits.detach().numpy(), answers, layers)
    for labels in ([0] * 4, [4, 3, 2, 1]):
        same(term(logits, views_of(labels)), expected)


def test_meal_v2_trains_student_and_discriminator_on_one_sum():
    logits, answers, term, layers = meal_pair()
    term(logits, views_of([0] * 4)).backward()
    *before, (weight, bias) = layers
    check_slopes(logits, lambda x: meal_by_hand(x, answers, layers))
    mine = logits.detach().numpy()
    check_slopes(term.discriminator[4].bias, lambda x: meal_by_hand(mine, answers, [*before, (weight, x)]))
    check_slopes(term.discriminator[4].weight, lambda x: meal_by_hand(mine, answers, [*before, (x, bias)]))


def test_meal_v2_judges_pixels_one_by_one():
    student, teacher, labels = dense()
    flat = MealV2().build(setup_of(None, Fixed(rows(teacher)), outputs=3))
    whole = MealV2().build(setup_of(None, Fixed(teacher), outputs=3))
    for one, other in zip(flat.parameters(), whole.parameters()):
        one.data.uniform_(0.1, 0.9)  # no ReLU is at 0
        other.data = one.data
    same(whole(student, views_of(labels)), flat(rows(student), views_of(labels.reshape(-1))))


def test_meal_v2_widths_and_groups():
    term = MealV2(discriminator_lr=0.01).build(setup_of(outputs=1000))
    assert [layer.out_features for layer in term.discriminator[::2]] == [125, 15, 2]
    assert isinstance(term.discriminator[-1], nn.ReLU)
    (group,) = term.parameter_groups()
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (0.01, 0.0, 6)


# Variance of features


class Map(nn.Module):
    """A network whose last feature map is its input, and whose logits are its channels' means."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(2, 2, 1, bias=False)
        self.last.weight.data = torch.eye(2)[:, :, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x).mean((2, 3))


def test_bias_by_hand():
    student = Map()
    term = Bias(alpha=0.2, beta=0.5).build(setup_of(student, shape=(2, 3, 3)))
    generator, smallest = torch.Generator().manual_seed(0), np.inf
    for scale in (1.0, 3.0, 0.5):  # the smallest variance of all batches counts, not that of this one
        images, labels = scale * torch.randn(5, 2, 3, 3, generator=generator), [0, 1, 1, 0, 1]
        v = images.flatten(1).numpy().var(1, ddof=1)
        smallest = min(smallest, v.min())
        z = np.exp(0.5 * (v - smallest) / (v.max() - v.min())) - 1 + 0.2
        logits = student(images)
        expected = (z * cross_entropies(logits.detach().numpy(), labels)).mean()
        same(term(logits, views_of(labels, images)), expected)
        same(term.smallest, smallest)
    assert set(term.state_dict()) == {"smallest"}


def test_bias_weighs_equal_variances_equally():
    student, images = Map(), torch.randn(1, 2, 3, 3).repeat(4, 1, 1, 1)
    term = Bias(alpha=0.3).build(setup_of(student, shape=(2, 3, 3)))
    logits = student(images)
    same(term(logits, views_of([0, 1, 0, 1], images)), 0.3 * cross_entropies(logits.detach(), [0, 1, 0, 1]).mean())


def test_bias_sees_the_whole_batch_of_several_processes(tmp_path):
    images, labels = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)), [0, 1, 1, 0]

    def work(rows: slice) -> float:
        student = Map()
        term = Bias().build(setup_of(student, shape=(2, 3, 3)))
        return term(student(images[rows]), views_of(labels[rows], images[rows])).item()

    halves = in_two_processes(lambda rank: work(slice(2 * rank, 2 * rank + 2)), tmp_path)
    assert np.mean(halves) == pytest.approx(work(slice(0, 4)), rel=1e-5)


# Feature matching


def test_features_by_hand():
    student, teacher = Map(), Map()
    teacher.last.weight.data *= 3
    images, labels = torch.randn(4, 2, 3, 3), [0, 1, 0, 1]
    term = Features(weight=0.5, ce=0.25).build(setup_of(student, teacher, shape=(2, 3, 3)))
    assert term.pairs == [("last", "last")] and not list(term.parameters())
    logits = student(images)
    expected = 0.25 * cross_entropies(logits.detach(), labels).mean() + 0.5 * ((2 * images.numpy()) ** 2).mean()
    same(term(logits, views_of(labels, images)), expected)


def test_features_of_other_channels_and_resolution():
    student, teacher = tiny(), calibrate(cifar_resnet_20(4), (3, 16, 16))
    made = setup_of(student, teacher, shape=(3, 16, 16), outputs=4)
    images = torch.randn(2, 3, 16, 16)
    default = Features().build(made)
    assert default.pairs == [(list(taps.stages(student, (3, 16, 16)))[-1], "layer2")]
    term = Features(stages=("stem", "head"), teacher_stages=("layer1", "layer3"), ce=0.0).build(made)
    shapes = [tuple(layer.weight.shape) for layer in term.maps if not isinstance(layer, nn.Identity)]
    assert shapes == [(64, 32, 1, 1)], "16 channels are 16 already"
    value = term(student(images), views_of([0, 1], images))
    with torch.no_grad():
        stem, head = term.ours.values["stem"].numpy(), term.ours.values["head"].numpy()
        low, high = (term.theirs.values[name].numpy() for name in ("layer1", "layer3"))
        weight, bias = term.maps[1].weight.numpy()[:, :, 0, 0], term.maps[1].bias.numpy()
    halved = lambda x: x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))  # noqa: E731
    mapped = np.einsum("oc,bchw->bohw", weight, head) + bias[:, None, None]
    same(value, ((stem - halved(low)) ** 2).mean() + ((halved(mapped) - high) ** 2).mean())


def test_features_match_dense_networks_too():
    student, teacher = tiny_segment(), tiny_segment()
    term = Features(stages=("fuse",), teacher_stages=("fuse",)).build(
        setup_of(student, teacher, shape=(3, 64, 64), outputs=3)
    )
    images, labels = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.int64)
    logits = student(images)
    same(term(logits, views_of(labels, images)), F.cross_entropy(logits, labels))


# What holds for every loss


def objective(name: str):
    """A small student and its term, its teacher where it has one, views, and what closes the training."""
    torch.manual_seed(0)
    student, teacher = tiny().train(), calibrate(cifar_resnet_20(4), (3, 16, 16))
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    made = setup_of(
        student, *([teacher] if name in TEACHER_LOSSES else []),
        shape=(3, 16, 16), outputs=4, samples=8, plain=[(images, labels)],
    )  # fmt: skip
    return Objective(student, ALL[name]().build(made)), teacher, views_of(labels, images), made.closing


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_the_student_and_the_term_but_no_teacher(name):
    whole, teacher, views, _ = objective(name)  # the teacher's weights want gradients: it is the loss that asks none
    before = copy.deepcopy(teacher.state_dict())
    whole(views).backward()
    for key, parameter in whole.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    for part in (whole.student, whole.term):
        parameters = list(part.parameters()) if isinstance(part, nn.Module) else []
        assert not parameters or sum(parameter.grad.abs().sum() for parameter in parameters) > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(parameter is other for parameter in whole.parameters() for other in teacher.parameters())


@pytest.mark.parametrize("name", ALL)
def test_no_hook_is_left_after_closing(name):
    whole, teacher, _, closing = objective(name)
    closing.close()
    for module in [*whole.modules(), *teacher.modules()]:
        assert not module._forward_hooks, module


@pytest.fixture
def alone(tmp_path):
    """A group of this one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", ALL)
def test_data_parallelism_changes_nothing(name):
    plain, _, views, _ = objective(name)
    torch.manual_seed(1)
    expected = [plain(views).item() for _ in range(2)]
    whole, _, views, _ = objective(name)
    wrapped = DistributedDataParallel(whole)
    torch.manual_seed(1)
    for value in expected:  # the second step fails if the first left a parameter without gradient
        loss = wrapped(views)
        loss.backward()
        same(loss, value)


@pytest.mark.parametrize("name", ALL)
def test_the_registry_knows_losses_by_their_names(name):
    assert ALL[name]().name == name


# Wrong inputs


@pytest.mark.parametrize("loss", [ND(), OFA(), PSKD(), Bias()])
def test_losses_of_pictures_refuse_masks(loss):
    network, labels = tiny_segment(), torch.zeros(1, 64, 64, dtype=torch.int64)
    images = torch.randn(1, 3, 64, 64)
    made = setup_of(network, tiny_segment(), shape=(3, 64, 64), outputs=3, plain=[(images, labels)])
    with pytest.raises(BadInput, match=rf'"{loss.name}" is for one label a picture; these are masks \(1, 64, 64\)'):
        loss.build(made)(network(images), views_of(labels, images))


@pytest.mark.parametrize("loss", [ND(), Features()])
def test_losses_that_look_inside_refuse_several_teachers(loss):
    with pytest.raises(BadInput, match='takes one, not 2; keep one, or write "kd"'):
        loss.build(setup_of(tiny(), tiny(), tiny(), shape=(3, 16, 16), outputs=4))


def test_ps_kd_refuses_mixed_pictures():
    with pytest.raises(BadInput, match="turn mixup and cutmix off"):
        PSKD().build(setup_of())(torch.zeros(1, 2), views_of([0], targets=torch.tensor([[0.5, 0.5]])))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (Features(stages=("stem",)), "names 1 modules and features.teacher_stages 0"),
        (Features(stages=("stm",), teacher_stages=("stem",)), "unknown stage 'stm'; did you mean 'stem'"),
        (Features(stages=("stem",), teacher_stages=("classifier.linear",)), "unknown stage 'classifier.linear'"),
        (OFA(stages=("stm",)), "unknown stage 'stm'; did you mean 'stem'"),
    ],
)
def test_stages_that_do_not_exist(loss, message):
    with pytest.raises(BadInput, match=message):
        loss.build(setup_of(tiny(), tiny(), shape=(3, 16, 16), outputs=4))


def test_networks_without_maps_or_without_a_common_resolution():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    for loss in (Bias(), OFA(), Features()):
        with pytest.raises(BadInput, match="no module of Sequential gives one above 1×1"):
            loss.build(setup_of(flat, flat, shape=(3, 4, 4), outputs=4))
    pooled = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 4))
    with pytest.raises(BadInput, match="no resolution in common; name what to match"):
        Features().build(setup_of(tiny(), pooled, shape=(3, 16, 16), outputs=4))
