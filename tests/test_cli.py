"""The commands: what they print, their exit codes, and that every one explains itself."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.cli import main
from edgekit.files import file_sha256

COMMANDS = sorted(main.commands)


def run(*args: str, code: int = 0) -> tuple[str, str]:
    """Run a command in this process; returns stdout and stderr."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(map(str, args)), prog_name="edgekit")
    assert ended.value.code == code, err.getvalue()
    return out.getvalue(), err.getvalue()


def test_the_commands_of_the_contract():
    expected = "compress doctor evaluate export gate inspect models profile report verify".split()
    assert set(expected) <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    out, _ = run(command, "--help")
    assert f"edgekit {command} " in out.replace("Usage: edgekit", "").replace("\n", " ")


def test_help_and_models_are_quick_and_import_no_torch():
    for arguments in (["--help"], ["models"]):
        code = (
            f"import sys; sys.argv = ['edgekit', *{arguments!r}]\nfrom edgekit.cli import main\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
            "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[1])


def test_models_json():
    out, _ = run("models", "--json")
    document = json.loads(out)
    row = next(row for row in document["models"] if row["name"] == "mobilenet_v2?width=1.0")
    assert row["params"] == 3504872 and row["published"][0]["source"]


def test_inspect():
    document = json.loads(run("inspect", "mobilenet_v2", "--input-size", "64", "--json")[0])
    assert document["total"]["params"] == 3504872 and document["uncounted"] == []
    assert sum(layer["macs"] for layer in document["layers"]) == document["total"]["macs"]
    out, _ = run("inspect", "mobilenet_v2_digits")
    assert "total" in out and "stem.conv" in out


def test_inspect_an_onnx_file(bundle):
    document = json.loads(run("inspect", bundle.base, "--json")[0])
    assert document["total"]["macs"] == bundle.manifest["steps"][0]["macs"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mobilnet_v2", "did you mean 'mobilenet_v2'"),
        ("mobilenet_v2?widht=1", "unknown argument 'widht'; did you mean 'width'"),
        ("mobilenet_v2?width=big", "must be float"),
        ("no.such.package:net", "no module 'no.such.package'"),
        ("nowhere.onnx", "no such ONNX file"),
    ],
)
def test_unknown_models(model, message):
    assert message in run("inspect", model, code=2)[1]


def test_report_of_a_bundle(bundle):
    document = json.loads(run("report", bundle.path, "--json")[0])
    assert [row["stage"] for row in document["rows"]] == ["base", "prune", "distil", "int8"]
    assert {verdict["outcome"] for verdict in document["gates"]} == {"pass"}
    out, _ = run("report", bundle.path)
    assert "distil" in out and "pass  size_bytes" in out
    assert run("report", bundle.path, "--markdown")[0].startswith("| stage |")


def test_gate_exit_codes_and_files(bundle, tmp_path):
    gates = tmp_path / "gates.toml"
    gates.write_text('size_bytes = { max_ratio = 5.0 }\ntop1 = { min = 0, precision = "int8" }\n')
    reports = ("--junit", tmp_path / "g.xml", "--markdown", tmp_path / "g.md")
    out, _ = run("gate", bundle.path, "--gates", gates, *reports)
    assert "pass  size_bytes max_ratio 5" in out
    assert b"<testsuite" in (tmp_path / "g.xml").read_bytes() and "| pass |" in (tmp_path / "g.md").read_text()
    gates.write_text("size_bytes = { max = 10 }")
    assert "FAIL" in run("gate", bundle.path, "--gates", gates, code=1)[0]
    gates.write_text("map = { min = 10 }")
    assert "not measured" in run("gate", bundle.path, "--gates", gates, code=1)[0]
    gates.write_text("")
    assert "holds no gates" in run("gate", bundle.path, "--gates", gates, code=2)[1]
    gates.write_text("speed = { max = 1 }")
    assert "unknown metric 'speed'" in run("gate", bundle.path, "--gates", gates, code=2)[1]


def test_gate_against_another_bundle(bundle, tmp_path):
    gates = tmp_path / "gates.toml"
    gates.write_text('size_bytes = { max_ratio = 1.0 }\ntop1 = { max_drop = 0.0, test = "significant" }')
    run("gate", bundle.path, "--gates", gates, "--baseline", bundle.path)


def test_gate_writes_a_baseline_and_the_summary_of_a_step(bundle, tmp_path, monkeypatch):
    gates, kept, summary = (tmp_path / name for name in ("gates.toml", "baseline.json", "summary.md"))
    gates.write_text("size_bytes = { max_ratio = 1.0 }\ntop1 = { max_drop = 0.0 }")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    run("gate", bundle.path, "--gates", gates, "--baseline", bundle.path, "--update-baseline", kept)
    run("gate", bundle.path, "--gates", gates, "--baseline", kept)
    assert summary.read_text().count("| outcome |") == 2


def test_profile_of_a_file_and_of_a_bundle(bundle):
    document = json.loads(run("profile", bundle.base, "--runs", "8", "--json")[0])
    (row,) = document["rows"]
    assert row["latency_ms"]["low"] <= row["latency_ms"]["median"] <= row["latency_ms"]["high"]
    assert row["latency_ms"]["n"] == 8 and row["latency_ratio"]["median"] == 1.0
    out, _ = run("profile", bundle.path, "--runs", "8")
    assert "model.onnxruntime.int8.onnx" in out


