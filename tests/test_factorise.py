"""Chains of small layers: what they compute, what they cost, and that the edit replays."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit.coded import CodeWeight
from edgekit.errors import BadInput
from edgekit.factorise import FORMS, Factorise, Form, axis_sizes, chain, full_ranks, possible, widths
from edgekit.graph import trace
from edgekit.net import edits_from_json, edits_to_json
from edgekit.passes.lowrank.decompose import factors, lost, merged, spectra

TRAINS: list[Form] = ["channel", "spatial", "tucker2", "tt"]
ANY: list[Form] = [*TRAINS, "cp"]


@st.composite
def convolutions(draw) -> nn.Conv2d:
    """Of any kernel, stride, padding, dilation and bias; float64."""
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pairs), draw(pairs), draw(pairs)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    torch.manual_seed(draw(st.integers(0, 9)))
    return nn.Conv2d(
        draw(st.integers(1, 6)), draw(st.integers(1, 6)), kernel, stride, padding, dilation,
        bias=draw(st.booleans()), padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    ).double()  # fmt: skip


def ranks_of(layer: nn.Conv2d | nn.Linear, form: Form, share: float) -> tuple[int, ...]:
    """That share of the full ranks, no larger than the chain can use."""
    found: list[int] = []
    for full, axes in zip(full_ranks(layer, form), FORMS[form]):
        sizes = axis_sizes(layer)
        used = math.prod(sizes[axis] for axis in axes) * (found[-1] if found else 1)
        found.append(max(1, round(share * full)) if form == "cp" else max(1, min(round(share * full), used)))
    return tuple(found)


def filled(layer: nn.Conv2d | nn.Linear, form: Form, ranks: tuple[int, ...]) -> nn.Sequential:
    made = chain(layer, form, ranks)
    for part, weight in zip(made, factors(layer.weight, form, ranks)):
        part.weight.data.copy_(weight.reshape(part.weight.shape))
    if layer.bias is not None:
        made[-1].bias.data.copy_(layer.bias)
    return made


@settings(max_examples=40, deadline=None)
@given(convolutions(), st.sampled_from(ANY), st.floats(0.1, 1.0))
def test_a_chain_computes_the_convolution_with_its_merged_weight(layer, form, share):
    ranks = ranks_of(layer, form, share)
    with torch.no_grad():
        x = torch.randn(2, layer.in_channels, 9, 8, dtype=torch.float64)
        found = filled(layer, form, ranks)(x)
        layer.weight.copy_(merged(factors(layer.weight, form, ranks)))
        assert torch.allclose(found, layer(x), atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(convolutions(), st.sampled_from(ANY), st.floats(0.1, 1.0))
def test_macs_and_parameters_of_a_chain(layer, form, share):
    """Its layers' formula: outputs × channels read × kernel, the kernel that of the axes it holds."""
    ranks = ranks_of(layer, form, share)
    graph = trace(layer, (layer.in_channels, 9, 8))
    (height, width), (high, wide) = (9, 8), graph.outputs[0].shape[2:]
    macs = params = 0
    channels = widths(layer, form, ranks)
    for number, axes in enumerate(FORMS[form]):
        height, width = high if "h" in axes else height, wide if "w" in axes else width
        read = 1 if form == "cp" and 0 < number < 3 else channels[number]
        sizes = axis_sizes(layer)
        weights = channels[number + 1] * read * math.prod(sizes[axis] for axis in axes if axis in "hw")
        macs, params = macs + height * width * weights, params + weights
    found = trace(chain(layer, form, ranks), (layer.in_channels, 9, 8))
    assert found.macs == macs
    assert found.params == params + (layer.bias is not None) * layer.out_channels
    assert found.outputs[0].shape == graph.outputs[0].shape


@pytest.mark.parametrize("form", ANY)
def test_at_full_rank_nothing_is_lost(form):
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 7, (3, 2), padding=1)
    x = torch.randn(2, 5, 8, 8)
    with torch.no_grad():
        found, wanted = filled(layer, form, full_ranks(layer, form))(x), layer(x)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert lost(layer.weight, factors(layer.weight, form, full_ranks(layer, form))) < 1e-12


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("form", ["channel", "spatial"])
def test_one_cut_loses_the_tail_of_the_singular_values(form, rank):
    """Eckart and Young, of the matrix that the form is of."""
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = weight.flatten(1) if form == "channel" else weight.permute(1, 2, 3, 0).reshape(18, 24)
    sigma = torch.linalg.svdvals(matrix)
    assert torch.allclose(spectra(weight, form)[0], sigma.square())
    assert lost(weight, factors(weight, form, (rank,))) == pytest.approx(
        float(sigma[rank:].square().sum() / sigma.square().sum())
    )


