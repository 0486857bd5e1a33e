"""The lab without an emulator: the table of processors, workers, what is missing, and gates on what was found."""

import json
import os
import shutil
import sys
import tarfile

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from edgekit import report
from edgekit.bundle import open_bundle
from edgekit.cli import main
from edgekit.context import no_progress
from edgekit.devices.cpus import NATIVE, Cpu, cpus, named
from edgekit.errors import BadInput
from edgekit.export import export, finish, serialise
from edgekit.files import file_sha256, write_json
from edgekit.gate import Gate, judge
from edgekit.judge import judge as judge_bundle
from edgekit.lab import emulator, entries, root
from edgekit.lab.emulator import Emulated
from edgekit.lab.jobs import Task, work
from edgekit.lab.run import Plan, run
from edgekit.lab.worker import answers, opened
from edgekit.rewrites import Fold, Int8
from tests.conftest import save_images
from tests.nets import tiny
from tests.test_quant import INPUT, OUTPUT, context


@pytest.fixture(scope="module")
def content(images) -> bytes:
    """The tiny network in int8, for x86 without VNNI too."""
    target = context().target
    folded = Fold()(export(tiny(), INPUT, OUTPUT, target).model, context())
    return serialise(
        finish(
            Int8(images=16, reconstruct="none", bias_correction=False)(folded, context(images)), target, INPUT, OUTPUT
        )
    )


@pytest.fixture(scope="module")
def inputs(images) -> np.ndarray:
    return next(images.role("test").batches(INPUT, 4))[0]


@pytest.fixture
def here(tmp_path) -> Emulated:
    """Workers that are started as those of an emulator are, but in the Python at hand."""
    jobs = tmp_path / "jobs"
    cpu = Cpu("x86_64", "", "the processor at hand", (), 1.0, "here")
    return Emulated(cpu, (sys.executable,), jobs, jobs, dict(os.environ), ("here",))


def task(content: bytes, inputs: np.ndarray, folder) -> Task:
    return Task("net.onnx", content, inputs, folder / "kept", tuple(f"picture{row}" for row in range(len(inputs))))


# The table


def test_every_processor_says_what_it_stands_for():
    assert {"nehalem", "haswell", "cortex-a53", "cortex-a72", "cortex-a76", "neoverse-n1"} == set(cpus())
    assert all(cpu.stands_for and cpu.features and cpu.slowdown > 1 for cpu in cpus().values())


def test_lists_of_processors():
    assert [cpu.name for cpu in named("haswell, cortex-a53,haswell,native")] == ["haswell", "cortex-a53"]
    with pytest.raises(BadInput, match=r"unknown CPU 'cortex-a5'.*did you mean 'cortex-a53'.*haswell.*native"):
        named("cortex-a5")


# Workers


def test_workers_answer_what_the_host_answers(content, inputs, here, tmp_path):
    asked = task(content, inputs, tmp_path)
    work(asked, here, 2, None, no_progress)
    session = opened(content)
    for row, x in enumerate(inputs):
        np.testing.assert_array_equal(asked.answer(row)[0], answers(session, x)[0])
    assert not list(here.jobs.iterdir())


def test_what_is_known_is_not_run_again(content, inputs, here, tmp_path):
    work(task(content, inputs[:2], tmp_path), here, 1, None, no_progress)
    more = task(content, inputs, tmp_path)
    assert more.known() == [0, 1]
    seen = []
    work(more, here, 1, None, lambda items, _label, total: seen.append(total) or items)
    assert seen == [2] and more.known() == [0, 1, 2, 3]


def test_what_is_done_when_the_time_is_over_is_kept(content, inputs, here, tmp_path):
    work(task(content, inputs[:1], tmp_path), here, 1, None, no_progress)
    asked = task(content, inputs, tmp_path)
    work(asked, here, 1, 0.0, no_progress)
    assert asked.known() == [0] and not list(here.jobs.iterdir())


def test_a_worker_that_fails_is_named_with_its_last_words(inputs, here, tmp_path):
    with pytest.raises(BadInput, match=r"net.onnx: crashed as here \(exit code 1\), and said: .*INVALID_PROTOBUF"):
        work(task(b"no model", inputs, tmp_path), here, 1, None, no_progress)


@pytest.mark.parametrize("ends", ["kill -4 $$", "exit 132"])
def test_a_worker_that_is_killed_is_named_with_the_signal(content, inputs, here, tmp_path, ends):
    script = tmp_path / "worker.sh"
    script.write_text(f"#!/bin/sh\necho illegal instruction\n{ends}\n")
    script.chmod(0o755)
    crashing = Emulated(here.cpu, (str(script),), here.jobs, here.inside, here.environment, here.identity)
    with pytest.raises(BadInput, match=r"crashed as here \(signal 4\), and said: illegal instruction"):
        work(task(content, inputs, tmp_path), crashing, 1, None, no_progress)


