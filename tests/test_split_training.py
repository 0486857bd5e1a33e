"""The pass and the rewrite `split`: from a recipe to head, tail and split.json in the bundle."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

import edgekit
from edgekit import data as datasets
from edgekit import recipe
from edgekit.bottlenecks import inserted
from edgekit.bundle import open_bundle
from edgekit.cli import main
from edgekit.context import PassContext, RewriteContext
from edgekit.data import Input, Output
from edgekit.deploy import export_file
from edgekit.engines import engine
from edgekit.errors import BadInput, TrainingStopped
from edgekit.export import export
from edgekit.graph import trace
from edgekit.net import Net, parse_spec
from edgekit.onnx_file import read_io
from edgekit.onnx_split import has_latent
from edgekit.passes.split import Split, Tail
from edgekit.rewrites.fold import fold_model
from edgekit.rewrites.split import Split as SplitFile
from edgekit.split import artifact
from edgekit.targets import target
from edgekit.verify import verify
from tests.conftest import IO
from tests.nets import tiny

SHORT = {"epochs": 2, "batch": 32, "lr": 5e-3, "score": 0}
PASS = Split(
    cut="stem", channels=3, stride=2, size="mobile", beta=0.05, **SHORT, tail=Tail(**{**SHORT, "epochs": 1, "lr": 0.02})
)
ENTROPIC = f"""{IO}
[[pass]]
name = "split"
cut = "stem"
channels = 2
stride = 2
size = "mobile"
beta = 0.02
epochs = 1
batch = 32
tail = {{ epochs = 1, batch = 32 }}
[[rewrite]]
name = "fold"
"""
PLAIN = f"""{IO}
[[rewrite]]
name = "fold"
[[rewrite]]
name = "split"
cut = "stem"
bits = 3
images = 8
[[rewrite]]
name = "int8"
images = 8
"""


def context(images, **changes) -> PassContext:
    base = Net(parse_spec("tests.nets:tiny"), (), tiny())
    return PassContext(
        data=images, input=Input(size=16, mean=(0.5,), std=(0.5,)), output=Output(classes=4), seed=0, base=base,
        score=lambda _net: {}, log=lambda _line: None, cost=lambda net: trace(net.module, (3, 16, 16)).cost(),
        network=lambda spec: {"other": changes.get("other")}[spec],
    )  # fmt: skip


def trained(step: Split, images, **changes) -> Net:
    torch.manual_seed(0)
    ctx = context(images, **changes)
    return step(ctx.base, ctx)


def same(first, second) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def entropic(images) -> Net:
    return trained(PASS, images)


def test_the_first_stage_leaves_the_tail_alone(images, monkeypatch):
    seen = {}

    def look(net, *given):
        label = next(item for item in given if isinstance(item, str))
        seen[label] = {name: parameter.requires_grad for name, parameter in net.module.named_parameters()}

    monkeypatch.setattr("edgekit.passes.split.fit", look)
    trained(PASS, images)
    first, second = seen["split, encoder"], seen["split, tail"]
    assert {name for name, trains in first.items() if trains} == {name for name in first if name.startswith("stem.")}
    frozen = {name for name, trains in second.items() if not trains}
    assert frozen == {name for name in second if name.startswith(("stem.encoder.", "stem.latent."))}


def test_frozen_norms_keep_their_statistics(images):
    short = dataclasses.replace(PASS, tail=Tail(epochs=1, batch=32, lr=1e-12))
    state = trained(short, images).module.state_dict()
    before = tiny().state_dict()
    stage_two = {name for name in before if "running_var" in name and not name.startswith("stem")}
    assert not same({name: before[name] for name in stage_two}, state)  # stage 2 trains them
    frozen = dataclasses.replace(short, tail=Tail(epochs=1, batch=32, lr=1e-12, freeze_norm=True))
    state = trained(frozen, images).module.state_dict()
    assert same({name: before[name] for name in stage_two}, state)  # stage 1 did not


def test_a_tail_that_learns_from_the_teacher_alone_asks_for_no_labels(images, workspace, tmp_path):
    with np.load(workspace / "data.npz") as arrays:
        np.savez(tmp_path / "wrong.npz", x=arrays["x"], y=3 - arrays["y"])
    wrong = datasets.load([f"npz:{tmp_path / 'wrong.npz'}"])

    def state(data, **settings):
        step = dataclasses.replace(PASS, tail=Tail(epochs=1, batch=32, **settings))
        return trained(step, data).module.state_dict()

    assert same(state(images, alpha=1.0), state(wrong, alpha=1.0))
    assert not same(state(images), state(wrong))
    assert not same(state(images, alpha=1.0), state(images, alpha=1.0, temperature=4.0))


def test_a_higher_beta_costs_fewer_bits(images):
    def bits(beta):
        step = dataclasses.replace(PASS, beta=beta, method="end_to_end", tail=Tail(epochs=0))
        module = trained(step, images).module
        _, bottleneck = inserted(module)
        x = next(images.role("test").batches(context(images).input, 64))[0]
        with torch.no_grad():
            return bottleneck.latent.bits(bottleneck.latent(bottleneck.encoder(torch.from_numpy(x)))).item()

    assert bits(1.0) < 0.7 * bits(1e-5)


def test_a_second_tail_reads_the_first_ones_packets(entropic, images):
    step = dataclasses.replace(PASS, beta=None, encoder="other")
    second = trained(step, images, other=entropic.module)
    mine, its = inserted(second.module)[1], inserted(entropic.module)[1]
    assert same(mine.encoder.state_dict(), its.encoder.state_dict())
    assert same(mine.latent.state_dict(), its.latent.state_dict())
    assert not same(mine.decoder.state_dict(), its.decoder.state_dict())


@pytest.mark.parametrize("changes", [{"channels": 2}, {"bottleneck": "reduction"}])
def test_another_encoder_is_refused(entropic, images, changes):
    step = dataclasses.replace(PASS, beta=None, encoder="other", **changes)
    with pytest.raises(BadInput, match="is another encoder than"):
        trained(step, images, other=entropic.module)


def test_a_network_without_a_bottleneck_has_no_encoder_to_give(images):
    with pytest.raises(BadInput, match="'other': has no bottleneck"):
        trained(dataclasses.replace(PASS, beta=None, encoder="other"), images, other=tiny())


def test_what_diverges_says_so(images):
    with pytest.raises(TrainingStopped, match="split, encoder"):
        trained(dataclasses.replace(PASS, lr=1e30, optimiser="sgd"), images)


@pytest.mark.parametrize(
    "line, message",
    [
        ("beta = 0", "greater than 0"),
        ("beta = -0.1", "greater than 0"),
        ("", "needs beta, the weight of a bit"),
        ('beta = 0.1\nbottleneck = "reduction"', "leave it out"),
        ('beta = 0.1\nencoder = "out/b"', "leave it out"),
        ('encoder = "out/b"\nafter = "stem"', "leave out after"),
        ("beta = 0.1\ntail = { epoch = 2 }", "epoch"),
    ],
)
def test_wrong_settings(line, message, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(f'{IO}\n[[pass]]\nname = "split"\ncut = "stem"\n{line}\n')
    with pytest.raises(BadInput, match=message):
        recipe.load(str(path))


def test_a_cut_must_be_named(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(f'{IO}\n[[pass]]\nname = "split"\nbeta = 0.1\n')
    with pytest.raises(BadInput, match="name the cut"):
        recipe.load(str(path))


def check_bundle(bundle, precision: str) -> artifact.Split:
    """Head and tail are the whole file, and every symbol has a place in its channel's table."""
    split = artifact.read(bundle)
    load = engine("onnxruntime").load
    whole, head, tail = (
        load(bundle.path / name) for name in (f"model.onnxruntime.{precision}.onnx", split.head.file, split.tail.file)
    )
    x = np.random.default_rng(0).standard_normal((3, 3, 16, 16)).astype(np.float32)
    symbols = head.run(x)
    assert symbols.shape == (3, *split.latent.shape)
    assert (symbols.max(axis=(0, 2, 3)) < split.tables.symbols).all()
    assert np.array_equal(whole.run(x), tail.raw.run(None, {"latent": symbols})[0])
    assert split.full.file == bundle.base.name
    return split


