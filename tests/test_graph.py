"""Counting: textbook formulas, what is left out, and what has no fixed graph."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgekit.errors import BadInput
from edgekit.graph import trace


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "cio"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10), 8 * 100 * 3 * 9, 300 + 800),
        (nn.Conv2d(4, 8, 3, stride=2, bias=False), (4, 9, 9), 8 * 16 * 4 * 9, 4 * 81 + 8 * 16),
        (nn.Conv2d(8, 8, 5, groups=8, padding=2), (8, 6, 6), 8 * 36 * 25, 2 * 8 * 36),
        (nn.Conv2d(8, 12, 1, groups=4), (8, 6, 6), 12 * 36 * 2, 20 * 36),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 5, 5), 4 * 25 * 6 * 4, 4 * 25 + 6 * 100),
        (nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), (3, 4, 4), 480, 58),
        (nn.Linear(4, 7, bias=False), (3, 5, 4), 15 * 28, 15 * 11),
    ],
)
def test_one_layer_costs_what_the_formula_says(layer, shape, macs, cio):
    graph = trace(layer, shape)
    assert (graph.macs, graph.cio) == (macs, cio)
    assert graph.params == sum(parameter.numel() for parameter in layer.parameters())
    assert graph.uncounted == []


def test_a_bias_and_a_batch_norm_cost_no_macs():
    bare = trace(nn.Conv2d(3, 8, 1, bias=False), (3, 4, 4))
    dressed = trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()), (3, 4, 4))
    assert dressed.macs == bare.macs and dressed.params == bare.params + 8 + 16


def test_attention_is_counted_as_products():
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = x.flatten(2)  # (1, 3, 16)
            return torch.bmm(torch.bmm(q, q.transpose(1, 2)).softmax(-1), q)

    assert trace(Attention(), (3, 4, 4)).macs == 9 * 16 + 48 * 3


def test_what_cannot_be_counted_is_named():
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(x).real

    assert any("fft" in name for name in trace(Odd(), (3, 4, 4)).uncounted)


def test_functional_code_is_seen():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.conv2d(x, self.weight)

    graph = trace(Functional(), (3, 2, 2))
    assert graph.macs == 4 * 4 * 3 and graph.params == 12


def test_layers_carry_their_module_path():
    net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.ReLU())
    assert [op.layer for op in trace(net, (3, 2, 2)).ops if op.is_conv] == ["0.0"]


def test_strided_depthwise_counts_as_pooling_only_without_an_activation():
    def net(act: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False), nn.BatchNorm2d(4), act, nn.Conv2d(4, 8, 1))

    pooled, kept = trace(net(nn.Identity()), (4, 8, 8)), trace(net(nn.ReLU6()), (4, 8, 8))
    assert kept.cio_paper == kept.cio == pooled.cio
    assert pooled.cio_paper == pooled.cio - 4 * (64 + 16)


def test_peak_of_a_residual_block():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(x).relu()

    # The input waits for the sum: input + conv + relu, then input + relu + sum.
    assert trace(Residual(), (4, 5, 5)).peak_elements == 3 * 100
    assert trace(nn.Sequential(nn.Conv2d(4, 8, 1), nn.Flatten()), (4, 5, 5)).peak_elements == 300


def test_tracing_leaves_the_module_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    trace(net, (3, 4, 4))
    assert net.training and all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not net[0]._forward_pre_hooks


def test_the_graph_does_not_depend_on_the_deterministic_switch():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2, mode="bilinear"))
    kinds = [op.kind for op in trace(net, (3, 4, 4)).ops]
    torch.use_deterministic_algorithms(True)
    try:
        assert [op.kind for op in trace(net, (3, 4, 4)).ops] == kinds
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_data_dependent_code_is_refused():
    class Decides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(BadInput, match="decides by the values"):
        trace(Decides(), (3, 2, 2))


def test_an_input_that_does_not_fit_names_the_layer():
    with pytest.raises(BadInput, match=r"layer '0' cannot run on an input of 1×4×4"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 1)), (1, 4, 4))
    with pytest.raises(BadInput, match="cannot run on an input of 3×2×2"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 5)), (3, 2, 2))
