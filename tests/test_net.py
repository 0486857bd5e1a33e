"""Sources: the libraries of others, what they run, and that versions are compared."""

import dataclasses
from pathlib import Path

import pytest

from edgekit.errors import BadInput
from edgekit.net import build, parse_spec

WORKS = """
import torch
def create_model(name, num_classes=10):
    if name != "small":
        raise RuntimeError(f"Unknown model ({name})")
    return torch.nn.Conv2d(3, num_classes, 1)
"""


@pytest.fixture
def timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a package named timm whose code is `source`."""

    def install(source: str) -> None:
        (tmp_path / "timm").mkdir()
        (tmp_path / "timm" / "__init__.py").write_text(source)
        (tmp_path / "timm-9.9.dist-info").mkdir()
        (tmp_path / "timm-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 9.9\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "timm", raising=False)

    return install


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(BadInput, match=r"timm: is not installed; pip install timm"):
        parse_spec("timm:small")


def test_a_library_that_is_installed_but_broken_passes_the_cause_on(timm):
    timm("raise RuntimeError('operator torchvision::nms does not exist')")
    with pytest.raises(BadInput, match=r"timm 9.9 is installed but cannot be imported: operator torchvision::nms"):
        build(parse_spec("timm:small"), trust=True)


def test_a_library_that_works(timm):
    timm(WORKS)
    source = parse_spec("timm:small?num_classes=4")
    assert source.version == "9.9" and build(source, trust=True).out_channels == 4
    with pytest.raises(BadInput, match="--trust"):
        build(source)
    with pytest.raises(BadInput, match=r"is 9.9 here and was 1.0"):
        build(dataclasses.replace(source, version="1.0"), trust=True)
    with pytest.raises(BadInput, match="Unknown model"):
        build(parse_spec("timm:large"), trust=True)
