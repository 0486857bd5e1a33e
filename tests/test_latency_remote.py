"""Layer tables of devices, on made-up times; no timing is asserted."""

import dataclasses
import json

import numpy as np
import onnx
import pytest

import edgekit
from edgekit import report
from edgekit.data import Input
from edgekit.devices.address import parse_address
from edgekit.devices.device import Device, Found
from edgekit.edits import layer_channels
from edgekit.errors import BadInput
from edgekit.latency import kept_table, table_key
from edgekit.latency.remote import _measured, _operators, table_there
from edgekit.latency.variants import Variant
from edgekit.net import Net, build, parse_spec
from edgekit.profile import Plan
from edgekit.recipe import from_tables
from tests.conftest import IO
from tests.nets import calibrate
from tests.onnx_models import array, one
from tests.test_cli import run
from tests.test_latency import INPUT, true_ms

MACHINE = {"cpu": "Cortex-A76", "cores": 4, "flags": ["dot product"], "system": "Linux"}


@pytest.fixture
def net(tmp_path, monkeypatch) -> Net:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    source = parse_spec("tests.nets:Tiny?classes=4")
    return Net(source, (), calibrate(build(source, trust=True), (3, 16, 16)))


class Board(Device):
    """A device on which each layer takes `true_ms` and 2 ms are spent between them."""

    def __init__(self, **changes: object) -> None:
        super().__init__(parse_address("ssh://board"))
        self.files: dict[str, onnx.ModelProto] = {}
        self.jobs: list[dict] = []
        self.changes = changes

    def probe(self, _needs=()):
        return {}

    def identity(self):
        return MACHINE, "1.20.1"

    def send(self, content, _suffix):
        name = str(len(self.jobs) * 100 + len(self.files))
        self.files[name] = onnx.load_model_from_string(content)
        return name

    def forget(self, names):
        for name in names:
            del self.files[name]

    def run(self, job, _runner="", tell=None, output_bytes=None):  # noqa: ARG002
        self.jobs.append(job)
        rows = [self._row(job, file) for file in job["files"]]
        return Found({"schema": "edgekit/measured/1", "rows": rows})

    def _row(self, job, file):
        layers = [
            {"name": node.name, "kind": node.op_type, "ms": self._ms(self.files[file["path"]], node)}
            for node in self.files[file["path"]].graph.node
            if node.op_type in ("Conv", "Gemm", "MatMul")
        ]
        whole = 2 + sum(layer["ms"] for layer in layers)
        row = {"file": file["name"], "error": None, "times_ms": [whole] * job["runs"], **self.changes}
        return {**row, "layers": layers} if job["layers"] else row

    @staticmethod
    def _ms(model, node):
        (weight,) = (init for init in model.graph.initializer if init.name == node.input[1])
        group = next((item.i for item in node.attribute if item.name == "group"), 1)
        return true_ms(weight.dims[1] * group, weight.dims[0])


def test_a_table_of_a_device_is_measured_there_and_kept_here(net):
    board = Board()
    table = table_there(net, INPUT, 1, board, None)
    assert table.key.machine == MACHINE and table.key.engine_version == "1.20.1" and table.key.path.is_file()
    noted, whole = board.jobs
    assert noted["layers"] and not whole["layers"] and not board.files, "networks stay on the device"
    assert table.model.cost("head.conv", 16, 24) == pytest.approx(true_ms(16, 24), rel=1e-6)
    assert table.error["worst"] < 1e-6 and table.model.predict(layer_channels(net.module)) == pytest.approx(
        min(float(np.median(table.full.latency_ms["median"])), table.full.fastest_ms)
    )
    assert table_there(net, INPUT, 1, board, None) == table and len(board.jobs) == 2, "it is measured again"
    assert table.key != table_key(net, INPUT, 1), "it is taken for this machine's"


def test_a_recipe_counts_with_the_table_of_a_device(data, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    source = parse_spec("tests.nets:tiny")
    net = Net(source, (), build(source, trust=True))
    table = table_there(net, Input(size=16, mean=(0.5,), std=(0.5,)), 1, Board(), None)
    kept = table.key.path.rename(tmp_path / "pi5.json")
    monkeypatch.setattr("edgekit.job.layer_table", lambda *_: pytest.fail("it is measured here"))
    latency = f'[latency]\ntable = "{kept}"\n'
    (tmp_path / "r.toml").write_text(f'{IO}\n[[pass]]\nname = "prune"\nbudget = {{ latency = 0.7 }}\n{latency}')
    made = edgekit.compress("tests.nets:tiny", str(tmp_path / "r.toml"), data, tmp_path / "out", runs=8)
    pruned = made.manifest["steps"][1]
    assert pruned["latency_table"] == "pi5.json" and pruned["latency_predicted"] <= 0.7
    assert pruned["latency_predicted"] == pytest.approx(table.model.ratio(edgekit.load(made.path, trust=True)))
    (line,) = report.predictions(made)
    assert line.endswith("of the base's predicted, by pi5.json")


def test_a_table_that_a_recipe_cannot_count_with(net, tmp_path):
    table = table_there(net, INPUT, 1, Board(), None)
    assert kept_table(table.key.path, net, INPUT) == table
    with pytest.raises(BadInput, match=r"another network, or at another input size.*--input-size 32"):
        kept_table(table.key.path, net, dataclasses.replace(INPUT, size=32))
    with pytest.raises(BadInput, match=r"gone\.json: no such file"):
        kept_table(tmp_path / "gone.json", net, INPUT)
    (tmp_path / "p.json").write_text('{"schema": "edgekit/profile/1"}')
    with pytest.raises(BadInput, match="its schema is not edgekit/latency-table"):
        kept_table(tmp_path / "p.json", net, INPUT)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"latency": {"table": "pi.json"}}, "no pass has a budget of latency"),
        ({"latency": {"file": "pi.json"}}, r"\[latency\].*file"),
    ],
)
def test_a_section_of_latency_that_says_nothing(tables, said):
    with pytest.raises(BadInput, match=said):
        from_tables(
            {"input": {"size": 8}, "pass": [{"name": "prune", "budget": {"macs": 0.5}}], **tables}, "r", "r.toml"
        )


@pytest.mark.parametrize("changes", [{"error": "no kernel"}, {"times_ms": []}])
def test_what_a_device_cannot_measure(changes):
    variant = Variant({}, one("Conv", array(4, 4, 3, 3)))
    with pytest.raises(BadInput, match="board: "):
        _measured(Board(**changes), None, [variant], Plan(runs=8))


@pytest.mark.parametrize("ms", [-1.0, float("inf"), "long", None])
def test_times_of_operators_that_are_none(ms):
    with pytest.raises((ValueError, TypeError)):
        _operators([{"name": "conv", "kind": "Conv", "ms": ms}])


@pytest.mark.slow
def test_a_table_over_ssh(server, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    device = f"ssh://127.0.0.1:{server.port}"
    out, _ = run("profile", "cifar_resnet_20", "--layer-table", "--device", device, "--json")
    (row,) = json.loads(out)["rows"]
    assert row["layers"] > 15 and row["error"]["worst"] < 0.5 and list((tmp_path / "cache" / "latency").iterdir())
    assert [path.suffix for path in server.files.iterdir()] == [".py"]
