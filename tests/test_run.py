"""The whole path, on the tiny network: what a bundle holds, what it computes, and what resuming gives."""

import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import edgekit
from edgekit import bundle as bundles
from edgekit import files, report
from edgekit.edits import layer_channels
from edgekit.engines import engine
from edgekit.errors import BadInput, NothingChanged, TrainingStopped
from edgekit.files import file_sha256
from edgekit.job import torch_predict
from edgekit.latency import LatencyModel, LayerCost
from edgekit.parity import sqnr_db
from tests.conftest import IO
from tests.nets import tiny

MODEL = "tests.nets:tiny"


def test_every_stage_has_its_row(bundle):
    assert [row["stage"] for row in bundle.manifest["steps"]] == ["base", "prune", "distil", "int8"]
    base, pruned, distilled, quantised = bundle.manifest["steps"]
    assert pruned["macs"] <= 0.7 * base["macs"] and pruned["params"] < base["params"]
    assert distilled["macs"] == pruned["macs"] == quantised["macs"]
    assert quantised["int8_convs"] == 5, "all five convolutions of the tiny network run as int8"
    assert quantised["metrics_torch"] is None and quantised["parity_db"] > 20


def test_the_rows_speak_of_the_files(bundle):
    for row in bundle.manifest["steps"]:
        path = bundle.path / row["file"]
        if path.exists():
            assert path.stat().st_size == row["size_bytes"]


def test_load_gives_the_module_of_the_file_bit_equal(bundle):
    module = edgekit.load(bundle.path, trust=True)
    again = edgekit.load(bundle.path, trust=True)
    x = np.random.default_rng(1).standard_normal((4, 3, 16, 16), np.float32)
    assert np.array_equal(torch_predict(module)(x), torch_predict(again)(x))
    deployed = engine("onnxruntime").load(bundle.model("onnxruntime", "fp32")).run(x)
    assert sqnr_db(torch_predict(module)(x), deployed) > 60


def test_weights_are_the_state_dict(bundle):
    from safetensors.torch import load_file

    state = load_file(bundle.path / "weights.safetensors")
    module = edgekit.load(bundle.path, trust=True)
    assert state.keys() == module.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())


def test_tied_tensors_are_stored_once(tmp_path):
    from edgekit.weights import load_exact

    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    net[1].weight = net[0].weight
    aliases = bundles.save_weights(tmp_path / "w.safetensors", net)
    assert aliases == {"1.weight": "0.weight"}
    other = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    load_exact(other, tmp_path / "w.safetensors", aliases)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in net.state_dict().items())


def test_profile_and_gates_name_the_seal(bundle):
    profile, gates = bundle.latest("profile"), bundle.latest("gates")
    assert profile["seal"] == gates["seal"] == bundle.seal
    assert {row["file"] for row in profile["rows"]} >= {path.name for path in bundle.models}
    assert all(verdict["outcome"] == "pass" for verdict in gates["verdicts"])
    assert not (bundle.path / ".work").exists()


def test_no_path_of_this_machine_in_any_file(bundle):
    home = str(Path(__file__).parents[1]).encode()
    for file in [*bundle.models, bundle.base, bundle.path / "golden.safetensors"]:
        assert home not in file.read_bytes() and b"site-packages" not in file.read_bytes()


def sealed(path: Path) -> dict:
    manifest = bundles.open_bundle(path).manifest
    return {key: value for key, value in manifest.items() if key != "runs"}


def test_same_seed_same_content_and_another_seed_another(bundle, workspace, data):
    recipe = str(workspace / "recipe.toml")
    again = edgekit.compress(MODEL, recipe, data, workspace / "again", runs=8)
    assert sealed(again.path) == sealed(bundle.path) and again.seal == bundle.seal
    other = edgekit.compress(MODEL, recipe, data, workspace / "other", seed=1, runs=8)
    assert file_sha256(other.path / "weights.safetensors") != file_sha256(bundle.path / "weights.safetensors")


class Killed(BaseException):
    """Stands for a kill: nothing in edgekit may catch it."""


def die_at(monkeypatch: pytest.MonkeyPatch, write: int) -> None:
    """Let the process die just before its `write`-th file takes its name."""
    count = 0
    rename = files.os.replace

    def replace(source, target):
        nonlocal count
        count += 1
        if count == write:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(files.os, "replace", replace)


QUICK = (3, 9)
WRITES = [pytest.param(write, marks=() if write in QUICK else pytest.mark.slow) for write in range(2, 20)]


