"""Networks of power-of-two weights: how they are made, trained and exported, and what is refused."""

import copy
import dataclasses
import itertools

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
from edgekit.targets import target
from tests.conftest import IO
from tests.nets import tiny
from tests.onnx_models import run
from tests.test_export import context as rewriting
from tests.test_train import Interrupted, context, interrupt_after

SOURCE = parse_spec("tests.nets:tiny")


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


def test_what_froze_is_what_an_epoch_left_as_it_was(net, images, tmp_path):
    lines, shown, codes = list[str](), list[str](), list[torch.Tensor]()

    def track(items, _label, _total=None, status=None):
        for item in items:
            shown.append(status())
            yield item

    def score(now: Net) -> dict[str, float]:
        codes.append(trained_codes(now.module))
        return {"top1": 50.0}

    ctx = context(images, net, journal=tmp_path / "log.csv", log=lines.append, score=score, track=track)
    coded = Shift("denseshift", 4)(net, ctx)
    codes.append(trained_codes(coded.module))
    Finetune(epochs=3, batch=64, lr=0.05)(coded, ctx)
    header, *rows = [line.split(",") for line in (tmp_path / "log.csv").read_text().splitlines()]
    assert header == ["step", "epoch", "lr", "loss", "frozen", "top1"]
    expected = [100 * (old == new).double().mean().item() for old, new in itertools.pairwise(codes)]
    assert [float(row[4]) for row in rows if row[4]] == pytest.approx(expected) and 50 < min(expected) < 100
    assert f"frozen {expected[-1]:.2f}, top1 50.00" in lines[-1]
    assert "frozen" not in shown[1] and f", {expected[-2]:.1f} % frozen, " in shown[-1]


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
    ("denseshift", 4, np.float16, 768), ("s3", 2, np.int8, 768 // 3),
    ("deepshift_q", 5, np.float16, 768),
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