@pytest.mark.parametrize("form", ["tucker2", "tt"])
def test_several_cuts_lose_no_more_than_their_tails(form):
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = nn.Conv2d(6, 8, 3)
    held = spectra(weight, form)
    for share in (0.3, 0.5, 0.8):
        ranks = ranks_of(layer, form, share)
        found = lost(weight, factors(weight, form, ranks))
        tails = [float(each[rank:].sum() / each.sum()) for each, rank in zip(held, ranks)]
        assert max(tails) - 1e-12 <= found <= sum(tails) + 1e-12


@pytest.mark.parametrize("form", ANY)
def test_a_weight_of_low_rank_is_found_again(form):
    """Random cores of small ranks make a weight that the form at those ranks holds whole."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3).double()
    ranks = ranks_of(layer, form, 0.1 if form == "cp" else 0.4)
    layer.weight.data = merged([part.weight.detach() for part in chain(layer, form, ranks)])
    assert lost(layer.weight, factors(layer.weight, form, ranks)) < (1e-3 if form == "cp" else 1e-20)


def test_meeting_channels_have_equal_norms():
    """For one cut √σ on each side."""
    weight = torch.randn(8, 6, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    first, last = factors(weight, "channel", (4,))
    sigma = torch.linalg.svdvals(weight.flatten(1))[:4]
    assert torch.allclose(first.flatten(1).norm(dim=1), sigma.sqrt())
    assert torch.allclose(last.flatten(1).norm(dim=0), sigma.sqrt())


def test_a_linear_layer_is_its_svd():
    torch.manual_seed(0)
    layer = nn.Linear(12, 9)
    x = torch.randn(4, 5, 12)
    with torch.no_grad():
        assert torch.allclose(filled(layer, "channel", (9,))(x), layer(x), atol=1e-5)
    sigma = torch.linalg.svdvals(layer.weight.detach().double()).square()
    assert lost(layer.weight, factors(layer.weight, "channel", (3,))) == pytest.approx(
        float(sigma[3:].sum() / sigma.sum())
    )
    with pytest.raises(BadInput, match=r'linear layer, a matrix.*write "channel"'):
        chain(layer, "tucker2", (3, 3))


def test_padding_by_name_and_the_layers_type_are_kept():
    layer = nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2).double().eval()
    layer.requires_grad_(False)
    made = filled(layer, "spatial", (12,))
    x = torch.randn(1, 4, 12, 12, dtype=torch.float64)
    assert torch.allclose(made(x), layer(x))
    assert not made.training and made[0].weight.dtype == torch.float64 and made[0].bias is None


class Own(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


class Twice(nn.Module):
    """One module under two names, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.a
        self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8)
        self.c.weight = self.b.weight
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.act, self.own = nn.ReLU(), Own(8, 8, 3)
        self.coded = nn.Linear(8, 8)
        CodeWeight("coded", 4).apply(self)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("a", "a shares its weight with again"),
        ("again", "again shares its weight with a"),
        ("b", "b shares its weight with c"),
        ("grouped", "is a grouped convolution"),
        ("coded", "keeps its weight as codes; factorise first"),
        ("own", "own is of class Own, which runs code of its own"),
        ("act", "is no convolution or linear layer"),
        ("", "the network itself is no convolution"),
        ("d", "the network has no layer 'd'"),
    ],
)
def test_what_cannot_be_factorised(layer, message):
    with pytest.raises(BadInput, match=message):
        Factorise(layer, "channel", (2,)).apply(Twice())


@pytest.mark.parametrize(
    ("form", "ranks"),
    [("channel", (0,)), ("channel", (9,)), ("channel", ()), ("channel", (2, 2)), ("tucker2", (5, 4)), ("tt", (1, 8, 2)),
     ("cp", (37,))],
)  # fmt: skip
def test_ranks_that_cannot_be(form, ranks):
    module = nn.Sequential(nn.Conv2d(4, 8, 3))
    assert not possible(module[0], form, ranks)
    with pytest.raises(BadInput, match=rf"0 in the form '{form}' takes \d rank\(s\) of at least 1 and at most"):
        Factorise("0", form, ranks).apply(module)


@pytest.mark.parametrize("form", ANY)
def test_the_edit_replays_from_json(form):
    def fresh() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()

    edit = Factorise("0", form, (3,) * len(full_ranks(fresh()[0], form)))
    (replayed,) = edits_from_json(edits_to_json([edit]), "test")
    assert replayed == edit
    first, second = fresh(), fresh()
    edit.apply(first)
    replayed.apply(second)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        assert torch.equal(first(x), second(x))