@pytest.mark.parametrize("write", WRITES)
def test_resume_after_a_kill_gives_the_same_seal(bundle, workspace, data, monkeypatch, tmp_path, write):
    recipe, out = str(workspace / "recipe.toml"), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, write)
        edgekit.compress(MODEL, recipe, data, out, runs=8)
    if not (out / "manifest.json").exists():
        with pytest.raises(BadInput, match=r"no bundle|unfinished"):
            bundles.open_bundle(out)
    with pytest.raises(BadInput, match="not empty"):
        edgekit.compress(MODEL, recipe, data, out, runs=8)
    resumed = edgekit.compress(MODEL, recipe, data, out, runs=8, resume=True)
    assert resumed.seal == bundle.seal
    assert not list(out.glob("**/.*tmp")), "no leftovers of the killed write"


def test_resume_refuses_another_request(workspace, data, monkeypatch, tmp_path):
    recipe, out = str(workspace / "recipe.toml"), tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_at(patch, 2)
        edgekit.compress(MODEL, recipe, data, out, runs=8)
    with pytest.raises(BadInput, match="another model, recipe, data, seed"):
        edgekit.compress(MODEL, recipe, data, out, runs=8, seed=5, resume=True)


def test_out_must_be_empty_and_is_left_alone(workspace, data, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(BadInput, match=r"is not empty; give another --out"):
        edgekit.compress(MODEL, str(workspace / "recipe.toml"), data, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_out_that_cannot_be_written(workspace, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        edgekit.compress(MODEL, str(workspace / "recipe.toml"), data, tmp_path / "file" / "out")


def test_nan_in_training_stops_and_keeps_the_last_good_weights(workspace, data, tmp_path):
    with pytest.raises(TrainingStopped, match=r"at step \d+ .*last good state is kept in .*training-02"):
        edgekit.compress(MODEL, str(workspace / "recipe.toml"), data, tmp_path / "out", overrides=["distil.lr=1e30"])
    assert list((tmp_path / "out" / ".work").glob("training-02.safetensors"))


def test_a_pass_that_changes_nothing_is_an_error(workspace, data, tmp_path):
    recipe = str(workspace / "recipe.toml")
    with pytest.raises((NothingChanged, BadInput), match=r"changed nothing|no channels"):
        edgekit.compress(MODEL, recipe, data, tmp_path / "out", overrides=["prune.round_to=64"])


def test_a_budget_of_latency_shows_what_was_predicted_beside_what_was_measured(data, tmp_path, monkeypatch):
    full = layer_channels(tiny())
    model = LatencyModel({name: LayerCost((0.0, 0.0, 0.0, 1e-3), 1.0, 1) for name in full}, 0.1, full)
    asked = []
    monkeypatch.setattr("edgekit.job.layer_table", lambda *_: asked.append(1) or types.SimpleNamespace(model=model))
    (tmp_path / "r.toml").write_text(f'{IO}[[pass]]\nname = "prune"\nbudget = {{ latency = 0.7 }}\n')
    made = edgekit.compress(MODEL, str(tmp_path / "r.toml"), data, tmp_path / "out", runs=8)
    base, pruned = made.manifest["steps"]
    assert len(asked) == 1, "one table serves the pass and the predictions"
    assert base["latency_predicted"] == 1.0 and 0.4 < pruned["latency_predicted"] <= 0.7
    (line,) = report.predictions(made)
    measured = median_ms(made, "model") / median_ms(made, "base")
    assert line.startswith(
        f"latency of prune: {pruned['latency_predicted']:.3f} of the base's predicted, {measured:.3f}"
    )
    assert line in report.markdown(made)


def median_ms(made, file: str) -> float:
    rows = made.latest("profile")["rows"]
    return next(row["latency_ms"]["median"] for row in rows if row["file"].startswith(file))


def test_an_int8_file_that_is_slower_than_float_is_called_so():
    def note(low: float) -> list[str]:
        steps = [("model.t.fp32.onnx", "fp32", 1.0, 1.1), ("model.t.int8.onnx", "int8", low, 2.0)]
        rows = [
            {"file": name, "latency_ms": {"low": low, "median": 1.05, "high": high}} for name, _, low, high in steps
        ]
        made = [{"file": name, "precision": kind, "target": "t", "metrics": {}} for name, kind, *_ in steps]
        models = [Path(row["file"]) for row in made]
        manifest = {"steps": made, "files": {}}
        profile = {"rows": rows, "machine": {"cpu": "x"}}
        return report.slower(types.SimpleNamespace(manifest=manifest, models=models, latest=lambda _: profile))

    assert note(1.2) == ["model.t.int8.onnx is slower on this machine than its float32 file: 1.00 of its latency"]
    assert note(1.05) == [], "intervals that overlap decide nothing"


def test_label_outside_the_classes(workspace, data, tmp_path):
    with pytest.raises(BadInput, match="label"):
        edgekit.compress(MODEL, str(workspace / "recipe.toml"), data, tmp_path / "o", overrides=["output.classes=2"])
    assert not (tmp_path / "o").exists()


def test_disk_full_leaves_no_half_bundle(workspace, data, monkeypatch, tmp_path):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(BadInput, match=r"disk is full.*nothing was written there"):
            edgekit.compress(MODEL, str(workspace / "recipe.toml"), data, tmp_path / "out", runs=8)
    with pytest.raises(BadInput, match=r"manifest.json is missing"):
        bundles.open_bundle(tmp_path / "out")
    assert not list((tmp_path / "out").glob("**/*tmp"))


def test_an_onnx_file_never_leaves_onnx(bundle, data, tmp_path):
    made = edgekit.compress(str(bundle.model("onnxruntime", "fp32")), "int8", data, tmp_path / "out", runs=8)
    assert [row["stage"] for row in made.manifest["steps"]] == ["base", "export", "int8"]
    assert made.manifest["steps"][0]["macs"] == bundle.manifest["steps"][1]["macs"]
    assert not (made.path / "weights.safetensors").exists()
    with pytest.raises(BadInput, match="no PyTorch module"):
        edgekit.load(made.path)


def test_passes_work_on_an_onnx_file_and_its_bundle_needs_the_file_no_more(bundle, workspace, data, tmp_path):
    file = Path(shutil.copy(bundle.base, tmp_path / "foreign.onnx"))
    made = edgekit.compress(str(file), str(workspace / "recipe.toml"), data, tmp_path / "out", runs=8)
    file.unlink()
    assert [row["stage"] for row in made.manifest["steps"]] == ["base", "prune", "distil", "int8"]
    base, pruned = made.manifest["steps"][:2]
    assert base["macs"] == bundle.manifest["steps"][0]["macs"] and pruned["macs"] <= 0.7 * base["macs"]
    assert base["correct"] == bundle.manifest["steps"][0]["correct"]
    assert made.manifest["source"]["name"] == "foreign.onnx" and "source.graph.json" in made.manifest["files"]
    module, again = edgekit.load(made.path), edgekit.load(shutil.copytree(made.path, tmp_path / "elsewhere"))
    x = np.random.default_rng(1).standard_normal((4, 3, 16, 16), np.float32)
    assert np.array_equal(torch_predict(module)(x), torch_predict(again)(x))
    assert sqnr_db(torch_predict(module)(x), engine("onnxruntime").load(made.model("onnxruntime", "fp32")).run(x)) > 60


def test_an_onnx_file_that_wants_pictures_of_another_size(bundle, workspace, data, tmp_path):
    with pytest.raises(BadInput, match=r"3, 16, 16\]; \[input\] makes \(batch, 3, 32, 32\)"):
        edgekit.compress(
            str(bundle.base), str(workspace / "recipe.toml"), data, tmp_path / "out", overrides=["input.size=32"]
        )


# Opening bundles


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
@pytest.mark.parametrize("name", ["weights.safetensors", "model.onnxruntime.int8.onnx", "golden.safetensors"])
def test_a_damaged_file_is_named_with_its_hash(copy, name, damage):
    path = copy / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(BadInput, match=rf"{name}.*SHA-256"):
        bundles.open_bundle(copy)


def test_a_damaged_manifest(copy):
    manifest = copy / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(BadInput, match="no readable JSON"):
        bundles.open_bundle(copy)


def test_a_newer_schema_is_refused(copy):
    document = json.loads((copy / "manifest.json").read_text())
    document["schema"] = "edgekit/bundle/2"
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match="newer edgekit"):
        bundles.open_bundle(copy)


def test_a_strangers_code_runs_only_with_trust(bundle):
    with pytest.raises(BadInput, match="--trust"):
        edgekit.load(bundle.path)


def test_a_strangers_code_that_changed_is_refused(copy):
    document = json.loads((copy / "manifest.json").read_text())
    document["source"]["sha256"] = "0" * 64
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match="has changed"):
        edgekit.load(copy, trust=True)


KEEP = {"edit": "keep_channels", "layer": "stem.conv", "dim": "out", "keep": [0]}


@pytest.mark.parametrize(
    "wrong", [{"edit": "rm_rf"}, {"dim": "up"}, {"layer": "nowhere"}, {"keep": [99]}, {"keep": []}]
)
def test_edits_that_do_not_fit_are_refused(copy, wrong):
    document = json.loads((copy / "manifest.json").read_text())
    document["edits"].append({**KEEP, **wrong})
    (copy / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match=r"edit|keep"):
        edgekit.load(copy, trust=True)
