"""What this machine is, and what follows for int8 files of the full range."""

import platform

import pytest

from edgekit import machine
from edgekit.devices import runner as device
from edgekit.engines import NO_VNNI, onnxruntime, runner
from edgekit.targets import target


@pytest.mark.parametrize(
    ("kind", "flags", "saturates"),
    [
        ("x86_64", "avx2 fma", True),
        ("AMD64", "avx2 avx512f", True),
        ("x86_64", "avx2 avx_vnni", False),
        ("x86_64", "avx512f avx512_vnni", False),
        ("aarch64", "asimd", False),
        ("aarch64", "asimd asimddp", False),
    ],
)
def test_x86_without_vnni_saturates(kind, flags, saturates, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: kind)
    monkeypatch.setattr(device, "_cpuinfo", lambda key: [flags] if key == "flags" else [])
    assert machine.int8_saturates() == saturates


def test_full_range_files_are_scored_without_kernels_that_saturate(monkeypatch):
    asked = []
    monkeypatch.setattr(onnxruntime, "load", lambda _model, optimise: asked.append(optimise))
    for saturates in (True, False):
        monkeypatch.setattr("edgekit.engines.int8_saturates", lambda saturates=saturates: saturates)
        full, portable = runner(target("onnxruntime-vnni")), runner(target("onnxruntime"))
        assert full.name == portable.name == "onnxruntime" and portable.reason is None
        assert full.reason == (NO_VNNI if saturates else None)
        full.load(b"")
    assert asked == [False, True]
    assert str(runner(target("onnxruntime-vnni"))) == "onnxruntime"
