"""The file that measures, here and on devices: run as a device runs it, in a process that has no edgekit."""

import ast
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgekit.devices import runner
from edgekit.export import serialise
from tests.onnx_models import array, graph, one

FILE = Path(runner.__file__)
JOB = {
    "schema": "edgekit/job/1",
    "kind": "time",
    "engine": "onnxruntime",
    "runs": 6,
    "seconds": None,
    "threads": 1,
    "batch": 2,
    "seed": 0,
    "sustained_s": None,
    "throughput": False,
    "layers": False,
}


class Clock:
    """A session that takes the given seconds by a clock that only it moves."""

    def __init__(self, monkeypatch):
        self.now, self.order = 0.0, []
        monkeypatch.setattr(runner.time, "perf_counter", lambda: self.now)

    def session(self, name, seconds):
        return Timed(self, name, iter(seconds))


class Timed:
    def __init__(self, clock, name, seconds):
        self.clock, self.name, self.seconds = clock, name, seconds

    def run(self, batch):
        self.clock.now += next(self.seconds)
        self.clock.order.append(self.name)
        return batch


def model(name="stem", channels=4):
    return serialise(one("Conv", array(channels, 4, 3, 3), name=name))


def run_job(folder: Path, **given) -> dict:
    """The result of a job of the files in `folder`, by a Python that sees the runner alone."""
    files = [{"name": path.name, "path": path.name} for path in sorted(folder.glob("*.onnx"))]
    (folder / "job.json").write_text(json.dumps({**JOB, "files": files, **given}))
    alone = folder / "runner.py"
    alone.write_bytes(FILE.read_bytes())
    done = subprocess.run([sys.executable, "-I", str(alone), str(folder / "job.json")], capture_output=True, text=True)
    result = json.loads((folder / "result.json").read_text())
    assert done.returncode == ("error" in result) and not done.stderr
    return result


def test_it_stands_alone():
    tree = ast.parse(FILE.read_text(), feature_version=(3, 9))
    nodes = list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    known = sys.stdlib_module_names | {"numpy", "onnxruntime"}
    assert {name.partition(".")[0] for name in names} <= known
    assert not [node for node in tree.body if isinstance(node, ast.Import) and node.names[0].name == "onnxruntime"]


def test_a_job_measures_every_file_that_runs(tmp_path):
    (tmp_path / "a.onnx").write_bytes(model())
    (tmp_path / "b.onnx").write_bytes(b"no model")
    (tmp_path / "c.onnx").write_bytes(serialise(graph([], (4,), {})))
    found = run_job(tmp_path, layers=True, throughput=True, sustained_s=0.05)
    good, *bad = found["rows"]
    assert good["error"] is None and good["batch"] == 2 and len(good["times_ms"]) == JOB["runs"]
    assert good["load_ms"] > 0 and good["first_ms"] > 0
    assert any(layer["kind"] == "Conv" for layer in good["layers"])
    assert sum(layer["ms"] for layer in good["layers"]) > 0 < good["layers_whole_ms"]
    assert len(good["sustained"]) == 1
    assert good["throughput"]["streams"] == len(found["machine"]["affinity"])
    assert [row["file"] for row in bad] == ["b.onnx", "c.onnx"] and "ONNX Runtime cannot load it" in bad[0]["error"]
    assert found["machine_after"]["own_cpu_s"] > found["machine"]["own_cpu_s"]
    told = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert {"done": JOB["runs"], "total": JOB["runs"], "what": "profiling"} in told


def test_a_job_answers_for_given_inputs(tmp_path):
    content, x = model(channels=3), array(35, 4, 8, 8)  # 35: more than it runs at once
    (tmp_path / "a.onnx").write_bytes(content)
    np.save(tmp_path / "x.npy", x)
    run_job(tmp_path, kind="run", inputs="x.npy")
    expected = runner.open_session(content).run(x)
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"schema": "edgekit/job/2"}, "knows edgekit/job/1"), ({"kind": "sing"}, "sing"), ({"runs": "x"}, "TypeError")],
)
def test_a_job_that_fails_says_so(tmp_path, given, message):
    (tmp_path / "a.onnx").write_bytes(model())
    assert message in run_job(tmp_path, **given)["error"]


def test_an_engine_that_is_not_there_is_named(tmp_path):
    (tmp_path / "a.onnx").write_bytes(model())
    assert "'tensorrt' is not known here" in run_job(tmp_path, engine="tensorrt")["error"]


def test_the_start_of_the_runtime_counts_for_no_file(monkeypatch, tmp_path):
    """The first opening of all takes 9 s more, which a file that cannot be opened does not take away."""
    clock = Clock(monkeypatch)
    opened = []

    def load(path, _threads):
        if path.name == "bad":
            raise ValueError("no model")
        clock.now += 1 if opened else 10
        opened.append(path.name)
        return Fake()

    monkeypatch.setattr(runner, "ENGINES", {"onnxruntime": load})
    monkeypatch.setattr(runner, "fill", lambda *_: {})
    files = [{"name": name, "path": name} for name in ("bad", "a", "b")]
    rows = runner.measure({**JOB, "batch": 1, "files": files}, tmp_path, runner.silent)["rows"]
    assert [row.get("load_ms") for row in rows] == [None, 1000.0, 1000.0] and opened == ["a", "a", "b"]


