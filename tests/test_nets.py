"""The zoo against published counts, its pyramids, its arguments, and weights trained elsewhere."""

import functools
import importlib
import inspect
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.cards import card, cards
from edgekit.errors import BadInput
from edgekit.graph import Graph, trace
from edgekit.net import Source, build
from edgekit.nets import ZOO
from edgekit.nets.hardnet import layer_channels, links
from edgekit.nets.layers import PadShortcut, SplitChannels
from edgekit.nets.resnet import cifar_resnet_20
from edgekit.nets.ulsam import Ulsam

DATA = Path(__file__).parents[2] / "shared/data"
CLASSIFIERS = sorted(set(ZOO) - {"fc_hardnet_70"})
# Large members of families that smaller ones stand for.
SLOW = {
    "cifar_resnet_110",
    "cifar_resnet_56",
    "densenet_201",
    "hardnet_68ds",
    "hardnet_85",
    "resnet_34",
    "vovnet_57",
    "vovnet_v2_39",
    "vovnet_v2_57",
    "vovnet_v2_99",
}
VARIANTS = [(name, index) for name in cards() for index in range(len(card(name).get("variants", [])))]


def on_meta(name: str, **args) -> nn.Module:
    with torch.device("meta"):
        return build(Source("zoo", name, args))


def small_input(name: str) -> tuple[int, int]:
    return (64, 128) if name == "fc_hardnet_70" else (32, 32) if name.startswith("cifar") else (64, 64)


@functools.cache
def traced(name: str, args: tuple, size: tuple[int, int]) -> Graph:
    return trace(on_meta(name, **dict(args)), (3, *size))


def graph_of(name: str, **args) -> Graph:
    size = card(name)["input_size"]
    return traced(name, tuple(sorted(args.items())), tuple(size) if isinstance(size, list) else (size, size))


def norm_params(module: nn.Module) -> int:
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    return sum(parameter.numel() for layer in norms for parameter in layer.parameters())


def millions(value: int, printed: str) -> str:
    """`value` in millions with as many decimals as `printed` has."""
    return f"{value / 1e6:.{len(printed.partition('.')[2])}f}"


# Cards.


def test_every_network_has_a_card_of_its_name():
    assert set(ZOO) <= set(cards())
    assert all(card(name)["net"] == name for name in ZOO)


@pytest.mark.parametrize(("name", "index"), VARIANTS, ids=[f"{name}-{index}" for name, index in VARIANTS])
def test_counts_are_the_cards(name, index):
    entry = card(name)
    variant = entry["variants"][index]
    args = {**entry.get("args", {}), **variant.get("args", {})}
    size = entry["input_size"] if isinstance(entry["input_size"], list) else [entry["input_size"]] * 2
    graph = traced(entry["net"], tuple(sorted(args.items())), tuple(size))
    counts = {key: value for key, value in graph.cost().items() if key in variant}
    assert counts == {key: value for key, value in variant.items() if key not in ("args", "published")}
    assert graph.uncounted == []
    assert len(graph.outputs) == 1
    assert graph.outputs[0].shape[2:] == (tuple(size) if entry["task"] == "segment" else ())


@pytest.mark.parametrize(("name", "index"), VARIANTS, ids=[f"{name}-{index}" for name, index in VARIANTS])
def test_published_counts_are_near_the_cards(name, index):
    variant = card(name)["variants"][index]
    for item in variant.get("published", []):
        assert item["source"]
        if item["metric"] in ("params", "macs", "cio", "cio_paper"):
            assert variant[item["metric"]] == pytest.approx(item["value"], rel=0.065), item


# Published counts, in millions and to the digits printed.

