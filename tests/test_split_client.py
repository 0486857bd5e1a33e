"""The device side: the same answers by every way, and what it does when the server is not there."""

import dataclasses
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

pytest.importorskip("uvicorn")

from click.testing import CliRunner

from edgekit import bundle, data
from edgekit.cli import main
from edgekit.errors import BadInput
from edgekit.files import read_json, write_json
from edgekit.split import artifact, credentials, device, models, policy, remote
from edgekit.split.app import Service
from edgekit.split.client import Client, Plan, stream
from edgekit.split.policy import Cost, Link
from edgekit.split.remote import Address, Away, Remote
from tests import split_bundles
from tests.split_server import TOKEN, running

QUICK = {"timeout_s": 5.0, "tries": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return split_bundles.make(tmp_path_factory.mktemp("split") / "tiny")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "d.npz"
    np.savez(path, x=rng.integers(0, 255, (40, 16, 16, 3), np.uint8), y=rng.integers(0, 4, 40))
    return path


@pytest.fixture(scope="module")
def url(folder):
    with running(Service({"tiny": folder})) as address:
        yield address


def _stream(folder, samples, url, plan, **address):
    near, said = device.load(folder), []
    client = Client(near, Remote(Address(url, "tiny", **(QUICK | address))), plan, said.append)
    return stream(client, near, data.load([f"test=npz:{samples}"]).role("test")), said


def test_every_way_gives_the_same_answers(folder, samples, url):
    found = {name: _stream(folder, samples, url, Plan(name))[0] for name in ("split", "device")}
    assert found["split"]["metrics"] == found["device"]["metrics"] and found["split"]["n"] == 40
    split, alone = found["split"]["ways"]["split"], found["device"]["ways"]["device"]
    assert set(split["parts"]) == {"head_ms", "code_ms", "wire_ms", "queue_ms", "run_ms"}
    assert 42 < split["sent_bytes"] < 384 and alone["sent_bytes"] == 0
    assert set(_stream(folder, samples, url, Plan("jpeg"))[0]["ways"]) == {"jpeg-90"}


@pytest.mark.parametrize("channels", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_a_picture_keeps_its_colours(folder, channels, format):
    input = data.Input(16, channels)
    near = dataclasses.replace(device.load(folder), input=input)
    down, across = np.mgrid[0:16, 0:16]
    planes = [down * 15, across * 15, 240 - down * 8][: input.shape[0]]
    pixels = np.stack(planes, -1)[None].astype(np.uint8)
    way = device.picture_way(near, format, 95)
    seen = input.resized(models.decoded(way.prepare(pixels).content)).transpose(1, 2, 0)
    assert np.abs(seen - pixels[0].astype(float)).mean() < 6 and way.name == f"{format.lower()}-95"


def test_answers_come_in_the_order_of_the_pictures(folder, samples, url):
    near = device.load(folder)
    client = Client(near, Remote(Address(url, "tiny"), 4), Plan("split", in_flight=4), print)
    camera = dataclasses.replace(near.input, form="uint8_nhwc")
    batches = list(data.load([f"test=npz:{samples}"]).role("test").batches(camera, 1))
    for (pixels, _, indices), (answered, _, same) in zip(batches, client.answers(iter(batches)), strict=True):
        assert indices == same and np.allclose(answered.output, near.answer(pixels), rtol=1e-5)


def test_without_a_server_the_device_answers_and_says_so(folder, samples):
    found, said = _stream(folder, samples, "http://127.0.0.1:9", Plan("split"), tries=0)
    assert found["ways"].keys() == {"device"} and found["n"] == 40
    assert len(said) == 1 and "127.0.0.1:9: gives no answer" in said[0] and "answers by itself" in said[0]


def test_without_a_server_and_a_whole_network_it_stops(tmp_path, samples):
    folder = split_bundles.make(tmp_path / "tiny", full=False)
    with pytest.raises(Away, match="gives no answer"):
        _stream(folder, samples, "http://127.0.0.1:9", Plan("auto"), tries=0)
    with pytest.raises(BadInput, match="has no whole network"):
        _stream(folder, samples, "http://127.0.0.1:9", Plan("device"))


@pytest.fixture
def far_end():
    """A server that answers as it is told: `answers` are statuses, and None to hang up; then it passes on."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        answers, seen = [], []

        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.seen.append(self.headers["X-Request-Id"])
            status, headers, body = self.answers.pop(0) if self.answers else (None, {}, b"")
            if status is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Handler
    server.shutdown()
    server.server_close()


def _answer(id: str) -> tuple[int, dict[str, str], bytes]:
    tensor = {"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
    head = json.dumps({"id": id, "outputs": [tensor]}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(head))}, head + np.float32([7]).tobytes()


def test_it_asks_again_under_the_same_name(far_end, monkeypatch):
    monkeypatch.setattr(remote, "LONGEST_PAUSE_S", 0)  # also of what the server asks for
    url, handler = far_end
    handler.answers = [(503, {"Retry-After": "86400"}, b""), (429, {}, b""), (None, {}, b""), _answer("")]
    handler.seen = []
    reply = Remote(Address(url, "tiny")).infer(b"packet")
    assert reply.outputs["y"] == [7] and reply.tries == 4
    assert len(handler.seen) == 4 and len(set(handler.seen)) == 1


@pytest.mark.parametrize(
    "answer, kind, message",
    [
        ((503, {}, b""), Away, r"has no time \(503\)"),
        ((None, {}, b""), Away, "gives no answer"),
        ((400, {}, b'{"error": "its CRC is wrong"}'), BadInput, "its CRC is wrong"),
        ((404, {}, b"<html>"), BadInput, "answered 404"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), BadInput, "answered 302"),
        ((200, {}, b"{}"), BadInput, "none of the Open Inference Protocol"),
        ((200, {"Inference-Header-Content-Length": "2"}, b"{}"), BadInput, "none of the Open Inference Protocol"),
        (_answer("another"), BadInput, "answered the request 'another'"),
        ((200, _answer("")[1], _answer("")[2] + b"?"), BadInput, "1 bytes more than its tensors"),
    ],
)
def test_an_answer_that_is_none(far_end, answer, kind, message):
    url, handler = far_end
    handler.answers = [answer] * 2
    with pytest.raises(kind, match=message):
        Remote(Address(url, "tiny", tries=0)).infer(b"packet")


def test_a_server_that_dies_in_the_middle(folder, samples):
    near, said, count = device.load(folder), [], 0
    batches = (
        data.load([f"test=npz:{samples}"]).role("test").batches(dataclasses.replace(near.input, form="uint8_nhwc"), 1)
    )
    with running(Service({"tiny": folder})) as url:
        asked = Remote(Address(url, "tiny", tries=0))
        answers = Client(near, asked, Plan("split", in_flight=1), said.append).answers(batches)
        ways = [next(answers)[0].way for _ in range(10)]
    for answered, _, _ in answers:
        ways.append(answered.way)
        count += answered.fell_back
    assert ways[:10] == ["split"] * 10 and ways[-20:] == ["device"] * 20 and len(ways) == 40
    assert 1 <= count <= 2 and len(said) == 1


def test_the_wrong_server_is_named(folder, samples, tmp_path):
    other = split_bundles.make(tmp_path / "other", seed=1)
    with running(Service({"tiny": other})) as url, pytest.raises(BadInput, match="is for the tail"):
        _stream(folder, samples, url, Plan("split"))


def test_a_token_is_not_shown_around(folder, samples):
    with pytest.raises(BadInput, match="would show the token"):
        Address("http://example.org", "tiny", "secret")
    assert "secret" not in repr(Address("http://127.0.0.1", "tiny", "secret"))
    for wrong in ("127.0.0.1:80", "ftp://127.0.0.1", "http://"):
        with pytest.raises(BadInput, match="http://HOST:PORT"):
            Address(wrong, "tiny")
    with running(Service({"tiny": folder}, tokens=(TOKEN,))) as url:
        assert _stream(folder, samples, url, Plan("split"), token=TOKEN.decode())[0]["fell_back"] == 0
        with pytest.raises(BadInput, match="wants a token"):
            _stream(folder, samples, url, Plan("split"), token="wrong")


def test_the_way_is_the_one_that_takes_least():
    costs = {"device": Cost(50.0), "split": Cost(10.0, 2_000, 5.0), "jpeg": Cost(1.0, 20_000, 20.0)}
    # At 1 ms of round trip: 15 + 1 + 2000 b < 50 up to b = 0.017 ms/byte; JPEG wins while 18000 b < -6 + 1, never here.
    for ms_per_byte, way in ((0.0001, "split"), (0.016, "split"), (0.018, "device")):
        assert policy.choose(costs, Link(1.0, ms_per_byte)) == way
    costs["split"].here_ms = 40.0  # a slow head: then 24 ms more than a JPEG's, who has 18,000 bytes more to send
    assert policy.choose(costs, Link(1.0, 0.001)) == "jpeg"
    assert policy.choose({**costs, "new": Cost()}, Link(1.0, 0.001)) == "new"


def test_the_link_is_learned_and_forgotten():
    link = Link()
    link.note_round_trip(20.0)
    for _ in range(40):
        link.note(1000, 120.0)
    assert link.ms(1000) == pytest.approx(120, rel=1e-3) and link.ms(500) == pytest.approx(70, rel=1e-3)
    for _ in range(40):
        link.note(1000, 30.0)
    assert link.ms(1000) == pytest.approx(30, rel=1e-2)
    link.note(1000, 1.0)  # quicker than the round trip: no negative rates
    assert link.ms_per_byte >= 0


def test_a_head_that_is_another(tmp_path):
    folder = split_bundles.make(tmp_path / "tiny")
    document = read_json(folder / artifact.FILE, artifact.SCHEMA)
    document["head"] = document["full"]
    write_json(folder / artifact.FILE, document)
    manifest = read_json(folder / bundle.MANIFEST, bundle.SCHEMA)
    manifest["files"] |= bundle.hashes(folder, [artifact.FILE])
    write_json(folder / bundle.MANIFEST, manifest)
    with pytest.raises(BadInput, match=r"gives y tensor\(float\) .* the latent is latent uint8 \(6, 8, 8\)"):
        device.load(folder)


def test_credentials_come_from_files_or_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "secret"
    assert credentials.tokens(None) == () and credentials.key(None) is None
    file.write_text(f"{'a' * 16}\n{'b' * 16}\n")
    assert credentials.tokens(file) == (b"a" * 16, b"b" * 16)
    monkeypatch.setenv("EDGEKIT_SPLIT_KEY", "00" * 16)
    assert credentials.key(None) == bytes(16)
    for text, message in (("zz" * 16, "16 bytes in hex"), ("00" * 15, "16 bytes in hex"), ("", "is empty")):
        file.write_text(text)
        with pytest.raises(BadInput, match=message):
            credentials.key(file)
    with pytest.raises(BadInput, match="cannot be read"):
        credentials.tokens(tmp_path / "nowhere")


def test_the_command(folder, samples, url):
    arguments = ["split", "run", str(folder), "--server", url, "--data", f"test=npz:{samples}"]
    found = CliRunner().invoke(main, [*arguments, "--policy", "split", "--json"])
    document = json.loads(found.stdout)
    assert found.exit_code == 0 and document["n"] == 40 and document["schema"] == "edgekit/split-run/1"
    shown = CliRunner().invoke(main, [*arguments, "--policy", "auto"])
    assert shown.exit_code == 0 and "40 pictures" in shown.output and "top1" in shown.output
