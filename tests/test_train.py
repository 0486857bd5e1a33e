"""The training loop: that it learns what was asked, is the same run however it is cut up, and loses nothing."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.context import PassContext
from edgekit.data import Data, Input, Output, Sample, Samples
from edgekit.errors import BadInput, TrainingStopped
from edgekit.net import Net, Source, state_sha256
from edgekit.parallel import World
from edgekit.passes import Distil, Finetune, Reestimate
from edgekit.recipe import load
from edgekit.run import compress
from edgekit.train.augment import Augment, mixed
from edgekit.train.feed import Feed
from edgekit.train.settings import Training
from tests.conftest import IO
from tests.nets import tiny

SOURCE = Source("factory", "tests.nets:tiny")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def net() -> Net:
    return Net(SOURCE, (), tiny())


def context(data: Data, net: Net, **changes) -> PassContext:
    values = {
        "data": data, "input": Input(size=16, mean=(0.5,), std=(0.5,)), "output": Output(classes=4), "seed": 0,
        "base": net, "cost": lambda _net: {}, "score": lambda _net: {"top1": 50.0},
        "network": lambda _spec: net.module, "log": lambda _line: None, **changes,
    }  # fmt: skip
    return PassContext(**values)


class Interrupted(Exception):
    """Stands for kill -9: nothing runs after it that could tidy up."""


def interrupt_after(steps: int):
    def track(items, _label, _total=None, _status=None):
        for count, item in enumerate(items):
            if count == steps:
                raise Interrupted
            yield item

    return track


# What is computed


def test_one_step_of_sgd_is_the_textbook_one(net, images):
    """w ← w − lr · (g + decay · w) with decay on weights of more than one axis, and Nesterov momentum."""
    data = Data({"train": dataclasses.replace(images.role("train"), items=images.role("train").items[:8])})
    settings = Finetune(epochs=1, batch=8, lr=0.1, weight_decay=0.01, momentum=0.9, warmup=0.0, freeze_norm=True)
    ctx = context(data, net)
    reference = net.clone().module
    done = settings(net, ctx)
    images, labels, _ = next(data.role("train").batches(ctx.input, 8))
    reference.eval()
    nn.functional.cross_entropy(reference(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
    for (name, weight), after in zip(reference.named_parameters(), done.module.parameters()):
        gradient = weight.grad + (0.01 * weight if weight.ndim > 1 else 0)
        expected = weight - 0.1 * (1 + 0.9) * gradient  # the first Nesterov step
        torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6, msg=name)


def test_schedules_warm_up_and_end_where_they_should():
    cosine, step = Training(warmup=0.1).rate(100), Training(schedule="step", warmup=0.0).rate(100)
    assert [round(cosine(n), 2) for n in (0, 4, 9, 10, 55)] == [0.1, 0.5, 1.0, 1.0, 0.5] and cosine(99) < 0.001
    assert [step(n) for n in (1, 49, 50, 74, 75)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_the_mean_of_the_weights_is_handed_over(net, images):
    plain = Finetune(epochs=1, batch=32, lr=0.05)(net, context(images, net)).module
    mean = Finetune(epochs=1, batch=32, lr=0.05, ema=0.9)(net, context(images, net)).module
    for before, last, averaged in zip(net.module.parameters(), plain.parameters(), mean.parameters()):
        if (last - before).norm() > 1e-3:
            assert (averaged - before).norm() < (last - before).norm(), "a mean lags behind"


def test_clipping_bounds_the_step(net, images):
    settings = Finetune(epochs=1, batch=32, lr=1e3, momentum=0.0, weight_decay=0.0, clip=1e-6, warmup=0.0)
    done = settings(net, context(images, net)).module
    steps = len(images.role("train")) // 32
    pairs = zip(net.module.parameters(), done.parameters())
    moved = sum((a - b).detach().square().sum().item() for a, b in pairs) ** 0.5
    assert 0 < moved < steps * 1e3 * 1e-6 * 1.001


def test_frozen_norms_keep_their_statistics(net, images):
    done = Finetune(epochs=1, batch=32, freeze_norm=True)(net, context(images, net)).module
    for before, after in zip(net.module.buffers(), done.buffers()):
        assert torch.equal(before, after)


@pytest.mark.parametrize("settings", [{"optimiser": "adamw", "lr": 0.003}, {"mixup": 0.5}, {"cutmix": 1.0},
                                      {"augment": {"shift": 0.1, "area": 0.9}}, {"label_smoothing": 0.1}])  # fmt: skip
def test_it_learns_with_every_setting(net, images, settings):
    if "augment" in settings:
        settings = {"augment": Augment(**settings["augment"])}
    lines: list[str] = []
    ctx = context(images, net, log=lines.append)
    done = Finetune(**{"epochs": 6, "batch": 32, "lr": 0.1, **settings})(net, ctx).module
    pictures, labels, _ = next(images.role("test").batches(ctx.input, 80))
    with torch.no_grad():
        right = (done(torch.from_numpy(pictures)).argmax(1).numpy() == labels).mean()
    assert right > 0.75, "a quarter is chance"
    epochs = [line for line in lines if "epoch" in line]
    assert len(epochs) == 6 and "epoch 6 of 6, loss" in epochs[-1] and "top1 50.00" in epochs[-1]


def test_reestimated_norms_have_the_statistics_of_the_pictures(net, images):
    spoiled = net.clone()
    for module in spoiled.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean += 3
    before = state_sha256(spoiled.module)
    fresh = Reestimate(images=1000, batch=len(images.role("train")))(spoiled, context(images, net))
    assert state_sha256(spoiled.module) == before
    pictures, _, _ = next(images.role("train").batches(Input(size=16, mean=(0.5,), std=(0.5,)), 1000))
    with torch.no_grad():
        x = fresh.module.stem.conv(torch.from_numpy(pictures))  # the first norm's own input
    torch.testing.assert_close(fresh.module.stem.norm.running_mean, x.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fresh.module.stem.norm.running_var, x.var((0, 2, 3)), rtol=1e-3, atol=1e-5)
    with pytest.raises(BadInput, match="no batch norm"):
        Reestimate()(Net(SOURCE, (), nn.Sequential(nn.Conv2d(3, 4, 3))), context(images, net))


# The same run, however it is cut up


def trained(net: Net, data: Data, **settings) -> str:
    ctx = settings.pop("ctx", None) or context(data, net)
    return state_sha256(Finetune(**{"epochs": 2, "batch": 32, "lr": 0.05, **settings})(net, ctx).module)


def test_processes_decode_the_same(net, images):
    augment = Augment(flip=True, shift=0.2, area=0.5)
    assert trained(net, images, augment=augment) == trained(net, images, augment=augment, workers=2)
    assert trained(net, images, augment=augment) != trained(net, images)


@pytest.mark.parametrize("steps", [1, 8, 9, 17])
def test_an_interrupted_run_goes_on_bit_for_bit(net, images, tmp_path, steps):
    settings = Finetune(
        epochs=2, batch=32, lr=0.05, ema=0.9, optimiser="adamw", augment=Augment(flip=True, jitter=0.2), mixup=0.2,
        save_s=0.0,
    )  # fmt: skip
    whole = context(images, net, journal=tmp_path / "whole.csv")
    expected = state_sha256(settings(net, whole).module)
    cut = context(images, net, state=tmp_path / "state", journal=tmp_path / "cut.csv", track=interrupt_after(steps))
    with pytest.raises(Interrupted):
        settings(net, cut)
    torch.manual_seed(99)  # as another process would have another state
    lines: list[str] = []
    again = settings(net, dataclasses.replace(cut, track=whole.track, log=lines.append))
    assert state_sha256(again.module) == expected and "goes on after step" in lines[0]
    assert (tmp_path / "cut.csv").read_text() == (tmp_path / "whole.csv").read_text()


def test_the_journal_has_a_row_a_step(net, images, tmp_path):
    Finetune(epochs=2, batch=32)(net, context(images, net, journal=tmp_path / "log.csv"))
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    steps = len(images.role("train")) // 32
    assert header == "step,epoch,lr,loss,top1" and len(rows) == 2 * steps
    assert rows[steps - 1].split(",")[:2] == [str(steps), "1"] and rows[steps - 1].endswith(",50.0")
    assert rows[0].endswith(",") and float(rows[0].split(",")[3]) > 0


def test_shares_of_processes_lose_and_repeat_no_picture(images):
    samples, settings = images.role("train"), Training(epochs=2, batch=32)

    def plan(rank, size):
        return list(Feed(samples, Input(size=16), Output(), settings, 4, 7, World(rank, size)).plan(0))

    whole = plan(0, 1)
    parts = [plan(rank, 4) for rank in range(4)]
    for step, batch in enumerate(whole):
        assert sorted(batch) == sorted(key for part in parts for key in part[step])
        assert {len(part[step]) for part in parts} == {8}
    first = [key.number for batch in whole[: len(whole) // 2] for key in batch]
    assert len(set(first)) == len(first), "no picture twice an epoch"
    assert plan(0, 1)[5:] == list(Feed(samples, Input(size=16), Output(), settings, 4, 7, World()).plan(5))


TRAIN = (
    IO
    + """