COUNTS = [
    ("hardnet_39ds", {}, "3.488228", "429.5", "9.82"),
    ("hardnet_68ds", {}, "4.180602", "775.3", "17.33"),
    ("hardnet_68", {}, "17.565348", "4246.1", "11.471"),
    ("hardnet_85", {}, "36.670212", "9074.1", "17.47"),
    ("vovnet_27_slim", {}, "3.526", "2176.7", "9.64"),
    ("vovnet_39", {}, "22.600296", "7072.2", "15.99"),
    ("vovnet_57", {}, "36.640296", "8930.1", "18.25"),
    ("vovnet_v2_19_slim_dw", {}, "1.898", "398", "11.14"),
    ("vovnet_v2_19_dw", {}, "6.543", "1333", "17.27"),
    ("vovnet_v2_19_slim", {}, "3.166", "1680", "7.84"),
    ("vovnet_v2_19", {}, "11.205", "4122", "11.26"),
    ("vovnet_v2_39", {"ese_everywhere": False}, "24.569", "7074", "15.99"),
    ("vovnet_v2_57", {"ese_everywhere": False}, "38.609", "8932", "18.26"),
    ("vovnet_v2_99", {"ese_everywhere": False}, "63.199", "16488", "29.07"),
    ("vovnet_v2_39", {"ese_everywhere": True}, "26.209", None, None),
    ("vovnet_v2_57", {"ese_everywhere": True}, "42.480", None, None),
    ("vovnet_v2_99", {"ese_everywhere": True}, "70.549", None, None),
    ("mobilenet_v1", {"width": 1.0}, "4.232", "568.7", "10.19"),
    ("mobilenet_v1", {"width": 0.75}, "2.586", "325.4", None),
    ("mobilenet_v1", {"width": 0.5}, "1.332", "149.5", None),
    ("mobilenet_v1", {"width": 0.25}, "0.470", "41.0", None),
    ("mobilenet_v2", {"width": 1.0}, "3.505", "300.8", "13.45"),
    ("mobilenet_v2", {"width": 1.4}, "6.109", "582.2", "19.21"),
    ("mobilenet_v2", {"width": 0.75}, "2.636", "209.1", "11.80"),
    ("mobilenet_v2", {"width": 0.5}, "1.969", "97.1", "7.37"),
    ("mobilenet_v2", {"width": 0.35}, None, "59.3", None),
    ("mobilenet_v3_large", {"width": 1.0}, "5.483", "216.6", "8.92"),
    ("mobilenet_v3_small", {"width": 1.0}, "2.543", "56.5", "2.96"),
    ("mobilenet_v3_large", {"width": 0.75}, "3.994", "154.6", None),
    ("mobilenet_v3_small", {"width": 0.75}, "2.042", "43.4", None),
    ("skipblocknet_large", {}, "5.53", "236.6", None),
    ("pp_lcnet", {"width": 0.25}, "1.52", "16.8", None),
    ("pp_lcnet", {"width": 0.5}, "1.88", "44.7", None),
    ("pp_lcnet", {"width": 1.0}, "2.95", "155.7", None),
    ("pp_lcnet", {"width": 1.5}, "4.50", "334", None),
    ("pp_lcnet", {"width": 2.5}, "9.02", "894", None),
    ("resnet_18", {}, "11.689512", None, "4.67"),
    ("resnet_34", {}, "21.797672", "3664", None),
    ("resnet_50", {"stride_on_1x1": False}, "25.557032", None, "21.78"),
    ("resnet_50", {"stride_on_1x1": True}, "25.557032", None, "20.73"),
    ("densenet_121", {}, "7.978856", None, "21.9"),
    ("densenet_201", {}, "20.013928", None, "31.8"),
    ("squeezenet_1_1", {}, "1.235496", None, None),
    ("cifar_resnet_20", {}, "0.27", None, None),
    ("cifar_resnet_32", {}, "0.46", None, None),
    ("cifar_resnet_56", {}, "0.85", None, None),
    ("cifar_resnet_110", {}, "1.7", None, None),
]


@pytest.mark.parametrize(("name", "args", "params", "macs", "cio"), COUNTS)
def test_published_counts(name, args, params, macs, cio):
    graph = graph_of(name, **args)
    for value, printed in ((graph.params, params), (graph.macs, macs), (graph.cio, cio)):
        assert printed is None or millions(value, printed) == printed


