"""A server's life: batches, exchanged bundles, the end without a loss, workers that die."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import urllib3
from click.testing import CliRunner

pytest.importorskip("uvicorn")

from edgekit.cli import main
from edgekit.errors import BadInput
from edgekit.split import app, models, server
from edgekit.split.app import Service
from edgekit.split.batching import Batcher, Busy
from edgekit.split.remote import Address, Remote
from edgekit.split.repository import Limits
from edgekit.split.server import Listen
from tests import split_bundles
from tests.split_server import ask, latents, outputs, running, scores, wire


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return split_bundles.make(tmp_path_factory.mktemp("split") / "tiny")


def _batched(items: int, run, **limits) -> list:
    """What becomes of that many items that are submitted at once; a batch waits until it is full."""

    async def go() -> list:
        batcher = Batcher(run, **{"most_waiting": 99, "delay_s": 30.0} | limits)
        found = await asyncio.gather(*(batcher.submit(item) for item in range(items)), return_exceptions=True)
        await batcher.close()
        with pytest.raises(Busy):
            await batcher.submit(0)
        return found

    return asyncio.run(go())


def test_what_waits_is_run_together():
    batches = []

    def run(items):
        batches.append(list(items))
        return [item * 10 for item in items]

    found = _batched(6, run, most_batch=3)
    assert [one.value for one in found] == [0, 10, 20, 30, 40, 50]
    assert batches == [[0, 1, 2], [3, 4, 5]] and found[0].batch == 3


def test_no_more_wait_than_may():
    began, go_on = threading.Event(), threading.Event()

    def run(items):
        began.set()
        go_on.wait(30)
        return items

    async def go():
        batcher = Batcher(run, most_batch=1, most_waiting=2)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.to_thread(began.wait, 30)
        others = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
        await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)  # only the one that is refused
        go_on.set()
        found = await asyncio.gather(first, *others, return_exceptions=True)
        await batcher.close()
        return found

    found = asyncio.run(go())
    assert [one.value for one in found[:3]] == [0, 1, 2] and isinstance(found[3], Busy)


def test_a_failed_batch_fails_alone():
    def run(items):
        if 0 in items:
            raise RuntimeError("broken")
        return items

    found = _batched(4, run, most_batch=2)
    assert [type(one) for one in found[:2]] == [RuntimeError] * 2 and [one.value for one in found[2:]] == [2, 3]


def test_the_first_waits_no_longer_than_it_may():
    found = _batched(2, list, most_batch=3, delay_s=0.1)
    assert 90 <= found[0].queue_ms < 5000 and found[0].batch == 2


def test_the_end_waits_for_no_company():
    async def go():
        batcher = Batcher(list, most_batch=3, most_waiting=9, delay_s=30.0)
        answers = [asyncio.create_task(batcher.submit(item)) for item in range(2)]
        await asyncio.sleep(0)
        await batcher.close()
        return [(await one).value for one in answers]

    assert asyncio.run(asyncio.wait_for(go(), 20)) == [0, 1]


def _turn(link: Path, folder: Path) -> None:
    """Make the link point there, at once."""
    other = link.with_name("other")
    other.symlink_to(folder)
    os.replace(other, link)


def _until(condition, seconds=20):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_bundles_are_exchanged_while_they_serve(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "WATCH_S", 0.05)
    folders = [split_bundles.make(tmp_path / f"v{seed}", seed, full=seed < 2) for seed in range(3)]
    current = tmp_path / "current"
    current.symlink_to(folders[0])
    (latent,) = latents(1)
    packets = [wire(folder).pack(latent) for folder in folders]
    expected = [scores(folder, latent[None]) for folder in folders]
    versions = [wire(folder).model_hash.hex() for folder in folders]
    with running(Service({"cam": current})) as url:
        remote = Remote(Address(url, "cam"))

        def served():
            return remote.versions()

        assert ask(url, packets[1], "cam").status == 409
        _turn(current, folders[1])
        _until(lambda: served() == [versions[1], versions[0]])
        # Both answer: each packet finds the tail that its head belongs to.
        for packet, one in zip(packets[:2], expected):
            assert np.allclose(outputs(ask(url, packet, "cam"))["y"], one, rtol=1e-6)
        _turn(current, folders[2])
        _until(lambda: served() == [versions[2], versions[1]])
        assert ask(url, packets[0], "cam").status == 409 and ask(url, packets[2], "cam").status == 200
        _until(lambda: ask(url, b"", "cam-full").status == 404)  # the newest has no whole network
        _turn(current, folders[1])
        _until(lambda: served() == [versions[1], versions[2]])


def test_a_bundle_that_cannot_be_used_is_not_taken_up(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(app, "WATCH_S", 0.05)
    good, bad = split_bundles.make(tmp_path / "good"), split_bundles.make(tmp_path / "bad", 1)
    (bad / "tail.onnxruntime.fp32.onnx").write_bytes(b"\0")
    current = tmp_path / "current"
    current.symlink_to(good)
    with running(Service({"cam": current})) as url:
        _turn(current, bad)
        _until(lambda: "corrupt or truncated" in caplog.text)
        assert ask(url, wire(good).pack(latents(1)[0]), "cam").status == 200


def test_what_was_accepted_is_answered_before_the_end(folder, monkeypatch):
    packet, accepted, go_on = wire(folder).pack(latents(1)[0]), [], threading.Event()
    run, submit = models.Model.run, Batcher.submit

    def slow(model, contents):
        go_on.wait(30)
        return run(model, contents)

    def counted(batcher, item):
        accepted.append(item)
        return submit(batcher, item)

    monkeypatch.setattr(models.Model, "run", slow)
    monkeypatch.setattr(Batcher, "submit", counted)
    with ThreadPoolExecutor(5) as pool, contextlib.ExitStack() as stack:
        url = stack.enter_context(running(Service({"tiny": folder}, Limits(batch=2))))
        answers = [pool.submit(ask, url, packet) for _ in range(5)]
        _until(lambda: len(accepted) == 5)
        threading.Timer(0.5, go_on.set).start()
        stack.close()  # the server ends while one batch runs and the others wait
        assert [one.result().status for one in answers] == [200] * 5
    assert not {one.name for one in threading.enumerate()} & {"inference"}


def test_tls_and_a_token(folder, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, private_key = tmp_path / "c.pem", tmp_path / "k.pem"
    made = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", private_key, "-out", certificate]
    subprocess.run([*made.split(), *files], check=True, capture_output=True)
    listen = Listen(port=0, certificate=certificate, private_key=private_key)
    with running(Service({"tiny": folder}, tokens=(b"t" * 16,)), listen) as url:
        assert url.startswith("https://")
        remote = Remote(Address(url, "tiny", "t" * 16, certificate))
        assert remote.infer(wire(folder).pack(latents(1)[0])).outputs["y"].shape == (1, 4)
    with pytest.raises(BadInput, match="cannot be used for TLS"):
        server.config(Service({"tiny": folder}), Listen(certificate=private_key, private_key=certificate))


@contextlib.contextmanager
def serving(*arguments: str):
    """`edgekit split serve` in a process of its own; yields the process and its address."""
    command = [sys.executable, "-m", "edgekit", "split", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_the_command_ends_well(folder):
    with serving(str(folder)) as (process, url):
        assert ask(url, wire(folder).pack(latents(1)[0])).status == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_port_that_is_taken(folder):
    with running(Service({"tiny": folder})) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(BadInput, match=f"127.0.0.1:{port}: cannot listen there"):
            server.serve(Service({"tiny": folder}), Listen(port=port), print)


@pytest.mark.slow
def test_a_worker_that_dies_loses_nothing_that_is_sent_again(folder):
    """kill -9 of one of two, three times, while four clients ask without a pause."""
    packets, expected = [wire(folder).pack(one) for one in latents(8)], scores(folder, latents(8))
    wrong, count, over = [], [0], threading.Event()

    def client(url):
        remote = Remote(Address(url, "tiny"))
        while not over.is_set():
            for packet, one in zip(packets, expected):
                found = remote.infer(packet).outputs["y"][0]
                count[0] += 1
                if not np.allclose(found, one, rtol=1e-5):
                    wrong.append(found)

    with serving(str(folder), "--workers", "2") as (process, url):
        Remote(Address(url, "tiny", timeout_s=60)).infer(packets[0])
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client, url) for _ in range(4)]
            for _ in range(3):
                time.sleep(2)
                workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                servers = [int(pid) for pid in workers if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
                os.kill(servers[0], signal.SIGKILL)
            time.sleep(2)
            over.set()
            [one.result() for one in clients]
        counted = urllib3.request("GET", url + "/metrics").data.decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert not wrong and count[0] > 50
    assert "edgekit_split_requests_total" in counted


def test_errors_say_what_to_do(folder, tmp_path):
    (tmp_path / "token").write_text("short\n")
    for arguments, message in (
        ([str(tmp_path)], "is no bundle"),
        ([str(folder), f"tiny={folder}"], "two bundles are named tiny"),
        ([f"a b={folder}"], "is no name for a model"),
        ([str(folder), "--host", "0.0.0.0"], "is heard beyond this machine"),
        ([str(folder), "--token-file", str(tmp_path / "token")], "at least 16 printable"),
    ):
        found = CliRunner().invoke(main, ["split", "serve", *arguments, "--port", "0"])
        assert found.exit_code == 2 and message in found.output, found.output
