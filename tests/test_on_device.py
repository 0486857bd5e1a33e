"""Commands on devices, over a real SSH server on loopback."""

import io
import json
import shutil

import numpy as np
import pytest
from onnx import helper

from edgekit.bundle import open_bundle
from edgekit.data import Output
from edgekit.devices.address import parse_address
from edgekit.devices.device import Device, Found
from edgekit.errors import BadInput
from edgekit.export import serialise
from edgekit.on_device import Answers, Difference
from edgekit.profile.remote import checked
from tests.onnx_models import array, graph
from tests.test_cli import run


def test_the_accuracy_of_a_file_there_and_here(server, bundle, data, monkeypatch):
    monkeypatch.setattr("edgekit.on_device.CHUNK_BYTES", 4 * 3 * 16 * 16 * 50)  # the test pictures in several chunks
    device = f"ssh://127.0.0.1:{server.port}"
    found = json.loads(run("evaluate", bundle.models[-1], "--data", data, "--device", device, "--json")[0])
    (there,) = found["devices"]
    assert there["metrics"] == found["here"]["metrics"] and found["n"] > 50
    assert there["agreement"] == 100 and there["sqnr_db"] == 300
    assert there["machine"]["cpu"] == found["here"]["machine"]["cpu"]
    assert [path.suffix for path in server.files.iterdir() if path.suffix == ".npy"] == [], "pictures stay there"


def test_files_are_profiled_on_several_devices(server, bundle, tmp_path):
    fleet = tmp_path / "fleet.toml"
    there = f"ssh://127.0.0.1:{server.port}"
    fleet.write_text(f'kitchen = "{there}"\nhall = "ssh://127.0.0.1:1"\n')
    files = [bundle.base, *bundle.models]
    out, _ = run("profile", *files, "--runs", "8", "--layers", "--fleet", fleet, "--json", code=2)
    found = json.loads(out)
    (profile,) = found["profiles"]
    assert profile["schema"] == "edgekit/profile/1" and profile["device"] == "kitchen"
    assert [row["file"] for row in profile["rows"]] == [path.name for path in files]
    assert all(row["latency_ms"]["n"] == 8 and row["layers"] for row in profile["rows"])
    assert list(found["failed"]) == ["hall"] and "cannot be reached" in found["failed"]["hall"]


GATES = """
latency_ms = [{ max = 1e6, device = "kitchen" }, { max = 1e-6, device = "kit*" }, { max = 1e6 },
              { max_ratio = 1e6, device = "kitchen" }, { max = 1e6, device = "hall" }]
top1 = { min = 0, device = "kitchen", precision = "int8" }
size_bytes = { max_ratio = 9.0, device = "kitchen" }
"""


def test_gates_of_a_device_are_decided_by_what_a_bundle_keeps_of_it(server, bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "bundle")
    made = open_bundle(tmp_path / "bundle")
    here = made.latest("profile")
    (tmp_path / "fleet.toml").write_text(f'kitchen = "ssh://127.0.0.1:{server.port}"\n')
    (tmp_path / "gates.toml").write_text(GATES)
    run("profile", made.path, "--runs", "8", "--fleet", tmp_path / "fleet.toml")
    (there,) = made.device_profiles
    assert there["device"] == "kitchen" and there["machine"]["cpu"] and there["seal"] == made.seal
    assert made.latest("profile") == here, "a device's times are taken for this machine's"

    out, _ = run("gate", made.path, "--gates", tmp_path / "gates.toml", "--json", code=1)
    found = [(row["metric"], row["file"], row["rule"], row["outcome"]) for row in json.loads(out)["verdicts"]]
    names = [path.name for path in made.models]
    on = [f"{name} on kitchen" for name in names]
    assert found == [
        *[("latency_ms", name, "max", "pass") for name in on],
        *[("latency_ms", name, "max", "fail") for name in on],
        *[("latency_ms", name, "max", "pass") for name in names],
        *[("latency_ms", name, "max_ratio", "pass") for name in on],
        ("latency_ms", "-", "max", "fail"),
        ("top1", f"{made.model('onnxruntime', 'int8').name} on kitchen", "min", "fail"),
        *[("size_bytes", name, "max_ratio", "pass") for name in on],
    ]
    reasons = [row["reason"] for row in json.loads(out)["verdicts"] if row["file"] == "-"]
    assert reasons[0].endswith("devices: local, kitchen")
    shown, _ = run("report", made.path)
    assert all(f"{name} on kitchen ({there['machine']['cpu']}): " in shown for name in names)