@pytest.mark.parametrize(
    ("name", "args", "attribute", "printed"),
    [
        ("hardnet_39ds", {}, "cio_paper", "8.2"),
        ("hardnet_68ds", {}, "cio_paper", "15.3"),
        ("hardnet_68", {}, "cio_paper", "11.5"),
        ("resnet_18", {}, "cio", "4.7"),
        ("resnet_50", {"stride_on_1x1": True}, "cio", "20.7"),
        ("densenet_121", {}, "cio", "21.9"),
        ("densenet_201", {}, "cio", "31.8"),
        ("mobilenet_v2", {"width": 1.0}, "cio", "13.4"),
    ],
)
def test_cio_is_the_hardnet_papers_table_4(name, args, attribute, printed):
    assert millions(getattr(graph_of(name, **args), attribute), printed) == printed


@pytest.mark.parametrize(
    ("name", "params", "bflops"), [("csp_resnext_50", "20.50", 7.93), ("csp_mobilenet_v2", "2.51", 0.764)]
)
def test_csp_counts_are_the_authors_without_batch_norm(name, params, bflops):
    graph = graph_of(name)
    assert millions(graph.params - norm_params(on_meta(name)), params) == params
    assert 2 * graph.macs / 1e9 == pytest.approx(bflops, abs=0.5 * 10 ** -len(str(bflops).partition(".")[2]))


def test_fc_hardnet_counts():
    graph = graph_of("fc_hardnet_70")
    assert millions(graph.params, "4.1") == "4.1"
    assert graph.macs == pytest.approx(35.4e9, rel=0.01)


# HarDNet's rules.

LINKS = {
    1: [0],
    2: [1, 0],
    3: [2],
    4: [3, 2, 0],
    5: [4],
    6: [5, 4],
    7: [6],
    8: [7, 6, 4, 0],
    9: [8],
    10: [9, 8],
    11: [10],
    12: [11, 10, 8],
    13: [12],
    14: [13, 12],
    15: [14],
    16: [15, 14, 12, 8, 0],
}


def test_hardnet_links():
    assert {layer: links(layer) for layer in LINKS} == LINKS


@pytest.mark.parametrize(
    ("name", "depthwise", "layers", "joined"),
    [
        ("hardnet_68", False, [(64, 14), (78, 24), (24, 14), (102, 40), (40, 14), (54, 24), (24, 14), (142, 68)], 124),
        ("hardnet_39ds", True, [(48, 16), (64, 26), (26, 16), (90, 40)], 72),
    ],
)
def test_hardnet_first_block(name, depthwise, layers, joined):
    net = on_meta(name)
    convs = [layer[0].conv if depthwise else layer.conv for layer in net.block1.layers]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == layers
    assert net.transition1.conv.in_channels == joined


@pytest.mark.parametrize(
    ("name", "joined"),
    [
        ("hardnet_68", [124, 262, 328, 654, 782]),
        ("hardnet_39ds", [72, 292, 518, 730]),
        ("hardnet_85", [214, 392, 458, 588, 784, 1252]),
    ],
)
def test_hardnet_block_outputs(name, joined):
    net = on_meta(name)
    assert [net.get_submodule(f"transition{i + 1}").conv.in_channels for i in range(len(joined))] == joined


def test_hardnet_channels_are_even():
    assert [layer_channels(layer, 14, 1.7) for layer in (1, 2, 4, 8)] == [14, 24, 40, 68]


# Forward passes.


@pytest.mark.parametrize("name", sorted(ZOO))
def test_forward_gives_scores_and_runs_each_module_once(name):
    args = {"features_only": False} if name != "fc_hardnet_70" else {}
    net = build(Source("zoo", name, {"classes": 7, **args})).eval()
    calls: Counter[str] = Counter()
    for path, layer in net.named_modules():
        layer.register_forward_pre_hook(lambda _m, _x, path=path: calls.update([path]))
    size = small_input(name)
    with torch.no_grad():
        y = net(torch.randn(2, 3, *size))
    assert y.shape == ((2, 7, *size) if name == "fc_hardnet_70" else (2, 7))
    assert y.isfinite().all()
    assert set(calls.values()) == {1}
    assert not any(getattr(layer, "inplace", False) for layer in net.modules())