[[pass]]
name = "finetune"
epochs = 2
batch = 32
lr = 0.01
save_s = 0.0
freeze_norm = true
augment = { flip = true, shift = 0.1 }
"""
)


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "train.toml").write_text(TRAIN)
    return str(tmp_path / "train.toml")


def command(recipe: str, data: str, out: Path, *more: str) -> list[str]:
    return ["-m", "edgekit", "train", "tests.nets:tiny", "--recipe", recipe, "--data", data, "--out", str(out),
            "--runs", "8", *more]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_two_processes_compute_what_one_does(recipe, data, tmp_path):
    """2 × B/2 against 1 × B with norms frozen: the same but for the order of sums, 1e-4 of each weight's size."""
    one = compress("tests.nets:tiny", recipe, data, tmp_path / "one", runs=8)
    done = subprocess.run(_torchrun(recipe, data, tmp_path / "two"), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (edgekit.load(path, trust=True).state_dict() for path in (one.path, tmp_path / "two"))
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=1e-4, atol=1e-5, msg=name)
    logs = [path.joinpath("train.01.csv").read_text().splitlines() for path in (one.path, tmp_path / "two")]
    last = [dict(zip(log[0].split(","), log[-1].split(","))) for log in logs]
    assert last[0]["top1"] == last[1]["top1"], "the score was shared out over the processes"
    assert done.stdout.count("finetune") == 1, "one process alone reports"


