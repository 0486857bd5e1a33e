"""A server of the tiny cut network in a thread of the test, on a port of its own."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator

import numpy as np
import urllib3
from uvicorn import Server

from edgekit.bundle import open_bundle
from edgekit.engines import engine
from edgekit.split import artifact, models, protocol
from edgekit.split.app import Service
from edgekit.split.server import Listen, bind, config
from tests import split_bundles

TOKEN = b"a-token-of-the-tests"


@contextlib.contextmanager
def running(service: Service, listen: Listen | None = None) -> Iterator[str]:
    """Yields the address, e.g. http://127.0.0.1:40000; waits for what was accepted at the end."""
    listen = listen or Listen(port=0)
    with bind(listen) as bound:
        server = Server(config(service, listen))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            limit = time.monotonic() + 30
            while not server.started and thread.is_alive() and time.monotonic() < limit:
                time.sleep(0.01)
            assert server.started
            yield f"{'https' if listen.certificate else 'http'}://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def wire(folder, key=None):
    return models.wire_of(artifact.read(open_bundle(folder)), key)


def latents(n: int, seed: int = 0) -> np.ndarray:
    """uint8 (n, C, H, W)"""
    return np.random.default_rng(seed).integers(0, split_bundles.LEVELS, (n, *split_bundles.SHAPE), np.uint8)


def scores(folder, batch: np.ndarray) -> np.ndarray:
    """What ONNX Runtime answers when it is called directly."""
    return engine("onnxruntime").load(folder / "tail.onnxruntime.fp32.onnx", 1).run(batch)


def post(url: str, path: str, body: bytes, **headers: str):
    """The answer: status, headers, data."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return urllib3.request("POST", url + path, body=body, headers=sent, retries=False, timeout=20)


def ask(url: str, packet: bytes, name: str = "tiny", **headers: str):
    """An inference by the shortest form."""
    return post(url, f"/v2/models/{name}/infer", packet, **protocol.headers("some-id"), **headers)


def with_head(packet: bytes, **changes) -> tuple[bytes, dict[str, str]]:
    """A body by the binary extension, and its header."""
    tensor = {"name": "packet", "datatype": "UINT8", "shape": [len(packet)]}
    tensor |= {"parameters": {"binary_data_size": len(packet)}} | changes
    head = json.dumps({"id": "7", "inputs": [tensor]}).encode()
    return head + packet, {protocol.HEAD_LENGTH: str(len(head))}


def outputs(response) -> dict[str, np.ndarray]:
    assert response.status == 200, response.data
    return protocol.read_answer(response.data, response.headers[protocol.HEAD_LENGTH])[1]


def error(response) -> str:
    return json.loads(response.data)["error"]
