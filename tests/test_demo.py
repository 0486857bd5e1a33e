"""The demonstration repository under tools/demo, and the gates that the project holds its own network to."""

import runpy
from pathlib import Path

import pytest
import torch

from edgekit import recipe
from edgekit.baseline import open_baseline
from edgekit.files import read_toml

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.mark.parametrize("name", ["demo", "gates"])
def test_gates_recipe_and_baseline_go_together(name, bundle):
    for file in (TOOLS / name).glob("*.toml"):
        if file.name != "recipe.toml":
            assert recipe.parse_gates(read_toml(file), str(file))
    made = recipe.load(str(TOOLS / name / "recipe.toml"))
    precisions = {"fp32", *(step.run.precision for step in made.rewrites if step.run.precision)}
    found = open_baseline(TOOLS / name / "baseline.json", bundle, ["data"])
    assert {row["precision"] for row in found.rows} == precisions


def test_the_network_of_the_demonstration_is_the_same_every_time():
    network = runpy.run_path(str(TOOLS / "demo" / "network.py"))["network"]
    first, second = (network().eval() for _ in range(2))
    probe = torch.ones(2, 3, 32, 32)
    assert first(probe).shape == (2, 10) and torch.equal(first(probe), second(probe))
