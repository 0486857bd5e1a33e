"""The front door tells the truth: its commands run, its tables are the results' own."""

import contextlib
import json
import re
import shlex
import socket
import subprocess
import sys
import time
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


@pytest.mark.slow
def test_split_computing_works(tmp_path):
    port, server = free_port(), None
    short = ["--set", "split.epochs=1", "--set", "split.tail.epochs=1", "--runs", "8"]
    try:
        for command in commands("Split computing"):
            words = [word.replace("8000", str(port)) for word in command[1:]]
            line = [sys.executable, "-m", "edgekit.cli", *words, *(short if words[0] == "compress" else [])]
            if words[:2] == ["split", "serve"]:
                server = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.DEVNULL)
                wait_for(port)
                continue
            ended = subprocess.run(line, cwd=tmp_path, capture_output=True)
            assert ended.returncode in ((0, 1) if words[0] == "compress" else (0,)), ended.stderr.decode()
    finally:
        if server:
            server.terminate()
            server.wait(30)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def wait_for(port: int) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError("the server does not listen")


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
