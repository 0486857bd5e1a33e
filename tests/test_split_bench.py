"""The shaped link and the benchmark that runs over it."""

import json
import socket
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("uvicorn")

from edgekit.cli import main
from edgekit.errors import BadInput
from edgekit.split import link as links
from edgekit.split.app import Service
from edgekit.split.bench import server
from edgekit.split.link import BUCKET_S, Bucket, Link, shaped
from edgekit.split.plot import accuracy_rows, time_rows, write_plots
from tests import split_bundles
from tests.split_server import ask, latents, outputs, running, scores, wire


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return split_bundles.make(tmp_path_factory.mktemp("split") / "tiny")


def test_bytes_leave_at_the_rate_however_they_are_cut():
    size = 12_500  # at 1 Mbit/s a tenth of a second
    for pieces in (1, 7, 50):
        bucket = Bucket(1e6)
        left = [bucket.departure_s(10.0, size // pieces) for _ in range(pieces)][-1]
        assert left == pytest.approx(10.1 - BUCKET_S, rel=1e-4)
    # After a pause the bucket is full, and holds no more than that.
    assert bucket.departure_s(60.0, size) == pytest.approx(60.1 - BUCKET_S)


def test_two_share_the_rate_of_one():
    bucket = Bucket(8e6)
    assert max(bucket.departure_s(1.0, 500_000) for _ in range(2)) == pytest.approx(2.0 - BUCKET_S)


@pytest.mark.parametrize("text, rate, rtt", [("lte", 10e6, 50.0), ("2.5Mbit/40ms", 2.5e6, 40.0), ("9kbit/0ms", 9e3, 0)])
def test_links_by_name_or_by_figures(text, rate, rtt):
    found = links.link(text)
    assert (found.name, found.up_bits_per_s, found.rtt_ms) == (text, rate, rtt)


@pytest.mark.parametrize("text", ["", "5g", "0Mbit/1ms", "1Mbit", "-1Mbit/1ms", "1mbit/1ms"])
def test_links_that_are_none(text):
    with pytest.raises(BadInput, match="write one of lora, 1mbit, lte"):
        links.link(text)


def test_a_link_is_never_quicker_than_it_says_and_loses_nothing():
    sent = np.random.default_rng(0).bytes(40_000)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def echo():
            connection, _ = listening.accept()
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)

        threading.Thread(target=echo, daemon=True).start()
        shape = Link("test", 2e6, 4e6, 60.0)
        with shaped(shape, f"http://127.0.0.1:{listening.getsockname()[1]}") as through:
            port = int(through.url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=20) as near:
                began = time.monotonic()
                near.sendall(sent)
                near.shutdown(socket.SHUT_WR)
                received = b""
                while data := near.recv(65536):
                    received += data
                took_s = time.monotonic() - began
    assert received == sent and through.up_bytes == through.down_bytes == len(sent)
    # The last byte of 0.16 s upwards, half a round trip each way; downwards is quicker, and goes on meanwhile.
    assert took_s >= 0.16 - BUCKET_S + 0.06


def test_a_link_to_nowhere_hangs_up():
    with shaped(Link("test", 1e6, 1e6, 0.0), "http://127.0.0.1:9") as through:
        port = int(through.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=20) as near:
            assert near.recv(1) == b""


def test_packets_go_through_a_link_as_they_are(folder):
    (latent,) = latents(1)
    packet = wire(folder).pack(latent)
    with running(Service({"tiny": folder})) as url, shaped(links.link("20Mbit/4ms"), url) as through:
        assert np.allclose(outputs(ask(through.url, packet))["y"], scores(folder, latent[None]), rtol=1e-6)
        assert len(packet) < through.up_bytes < len(packet) + 600


def test_a_server_that_does_not_start_says_why(tmp_path):
    with pytest.raises(BadInput, match=r"the server did not start: .*is no bundle"), server(tmp_path, None, 1):
        pass


def test_the_command_compares_all_ways(folder, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(0, 255, (12, 16, 16, 3), np.uint8), y=rng.integers(0, 4, 12))
    arguments = ["split", "bench", str(folder), "--data", f"test=npz:{tmp_path / 'd.npz'}", "--images", "3"]
    arguments += ["--link", "50Mbit/2ms", "--quality", "50", "--out", str(tmp_path / "out.json"), "--json"]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    document = json.loads((tmp_path / "out.json").read_text())
    assert document == json.loads(found.stdout) and document["schema"] == "edgekit/split-bench/1"
    ways = {row["way"]: row for row in document["ways"]}
    assert list(ways) == ["split", "latent8", "jpeg-50", "webp-50", "device"]
    # The same latents whether coded or not, and the same network whether cut or not.
    assert ways["split"]["metrics"] == ways["latent8"]["metrics"] == ways["device"]["metrics"]
    assert ways["latent8"]["sent_bytes"] == 42 + 6 * 8 * 8 > ways["split"]["sent_bytes"]
    rows = {(row["link"], row["way"]): row for row in document["rows"]}
    assert rows["50Mbit/2ms", "split"]["parts"]["wire_ms"] >= 2 and rows[None, "device"]["up_bytes"] == 0
    assert rows["50Mbit/2ms", "split"]["up_bytes"] > ways["split"]["sent_bytes"]
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 2 and "exists; give another --out" in again.output
    _check_plots(document, tmp_path / "plots")


def _check_plots(document, folder):
    assert {(row["link"], row["way"]) for row in time_rows(document)} >= {("50Mbit/2ms", "device")}
    assert [row["family"] for row in accuracy_rows(document)] == ["split", "latent8", "jpeg", "webp", "device"]
    pytest.importorskip("vl_convert")
    written = write_plots(document, folder)
    assert sorted(path.name for path in written) == [
        "split.accuracy.png", "split.accuracy.svg", "split.latency.png", "split.latency.svg",
    ]  # fmt: skip
    assert all(path.stat().st_size > 1000 for path in written)
    with pytest.raises(BadInput, match="is not empty; give another --plots"):
        write_plots(document, folder)
