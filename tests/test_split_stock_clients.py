"""Stock clients talk to the server as it is: curl, and the Open Inference Protocol's own from Triton."""

import json
import shutil
import subprocess

import numpy as np
import pytest

pytest.importorskip("uvicorn")

from edgekit.split.app import Service
from edgekit.split.protocol import read_answer
from tests import split_bundles
from tests.split_server import TOKEN, latents, running, scores, wire


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return split_bundles.make(tmp_path_factory.mktemp("split") / "tiny")


@pytest.fixture(scope="module")
def url(folder):
    with running(Service({"tiny": folder}, tokens=(TOKEN,))) as address:
        yield address


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(folder, url, tmp_path):
    (latent,) = latents(1)
    file, head = tmp_path / "latent.packet", tmp_path / "headers"
    file.write_bytes(wire(folder).pack(latent))
    command = [
        "curl",
        "-sS",
        "-H",
        f"Authorization: Bearer {TOKEN.decode()}",
        "-H",
        "Inference-Header-Content-Length: 0",
    ]
    command += ["--data-binary", f"@{file}", "-D", str(head), f"{url}/v2/models/tiny/infer"]
    answer = subprocess.run(command, capture_output=True, check=True).stdout
    lines = dict(line.lower().split(": ") for line in head.read_text().splitlines() if ": " in line)
    found = read_answer(answer, lines["inference-header-content-length"])[1]["y"]
    assert np.allclose(found, scores(folder, latent[None]), rtol=1e-6)

    tensor = {"name": "packet", "datatype": "UINT8", "shape": [file.stat().st_size], "data": list(file.read_bytes())}
    file.write_text(json.dumps({"inputs": [tensor]}))
    command = ["curl", "-sS", "--oauth2-bearer", TOKEN.decode(), "-d", f"@{file}", f"{url}/v2/models/tiny/infer"]
    answer = subprocess.run(command, capture_output=True, check=True).stdout
    assert np.allclose(json.loads(answer)["outputs"][0]["data"], found[0], rtol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient(folder, url, binary):
    triton = pytest.importorskip("tritonclient.http")
    headers = {"Authorization": f"Bearer {TOKEN.decode()}"}
    (latent,) = latents(1)
    packet = np.frombuffer(wire(folder).pack(latent), np.uint8)
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny", headers=headers)
    assert client.get_server_metadata(headers=headers)["name"] == "edgekit"
    described = client.get_model_metadata("tiny", headers=headers)
    given = triton.InferInput(described["inputs"][0]["name"], packet.shape, described["inputs"][0]["datatype"])
    given.set_data_from_numpy(packet, binary_data=binary)
    wanted = triton.InferRequestedOutput("y", binary_data=binary)
    for outputs in ([wanted], None):
        found = client.infer("tiny", [given], outputs=outputs, request_id="7", headers=headers)
        assert np.allclose(found.as_numpy("y"), scores(folder, latent[None]), rtol=1e-6)
        assert found.get_response()["id"] == "7"
    given.set_data_from_numpy(np.append(packet[:-1], packet[-1] ^ 1).astype(np.uint8), binary_data=binary)
    with pytest.raises(pytest.importorskip("tritonclient.utils").InferenceServerException, match="its CRC is wrong"):
        client.infer("tiny", [given], headers=headers)
    client.close()
