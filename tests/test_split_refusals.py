"""What a server does not take: nothing hangs, nothing leaks, and the answer says why."""

import gc
import json
import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import pytest
import urllib3

pytest.importorskip("uvicorn")

from edgekit.errors import BadInput
from edgekit.split import batching, models, protocol, server
from edgekit.split.app import Service
from edgekit.split.protocol import HEAD_LENGTH
from edgekit.split.repository import Limits
from edgekit.split.server import Listen
from tests import split_bundles
from tests.split_server import TOKEN, ask, error, latents, outputs, post, running, wire, with_head

INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return split_bundles.make(tmp_path_factory.mktemp("split") / "tiny")


@pytest.fixture(scope="module")
def url(folder):
    with running(Service({"tiny": folder})) as address:
        yield address


@pytest.fixture(scope="module")
def packet(folder):
    return wire(folder).pack(latents(1)[0])


def _json(**changes) -> bytes:
    tensor = {"name": "packet", "datatype": "UINT8", "shape": [2], "data": [1, 2]}
    return json.dumps({"inputs": [tensor | changes]}).encode()


@pytest.mark.parametrize(
    "body, message",
    [
        (b"", "the body is no JSON"),
        (b"[" * 5000, "the body is no JSON"),
        (b"[1]", "must be a JSON object with inputs"),
        (b'{"inputs": []}', "a list of one tensor, 'packet'"),
        (b'{"inputs": [{}], "id": 7}', "id must be a string"),
        (_json(name="image"), "name is 'image'; the model takes 'packet'"),
        (_json(datatype="FP32"), "datatype is 'FP32'; the model takes 'UINT8'"),
        (_json(shape=[3]), r"shape is \[3\]; the data has the shape \[2\]"),
        (_json(shape=10**9, data=10**9), "flat list of whole numbers from 0 to 255"),
        (_json(data=[1, 256]), "flat list of whole numbers from 0 to 255"),
        (_json(data=[True, False]), "flat list of whole numbers from 0 to 255"),
        (_json(parameters={"binary_data_size": 2}), "either data or parameters.binary_data_size"),
        (_json(parameters=[]), "parameters must be an object"),
        (_json()[:-1] + b', "outputs": "y"}', "outputs must be a list of objects"),
        (_json()[:-1] + b', "parameters": {"binary_data_output": 1}}', "binary_data_output must be true or false"),
        (_json(), "a packet has at least 42 bytes; this has 2"),
    ],
)
def test_a_body_that_is_no_request(url, body, message):
    refused = post(url, INFER, body)
    assert refused.status == 400 and re.search(message, error(refused)), error(refused)


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999", "x", "²"])
def test_a_head_that_is_not_as_long_as_it_says(url, packet, length):
    refused = post(url, INFER, packet, **{HEAD_LENGTH: length.encode("latin-1")})
    assert refused.status == 400 and HEAD_LENGTH in error(refused)


def test_binary_data_of_another_size(url, packet):
    body, headers = with_head(packet, parameters={"binary_data_size": 10**12})
    assert "binary_data_size 1000000000000; after the head come" in error(post(url, INFER, body, **headers))
    body, headers = with_head(packet, parameters={}, data=[1])
    assert "bytes that belong to no input" in error(post(url, INFER, body, **headers))


def test_packets_for_another_model_or_version(url, tmp_path, packet):
    other = wire(split_bundles.make(tmp_path / "other", seed=1)).pack(latents(1)[0])
    refused = ask(url, other)
    assert refused.status == 409 and f"it is for the tail {other[6:22].hex()}; this is" in error(refused)
    assert "its CRC is wrong" in error(ask(url, packet[:-1] + b"?"))
    assert "version is 9" in error(ask(url, packet[:4] + b"\t" + packet[5:]))
    for path in ("/v2/models/nix/infer", "/v2/models/tiny/versions/1/infer"):
        refused = post(url, path, packet)
        assert refused.status == 404 and "tiny" in error(refused)


def test_bodies_are_bounded_before_they_are_read(url, folder):
    most = protocol.most_body_bytes(wire(folder).most_bytes)
    refused = post(url, INFER, bytes(most + 1))
    assert refused.status == 413 and refused.headers["Connection"] == "close" and f"at most {most}" in error(refused)
    assert "at most 458" in error(ask(url, bytes(1000)))
    assert urllib3.request("POST", url + INFER, body=iter([b"ab"]), retries=False).status == 411
    assert post(url, INFER, b"{}", **{"Content-Encoding": "gzip"}).status == 415


