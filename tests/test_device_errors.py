"""Devices that cannot be used: each says what is wrong and what to do. Over a real SSH server on loopback."""

import ast
import json
import sys
from pathlib import Path

import asyncssh
import pytest

import edgekit
from edgekit.devices.address import addresses, parse_address, read_fleet
from edgekit.devices.device import Device, read_result
from edgekit.devices.fleet import on_devices
from edgekit.errors import BadInput
from tests.ssh_server import Server, script


def device(server: Server, query: str = "", user: str = "") -> Device:
    return Device(parse_address(f"ssh://{user}127.0.0.1:{server.port}{query}"), patience_s=0.0)


def refusal(server: Server, query: str = "", user: str = "") -> str:
    with (made := device(server, query, user)).connection, pytest.raises(BadInput) as caught:
        made.probe()
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "pi@raspberrypi", "ssh://", "ssh://-oProxyCommand=x", "ssh://-l@host", "ssh://a b", "ssh://h;reboot",
        "ssh://h/$(reboot)", "ssh://h?shell=x", "ssh://h?python=a b", "ssh://h?python=-c", "ssh://h:99999", "ssh://h\n",
    ],
)  # fmt: skip
def test_what_is_no_address(text):
    with pytest.raises(BadInput):
        parse_address(text)


def test_addresses(tmp_path):
    found = parse_address("ssh://pi@pi4.local:2222?python=/home/pi/venv/bin/python3")
    assert (found.user, found.host, found.port) == ("pi", "pi4.local", 2222)
    assert found.options == ("-l", "pi", "-p", "2222", "--", "pi4.local")
    assert parse_address("ssh://[fe80::1%eth0]").host == "fe80::1%eth0"
    fleet = tmp_path / "fleet.toml"
    fleet.write_text('kitchen = "ssh://pi@10.0.0.7"\nhall = "ssh://10.0.0.8"\n')
    assert [item.name for item in addresses(["ssh://desk"], fleet)] == ["desk", "kitchen", "hall"]
    assert [item.name for item in addresses(["ssh://a:1", "ssh://a:2"], None)] == ["ssh://a:1", "ssh://a:2"]
    with pytest.raises(BadInput, match="named twice"):
        addresses(["ssh://10.0.0.8"], fleet)
    for text in ("", "hall = 3\n", '[hall]\naddress = "ssh://h"\n', "hall = \n"):
        fleet.write_text(text)
        with pytest.raises(BadInput, match=r"fleet\.toml"):
            read_fleet(fleet)


def test_unreachable(server):
    server.kill()
    assert "cannot be reached" in (said := refusal(server)) and f"try it by hand: ssh -p {server.port}" in said
    server.start()