def test_a_trained_cut_in_a_bundle_of_a_resumed_run(data, tmp_path, monkeypatch):
    (tmp_path / "r.toml").write_text(ENTROPIC)
    options = {"model": "tests.nets:tiny", "recipe": str(tmp_path / "r.toml"), "data": data, "out": tmp_path / "b"}
    monkeypatch.setattr("edgekit.run._seal", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edgekit.compress(**options, runs=8)
    monkeypatch.undo()
    bundle = edgekit.compress(**options, runs=8, resume=True)
    split = check_bundle(bundle, "fp32")
    assert (split.cut, split.bottleneck, split.latent.shape) == ("stem", "entropic", (2, 7, 7))
    row = next(row for row in bundle.manifest["steps"] if row["file"] == "model.onnxruntime.fp32.onnx")
    assert 0 < row["latent_bytes"] < 2 * 49
    assert {"train.01.csv", "train.01.tail.csv"} <= bundle.manifest["files"].keys()
    assert edgekit.load(bundle.path, trust=True)(torch.zeros(1, 3, 16, 16)).shape == (1, 4)


def test_a_cut_without_training_in_a_bundle(data, tmp_path):
    (tmp_path / "r.toml").write_text(PLAIN)
    bundle = edgekit.compress("tests.nets:tiny", str(tmp_path / "r.toml"), data, tmp_path / "b", runs=8)
    split = check_bundle(bundle, "int8")
    assert (split.cut, split.bottleneck, split.latent.shape) == ("stem", "activation", (16, 8, 8))
    assert set(split.tables.symbols) == {8}
    rows = {row["precision"]: row for row in bundle.manifest["steps"]}
    assert rows["split"]["latent_bytes"] < 3 * 16 * 64 / 8 and "latent_bytes" not in rows["fp32"]
    pairs = {f"{part}.onnxruntime.{kind}.onnx" for part in ("head", "tail") for kind in ("split", "int8")}
    assert pairs <= bundle.manifest["files"].keys()
    verify(bundle.path)


def test_an_onnx_file_is_cut_without_torch(bundle, data, tmp_path):
    (tmp_path / "r.toml").write_text(PLAIN)
    made = edgekit.compress(str(bundle.base), str(tmp_path / "r.toml"), data, tmp_path / "b", runs=8)
    assert check_bundle(made, "int8").cut == "stem" and not made.has_module
    assert open_bundle(made.path).manifest["edits"] == []


def rewrite_context(images) -> RewriteContext:
    return RewriteContext(target("onnxruntime"), Input(size=16), Output(), images, 0, lambda _line: None)


@pytest.mark.parametrize(
    "step, message",
    [
        (SplitFile("project.conv"), "residual or dense block"),
        (SplitFile("nowhere"), "unknown cut"),
    ],
)
def test_cuts_that_a_file_does_not_have(images, step, message):
    model = fold_model(export(tiny(), Input(size=16), Output(), target("onnxruntime")).model)
    with pytest.raises(BadInput, match=message):
        step(model, rewrite_context(images))


def test_a_quantised_file_is_cut_too_late(bundle, images):
    with pytest.raises(BadInput, match="put `split` before `int8`"):
        SplitFile("stem")(onnx.load(bundle.model("onnxruntime", "int8")), rewrite_context(images))


def test_bits_beyond_a_byte(tmp_path):
    (tmp_path / "r.toml").write_text(PLAIN.replace("bits = 3", "bits = 9"))
    with pytest.raises(BadInput, match="bits = 9"):
        recipe.load(str(tmp_path / "r.toml"))


def test_a_sweep_is_taken_up_and_gives_a_curve(data, tmp_path):
    (tmp_path / "r.toml").write_text(PLAIN.partition('[[rewrite]]\nname = "int8"')[0])
    words = ["split", "sweep", "tests.nets:tiny", "--recipe", str(tmp_path / "r.toml"), "--data", data, "--json"]
    words += ["--out", str(tmp_path / "curve"), "--bits"]
    first = CliRunner().invoke(main, [*words, "2"])
    again = CliRunner().invoke(main, [*words, "2,6"])
    assert first.exit_code == again.exit_code == 0
    assert "is there already" in again.stderr
    found = json.loads(again.stdout)
    assert [point["bits"] for point in found["points"]] == [2, 6]
    assert found["points"][0]["latent_bytes"] < found["points"][1]["latent_bytes"]
    assert found["points"][0] == json.loads(first.stdout)["points"][0]
    assert json.loads((tmp_path / "curve" / "curve.json").read_text()) == found


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "one of --beta, --channels and --bits"),
        (["--beta", "1", "--bits", "2"], "one of --beta, --channels and --bits"),
        (["--beta", "1,x"], "numbers with commas"),
        (["--bits", "2,2"], "a value was given twice"),
        (["--bits", "9"], "bits = 9"),
        (["--beta", "0"], "beta"),
    ],
)
def test_wrong_sweeps(words, message, tmp_path, data):
    (tmp_path / "r.toml").write_text(PLAIN if "--bits" in words else ENTROPIC)
    given = ["split", "sweep", "tests.nets:tiny", "--recipe", str(tmp_path / "r.toml"), "--data", data]
    done = CliRunner().invoke(main, [*given, "--out", str(tmp_path / "out"), *words])
    assert done.exit_code == 2 and message in done.stderr


