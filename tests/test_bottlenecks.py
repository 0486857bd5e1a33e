"""GDN, the factorised prior, encoders and decoders, and the edit that puts them into a network."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.bottlenecks import Affine, Bottleneck, FactorisedPrior, inserted
from edgekit.bottlenecks.coders import decoder, encoder
from edgekit.bottlenecks.edit import InsertBottleneck, Skipped
from edgekit.bottlenecks.gdn import GDN
from edgekit.data import Input, Output
from edgekit.edits import EDITS
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.export import export, serialise
from edgekit.graph import trace
from edgekit.net import Net, build, edits_from_json, edits_to_json, parse_spec
from edgekit.onnx_split import halves
from edgekit.onnx_torch import to_module
from edgekit.rewrites.fold import fold_model
from edgekit.targets import target
from tests.nets import tiny

ENTROPIC = InsertBottleneck("stem", "entropic", channels=3, stride=2, shape=(3, 16, 16), size="mobile")
SOURCE = parse_spec("tests.nets:tiny")


def net() -> Net:
    return Net(SOURCE, (), tiny())


def random_(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    return module


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_is_its_formula(inverse):
    layer = random_(GDN(3, inverse))
    x = torch.randn(2, 3, 4, 5)
    beta, gamma = layer.root_beta**2 + 1e-6, layer.root_gamma[:, :, 0, 0] ** 2
    norm = beta[:, None, None] + torch.einsum("ij,bjhw->bihw", gamma, x.abs())
    assert torch.allclose(layer(x), x * norm if inverse else x / norm, atol=1e-6)


def test_gdn_never_divides_by_less_than_its_least_beta():
    layer = GDN(2)
    layer.root_beta.data.zero_()
    layer.root_gamma.data.zero_()
    assert torch.allclose(layer(torch.ones(1, 2, 1, 1)), torch.full((1, 2, 1, 1), 1e6))


def test_the_papers_encoder_has_its_counts():
    made = encoder("entropic", "paper", 3, 24, 4, 48)
    graph = trace(made, (3, 224, 224))
    assert graph.params == 7_200 + 9_312 + 115_200 + 2_352 + 4_608 == 138_672
    assert graph.outputs[0].shape == (1, 24, 55, 55) and graph.outputs[0].size == 72_600
    assert round(graph.macs / 1e9, 3) == 0.588


def test_the_papers_decoder_has_its_shapes():
    made = decoder("entropic", 24, 256, 1)
    shapes = [tuple(layer.weight.shape) for layer in made if isinstance(layer, nn.Conv2d)]
    assert shapes == [(512, 24, 2, 2), (256, 512, 2, 2), (256, 256, 2, 2)]
    assert trace(made, (24, 55, 55)).outputs[0].shape == (1, 256, 56, 56)


@pytest.mark.parametrize("kind", ["entropic", "reduction"])
@pytest.mark.parametrize("size", ["paper", "mobile"])
@pytest.mark.parametrize("stride, behind", [(2, (8, 16, 16)), (4, (5, 8, 8)), (4, (6, 32, 32)), (8, (7, 8, 8))])
def test_bottlenecks_give_the_shape_that_is_asked_for(kind, size, stride, behind):
    made = Bottleneck(kind, size, 4, stride, 8, (3, 32, 32), behind).eval()
    assert made(torch.randn(2, 3, 32, 32)).shape == (2, *behind)
    assert made.encoder(torch.randn(2, 3, 32, 32)).shape == (2, 4, 32 // stride - 1, 32 // stride - 1)


def test_a_width_is_that_of_the_last_stage():
    made = encoder("reduction", "paper", 3, 4, 8, 10)
    assert [layer.out_channels for layer in made if isinstance(layer, nn.Conv2d)] == [20, 20, 10, 4]


def test_mobile_encoders_are_small():
    paper, mobile = (trace(encoder("entropic", size, 3, 24, 4, 48), (3, 224, 224)).macs for size in ("paper", "mobile"))
    assert mobile < 0.1 * paper


@pytest.mark.parametrize("stride", [0, 1, 3, 6])
def test_a_stride_that_is_no_power_of_two(stride):
    with pytest.raises(BadInput, match=f"stride = {stride}"):
        Bottleneck("entropic", "paper", 4, stride, 8, (3, 32, 32), (8, 8, 8))


@pytest.mark.parametrize("stride, behind", [(2, (8, 8, 8)), (32, (8, 8, 8)), (8, (8, 7, 7))])
def test_a_stride_that_does_not_fit_the_cut(stride, behind):
    with pytest.raises(BadInput, match="at the cut"):
        Bottleneck("entropic", "paper", 4, stride, 8, (3, 32, 32), behind)


def test_the_prior_is_a_distribution():
    torch.manual_seed(0)
    prior = random_(FactorisedPrior(4)).double()
    whole = torch.arange(-3000, 3001).double().expand(1, 4, 1, -1)
    with torch.no_grad():
        found = prior.likelihood(whole)
    assert (found > 0).all()
    assert torch.allclose(found.sum((0, 2, 3)), torch.ones(4).double(), atol=1e-4)


def test_bits_are_the_logarithms_of_likelihoods():
    prior = FactorisedPrior(2)
    y = 3 * torch.randn(5, 2, 3, 3)
    each = torch.stack([-torch.log2(prior.likelihood(one[None])).sum() for one in y])
    assert torch.allclose(prior.bits(y), each.mean(), rtol=1e-5)


def trained_prior(centre: float, width: float) -> FactorisedPrior:
    torch.manual_seed(0)
    prior = FactorisedPrior(1)
    optimiser = torch.optim.Adam(prior.parameters(), 0.05)
    for _ in range(300):
        optimiser.zero_grad()
        prior.bits(prior(centre + width * torch.randn(32, 1, 4, 4))).backward()
        optimiser.step()
    prior.update()
    return prior.eval()


def test_the_tables_follow_what_was_trained():
    prior = trained_prior(20.0, 2.0)
    weights = prior.crossing("cut").counts[0] / 2**30
    symbols = prior.low.item() + np.arange(len(weights))
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert (weights * symbols).sum() == pytest.approx(20, abs=0.3)
    assert 2 < np.sqrt((weights * (symbols - 20) ** 2).sum()) < 2.6  # of the normal and the rounding
    assert 10 < len(weights) < 60


def test_at_test_the_prior_rounds_and_clips():
    prior = trained_prior(20.0, 2.0)
    y = torch.tensor([19.4, 19.6, -500.0, 500.0]).reshape(1, 1, 1, 4)
    low, top = prior.low.item(), prior.low.item() + prior.top.item()
    assert prior(y).flatten().tolist() == [19, 20, low, top]


def test_a_frozen_prior_rounds_in_training_too():
    prior = FactorisedPrior(1).train()
    y = torch.full((1, 1, 8, 8), 0.2)
    assert not torch.equal(prior(y), torch.zeros_like(y)) and (prior(y) - y).abs().max() <= 0.5
    assert torch.equal(prior.requires_grad_(False)(y), torch.zeros_like(y))


def test_affine_latents_take_256_steps_of_each_channel():
    latent = Affine(2)
    values = np.stack([np.linspace(-1, 1, 999), np.linspace(0, 50, 999)])
    latent.update(values)
    y = torch.from_numpy(values).float().reshape(1, 2, 1, -1)
    assert torch.equal(latent.train()(y), y)
    found = latent.eval()(y)
    assert [len(channel.unique()) for channel in found[0]] == [256, 256]
    assert ((found - y).abs().amax((0, 2, 3)) <= torch.tensor([2, 50]) / 255 / 2 + 1e-5).all()


@pytest.mark.parametrize("kind", ["entropic", "reduction"])
def test_a_network_is_rebuilt_from_its_edits(kind):
    edited = net().edited(dataclasses.replace(ENTROPIC, kind=kind))
    read = edits_from_json(edits_to_json(edited.edits), "test")
    assert read == edited.edits and EDITS["insert_bottleneck"] is type(read[0])
    again = build(SOURCE, read, trust=True)
    again.load_state_dict(edited.module.state_dict())
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(again.eval()(x), edited.module.eval()(x))


def test_the_tail_is_what_it_was_and_the_head_is_gone():
    edited, before = net().edited(ENTROPIC).module, tiny()
    state, old = edited.state_dict(), before.state_dict()
    tail = [name for name in old if not name.startswith("stem")]
    assert all(torch.equal(state[name], old[name]) for name in tail)
    assert all(name.startswith(("stem.encoder", "stem.latent", "stem.decoder")) for name in state.keys() - set(tail))


def test_modules_before_the_cut_are_skipped():
    made = build(parse_spec("cifar_resnet_20"))
    InsertBottleneck("layer2", "entropic", 12, 4, (3, 32, 32)).apply(made)
    assert all(isinstance(made.get_submodule(name), Skipped) for name in ("conv1", "bn1", "relu", "layer1"))
    assert inserted(made)[0] == "layer2"
    assert made(torch.randn(1, 3, 32, 32)).shape == (1, 10)


def test_the_first_layers_may_stay():
    made, before = (build(parse_spec("cifar_resnet_20")) for _ in range(2))
    InsertBottleneck("layer2", "entropic", 4, 4, (3, 32, 32), after="layer1").apply(made)
    assert made.layer1.state_dict().keys() == before.layer1.state_dict().keys()
    assert trace(made.layer2.encoder, (16, 32, 32)).outputs[0].shape == (1, 4, 7, 7)


def test_an_onnx_file_takes_a_bottleneck():
    model = fold_model(export(tiny(), Input(size=16), Output(), target("onnxruntime")).model)
    module = to_module(model)
    InsertBottleneck("head.act", "reduction", 3, 4, (3, 16, 16), size="mobile").apply(module)
    assert inserted(module)[0] == "head.act" and module(torch.randn(2, 3, 16, 16)).shape == (2, 4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"layer": "project.conv"}, "residual or dense block"),
        ({"layer": "nowhere"}, "unknown cut"),
        (
            {"size": "paper", "channels": 64},
            'encoder would cost .* M MACs .*size = "mobile", fewer channels or a smaller width',
        ),
        ({"after": "head"}, "does not come before the cut"),
    ],
)
def test_edits_that_cannot_be_done(changes, message):
    with pytest.raises(BadInput, match=message):
        net().edited(dataclasses.replace(ENTROPIC, **changes))


def test_one_bottleneck_is_enough():
    with pytest.raises(BadInput, match="has a bottleneck already"):
        net().edited(ENTROPIC, ENTROPIC)


class Sums(nn.Module):
    """What no module does stands before the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(self.second(self.first(x) * 2.0)).flatten(1)