PYRAMIDS = {
    "mobilenet_v1": ((2, 64), (4, 128), (8, 256), (16, 512), (32, 1024)),
    "mobilenet_v2": ((2, 16), (4, 24), (8, 32), (16, 96), (32, 320)),
    "mobilenet_v3_large": ((2, 16), (4, 24), (8, 40), (16, 112), (32, 160)),
    "mobilenet_v3_small": ((2, 16), (4, 16), (8, 24), (16, 48), (32, 96)),
    "hardnet_68": ((2, 64), (4, 128), (8, 320), (16, 640), (32, 1024)),
    "hardnet_39ds": ((2, 48), (4, 96), (8, 320), (16, 640), (32, 1024)),
    "vovnet_39": ((2, 64), (4, 256), (8, 512), (16, 768), (32, 1024)),
    "vovnet_v2_19_slim_dw": ((2, 64), (4, 112), (8, 256), (16, 384), (32, 512)),
    "skipblocknet_large": ((2, 16), (4, 24), (8, 40), (16, 112), (32, 160)),
    "pp_lcnet": ((2, 32), (4, 64), (8, 128), (16, 256), (32, 512)),
    "csp_resnext_50": ((2, 64), (4, 256), (8, 512), (16, 1024), (32, 2048)),
    "csp_mobilenet_v2": ((2, 32), (4, 72), (8, 136), (16, 288), (32, 640)),
    "resnet_50": ((2, 64), (4, 256), (8, 512), (16, 1024), (32, 2048)),
    "densenet_121": ((2, 64), (4, 256), (8, 512), (16, 1024), (32, 1024)),
    "squeezenet_1_1": ((2, 64), (4, 128), (8, 256), (16, 512)),
    "cifar_resnet_20": ((1, 16), (2, 32), (4, 64)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CLASSIFIERS]
)
def test_features(name):
    net = on_meta(name, features_only=True)
    with torch.no_grad():
        maps = net.eval()(torch.empty(2, 3, 128, 192, device="meta"))
    unpadded = 1 if name == "squeezenet_1_1" else 0
    for y, stride in zip(maps, net.feature_strides, strict=True):
        assert (y.shape[2] + unpadded, y.shape[3] + unpadded) == (128 // stride, 192 // stride)
    if name in PYRAMIDS:
        assert tuple((stride, y.shape[1]) for stride, y in zip(net.feature_strides, maps)) == PYRAMIDS[name]
    whole, trunk = set(on_meta(name).state_dict()), set(net.state_dict())
    assert trunk < whole
    assert {key.partition(".")[0] for key in whole - trunk} <= {"head", "classifier", "fc", "linear"}


@pytest.mark.parametrize("name", ["mobilenet_v2", "skipblocknet_large"])
def test_the_head_on_the_last_feature_gives_the_scores(name):
    whole = build(Source("zoo", name, {"classes": 5})).eval()
    trunk = build(Source("zoo", name, {"features_only": True})).eval()
    trunk.load_state_dict({key: whole.state_dict()[key] for key in trunk.state_dict()})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(whole.classifier(whole.head(trunk(x)[-1])), whole(x))


def test_features_are_taken_where_their_names_say():
    net = build(Source("zoo", "mobilenet_v2", {"features_only": True, "width": 0.35})).eval()
    seen = {}
    for path in net.feature_names:
        net.get_submodule(path).register_forward_hook(lambda _m, _x, y, path=path: seen.update({path: y}))
    with torch.no_grad():
        maps = net(torch.randn(1, 3, 64, 64))
    assert net.feature_names == ("blocks.0", "blocks.2", "blocks.5", "blocks.12", "blocks.16")
    assert all(y is seen[path] for y, path in zip(maps, net.feature_names, strict=True))


def test_feature_channels_hold_after_channels_were_removed():
    net = on_meta("mobilenet_v1", features_only=True)
    assert net.feature_channels == (64, 128, 256, 512, 1024)
    net.blocks[-1].pointwise = nn.Conv2d(1024, 1000, 1, device="meta")
    assert net.feature_channels == (64, 128, 256, 512, 1000)


# Arguments.


@pytest.mark.parametrize("name", sorted(ZOO))
def test_factories_say_what_they_take(name):
    module, _, function = ZOO[name].partition(":")
    factory = getattr(importlib.import_module(module), function)
    assert factory.__doc__
    for parameter in inspect.signature(factory).parameters.values():
        assert parameter.annotation in (int, float, bool, str)
        assert parameter.default is not parameter.empty


@pytest.mark.parametrize("name", sorted(ZOO))
def test_no_classes_are_refused(name):
    with pytest.raises(BadInput, match="classes = 0"):
        on_meta(name, classes=0)


@pytest.mark.parametrize(
    "name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "pp_lcnet"]
)
@pytest.mark.parametrize("width", [0, -1.0, float("nan"), float("inf")])
def test_impossible_widths_are_refused(name, width):
    with pytest.raises(BadInput, match="width ="):
        on_meta(name, width=width)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize("groups", [5, -1])
def test_groups_that_do_not_divide_the_channels_are_refused(name, groups):
    with pytest.raises(BadInput, match=f"ulsam_groups = {groups}"):
        on_meta(name, ulsam_groups=groups)


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
def test_small_input_ends_at_stride_8(name):
    assert on_meta(name, small_input=True, features_only=True).feature_strides == (1, 2, 4, 8)
    assert graph_of(name).params == sum(p.numel() for p in on_meta(name, small_input=True).parameters())


# Pieces.


@pytest.mark.parametrize(("name", "channels"), [("mobilenet_v1", 512), ("mobilenet_v2", 96)])
def test_ulsam_adds_its_closed_form_count(name, channels):
    """A group of c channels has 2c + 2c (depthwise, norm) + c + 1 + 2 (pointwise, norm) parameters."""
    with_groups = sum(p.numel() for p in on_meta(name, ulsam_groups=8).parameters())
    assert with_groups - graph_of(name).params == 5 * channels + 3 * 8


def test_ulsam_with_equal_scores_spreads_its_attention_evenly():
    layer = Ulsam(12, 3).eval()
    for subspace in layer.subspaces:
        nn.init.zeros_(subspace.attend[4].weight)
    x = torch.randn(2, 12, 4, 5)
    torch.testing.assert_close(layer(x), x * (1 + 1 / 20))


def test_ulsam_groups_do_not_see_each_other():
    layer, x = Ulsam(12, 3).eval(), torch.randn(1, 12, 6, 6)
    changed = x.clone()
    changed[:, :4] += 1
    same = (layer(x) == layer(changed)).all(dim=(0, 2, 3))
    assert same.tolist() == [False] * 4 + [True] * 8


def test_pad_shortcut():
    x = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4) + 1
    y = PadShortcut(1, 2, stride=2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3, 4]].any()