def test_export_copies_what_the_bundle_has(bundle, tmp_path):
    run("export", bundle.path, "--target", "onnxruntime", "--out", tmp_path / "m.onnx")
    assert file_sha256(tmp_path / "m.onnx") == file_sha256(bundle.model("onnxruntime", "int8"))
    assert "exists" in run("export", bundle.path, "--target", "onnxruntime", "--out", tmp_path / "m.onnx", code=2)[1]


def test_export_for_another_target_is_made_anew(bundle, data, tmp_path):
    out = tmp_path / "m.onnx"
    arguments = ("export", bundle.path, "--target", "onnxruntime-vnni", "--out", out)
    assert "calibration images with --data" in run(*arguments, code=2)[1]
    run(*arguments, "--data", data, "--trust")
    assert out.stat().st_size > 0
    run("export", bundle.base, "--target", "onnxruntime", "--out", tmp_path / "f.onnx")
    assert "unknown target 'tensort'" in run("export", bundle.path, "--target", "tensort", "--out", out, code=2)[1]


def test_evaluate_is_the_number_of_the_bundle(bundle, data):
    document = json.loads(run("evaluate", bundle.model("onnxruntime", "int8"), "--data", data, "--json")[0])
    assert document["metrics"] == bundle.manifest["steps"][-1]["metrics"]
    assert "unknown engine" in run("evaluate", bundle.base, "--data", data, "--engine", "onnx", code=2)[1]
    assert "unknown data source 'digit'" in run("evaluate", bundle.base, "--data", "digit", code=2)[1]


def test_a_foreign_file_needs_io(bundle, data, tmp_path):
    import onnx

    model = onnx.load(bundle.base)
    model.ClearField("metadata_props")
    foreign = tmp_path / "foreign.onnx"
    onnx.save(model, foreign)
    assert "--io" in run("evaluate", foreign, "--data", data, code=2)[1]
    (tmp_path / "io.toml").write_text("[input]\nsize = 16\nmean = [0.5]\nstd = [0.5]\n")
    document = json.loads(run("evaluate", foreign, "--data", data, "--io", tmp_path / "io.toml", "--json")[0])
    assert document["metrics"] == bundle.manifest["steps"][0]["metrics"]


def test_verify(bundle, tmp_path):
    document = json.loads(run("verify", bundle.path, "--json")[0])
    assert all(row["sqnr_db"] >= row["needed_db"] for row in document["rows"])
    run("verify", bundle.base)
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    assert "cannot load it" in run("verify", tmp_path / "junk.onnx", code=2)[1]
    assert "is no bundle" in run("verify", tmp_path, code=2)[1]


def test_verify_needs_no_torch(bundle):
    code = (
        "import sys; from pathlib import Path; from edgekit.verify import verify\n"
        f"verify(Path({str(bundle.path)!r}))\nassert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[1])


def test_verify_finds_another_answer(bundle, tmp_path):
    """A bundle whose golden vectors were made by another network, sealed again."""
    import shutil

    import numpy as np
    from safetensors.numpy import load_file, save_file

    from edgekit.bundle import hashes

    copy = Path(shutil.copytree(bundle.path, tmp_path / "copy"))
    golden = load_file(copy / "golden.safetensors")
    golden = {name: value if name == "input" else np.ascontiguousarray(value[::-1]) for name, value in golden.items()}
    save_file(golden, copy / "golden.safetensors")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"] = hashes(copy, manifest["files"])
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "answers differently" in run("verify", copy, code=2)[1]


def test_doctor():
    document = json.loads(run("doctor", "--json")[0])
    assert document["packages"]["torch"] and document["cpu"]["name"] and document["extras"]["tensorrt-rtx"]["get"]
    assert "int8 here" in run("doctor")[0]


def test_compress_prints_one_json_document(data, tmp_path):
    recipe = tmp_path / "export.toml"
    recipe.write_text('[input]\nsize = 16\n[[rewrite]]\nname = "fold"\n[export]\nbatch = 1\n')
    out, err = run("compress", "tests.nets:tiny", "--recipe", recipe, "--data", data, "--out", tmp_path / "o",
                   "--runs", "8", "--json")  # fmt: skip
    assert json.loads(out)["rows"][0]["stage"] == "base" and "base: top1" in err
    assert "is not empty" in run("compress", "tests.nets:tiny", "--recipe", recipe, "--data", data,
                                 "--out", tmp_path / "o", code=2)[1]  # fmt: skip


def test_usage_errors_and_internal_errors(monkeypatch):
    assert "Missing option" in run("compress", "mobilenet_v2", code=2)[1]
    from edgekit import doctor

    def broken():
        raise RuntimeError("boom")

    monkeypatch.setattr(doctor, "examine", broken)
    assert "fault of edgekit" in run("doctor", code=70)[1]

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    run("doctor", code=130)


@pytest.mark.slow
def test_help_answers_in_under_half_a_second():
    for arguments in (["--help"], ["models"]):
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-m", "edgekit.cli", *arguments], check=True, capture_output=True)
            seconds.append(time.perf_counter() - begin)
        assert min(seconds) < 0.5