def test_code_outside_of_modules_is_not_replaced():
    with pytest.raises(BadInput, match="code outside of its modules before 'second'"):
        dataclasses.replace(ENTROPIC, layer="second", channels=1).apply(Sums())


@pytest.mark.parametrize("kind", ["entropic", "reduction"])
def test_the_exported_file_computes_the_same_and_falls_in_two(kind):
    torch.manual_seed(0)
    module = net().edited(dataclasses.replace(ENTROPIC, kind=kind)).module.eval()
    bottleneck = inserted(module)[1]
    x = 3 * torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        y = bottleneck.encoder(x)
        for parameter in bottleneck.encoder[-1].parameters():
            parameter.mul_(8 / y.std())  # else all symbols are the same
        if kind == "reduction":
            bottleneck.latent.update(bottleneck.encoder(x).transpose(0, 1).flatten(1).numpy())
        expected = module(x).numpy()
    model = export(module, Input(size=16), Output(), target("onnxruntime")).model
    head, tail = halves(fold_model(model))
    allowed = {"Abs", "Conv", "Mul", "Div", "Sub", "Add", "Round", "Max", "Min", "Relu", "Clip", "Cast"}
    assert {node.op_type for node in head.graph.node} <= allowed
    load = engine("onnxruntime").load
    symbols = load(serialise(head)).run(x.numpy())
    assert symbols.dtype == np.uint8 and len(np.unique(symbols)) > 8
    found = load(serialise(tail)).raw.run(None, {"latent": symbols})[0]
    assert np.allclose(found, expected, atol=1e-3)