def test_files_of_a_fixed_batch_are_filled(images):
    target = context().target
    made = Fold()(export(tiny(), INPUT, OUTPUT, target, 3).model, context())
    x = next(images.role("test").batches(INPUT, 3))[0]
    session = opened(serialise(made))
    assert answers(session, x[1])[0].shape == (1, 4)
    np.testing.assert_allclose(
        answers(session, x[1])[0], session.run(None, {session.get_inputs()[0].name: x})[0][1:2], rtol=1e-4
    )


# A run


def test_the_native_processor_is_the_reference(content, data, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    found = run([path], NATIVE, [data], Plan(samples=5))
    (row,) = found["rows"]
    assert (row["cpu"], row["n"], row["agreement"], row["sqnr_db"]) == (NATIVE, 5, 100.0, 300.0)
    assert row["metrics"]["top1"] == 20.0 * row["correct"].count("1") and not row["partial"]


def test_partial_results_are_marked(content, data, here, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgekit.lab.run._machine", lambda _cpu: here)
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    few = run([path], "haswell", [data], Plan(samples=2))["rows"][1]
    assert few["n"] == 2 and not few["partial"]
    part = run([path], "haswell", [data], Plan(samples=6, limit_s=0.0))["rows"][1]
    assert part["n"] == 2 and part["partial"] and set(part["scored"]) == set(few["scored"])
    with pytest.raises(BadInput, match="not one picture was done as here"):
        monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "other"))
        run([path], "haswell", [data], Plan(samples=2, limit_s=0.0))