def test_split_channels():
    parts = SplitChannels([1, 3])(torch.arange(4.0).reshape(1, 4, 1, 1))
    assert [part.flatten().tolist() for part in parts] == [[0], [1, 2, 3]]


# Weights trained elsewhere.


@functools.cache
def cifar_test(count: int) -> tuple[torch.Tensor, np.ndarray]:
    from PIL import Image

    data = np.load(DATA / "cifar10/test.npz")
    ends = data["end"][:count]
    files = [data["jpeg"][a:b].tobytes() for a, b in zip([0, *ends], ends)]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    x = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(x.astype(np.float32)).permute(0, 3, 1, 2), data["label"][:count]


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data is not beside the repository")
@pytest.mark.parametrize("depth", [20, 56])
def test_cifar_weights_load_and_classify(depth):
    from safetensors.torch import load_file

    net = build(Source("zoo", f"cifar_resnet_{depth}")).eval()
    net.load_state_dict(load_file(DATA / f"models/cifar_resnet{depth}.safetensors"), strict=True)
    x, labels = cifar_test(200)
    with torch.no_grad():
        hits = (net(x).argmax(1).numpy() == labels).mean()
    assert hits > 0.7


def test_a_slice_of_a_network_keeps_its_weights():
    network = cifar_resnet_20()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    part = network[:-1]
    assert all(torch.equal(before[name], value) for name, value in part.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