class Fake:
    batch, shape, dtype = None, (1, 1, 1), np.float32

    def run(self, batch):
        return batch


def test_every_round_runs_all_once_in_random_order(monkeypatch):
    clock = Clock(monkeypatch)
    pairs = [(clock.session(name, [cost] * 20), np.zeros(1)) for name, cost in (("a", 1e-3), ("b", 2e-3))]
    assert runner.interleave(pairs, range(20)) == [pytest.approx([1.0] * 20), pytest.approx([2.0] * 20)]
    order = ["".join(clock.order[start : start + 2]) for start in range(0, 40, 2)]
    assert set(order) == {"ab", "ba"}


def test_warm_up_goes_on_until_it_is_stable(monkeypatch):
    clock = Clock(monkeypatch)
    falling = [0.009, 0.008, 0.007, 0.006, 0.005, 0.004, 0.003]
    session = clock.session("a", falling + [0.002] * 50)
    assert runner.warm_up(session, np.zeros(1), limit_s=1.0)
    assert len(clock.order) >= len(falling) + 5
    slowing = clock.session("b", [0.01 * 1.1**n for n in range(50)])
    assert not runner.warm_up(slowing, np.zeros(1), limit_s=1.0)


def test_rounds_end_by_number_or_by_time(monkeypatch):
    clock = Clock(monkeypatch)
    assert list(runner.rounds(3)) == [0, 1, 2]
    done = []
    for number in runner.rounds(None, 1.0):
        done.append(number)
        clock.now += 0.3
    assert done == [0, 1, 2, 3]
    assert list(runner.rounds(None, 0.0, 3)) == [0, 1, 2]


def test_operators_add_up_to_a_typical_run():
    ms = np.array([[1.0, 2.0], [1.1, 2.1], [50.0, 2.0], [0.9, 1.9], [1.0, 2.0], [1.0, 60.0], [1.2, 2.0], [0.8, 2.0]])
    each = runner.middle_ms(ms)
    assert each.sum() == pytest.approx(np.sort(ms.sum(axis=1))[2:6].mean())
    assert each.max() < 3


def test_what_a_note_costs_is_taken_off(monkeypatch, tmp_path):
    (tmp_path / "a.onnx").write_bytes(model())
    for cost, left in ((0.0, True), (1e6, False)):
        monkeypatch.setattr(runner, "note_ms", lambda _threads, cost=cost: cost)
        found, whole_ms = runner.operator_times(tmp_path / "a.onnx", 1, 1)
        assert whole_ms > 0 and any(item["ms"] > 0 for item in found) == left


def test_a_note_costs_something_and_less_than_a_millisecond():
    assert 0 <= runner.note_ms(1) < 1


def test_images_a_second_add_up_over_streams():
    class Sleeps:
        def fork(self):
            return self

        def run(self, _batch):
            time.sleep(0.002)

    alone, twice = (runner.throughput([(Sleeps(), np.zeros(4))], n, 1, 0.1)[0] for n in (1, 2))
    assert len(alone) == 1 and 0 < alone[0] <= 4 / 0.002 < 2 * 4 / 0.002 and twice[0] > alone[0]


def test_sustained_samples_every_second(monkeypatch):
    clock = Clock(monkeypatch)
    found = runner.sustained(clock.session("a", [0.25] * 4 + [0.5] * 2), np.zeros(1), seconds=2)
    assert [(row["at_s"], row["median_ms"], row["runs"]) for row in found] == [(1.0, 250.0, 4), (2.0, 500.0, 2)]
    assert found[0]["rss_bytes"] is None or found[0]["rss_bytes"] > 1e6


def test_the_machine_is_read_from_the_system(monkeypatch):
    files = {
        "/proc/stat": "cpu  100 10 20 1000 5 1 2 30 0 0\ncpu0 1 2 3",
        "/sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_periods 8\nnr_throttled 3",
        "/proc/cpuinfo": "flags\t\t: fma avx2 avx512_vnni\ncpu MHz\t\t: 2600.5\ncpu MHz\t\t: 2500.0",
    }
    monkeypatch.setattr(runner, "_read", lambda path: files.get(str(path), ""))
    tick = runner.os.sysconf("SC_CLK_TCK")
    found = runner.machine()
    assert found["busy_s"] == 133 / tick and found["stolen_s"] == 30 / tick
    assert found["throttled"] == {"cgroup_nr_throttled": 3}
    assert found["clocks_mhz"] == [2600.5, 2500.0] and found["flags"] == ["avx2", "vnni"]
    assert found["governors"] == [] and found["clocks_locked"] is None
    json.dumps(found, allow_nan=False)
