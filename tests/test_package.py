"""The built wheel has its recipes, models and licence and works from another folder; bytes do not depend on it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_what_the_package_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {"edgekit/recipes/quickstart.toml", "edgekit/models/mobilenet_v2_digits.safetensors"} <= names
    assert {f"edgekit/report/page.{kind}" for kind in ("html", "css", "js")} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another environment with the wheel in it; the dependencies are this environment's, through a path file."""
    venv = tmp_path_factory.mktemp("other") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    (site,) = venv.glob("lib/python*/site-packages")
    ours = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    # After its own packages, so that the wheel and not an editable install of the checkout is found.
    (site / "zz_dependencies.pth").write_text(f"import sys; sys.path.append({str(ours)!r})\n")
    return python


def test_the_wheel_finds_its_recipes_and_models_from_another_folder(installed, tmp_path):
    code = (
        "import edgekit, edgekit.recipe, edgekit.net\nprint(edgekit.__file__)\n"
        "assert edgekit.recipe.load('quickstart')\nassert edgekit.net.parse_spec('mobilenet_v2_digits').weights\n"
    )
    ended = subprocess.run([installed, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert str(ROOT) not in ended.stdout


EXPORT = """
import sys
from pathlib import Path
from edgekit.export import export, serialise
from edgekit.data import Input, Output
from edgekit.net import build, parse_spec
from edgekit.targets import target
import torch
torch.manual_seed(0)
net = build(parse_spec("mobilenet_v2?width=0.35&classes=10&small_input=true"))
Path(sys.argv[1]).write_bytes(serialise(export(net, Input(size=32), Output(), target("onnxruntime")).model))
"""


def test_the_bytes_are_the_same_from_another_install_folder(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", EXPORT, tmp_path / "a.onnx"], check=True, env=environment, cwd=ROOT)
    moved = tmp_path / "somewhere" / "else"
    shutil.copytree(ROOT / "edgekit", moved / "edgekit")
    environment = {**os.environ, "PYTHONPATH": str(moved)}
    subprocess.run([sys.executable, "-c", EXPORT, tmp_path / "b.onnx"], check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