def test_how_slow_it_will_be_is_said_first(content, data, here, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgekit.lab.run._machine", lambda _cpu: here)
    path, lines = tmp_path / "net.onnx", []
    path.write_bytes(content)
    found = run([path], "haswell", [data], Plan(samples=3, processes=2, layers=True), log=lines.append)
    assert "about 1 times as slow as here; 3 pictures in 2 processes take about" in lines[0]
    assert found["rows"][1]["diverging"] == []


@pytest.fixture
def ran(bundle, data, here, tmp_path, monkeypatch):
    """A copy of the bundle whose files were run as another processor."""
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("edgekit.lab.run._machine", lambda _cpu: here)
    copied = open_bundle(shutil.copytree(bundle.path, tmp_path / "bundle"))
    run([copied.path], "haswell", [data], Plan(samples=9))
    return copied


def test_a_bundle_keeps_its_run_for_its_gates(ran):
    base = report.base_row(ran)["correct"]
    for row in report.emulated(ran):
        whole = next(other["correct"] for other in report.shipped(ran) if other["file"] == row["file"])
        assert row["correct"] == "".join(whole[place] for place in row["scored"])
        drop = sum(int(base[place]) for place in row["scored"]) - row["correct"].count("1")
        gates = {"top1": [Gate(max_drop=100 * drop / 9, cpu="here", precision=row["precision"])]}
        (verdict,) = judge_bundle(ran, gates)
        assert verdict.outcome == "pass" and verdict.value == pytest.approx(100 * drop / 9)
    assert {row["precision"] for row in report.emulated(ran)} == {row["precision"] for row in report.shipped(ran)}


def test_a_bundle_is_run_on_its_own_pictures(bundle, tmp_path):
    other = save_images(tmp_path / "other.npz", 40, seed=5)
    with pytest.raises(BadInput, match="was scored on other test pictures; give the --data that it was made with"):
        run([bundle.path], NATIVE, [f"npz:{other}"], Plan(samples=2))


# What is missing


def test_a_missing_emulator_is_named_with_the_command_that_gets_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for architecture in ("x86_64", "aarch64"):
        assert f"qemu-{architecture}-static is not installed; get it by `apt install" in emulator.missing(architecture)
    with pytest.raises(BadInput, match="haswell: qemu-x86_64-static is not installed"):
        emulator.host_python(cpus()["haswell"], tmp_path)
    with pytest.raises(BadInput, match="cortex-a53: qemu-aarch64-static is not installed"):
        root.emulated(cpus()["cortex-a53"])
    with pytest.raises(BadInput, match="qemu-aarch64-static is not installed"):
        root.setup(lambda _line: None)


@pytest.mark.parametrize(("said", "named"), [("qemu-x86_64 version 6.2.0", "6.2.0"), ("hello", "of no known version")])
def test_an_emulator_without_avx2_is_too_old(monkeypatch, tmp_path, said, named):
    old = tmp_path / "qemu-x86_64-static"
    old.write_text(f"#!/bin/sh\necho {said}\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"is {named}; 7.2 is the first with AVX2" in emulator.missing("x86_64")


def test_x86_is_played_on_x86_alone(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "on an x86 host" in emulator.missing("x86_64")


def test_no_way_into_a_root(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    entries.entry.cache_clear()
    with pytest.raises(
        BadInput, match=r"bubblewrap by `apt install bubblewrap`, allow user namespaces .* podman or docker, or run as"
    ):
        entries.entry()


@pytest.mark.parametrize("engine", ["podman", "docker"])
def test_a_container_engine_is_a_way_into_a_root(monkeypatch, tmp_path, engine):
    """One that has no image yet is given an empty one, once; what the root has is shown, and nothing else."""
    tools, root_folder = tmp_path / "bin", tmp_path / "root"
    tools.mkdir()
    for part in ("usr", "jobs"):
        (root_folder / part).mkdir(parents=True)
    stand_in = tools / engine
    stand_in.write_text(
        f"#!/bin/sh\necho $1 >> {tmp_path}/said\n"
        f"case $1 in image) test -e {tmp_path}/tar;; import) cat > {tmp_path}/tar;; run) exit 0;; esac\n"
    )
    stand_in.chmod(0o755)
    (tools / "cat").symlink_to("/bin/cat")
    monkeypatch.setenv("PATH", str(tools))
    entries.entry.cache_clear()
    assert entries.entry() == engine
    command = entries.entered(root_folder)
    entries.entry.cache_clear()
    assert (tmp_path / "said").read_text().split() == ["image", "import", "run", "image"]
    with tarfile.open(tmp_path / "tar") as image:
        assert image.getnames() == []
    shown = [part.removeprefix("--volume=") for part in command if part.startswith("--volume")]
    assert shown == [f"{root_folder}/jobs:/jobs", f"{root_folder}/usr:/usr"]
    assert command[:2] == [engine, "run"] and command[-1] == "edgekit-empty" and "--network=none" in command


def test_a_version_without_a_wheel(monkeypatch, tmp_path):
    monkeypatch.setattr(onnxruntime, "__version__", "99.9.9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        BadInput, match=r"cannot get a wheel of onnxruntime==99.9.9 for aarch64 and Python 3.11 \(another"
    ):
        root._wheels(tmp_path, "3.11")


def test_a_root_whose_packages_are_damaged_is_not_taken(tmp_path):
    (tmp_path / "wheels").mkdir()
    wheel = tmp_path / "wheels" / "numpy.whl"
    wheel.write_bytes(b"whole")
    write_json(tmp_path / "root.json", {"schema": root.SCHEMA, "files": {"numpy.whl": file_sha256(wheel)}})
    assert root.intact(tmp_path)
    wheel.write_bytes(b"damaged")
    assert not root.intact(tmp_path)
    wheel.unlink()
    assert not root.intact(tmp_path)


# Gates


def rows() -> list[dict]:
    file = {"file": "model.onnx", "target": "onnxruntime", "precision": "int8"}
    here = {**file, "cpu": "AMD EPYC", "top1": 75.0, "correct": "1101"}
    return [here, {**file, "cpu": "haswell", "emulated": True, "top1": 50.0, "correct": "10", "scored": [0, 3]}]


def verdicts(**gate) -> list[tuple[str, str, float | None]]:
    base = {"file": "base.onnx", "top1": 75.0, "correct": "1011"}
    found = judge({"top1": [Gate(**gate)]}, rows(), lambda _row: base)
    return [(verdict.outcome, verdict.file, verdict.value) for verdict in found]


def test_a_gate_names_a_processor_of_the_lab():
    assert verdicts(min=60.0, cpu="haswell") == [("fail", "model.onnx as haswell", 50.0)]
    assert verdicts(min=60.0) == [("pass", "model.onnx", 75.0)]
    assert [file for _, file, _ in verdicts(min=40.0, cpu=("AMD*", "haswell"))] == [
        "model.onnx",
        "model.onnx as haswell",
    ]


def test_its_drop_is_paired_over_the_pictures_that_were_run_there():
    assert verdicts(max_drop=0.0, cpu="haswell") == [("fail", "model.onnx as haswell", 50.0)]  # of 1·· 1 to 1·· 0


def test_a_processor_that_was_not_run_fails():
    (first, second) = judge({"top1": [Gate(min=40.0, cpu=("haswell", "cortex-a53"))]}, rows(), lambda _row: None)
    assert first.outcome == "fail" and "not run on cortex-a53: edgekit lab run" in first.reason
    assert second.outcome == "pass"


def test_a_bundle_keeps_its_instructions_for_gates(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "edgekit.lab.count.counts", lambda file: {"instructions": len(file.name), "l1_misses": 3, "llc_misses": 0}
    )
    copy = shutil.copytree(bundle.path, tmp_path / "b")
    found = CliRunner().invoke(main, ["lab", "count", str(copy), "--json"])
    assert found.exit_code == 0, found.output
    rows = json.loads(found.output)["rows"]
    assert {row["file"]: row["instructions"] for row in rows} == {row["file"]: len(row["file"]) for row in rows} != {}
    (verdict, *_) = judge_bundle(open_bundle(copy), {"instructions": [Gate(max=5.0)]})
    assert verdict.outcome == "fail" and verdict.value > 5
    (verdict, *_) = judge_bundle(open_bundle(copy), {"l1_misses": [Gate(max=3.0)]})
    assert verdict.outcome == "pass" and verdict.value == 3
    shown = CliRunner().invoke(main, ["lab", "count", str(copy)])
    assert "last-level misses" in shown.output
