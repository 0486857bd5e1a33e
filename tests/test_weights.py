"""Weights of all wrappings go in, everything else is refused with what does not fit."""

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import edgekit
from edgekit.bundle import open_bundle, save_weights
from edgekit.errors import BadInput
from edgekit.files import file_sha256
from edgekit.net import build, parse_spec, weights_path
from edgekit.weights import load_exact, load_into
from tests.nets import Tiny, calibrate

SHARED = Path(__file__).parents[2] / "shared" / "data" / "models"


def net(classes: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return calibrate(Tiny(classes), (3, 16, 16), seed)


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(module: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, expected[name]) for name, tensor in module.state_dict().items())


WRAPPINGS = {
    "plain": lambda s: s,
    "ordered": OrderedDict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"lr": 0.1}},
    "ema": lambda s: {"ema": s, "step": 5},
    "the model before its average": lambda s: {"ema": {k: v * 0 for k, v in s.items()}, "model": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "data parallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "lightning": lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}},
    "both prefixes": lambda s: {f"module.model.{k}": v for k, v in s.items()},
}


@pytest.mark.parametrize("suffix", [".pth", ".pt"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrapped_weights_go_in(tmp_path, wrapping, suffix):
    wanted, path = state(net()), tmp_path / f"weights{suffix}"
    torch.save(WRAPPINGS[wrapping](wanted), path)
    report = load_into(module := net(seed=1), path)
    assert equal(module, wanted) and report.loaded == len(wanted) and not report.skipped


def test_safetensors_with_a_prefix(tmp_path):
    wanted = state(net())
    save_file({f"module.{name}": tensor for name, tensor in wanted.items()}, tmp_path / "w.safetensors")
    load_into(module := net(seed=1), tmp_path / "w.safetensors")
    assert equal(module, wanted)


class Prefixed(nn.Module):
    """A network that has a `model` of its own: the prefix is part of its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(2, 2)


def test_a_prefix_that_the_network_has_itself_stays(tmp_path):
    torch.save(Prefixed().state_dict(), tmp_path / "w.pth")
    assert load_into(Prefixed(), tmp_path / "w.pth").loaded == 2


def test_old_files_without_batch_norms_counters(tmp_path):
    wanted = {name: tensor for name, tensor in state(net()).items() if "num_batches" not in name}
    torch.save(wanted, tmp_path / "w.pth")
    report = load_into(net(seed=1), tmp_path / "w.pth")
    assert report.loaded == len(wanted) and all("num_batches_tracked" in name for name in report.skipped)
    assert len(report.skipped) == 5 and "stem.norm.num_batches_tracked" in str(report)


def test_another_number_of_classes_leaves_the_classifier_and_says_so(tmp_path):
    wanted, path = state(net(classes=7)), tmp_path / "w.pth"
    torch.save(wanted, path)
    module = net(seed=1)
    initial = state(module)
    report = load_into(module, path, classes=4)
    assert report.skipped == ("classifier.linear.bias", "classifier.linear.weight")
    assert torch.equal(module.classifier.linear.weight, initial["classifier.linear.weight"])
    assert torch.equal(module.stem.conv.weight, wanted["stem.conv.weight"])
    assert "left at their initial values: classifier.linear.bias" in str(report)


def test_another_number_of_classes_that_nobody_asked_for_is_refused(tmp_path):
    torch.save(state(net(classes=7)), tmp_path / "w.pth")
    with pytest.raises(BadInput, match=r"2 mis-shaped: classifier.linear.bias \(7,\) for \(4,\)"):
        load_into(net(), tmp_path / "w.pth")
    with pytest.raises(BadInput, match="mis-shaped"):
        load_into(net(), tmp_path / "w.pth", classes=5)


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param([nn.Linear(3, 7), nn.Linear(4, 7)], id="two layers of so many outputs"),
        pytest.param([nn.Linear(3, 4), nn.Linear(5, 7)], id="another input as well"),
    ],
)
def test_only_one_layer_may_differ_and_in_the_classes_alone(tmp_path, layers):
    torch.save(nn.Sequential(*layers).state_dict(), tmp_path / "w.pth")
    with pytest.raises(BadInput, match="mis-shaped"):
        load_into(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4)), tmp_path / "w.pth", classes=4)


def missing(s):
    del s["stem.conv.weight"]


def unexpected(s):
    s["extra.weight"] = torch.zeros(1)


def misshaped(s):
    s["stem.conv.weight"] = torch.zeros(16, 3, 5, 5)


def another_layer(s):
    s["head.norm.bias"] = torch.zeros(4)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, "1 missing: stem.conv.weight"),
        (unexpected, "1 unexpected: extra.weight"),
        (misshaped, r"1 mis-shaped: stem.conv.weight \(16, 3, 5, 5\) for \(16, 3, 3, 3\)"),
        (another_layer, r"1 mis-shaped: head.norm.bias \(4,\) for \(32,\)"),
    ],
)
@pytest.mark.parametrize("classes", [None, 4])
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path, damage, message, classes):
    damage(wanted := state(net()))
    torch.save(wanted, tmp_path / "w.pth")
    module = net(seed=1)
    initial = state(module)
    with pytest.raises(BadInput, match=message):
        load_into(module, tmp_path / "w.pth", classes)
    assert equal(module, initial)


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_file_that_brings_code_is_refused_and_its_code_not_run(tmp_path, save):
    save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(BadInput, match="without running code that it brings along"):
        load_into(net(), tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no state dict but the keys epoch"),
        ([1, 2], "no state dict but list"),
        ({}, "no state dict"),
        ({"state_dict": {"a": {"b": 1}}}, "no state dict but the keys a"),
        (torch.zeros(3), "no state dict but Tensor"),
    ],
)
def test_a_file_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(BadInput, match=message):
        load_into(net(), tmp_path / "w.pt")


def test_files_that_cannot_be_read(tmp_path):
    for name, content in (("w.pth", b"\x80junk"), ("w.safetensors", b"\x08\0\0\0\0\0\0\0junk"), ("w.bin", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=rf"{name}: "):
            load_into(net(), tmp_path / name)
    with pytest.raises(BadInput, match="no such file"):
        load_into(net(), tmp_path / "nowhere.pth")


def test_unusual_tensors_are_refused(tmp_path):
    wanted = state(net())
    wanted["stem.conv.weight"] = torch.empty(16, 3, 3, 3, device="meta")
    torch.save(wanted, tmp_path / "w.pth")
    with pytest.raises(BadInput, match=r"unusual kind|without running"):
        load_into(net(), tmp_path / "w.pth")


def test_edgekits_own_files_are_loaded_strictly_with_tied_tensors(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    aliases = save_weights(tmp_path / "w.safetensors", module)
    assert aliases == {"1.weight": "0.weight"}
    again = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    load_exact(again, tmp_path / "w.safetensors", aliases)
    assert equal(again, state(module))
    with pytest.raises(BadInput, match=r"1 missing: 1\.weight"):
        load_exact(again, tmp_path / "w.safetensors")


# MODEL specs


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.save({"model": net(seed=5).state_dict()}, tmp_path / "my weights+1.pth")
    return tmp_path / "my weights+1.pth"


SPEC = "mobilenet_v2?width=0.35&small_input=true"


def test_the_spec_records_name_and_hash_and_no_path(saved):
    spec = f"{SPEC}&classes=4&weights={saved}"
    source = parse_spec(spec)
    assert source.weights == {"file": saved.name, "sha256": file_sha256(saved)}
    assert source.args == {"width": 0.35, "small_input": True, "classes": 4}
    assert weights_path(spec) == saved and weights_path(SPEC) is None


def test_weights_take_the_place_of_a_cards_own(saved):
    assert parse_spec(f"mobilenet_v2_digits?weights={saved}").weights["file"] == saved.name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (f"{SPEC}&weights=nowhere.pth", "nowhere.pth: no such file of weights"),
        ("mobilenet_v2?width", "argument=value"),
        ("some.onnx?weights=a.pth", "takes no arguments"),
    ],
)
def test_specs_that_cannot_be_used(spec, message):
    with pytest.raises(BadInput, match=message):
        parse_spec(spec)


FOLD_ONLY = '[input]\nsize = 16\nmean = [0.5]\nstd = [0.5]\n\n[output]\nclasses = 4\n\n[[rewrite]]\nname = "fold"\n'


def compressed(spec: str, data: str, folder: Path, log: list[str]):
    (folder / "fold.toml").write_text(FOLD_ONLY)
    return edgekit.compress(spec, str(folder / "fold.toml"), data, folder / "out", runs=8, log=log.append)


def test_a_bundle_holds_the_users_weights_and_not_their_place(saved, data, tmp_path):
    log: list[str] = []
    made = compressed(f"tests.nets:tiny?classes=4&weights={saved}", data, tmp_path, log)
    wanted = state(net(seed=5))
    saved.unlink()
    assert equal(edgekit.load(made.path, trust=True), wanted)
    assert str(tmp_path).encode() not in (made.path / "manifest.json").read_bytes()
    assert open_bundle(made.path).manifest["source"]["weights"]["file"] == saved.name
    assert not any(line.startswith("weights:") for line in log)


def test_the_user_is_told_which_layer_starts_afresh(saved, data, tmp_path):
    torch.save(net(classes=9).state_dict(), saved)
    log: list[str] = []
    compressed(f"tests.nets:tiny?classes=4&weights={saved}", data, tmp_path, log)
    told = next(line for line in log if line.startswith("weights:"))
    assert "classifier.linear.bias, classifier.linear.weight" in told


def test_published_cifar_weights():
    path = SHARED / "cifar_resnet20.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here: this test wants the shared data beside the repository")
    module = build(parse_spec(f"cifar_resnet_20?weights={path}"))
    report = load_into(module, path)
    assert report.loaded + len(report.skipped) == len(module.state_dict())
    assert all(name.endswith("num_batches_tracked") for name in report.skipped)