def _connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def _rest(connection: socket.socket) -> bytes:
    """All that still comes, until the other end closes."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize("path", ["/v2/models/nix/infer", "/v2", "/nowhere"])
def test_a_body_for_nobody_is_not_read(url, path):
    with _connect(url) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nabc".encode())
        assert _rest(connection).startswith(b"HTTP/1.1 40")  # and then the end


def test_a_slow_body_is_not_waited_for(folder, packet):
    with running(Service({"tiny": folder}, read_s=0.3)) as url, _connect(url) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(packet)}\r\n\r\n".encode())
        connection.sendall(packet[:10])
        answer = _rest(connection)
        assert answer.startswith(b"HTTP/1.1 408") and b"10 of" in answer
        assert ask(url, packet).status == 200


def test_a_slow_head_is_not_waited_for(folder, monkeypatch):
    monkeypatch.setattr(server, "HEAD_S", 0.3)
    with running(Service({"tiny": folder})) as url, _connect(url) as silent, _connect(url) as slow:
        began = time.monotonic()
        slow.sendall(b"POST /v2 HTTP/1.1\r\nHost: x\r\nX-A: ")
        assert _rest(silent) == _rest(slow) == b""
        assert time.monotonic() - began < 10
        # One that was answered in time is not cut off afterwards.
        with _connect(url) as quick:
            quick.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            time.sleep(0.6)
            quick.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert _rest(quick).count(b"200 OK") == 2


def test_a_head_without_end_is_cut_off(url):
    with _connect(url) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\n")
        with pytest.raises(OSError):
            for _ in range(1000):
                connection.sendall(b"X-A: " + b"a" * 2**14 + b"\r\n")
                time.sleep(0.001)


def test_connections_are_bounded(folder, monkeypatch):
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    with running(Service({"tiny": folder})) as url, _connect(url), _connect(url), _connect(url) as third:
        answer = _rest(third)
        assert answer.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in answer


def test_what_cannot_wait_is_told_to_come_again(folder, packet, monkeypatch):
    began, go_on, run = threading.Event(), threading.Event(), models.Model.run

    def slow(model, contents):
        began.set()
        go_on.wait(20)
        return run(model, contents)

    monkeypatch.setattr(models.Model, "run", slow)
    with running(Service({"tiny": folder}, Limits(batch=1, waiting=1))) as url, ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, url, packet)
        assert began.wait(20)
        others = [pool.submit(ask, url, packet) for _ in range(2)]
        refused = next(as_completed(others)).result()  # one of them waits, and this is the other
        assert refused.status == 429 and refused.headers["Retry-After"] == "1" and "try again later" in error(refused)
        go_on.set()
        assert first.result().status == 200 and sorted(one.result().status for one in others) == [200, 429]


def test_an_answer_that_takes_too_long_is_given_up(folder, packet):
    with running(Service({"tiny": folder}, Limits(delay_ms=1000), answer_s=0.2)) as url:
        refused = ask(url, packet)
        assert refused.status == 503 and refused.headers["Retry-After"] == "1" and "no answer within" in error(refused)


def test_memory_for_bodies_is_bounded(folder, packet):
    with running(Service({"tiny": folder}, memory_bytes=len(packet) + 10)) as url:
        assert ask(url, packet).status == 200
        refused = ask(url, packet + bytes(20))
        assert refused.status == 503 and refused.headers["Retry-After"] == "1"
        assert ask(url, packet).status == 200


def test_a_fault_is_not_shown_to_the_client(folder, packet, monkeypatch):
    def broken(*_):
        raise RuntimeError("a secret")

    monkeypatch.setattr(batching.Batcher, "submit", broken)
    with running(Service({"tiny": folder})) as url:
        refused = ask(url, packet)
        assert refused.status == 500 and "secret" not in error(refused)


def _garbage(rng: random.Random, packet: bytes) -> bytes:
    """A request that is wrong somewhere between its first letter and its last byte."""
    data = bytearray(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{HEAD_LENGTH}: 0\r\n".encode())
    data += f"Content-Length: {len(packet)}\r\n\r\n".encode() + packet
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(1, 500))
    for _ in range(rng.randrange(1, 6)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randrange(1, len(data) + 1)]) if rng.random() < 0.3 else bytes(data)


@pytest.mark.parametrize("n", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_garbage_leaves_nothing_behind(folder, packet, n):
    rng = random.Random(0)
    with running(Service({"tiny": folder})) as url:
        expected = outputs(ask(url, packet))["y"]
        for _ in range(n):
            with _connect(url) as connection:
                connection.sendall(_garbage(rng, packet))
                connection.shutdown(socket.SHUT_WR)
                assert b"HTTP/1.1 500" not in _rest(connection)
        assert (outputs(ask(url, packet))["y"] == expected).all()
        gc.collect()
        # This test's own connections are kept alive by urllib3; those of the garbage are gone.
        assert len([one for one in gc.get_objects() if type(one) is server.Patient]) <= 4


@pytest.mark.parametrize(
    "tokens, listen, message",
    [
        ((), {}, "give TLS .* and a token"),
        ((TOKEN,), {}, r"give TLS \(--certificate and --private-key\), or --insecure"),
        ((), {"certificate": "c.pem", "private_key": "k.pem"}, r"give a token \(--token-file\), or --insecure"),
        ((TOKEN,), {"certificate": "c.pem"}, "needs both --certificate and --private-key"),
    ],
)
def test_nobody_else_is_let_in_by_default(folder, tokens, listen, message):
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(BadInput, match=message):
            server.check(Service({"tiny": folder}, tokens=tokens), Listen(host, **listen))
    for host in ("127.0.0.1", "::1", "localhost"):
        server.check(Service({"tiny": folder}), Listen(host))
    server.check(Service({"tiny": folder}), Listen("0.0.0.0", insecure=True))
