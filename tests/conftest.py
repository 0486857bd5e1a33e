"""What several test files share: synthetic data, a recipe, and one finished bundle."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny; before torch is imported

import numpy as np
import pytest
from hypothesis import settings

from edgekit.memory import resident

resident.REPEATS = 1  # each costs a process that starts anew
settings.register_profile("edgekit", deadline=None)  # a loaded machine is no fault of the code
settings.load_profile("edgekit")

IO = """
[input]
size = 16
mean = [0.5]
std = [0.5]

[output]
classes = 4
"""
RECIPE = f"""{IO}
[[pass]]
name = "prune"
budget = {{ macs = 0.7 }}

[[pass]]
name = "distil"
epochs = 2
batch = 32
lr = 0.05

[[rewrite]]
name = "fold"

[[rewrite]]
name = "int8"
images = 8

[gates]
size_bytes = {{ max_ratio = 5.0 }}
top1 = {{ max_drop = 100.0 }}
"""


def save_images(path: Path, n: int = 400, seed: int = 0) -> Path:
    """Four classes of 16×16 images: the quadrant that is bright, under noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    images = rng.integers(0, 120, (n, 16, 16, 3), np.uint8)
    for image, label in zip(images, labels):
        row, column = divmod(int(label), 2)
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 100
    np.savez(path, x=images, y=labels)
    return path


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data.npz` and `recipe.toml`."""
    folder = tmp_path_factory.mktemp("workspace")
    save_images(folder / "data.npz")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="session")
def data(workspace: Path) -> str:
    return f"npz:{workspace / 'data.npz'}"


@pytest.fixture(scope="session")
def images(data: str):
    """The pictures of `data`, by role."""
    from edgekit import data as datasets

    return datasets.load([data])


@pytest.fixture(scope="session")
def bundle(workspace: Path, data: str):
    """A finished bundle of the tiny network. Tests must not change it."""
    import edgekit

    return edgekit.compress("tests.nets:tiny", str(workspace / "recipe.toml"), data, workspace / "bundle", runs=8)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An SSH server on loopback, and an `ssh` in the PATH that may enter it."""
    import shutil

    if shutil.which("ssh") is None:
        pytest.skip("there is no OpenSSH client on this machine")
    from tests.ssh_server import Server, client_path

    made = Server(tmp_path / "server")
    monkeypatch.setenv("PATH", client_path(tmp_path, made))
    yield made
    made.kill()