def test_no_ssh_here(server, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install OpenSSH's client" in refusal(server)


def test_a_key_that_is_refused(server):
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(server.folder / "client")
    said = refusal(server, user="pi@")
    assert "refuses the key" in said and f"ssh-copy-id -p {server.port} pi@127.0.0.1" in said


def test_a_host_key_that_is_not_known_or_has_changed(server, tmp_path):
    known = tmp_path / "known_hosts"
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known.write_text("")
    assert "host key is not known here" in refusal(server) and known.read_text() == ""
    known.write_text(f"[127.0.0.1]:{server.port} {other}")
    assert f"ssh-keygen -R '[127.0.0.1]:{server.port}'" in refusal(server)


def test_no_python_or_another(server):
    assert "has no nowhere/python" in refusal(server, "?python=nowhere/python")
    script(
        server.folder / "bin" / "old",
        f"#!{sys.executable}\nimport sys\nsys.version_info = (3, 7, 3)\nexec(sys.argv[2])\n",
    )
    said = refusal(server, "?python=old")
    assert "has Python 3.7.3, and 3.9 or later is needed" in said and "?python=" in said
    script(server.folder / "bin" / "no-python", "#!/bin/sh\necho segmentation fault >&2; exit 3\n")
    assert "no-python failed there: segmentation fault" in refusal(server, "?python=no-python")


def test_missing_modules_come_with_the_command(server):
    script(server.folder / "bin" / "bare", f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    said = refusal(server, "?python=bare")
    assert "No module named 'numpy'" in said and "No module named 'onnxruntime'" in said
    assert f"ssh -p {server.port} 127.0.0.1 {sys.executable} -m pip install numpy onnxruntime" in said
    found = {"executable": "/usr/bin/python3", "managed": True, "home": "/home/pi"}
    said = device(server)._install(found, ["numpy"])
    assert '"/usr/bin/python3 -m venv /home/pi/edgekit && /home/pi/edgekit/bin/pip install numpy onnxruntime"' in said
    assert said.endswith("?python=/home/pi/edgekit/bin/python3")


def test_a_shell_that_talks_does_no_harm(server):
    script(
        server.folder / "bin" / "chatty", f'#!/bin/sh\necho welcome\necho to the board\nexec {sys.executable} "$@"\n'
    )
    with (made := device(server, "?python=chatty")).connection:
        assert made.probe()["modules"]


def test_no_disk_left(server, tmp_path):
    full = tmp_path / "full"
    script(
        full / "sitecustomize.py", "import shutil\nshutil.disk_usage = lambda _: shutil._ntuple_diskusage(9, 8, 1000)\n"
    )
    server.env["PYTHONPATH"] = str(full)
    with (made := device(server)).connection:
        with pytest.raises(BadInput, match=r"its disk has 0\.0 MB free, and 16\.8 MB are needed.* --clean"):
            made.send(b"model", ".onnx")
        del server.env["PYTHONPATH"]
        script(server.folder / "bin" / "python3", f'#!/bin/sh\nulimit -f 100\nexec {sys.executable} "$@"\n')
        with pytest.raises(BadInput, match="File too large"):
            made.send(bytes(1 << 20), ".onnx")


def test_a_run_that_fails_or_dies(server):
    with (made := device(server)).connection:
        model = made.send(b"no model", ".onnx")
        wanted = {"schema": "edgekit/job/1", "kind": "time", "files": [{"name": "a", "path": model}]}
        with pytest.raises(BadInput, match="the run failed there: KeyError"):
            made.run(wanted)
        made.send = lambda *_: "none.py"
        with pytest.raises(BadInput, match=r"died there without a result\. Its last words: .*none\.py"):
            made.run(wanted)
        assert not any(server.jobs.iterdir())


def wrong(**changes) -> bytes:
    return json.dumps({"schema": "edgekit/measured/1", "rows": [], **changes}).encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"schema": "edgekit/measured/1", "rows": NaN}', "holds NaN"),
        (b"[]", "not of the schema"),
        (wrong(schema="edgekit/measured/2"), "not of the schema"),
    ],
)
def test_results_that_are_none(content, said):
    with pytest.raises(BadInput, match=said):
        read_result(content, "pi")


def test_what_a_device_says_cannot_move_the_cursor():
    assert read_result(wrong(error="\x1b[2J gone"), "pi")["error"] == "[2J gone"


def test_a_result_that_is_too_large_is_not_taken(server, monkeypatch):
    monkeypatch.setattr("edgekit.devices.device.RESULT_BYTES", 10)
    with (made := device(server)).connection:
        path = made.send(b"no model", ".onnx")
        with pytest.raises(BadInput, match=r"left a result of \d+ bytes; at most 10 are taken"):
            made.run({"schema": "edgekit/job/1", "kind": "time", "files": [{"name": "a", "path": path}]})
        assert not any(server.jobs.iterdir()), "the next run would find it again"


def test_one_device_that_fails_does_not_cost_the_others(server):
    good = parse_address(f"ssh://127.0.0.1:{server.port}", "good")
    bad = parse_address(f"ssh://127.0.0.1:{server.port}?python=nowhere", "bad")
    found, failed = on_devices([good, bad], lambda made, _: made.probe(), lambda items, *_: items)
    assert found["good"]["modules"] and list(failed) == ["bad"] and "has no nowhere" in failed["bad"]
    with pytest.raises(BadInput, match="bad: has no nowhere"):
        on_devices([bad], lambda made, _: made.probe(), lambda items, *_: items)


def test_what_runs_there_is_written_for_old_pythons():
    folder = Path(edgekit.__file__).parent / "devices"
    ast.parse((folder / "agent.py").read_text(), feature_version=(3, 5))  # so that it can say that Python is too old
    for name in ("runner.py", "jetson.py"):
        ast.parse((folder / name).read_text(), feature_version=(3, 9))
