"""Weights kept as codes: by hand, as an edit, in training, decoded, and each bad input."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.coded import Codes, CodeWeight, coded_weights, decoded, originals, set_codes
from edgekit.edits import KeepChannels
from edgekit.errors import BadInput
from edgekit.graph import trace
from edgekit.job import torch_predict
from edgekit.net import Net, Source, build, edits_from_json, edits_to_json, state_sha256
from tests.nets import calibrate, tiny
from tests.test_prune import net_of

SHAPE = (3, 32, 32)
PLAIN = Source("zoo", "mobilenet_v2", {"classes": 4, "width": 0.25, "small_input": True})
X = np.random.default_rng(0).standard_normal((4, *SHAPE), np.float32)


def random_codes(
    k: int, m: int, shape: tuple[int, ...], scale: float = 1.0, whole: bool = False, factor: bool = False
) -> Codes:
    generator = torch.Generator().manual_seed(k + 7 * m)
    codebook = torch.randn(k, m, generator=generator)
    return Codes(
        torch.randint(k, (int(np.prod(shape)) // m,), generator=generator),
        (50 * codebook).round().clamp(-127, 127) if whole else scale * codebook,
        torch.rand(shape[0], generator=generator) + 0.5 if factor else None,
        shape,
    )


def with_codes(net: Net, *edits: CodeWeight) -> Net:
    """The net with random codes of its weights' size, and statistics of batch norm to match."""
    made = net.edited(*edits)
    for edit in edits:
        weight = net.module.get_submodule(edit.layer).weight
        codes = random_codes(edit.k, edit.m, tuple(weight.shape), weight.std().item(), factor=edit.per_channel)
        set_codes(made.module, edit.layer, codes)
    calibrate(made.module, SHAPE)
    return made


def mobilenet() -> Net:
    torch.manual_seed(0)
    return Net(PLAIN, (), build(PLAIN))


def coded_mobilenet() -> Net:
    """Every layer coded: filters of 3×3 as one subvector and with factors, others by 4 numbers, the last by one."""
    net = mobilenet()
    edits = [
        CodeWeight(name, 8, 9, per_channel=True) if layer.kernel_size == (3, 3) else CodeWeight(name, 16, 4)
        for name, layer in net.module.named_modules()
        if isinstance(layer, nn.Conv2d)
    ]
    return with_codes(net, *edits, CodeWeight("classifier.linear", 300))


@pytest.fixture(scope="module")
def coded() -> Net:
    return coded_mobilenet()


def test_numbers_with_a_factor_by_hand():
    codes = Codes(torch.tensor([0, 2, 1, 2]), torch.tensor([[-1.0], [0], [4]]), torch.tensor([2.0, 0.5]), (2, 2))
    assert codes.decode().tolist() == [[-2, 8], [0, 2]]
    assert codes.bits == 4 * 2 + 16 * (3 + 2)


def test_subvectors_run_along_an_output_by_hand():
    codes = Codes(torch.tensor([1, 0, 0, 1]), torch.tensor([[1.0, 2], [3, 4]]), None, (2, 1, 2, 2))
    assert codes.decode().tolist() == [[[[3, 4], [1, 2]]], [[[1, 2], [3, 4]]]]
    assert codes.bits == 4 * 1 + 16 * 4


def test_what_the_edit_makes():
    net = mobilenet()
    before = state_sha256(net.module)
    edits = CodeWeight("stem.conv", 4, 9), CodeWeight("classifier.linear", 300, 2, per_channel=True)
    made = net.edited(*edits)
    assert state_sha256(net.module) == before and not coded_weights(net.module)
    for edit in edits:
        layer, kind = made.module.get_submodule(edit.layer), type(net.module.get_submodule(edit.layer))
        wanted = random_codes(edit.k, edit.m, tuple(layer.weight.shape), factor=edit.per_channel)
        set_codes(made.module, edit.layer, wanted)
        found = coded_weights(made.module)[f"{edit.layer}.weight"]
        assert isinstance(layer, kind) and torch.equal(layer.weight, wanted.decode())
        assert torch.equal(found.codes, wanted.codes) and torch.equal(found.codebook, wanted.codebook)
        assert torch.equal(found.decode(), wanted.decode()) and not found.decode().requires_grad
    assert len(coded_weights(made.module)) == 2
    ours, theirs = made.module.state_dict(), net.module.state_dict()
    assert theirs.keys() - ours.keys() == coded_weights(made.module).keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())