def _torchrun(recipe: str, data: str, out: Path) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*run, *command(recipe, data, out)]


def test_a_killed_process_resumes_to_the_same_bundle(recipe, data, tmp_path):
    whole = compress("tests.nets:tiny", recipe, data, tmp_path / "whole", overrides=["finetune.epochs=30"], runs=8)
    out = tmp_path / "out"
    run = [sys.executable, *command(recipe, data, out, "--set", "finetune.epochs=30")]
    process = subprocess.Popen(run, env=environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    state = out / ".work" / "training-01.safetensors"
    deadline = time.monotonic() + 120
    while not state.is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert state.is_file() and not (out / "manifest.json").exists(), "killed while it trained"
    resumed = compress("tests.nets:tiny", recipe, data, out, overrides=["finetune.epochs=30"], runs=8, resume=True)
    assert resumed.manifest["files"] == whole.manifest["files"]
    assert resumed.seal == whole.seal


# Bad input


def test_a_second_run_into_the_same_folder(recipe, data, tmp_path):
    from edgekit.job import prepare  # the folder is claimed, and locked while somebody works there

    out = tmp_path / "out"
    job = prepare(
        "tests.nets:tiny", recipe, [data], out, seed=0, overrides=(), resume=False, on_error="stop", io_file=None,
        track=lambda items, *_: items, log=print, world=World(),
    )  # fmt: skip
    with job.locked():
        with pytest.raises(BadInput, match=r"not empty.*--resume"):
            compress("tests.nets:tiny", recipe, data, out)
        with pytest.raises(BadInput, match="another run is at work there"):
            compress("tests.nets:tiny", recipe, data, out, resume=True)
    assert compress("tests.nets:tiny", recipe, data, out, resume=True, runs=8).models


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(net, images, tmp_path):
    from safetensors.torch import load_file

    ctx = context(images, net, state=tmp_path / "state")
    with pytest.raises(TrainingStopped, match=r"finetune: .* at step \d+ \(epoch 1\); the last good state is kept in"):
        Finetune(epochs=1, batch=32, lr=1e30)(net, ctx)
    good = load_file(tmp_path / "state")
    assert all(torch.isfinite(value).all() for value in good.values())
    assert all(torch.equal(good[f"student.{name}"], value) for name, value in net.module.state_dict().items())


def test_a_teacher_must_know_the_same_classes(net, images):
    with pytest.raises(BadInput, match=r"outputs of \(7,\) where the student gives \(4,\)"):
        Distil(epochs=1, teachers=("other",))(net, context(images, net, network=lambda _spec: tiny(7)))


def test_a_teacher_needs_weights_and_the_same_input(bundle, recipe, data, tmp_path):
    text = TRAIN.replace('"finetune"', '"distil"')
    Path(recipe).write_text(text + 'teachers = ["mobilenet_v2?classes=4"]\n')
    with pytest.raises(BadInput, match=r"mobilenet_v2\?classes=4: has no trained weights; write .*&weights=PATH"):
        compress("tests.nets:tiny", recipe, data, tmp_path / "a")
    Path(recipe).write_text(text.replace("std = [0.5]", "std = [0.25]") + f'teachers = ["{bundle.path}"]\n')
    with pytest.raises(BadInput, match=r"made for another \[input\]"):
        compress("tests.nets:tiny", recipe, data, tmp_path / "b")


def test_a_bundle_teaches(bundle, recipe, data, tmp_path):
    text = TRAIN.replace('"finetune"', '"distil"').replace("epochs = 2", "epochs = 4")
    Path(recipe).write_text(text + f'teachers = ["{bundle.path}", "{bundle.path}"]\nloss = "function_matching"\n')
    student = "mobilenet_v2?width=0.35&classes=4&small_input=true"
    made = compress(student, recipe, data, tmp_path / "out", overrides=["distil.freeze_norm=false"], runs=8)
    losses = [float(row.split(",")[3]) for row in (made.path / "train.01.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.8 * losses[0], "it comes closer to what the bundle answers"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('loss = "kd"', r"unknown name 'kd'.*ce"),
        ("loss = 3", 'write "ce"'),
        ('loss = { name = "ce", temperature = 2.0 }', "unknown key 'temperature'"),
        ("augment = { flop = true }", "flop"),
        ("augment = { area = 0.0 }", "area"),
        ("lr = 0.0", "lr"),
        ("warmup = 1.5", "warmup"),
        ('schedule = "linear"', "cosine"),
    ],
)
def test_a_recipe_says_what_is_wrong(recipe, line, message):
    key = line.partition(" =")[0]
    kept = "\n".join(row for row in TRAIN.splitlines() if not row.startswith(f"{key} ="))
    Path(recipe).write_text(kept + "\n" + line + "\n")
    with pytest.raises(BadInput, match=message):
        load(recipe)


def test_a_recipe_that_trains_nothing_is_not_for_train(data, tmp_path):
    (tmp_path / "r.toml").write_text('[input]\nsize = 16\n[[pass]]\nname = "prune"\nbudget = { macs = 0.7 }\n')
    done = subprocess.run(
        [sys.executable, *command(str(tmp_path / "r.toml"), data, tmp_path / "out")],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "trains nothing" in done.stderr


def broken(samples: Samples, number: int) -> Samples:
    def fail() -> np.ndarray:
        raise BadInput("picture.jpg: cannot be decoded")

    items = list(samples.items)
    items[number] = Sample(items[number].id, items[number].label, fail, items[number].sha256)
    return dataclasses.replace(samples, items=tuple(items))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_cannot_be_decoded(net, images, workers):
    samples = broken(images.role("train"), 5)
    step = Finetune(epochs=1, batch=32, workers=workers)
    with pytest.raises(BadInput, match=r"^picture.jpg: cannot be decoded"):
        step(net, context(Data({"train": samples}), net))
    skipping = dataclasses.replace(samples, on_error="skip")
    step(net, context(Data({"train": skipping}), net))


def test_what_dense_labels_do_not_allow(images, net):
    ctx = dataclasses.replace(context(images, net), output=Output("segment"))
    with pytest.raises(BadInput, match="classify"):
        Finetune(epochs=1)(net, ctx)


def test_a_batch_larger_than_the_set_or_uneven(net, images):
    with pytest.raises(BadInput, match="fewer than a batch of 4096"):
        Finetune(epochs=1, batch=4096)(net, context(images, net))
    with pytest.raises(BadInput, match="batch = 32 cannot be shared by 3 processes"):
        Finetune(epochs=1, batch=32)(net, context(images, net, world=World(0, 3)))


# Views


def test_a_view_is_cut_from_the_picture():
    picture = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    input = Input(size=8, channels="gray", resize="squash", interpolation="nearest")
    from edgekit.data import View

    assert np.array_equal(input.resized(picture, View(box=(4, 2, 12, 10)))[0], picture[2:10, 4:12])
    plain = input.resized(picture)[0]
    assert np.array_equal(input.resized(picture, View(flip=True))[0], plain[:, ::-1])
    moved = input.resized(picture, View(shift=(0.25, -0.125)))[0]  # down 2, left 1
    assert np.array_equal(moved[2:, :-1], plain[:-2, 1:]) and not moved[:2].any() and not moved[:, -1].any()
    assert np.array_equal(input.resized(picture, View())[0], plain)


def test_a_mask_moves_with_its_picture():
    from edgekit.data import IGNORE, View

    rng = np.random.default_rng(0)
    mask = rng.integers(0, 9, (16, 16), np.uint8)
    input = Input(size=16, channels="gray", interpolation="nearest")
    view = View(shift=(0.25, 0.125), flip=True)
    picture, seen = input.resized(mask, view)[0], input.resized_mask(mask, view)
    inside = seen != IGNORE
    assert np.array_equal(picture[inside], seen[inside]) and (~inside).sum() == 16 * 16 - 12 * 14


def test_views_stay_in_their_bounds():
    rng = random.Random(0)
    augment = Augment(flip=True, shift=0.2, area=0.3)
    views = [augment.view(rng, 40, 60) for _ in range(500)]
    for view in views:
        left, top, right, bottom = view.box
        assert 0 <= left < right <= 60 and 0 <= top < bottom <= 40
        assert (right - left) * (bottom - top) >= 0.28 * 2400 and max(map(abs, view.shift)) <= 0.2
        assert 0.7 < (right - left) / (bottom - top) < 1.4 or view.box == (0, 0, 60, 40)
    assert 200 < sum(view.flip for view in views) < 300


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_mixed_pictures_and_targets_have_the_same_shares(mixup, cutmix):
    """Pictures that are constant and as bright as their one-hot target show their own shares."""
    labels = torch.arange(4)
    images = nn.functional.one_hot(labels, 4).float()[:, :, None, None].expand(4, 4, 16, 16)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen, targets = mixed(images, labels, 4, mixup, cutmix, rng)
        torch.testing.assert_close(seen.mean((2, 3)), targets)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_colours_need_kornia(net, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(BadInput, match=r"pip install 'edgekit\[train\]'"):
        Finetune(epochs=1, batch=32, augment=Augment(jitter=0.1))(net, context(images, net))
