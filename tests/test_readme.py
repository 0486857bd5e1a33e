"""The front door tells the truth: its commands run, its tables are the results' own."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = sorted((ROOT / "tools" / "benchmarks" / "results").glob("*.json"))


def commands(section: str) -> list[list[str]]:
    text = README.partition(f"## {section}\n")[2].partition("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", text, re.DOTALL)
    assert block, f"{section} has no commands"
    return [shlex.split(line, comments=True) for line in block[1].splitlines() if line.strip()]


def test_the_main_job_runs(tmp_path):
    for command in commands("The main job"):
        assert command[0] == "edgekit"
        if command[1] == "compress":
            command += ["--set", "distil.epochs=1", "--set", "int8.images=8", "--runs", "8"]
        ended = subprocess.run([sys.executable, "-m", "edgekit.cli", *command[1:]], cwd=tmp_path, capture_output=True)
        # One epoch may miss the accuracy gate; anything but a verdict is a fault.
        assert ended.returncode in ((0, 1) if command[1] == "compress" else (0,)), ended.stderr.decode()
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_the_two_commands_exist():
    for (command,) in commands("Two commands"):
        assert (ROOT / command).is_file()


def test_its_tables_are_the_results():
    assert subprocess.run([sys.executable, "tools/claims", "--check"], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_have_the_agreed_form(path):
    document = json.loads(path.read_text())
    assert {"machine", "versions", "command", "seed", "date", "rows", "claims"} <= document.keys()
    assert (ROOT / "tools" / "benchmarks" / f"{path.stem}.py").is_file()
    for claim in document["claims"]:
        assert claim.keys() == {"id", "required", "measured", "unit", "ok"}