def test_a_coded_net_replays(coded):
    edits = edits_from_json(json.loads(json.dumps(edits_to_json(coded.edits))), "test")
    assert edits == coded.edits
    again = build(coded.source, edits)
    again.load_state_dict(coded.module.state_dict())
    answers = torch_predict(coded.module)(X)
    assert (answers.std(0) > 0.1 * np.abs(answers).mean(0)).all()  # they depend on the picture
    assert np.array_equal(torch_predict(again)(X), answers)


def test_codebook_and_factors_train_and_codes_stay(coded):
    module = copy.deepcopy(coded.module).train()
    before = coded_weights(coded.module)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    module(torch.from_numpy(X)).square().mean().backward()
    optimiser.step()
    for name, codes in coded_weights(module).items():
        assert torch.equal(codes.codes, before[name].codes)
        assert not torch.equal(codes.codebook, before[name].codebook)
        assert codes.factor is None or not torch.equal(codes.factor, before[name].factor)
        assert torch.equal(codes.decode(), module.get_submodule(name.removesuffix(".weight")).weight)


def test_decoded_is_the_same_network_and_the_original_stays_coded(coded):
    answers = torch_predict(coded.module)(X)
    for module in (copy.deepcopy(coded.module), coded.module):
        made = decoded(module)
        assert not coded_weights(made) and np.array_equal(torch_predict(made)(X), answers)
        assert made.state_dict().keys() == mobilenet().module.state_dict().keys()
        assert type(made.stem.conv) is nn.Conv2d and decoded(made) is made
    assert len(coded_weights(coded.module)) == len(coded.edits)
    assert np.array_equal(torch_predict(coded.module)(X), answers)


def test_a_trace_counts_the_plain_network(coded):
    ours, theirs = trace(coded.module, SHAPE), trace(mobilenet().module, SHAPE)
    assert ours.cost() == theirs.cost() and ours.learned == theirs.learned
    assert [(op.layer, op.kind) for op in ours.ops] == [(op.layer, op.kind) for op in theirs.ops]


def test_a_network_that_is_one_layer():
    net = with_codes(net_of(nn.Conv2d(3, 4, 3)), CodeWeight("", 4, 9))
    assert list(coded_weights(net.module)) == ["weight"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.b.weight = self.a.weight


STEM = CodeWeight("stem.conv", 4)
BAD = {
    "many": (tiny, [CodeWeight("stem.conv", 49, 9)], r"stem.conv has 48 subvectors of 9; k = 49 must be between 1"),
    "none": (tiny, [CodeWeight("stem.conv", 0)], r"stem.conv has 432 subvectors of 1; k = 0 must be"),
    "row": (tiny, [CodeWeight("stem.conv", 4, 8)], r"stem.conv has 27 weights an output, which m = 8 does not divide"),
    "empty": (tiny, [CodeWeight("stem.conv", 4, 0)], r"which m = 0 does not divide"),
    "unknown": (tiny, [CodeWeight("stem.cnov", 4)], r"the network has no layer 'stem.cnov'"),
    "kind": (tiny, [CodeWeight("stem.norm", 4)], r"stem.norm is BatchNorm2d; only convolutions and linear layers"),
    "twice": (tiny, [STEM, STEM], r"code_weight: the weight of stem.conv is kept as codes already"),
    "tied": (Tied, [CodeWeight("b", 2)], r"code_weight: a and b share one weight; exclude them"),
    "pruned": (tiny, [STEM, KeepChannels("stem.conv", "out", (0, 1))], r"stem.conv is kept .*; remove channels before"),
}


@pytest.mark.parametrize(("make", "edits", "message"), BAD.values(), ids=BAD)
def test_bad_input(make, edits, message):
    with pytest.raises(BadInput, match=message):
        net_of(make()).edited(*edits)


def test_a_half_codebook_holds_float16_and_trains():
    layer = nn.Sequential(nn.Conv2d(4, 4, 3))
    CodeWeight("0", 8, 9, half=True).apply(layer)
    book = torch.linspace(-1, 1, 72).reshape(8, 9) / 3
    set_codes(layer, "0", Codes(torch.arange(16) % 8, book, None, (4, 4, 3, 3)))
    weight = layer[0].weight
    assert torch.equal(weight, weight.half().float()) and not torch.equal(weight.flatten()[:9], book[0])
    weight.sum().backward()
    assert torch.equal(originals(layer[0])[0].grad, torch.full((8, 9), 2.0)), "each entry stands for two kernels"
