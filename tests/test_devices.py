"""Work on a device, over a real SSH server on loopback: transfers, runs, broken connections, Ctrl-C."""

import contextlib
import io
import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.devices.address import parse_address
from edgekit.devices.device import Device
from edgekit.devices.fleet import on_devices
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.export import serialise
from edgekit.files import file_sha256
from edgekit.schema import sha256
from tests.onnx_models import array, one
from tests.ssh_server import Server


@pytest.fixture
def device(server):
    with (made := Device(parse_address(f"ssh://someone@127.0.0.1:{server.port}"), patience_s=20)).connection:
        yield made


MODEL = serialise(one("Conv", array(4, 4, 3, 3), pads=[1, 1, 1, 1]))


def job(device: Device, **changes) -> dict:
    """A job that measures one small file."""
    return {
        "schema": "edgekit/job/1", "kind": "time", "engine": "onnxruntime", "runs": 20, "seconds": None, "threads": 1,
        "batch": 1, "seed": 0, "sustained_s": None, "throughput": False, "layers": False,
        "files": [{"name": "a.onnx", "path": device.send(MODEL, ".onnx")}], **changes,
    }  # fmt: skip


def wait_for(condition, seconds: float = 60.0):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
    return found


def npy(x: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, x)
    return stream.getvalue()


def runner(device: Device) -> str:
    return device.send((Path(edgekit.__file__).parent / "devices" / "runner.py").read_bytes(), ".py")


def track(items, *_):
    return items


def group(server: Server) -> int:
    """The process group of the one run there, once its runner is at work."""
    (path,) = wait_for(lambda: list(server.jobs.glob("*/progress.jsonl")))
    return int((path.parent / "group").read_text())


def lives(group: int) -> bool:
    """Whether a process of the group runs; a dead one that its parent has not asked for yet does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, found = path.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":
                return True
    return False


def test_a_device_tells_what_it_has(device, server):
    found = device.probe()
    assert found["modules"].keys() == {"numpy", "onnxruntime"} and found["free_bytes"] > 0
    assert found["folder"] == str(server.jobs.parent)


def test_a_file_is_measured_there(device, server):
    lines = []
    found = device.run(job(device), tell=lambda *line: lines.append(line)).result
    (row,) = found["rows"]
    assert row["file"] == "a.onnx" and row["error"] is None and len(row["times_ms"]) == 20
    assert (device.name, "profiling", 20, 20) in lines
    assert not any(server.jobs.iterdir()), "a result that was taken stays there"


def test_asking_what_it_is_leaves_the_runner_there_and_nothing_else(device, server):
    machine, version = device.identity()
    assert machine["cores"] == os.cpu_count() and version == engine("onnxruntime").version()
    assert [path.name for path in server.files.iterdir()] == [runner(device)]


def test_outputs_come_back(device):
    x = array(3, 4, 8, 8)
    found = device.run(job(device, kind="run", inputs=device.send(npy(x), ".npy")), output_bytes=4000)
    there = np.load(io.BytesIO(found.outputs), allow_pickle=False)
    np.testing.assert_array_equal(there, engine("onnxruntime").load(MODEL, 1).run(x))


def test_a_file_is_sent_once(device, server, monkeypatch):
    content = os.urandom(3_000_000)
    name = device.send(content, ".onnx")
    assert file_sha256(server.files / name) == name.removesuffix(".onnx")
    asked = []
    call = device.connection.call
    monkeypatch.setattr(
        device.connection,
        "call",
        lambda command, *rest, **given: asked.append(command) or call(command, *rest, **given),
    )
    assert device.send(content, ".onnx") == name and asked == ["held"]


def test_a_broken_transfer_goes_on_where_it_broke(device, server):
    content = os.urandom(5 << 20)
    name = f"{sha256(content)}.onnx"
    part = server.files / f"{name}.part"

    def blocks():
        yield content[: 2 << 20]
        wait_for(lambda: part.exists() and part.stat().st_size == 2 << 20)
        server.kill()
        yield content[2 << 20 :]

    with pytest.raises(BadInput, match="cannot be reached"):
        device.connection.call("receive", blocks(), name=name, size=len(content), offset=0)
    server.start()
    assert device.connection.call("held", name=name)["bytes"] == 2 << 20
    assert device.send(content, ".onnx") == name
    assert (server.files / name).read_bytes() == content


def test_what_arrives_damaged_is_sent_again(device, server):
    content = os.urandom(1000)
    name = f"{sha256(content)}.onnx"
    device.connection.call("held", name=name)
    (server.files / f"{name}.part").write_bytes(b"x" * 500)
    assert device.send(content, ".onnx") == name
    assert (server.files / name).read_bytes() == content


def test_a_run_goes_on_when_the_connection_drops(device, server):
    def drop():
        group(server)
        server.kill()
        time.sleep(0.5)
        server.start()

    wanted = job(device, runs=None, seconds=2.0)
    dropping = threading.Thread(target=drop)
    dropping.start()
    begin = time.monotonic()
    found = device.run(wanted).result
    dropping.join()
    assert time.monotonic() - begin < 15 and len(found["rows"][0]["times_ms"]) > 20


def test_the_result_of_a_lost_run_is_taken_by_the_same_command(device, server):
    wanted = job(device, runs=None, seconds=1.0)
    device._patience_s = 0.0
    losing = threading.Thread(target=lambda: (group(server), server.kill()))
    losing.start()
    with pytest.raises(BadInput, match=r"goes on there .* the same command again"):
        device.run(wanted)
    losing.join()
    server.start()
    wait_for(lambda: list(server.jobs.glob("*/result.json")))
    (left,) = server.jobs.glob("*/result.json")
    written = json.loads(left.read_text())
    said = []
    device._log = said.append
    assert device.run(wanted).result["rows"] == written["rows"] and "taking up the run" in said[0]
    assert device.run(wanted).result["rows"] != written["rows"], "a result that was taken is measured anew"


@pytest.fixture
def interruptible():
    """A process begun in the background of a shell ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_no_process(server):
    address = parse_address(f"ssh://127.0.0.1:{server.port}")
    found = []

    def interrupt():
        found.append(group(server))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        on_devices([address], lambda device, tell: device.run(job(device, seconds=60.0, runs=None), tell=tell), track)
    assert not any(server.jobs.iterdir())
    assert not lives(found[0])


def test_a_run_whose_host_never_returns_ends(device, server):
    began = device.connection.call(
        "begin", id="a" * 16, runner=runner(device), job=job(device, runs=None, seconds=60.0)
    )
    assert began == {"found": False}
    number = group(server)
    lease = server.jobs / ("a" * 16) / "lease"
    lease.write_text(str(time.monotonic() - 3600))
    os.kill(number, signal.SIGALRM)  # what the supervisor's alarm clock does after an hour
    wait_for(lambda: not lives(number))


def test_two_runs_do_not_disturb_each_other(device, server):
    device.connection.call("begin", id="a" * 16, runner=runner(device), job=job(device, runs=None, seconds=60.0))
    number = group(server)
    with pytest.raises(BadInput, match="another edgekit run is going on there"):
        device.run(job(device))
    assert device.clean() > 1000 and not server.files.exists()
    assert not lives(number)