@pytest.fixture(scope="module")
def cut(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    (folder / "r.toml").write_text(PLAIN)
    return edgekit.compress("tests.nets:tiny", str(folder / "r.toml"), data, folder / "b", runs=8)


def test_a_cut_file_is_made_anew_for_another_target(cut, data, tmp_path):
    for precision, has in (("fp32", False), ("int8", True)):
        out = tmp_path / f"{precision}.onnx"
        export_file(cut.path, "openvino", precision, out, [data], None, trust=True)
        assert has_latent(onnx.load(out)) == has


def test_the_halves_of_another_target(cut, data, tmp_path):
    """One after the other they are the whole."""
    paths = {part: tmp_path / f"{part}.onnx" for part in (None, "head", "tail")}
    for part, path in paths.items():
        export_file(cut.path, "openvino", "int8", path, [data], None, trust=True, part=part)
    whole, head, tail = (engine("onnxruntime").load(path, 1) for path in paths.values())
    pictures = np.random.default_rng(0).standard_normal((3, *read_io(paths[None])[0].shape), np.float32)
    assert head.run(pictures).dtype == np.uint8
    np.testing.assert_array_equal(tail.run(head.run(pictures)), whole.run(pictures))


def test_a_part_of_what_is_not_cut(cut, tmp_path):
    words = ["export", str(cut.path / "base.onnxruntime.fp32.onnx"), "--target", "onnxruntime", "--part", "tail"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "tail.onnx")])
    assert done.exit_code == 2 and "is not cut in that form, so it has no tail; leave out --part" in done.stderr
    assert not (tmp_path / "tail.onnx").exists()