def test_the_table_of_a_fleet(server, bundle, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = run("profile", bundle.base, "--runs", "8", "--device", f"ssh://127.0.0.1:{server.port}")
    assert "127.0.0.1" in out and bundle.base.name in out and "onnxruntime 1." in out
    assert all(len(line) <= 80 for line in out.splitlines() if "[" in line)


def test_a_file_that_cannot_run_there_does_not_cost_the_others(server, bundle, tmp_path):
    bad = tmp_path / "bad.onnx"
    wrong = graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], (4, 8, 8), {"w": array(4, 9, 3, 3)}, result=["n", 4, 6, 6]
    )
    bad.write_bytes(serialise(wrong))  # 9 channels of 4
    device = f"ssh://127.0.0.1:{server.port}"
    out, _ = run("profile", bundle.base, bad, "--runs", "8", "--device", device, "--json")
    (profile,) = json.loads(out)["profiles"]
    assert [row["file"] for row in profile["rows"]] == [bundle.base.name] and "bad.onnx" in profile["unmeasured"]


def test_tensorrt_on_a_device_without_it(server, bundle):
    device = f"ssh://127.0.0.1:{server.port}"
    _, said = run("profile", bundle.base, "--engine", "tensorrt", "--device", device, code=2)
    assert "there is no trtexec" in said and "apt-get install" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "other"}, {"error": 3}, {"times_ms": []}, {"times_ms": [1.0] * 7}, {"times_ms": [1.0] * 8 + [-1.0]},
        {"times_ms": ["1"] * 8}, {"times_ms": [True] * 8}, {"times_ms": [1e400] * 8}, {"load_ms": "long"},
    ],
)  # fmt: skip
def test_rows_that_are_none(changes):
    row = {"file": "a", "error": None, "load_ms": 1.0, "first_ms": 1.0, "times_ms": [1.0] * 8}
    assert checked([row], ["a"]) == [row]
    with pytest.raises(ValueError):
        checked([{**row, **changes}], ["a"])


def test_a_device_is_shown_and_cleaned(server):
    device = f"ssh://127.0.0.1:{server.port}"
    (server.files / "left").parent.mkdir(parents=True)
    (server.files / "left").write_bytes(bytes(2_000_000))
    out, _ = run("device", device)
    assert "2.0 MB in" in out and "onnxruntime" in out
    assert json.loads(run("device", device, "--clean", "--json")[0])["freed_bytes"] == 2_000_000
    assert not (server.files / "left").exists()


def test_differences_in_closed_form():
    difference, output = Difference(), Output()
    here = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    there = here.copy()
    there[0] = (0.0, 0.0)  # still the first class
    there[1] = (1.0, 1.0)  # the other class
    difference.add(here[:2], there[:2], output)
    difference.add(here[2:], there[2:], output)
    assert difference.record() == {"agreement": 75.0, "sqnr_db": pytest.approx(10 * np.log10(4 / 2))}


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


EXPECTED = np.zeros((2, 3), np.float32)
HUGE = npy(EXPECTED).replace(b"(2, 3)", b"(2000000000, 3)")[: len(npy(EXPECTED))]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\3\4",
        HUGE,
        npy(EXPECTED)[:-1],
        npy(EXPECTED.T.copy()),
        npy(EXPECTED + np.nan),
        npy(EXPECTED.astype("f8")),
    ],
)
def test_outputs_that_are_not_what_was_asked_for(content):
    device = Device(parse_address("ssh://pi"))
    device.send = lambda *_: "sent"
    device.run = lambda *_, **__: Found({}, content)
    device.forget = lambda _names: None
    with pytest.raises(BadInput, match="pi: answers what edgekit never would"):
        Answers(device, "a.onnx", "sent").run(EXPECTED, EXPECTED)


def test_engines_that_do_not_score_there(bundle, data):
    _, said = run("evaluate", bundle.models[-1], "--data", data, "--device", "ssh://x", "--engine", "openvino", code=2)
    assert "leave out --engine" in said
