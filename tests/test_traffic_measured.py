"""Measured traffic: what programs print is read right, what is missing is explained; one real measurement (slow)."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.devices.boards import Cache, Caches
from edgekit.errors import BadInput
from edgekit.traffic import measured
from edgekit.traffic.measured import counts, events, llc_fills, measure, ncu_bytes, perf_bytes
from tests.onnx_models import array, one
from tests.test_traffic import saved

CACHEGRIND = """desc: LL cache: 2097152 B, 64 B, 16-way
events: Ir I1mr ILmr Dr D1mr DLmr Dw D1mw DLmw
fn=main
1 10 1 1 4 2 2 3 1 1
summary: 1000 20 3 400 50 7 300 40 11
"""
PERF = """10.5,MiB,uncore_imc_0/cas_count_read/,1000,100.00,,
2,MiB,uncore_imc_0/cas_count_write/,1000,100.00,,
0.5,MiB,uncore_imc_1/cas_count_read/,1000,100.00,,
"""
NCU = """==PROF== Connected to process 7
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","conv","dram__bytes_read.sum","byte","1,024"
"0","conv","dram__bytes_write.sum","byte","96"
"1","relu","dram__bytes_read.sum","byte","32"
"""


@pytest.fixture
def file(tmp_path):
    return saved(tmp_path / "relu.onnx", one("Relu", shape=(4, 64, 64)))


def test_what_the_programs_print():
    assert events(CACHEGRIND)["Ir"] == 1000
    assert llc_fills(CACHEGRIND, 64) == {"instructions": 3 * 64, "reads": 7 * 64, "writes": 11 * 64}
    assert perf_bytes(PERF) == {"reads": 11 * 2**20, "writes": 2 * 2**20}
    assert ncu_bytes(NCU) == {"reads": 1056, "writes": 96}


def test_counters_that_may_not_be_read():
    with pytest.raises(BadInput, match="perf_event_paranoid"):
        perf_bytes("<not counted>,MiB,uncore_imc_0/cas_count_read/,0,100.00,,\n")
    with pytest.raises(BadInput, match="NVreg_RestrictProfilingToAdminUsers"):
        ncu_bytes("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n")


@pytest.mark.parametrize(
    ("provider", "said"),
    [("cachegrind", "apt install valgrind"), ("perf", "apt install linux-perf"), ("ncu", "apt install nsight-compute")],
)
def test_a_missing_program_is_named_with_how_to_get_it(file, provider, said, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=rf"{provider}: .*{said}"):
        measure(file, provider)


def test_what_a_gpu_takes_besides_ncu(monkeypatch):
    monkeypatch.setattr(measured.shutil, "which", lambda _name: "/usr/bin/ncu")
    missing = measured.PROVIDERS["ncu"].missing
    assert "pip install onnxruntime-gpu" in str(missing())
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(measured.cuda, "missing", lambda: "there is no NVIDIA GPU here")
    assert missing() == "there is no NVIDIA GPU here"
    monkeypatch.setattr(measured.cuda, "missing", lambda: None)
    assert missing() is None


def test_ncu_watches_a_session_on_the_gpu(file, monkeypatch):
    runs = []

    def run(command, **_given):
        runs.append(command[command.index(str(measured.RUNNER)) + 1 :])
        return subprocess.CompletedProcess(command, 0, NCU.replace("1,024", str(1000 * int(runs[-1][-1]))), "")

    monkeypatch.setattr(measured.subprocess, "run", run)
    monkeypatch.setattr(
        measured, "PROVIDERS", {"ncu": dataclasses.replace(measured.PROVIDERS["ncu"], missing=lambda: None)}
    )
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: [*measured.GPU_PROVIDERS, "CPUExecutionProvider"]
    )
    found = measure(file, "ncu")
    assert runs == [["CUDAExecutionProvider", str(file), "2"], ["CUDAExecutionProvider", str(file), "3"]]
    assert found.parts == {"reads": 1000, "writes": 0} and found.detail == {
        "execution_provider": "CUDAExecutionProvider"
    }


def test_a_gpu_that_onnx_runtime_cannot_start_is_not_replaced_by_the_processor(file):
    with pytest.raises(BadInput, match="cannot start its CUDAExecutionProvider"):
        measured._run(["env"], file, 1, provider="CUDAExecutionProvider")
    assert measured._run(["env"], file, 1) == ""


def test_instructions_need_valgrind(file, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="instructions: valgrind is not installed; get it by `apt install valgrind`"):
        counts(file)


def test_a_machine_without_counters_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(measured.shutil, "which", lambda _name: "/usr/bin/perf")
    monkeypatch.setattr(measured, "CONTROLLERS", tmp_path)
    assert "virtual machines hide them" in str(measured.PROVIDERS["perf"].missing())


def test_the_controllers_that_count_on_request_are_asked(monkeypatch, tmp_path):
    for name in ("uncore_imc_1", "uncore_imc_0", "uncore_imc_free_running_0", "cpu"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(measured, "CONTROLLERS", tmp_path)
    asked = [f"uncore_imc_{unit}/cas_count_{way}/" for unit in (0, 1) for way in ("read", "write")]
    assert measured._imc_events() == asked


def test_cachegrind_counts_what_the_process_did_after_its_copy_ended(file, monkeypatch):
    """The copy, after two runs, filled 7 lines for reads; the process, after three, 9."""

    def run(command, _path, *runs):
        folder = next(part for part in command if part.startswith("--cachegrind-out-file=")).partition("=")[2]
        Path(folder.replace("%p", "1")).write_text(CACHEGRIND.replace(" 7 300", " 9 300"))
        Path(folder.replace("%p", "2")).write_text(CACHEGRIND)
        assert runs == (2, 1)

    monkeypatch.setattr(measured, "_run", run)
    monkeypatch.setattr(measured, "_cachegrind_detail", lambda _caches: {})
    monkeypatch.setattr(measured.shutil, "which", lambda _name: "/usr/bin/valgrind")
    assert measure(file, "cachegrind").parts == {"instructions": 0, "reads": 2 * 64, "writes": 0}


def test_a_cache_that_cachegrind_cannot_simulate(file, monkeypatch):
    monkeypatch.setattr(measured.shutil, "which", lambda _name: "/usr/bin/valgrind")
    with pytest.raises(BadInput, match=r"no power of two of sets.*such as 2097152"):
        measure(file, "cachegrind", Caches(Cache(3 * 2**20)))


def test_a_program_that_fails_is_quoted(file, monkeypatch):
    monkeypatch.setattr(measured, "RUNNER", file.with_name("absent.py"))
    with pytest.raises(BadInput, match=r"failed on .*relu\.onnx.*absent\.py"):
        measured._run(["env"], file, 1)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed")
def test_cachegrind_around_the_runtime(tmp_path):
    """A depthwise convolution of tensors far larger than the cache: input and output, each once."""
    model = one("Conv", array(64, 1, 3, 3), shape=(64, 112, 112), kernel_shape=[3, 3], pads=[1] * 4, group=64)
    found = measure(saved(tmp_path / "conv.onnx", model), "cachegrind", Caches(Cache(2**19)))
    assert found.parts["reads"] + found.parts["writes"] > 2 * 64 * 112 * 112 * 4


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed")
def test_instructions_and_misses_are_the_same_in_every_run(tmp_path):
    """Twice the channels take about twice the instructions, and no run differs from another. Of tensors beyond all
    caches every line misses."""
    found = []
    for channels in (32, 64, 64):
        model = one("Relu", shape=(channels, 112, 112))
        found.append(counts(saved(tmp_path / "relu.onnx", model), Caches(Cache(2**19))))
    assert found[1] == found[2]
    assert 1.8 < found[1]["instructions"] / found[0]["instructions"] < 2.2
    lines = 2 * 64 * 112 * 112 * 4 / 64
    assert [found[1][name] / lines for name in ("l1_misses", "llc_misses")] == pytest.approx([1, 1], abs=0.02)
