"""The server answers as the tail does, in the Open Inference Protocol's words."""

import io
import json
import threading

import numpy as np
import pytest
import urllib3
from PIL import Image

pytest.importorskip("uvicorn")

from edgekit.data import Input
from edgekit.engines import engine
from edgekit.errors import BadInput
from edgekit.split import models
from edgekit.split.app import Service
from edgekit.split.repository import Limits
from tests import split_bundles
from tests.split_server import TOKEN, ask, error, latents, outputs, post, running, scores, wire, with_head

INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return split_bundles.make(tmp_path_factory.mktemp("split") / "tiny")


@pytest.fixture(scope="module")
def url(folder):
    with running(Service({"tiny": folder})) as address:
        yield address


def get(url, path):
    found = urllib3.request("GET", url + path, retries=False, timeout=20)
    return found.status, json.loads(found.data) if found.data else None


def test_it_tells_what_it_is(url, folder):
    assert get(url, "/v2/health/live") == get(url, "/v2/health/ready") == (200, None)
    assert get(url, "/v2")[1]["extensions"] == ["binary_tensor_data"]
    version = wire(folder).model_hash.hex()
    assert get(url, "/v2/models/tiny") == (
        200,
        {
            "name": "tiny",
            "versions": [version],
            "platform": "onnx_onnxruntime",
            "inputs": [{"name": "packet", "datatype": "UINT8", "shape": [-1]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
        },
    )
    assert get(url, f"/v2/models/tiny/versions/{version}/ready") == (200, None)


def test_packets_get_what_the_tail_answers(url, folder):
    batch = latents(3)
    for latent, expected in zip(batch, scores(folder, batch)):
        response = ask(url, wire(folder).pack(latent))
        assert outputs(response)["y"].shape == (1, 4)
        assert np.allclose(outputs(response)["y"][0], expected, rtol=1e-6)
        assert json.loads(response.data[: int(response.headers["Inference-Header-Content-Length"])])["id"] == "some-id"
        assert response.headers["Server-Timing"].startswith("queue;dur=")


def test_tensors_come_as_json_as_binary_or_alone(url, folder):
    (latent,) = latents(1)
    packet = wire(folder).pack(latent)
    tensor = {"name": "packet", "datatype": "UINT8", "shape": [len(packet)], "data": list(packet)}
    listed = json.loads(post(url, INFER, json.dumps({"id": "7", "inputs": [tensor]}).encode()).data)
    body, headers = with_head(packet)
    binary = json.loads(post(url, INFER, body, **headers).data)
    assert listed == binary and listed["id"] == "7" and listed["outputs"][0]["shape"] == [1, 4]
    assert np.allclose(listed["outputs"][0]["data"], scores(folder, latent[None])[0], rtol=1e-6)
    assert listed["outputs"][0]["data"] == outputs(ask(url, packet))["y"][0].tolist()


def test_an_output_comes_as_it_is_asked_for(url, folder):
    (latent,) = latents(1)
    packet = wire(folder).pack(latent)
    tensor = {"name": "packet", "datatype": "UINT8", "shape": [len(packet)], "data": list(packet)}
    wanted = [{"name": "y", "parameters": {"binary_data": True}}]
    answer = post(url, INFER, json.dumps({"inputs": [tensor], "outputs": wanted}).encode())
    assert np.allclose(outputs(answer)["y"], scores(folder, latent[None]), rtol=1e-6)
    answer = post(url, INFER, json.dumps({"inputs": [tensor], "outputs": [{"name": "z"}]}).encode())
    assert answer.status == 400 and "there is no 'z'; the model gives y" in error(answer)


def test_pictures_go_to_the_whole_network(url, folder):
    picture = np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    x = Input(**split_bundles.INPUT).apply(models.decoded(file.getvalue()))
    expected = engine("onnxruntime").load(folder / "model.onnxruntime.fp32.onnx", 1).run(x[None])
    assert np.allclose(outputs(ask(url, file.getvalue(), "tiny-full"))["y"], expected, rtol=1e-6)


def test_a_picture_is_counted_before_it_is_decoded(url, monkeypatch):
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG")
    monkeypatch.setattr(models, "MOST_PIXELS", 64 * 63)
    refused = ask(url, file.getvalue(), "tiny-full")
    assert refused.status == 400 and "4,096 pixels" in error(refused)
    with pytest.raises(BadInput, match="has 4,194,305 bytes; at most 4,194,304"):
        models.decoded(bytes(2**22 + 1))
    assert "no JPEG or WEBP" in error(ask(url, b"\x89PNG" + file.getvalue(), "tiny-full"))


def test_requests_at_one_time_share_batches_and_none_is_mixed_up(folder):
    batch, answers = latents(24, seed=1), {}
    with running(Service({"tiny": folder}, Limits(batch=8, delay_ms=50))) as url:

        def one(index):
            answers[index] = outputs(ask(url, wire(folder).pack(batch[index])))["y"][0]

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(batch))]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        text = urllib3.request("GET", url + "/metrics").data.decode()
    assert np.allclose([answers[index] for index in range(24)], scores(folder, batch), rtol=1e-5)
    assert 'edgekit_split_requests_total{model="tiny",status="200"} 24.0' in text
    runs = float(text.split('edgekit_split_batch_sum{model="tiny"} ')[1].split()[0]) / 24
    assert runs > 1.5  # the mean batch that a request was in


def test_only_who_has_a_token_is_heard(folder):
    packet = wire(folder).pack(latents(1)[0])
    with running(Service({"tiny": folder}, tokens=(TOKEN, b"another-token-of-the-tests"))) as url:
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN.decode()}"}):
            refused = ask(url, packet, **wrong)
            assert refused.status == 401 and "wants a token" in error(refused)
        assert ask(url, packet, Authorization=f"Bearer {TOKEN.decode()}").status == 200
        assert get(url, "/v2/health/ready")[0] == 200
        assert get(url, "/metrics")[0] == get(url, "/v2")[0] == 401


def test_packets_of_strangers_are_refused(folder):
    key = bytes(range(32))
    with running(Service({"tiny": folder}, key=key)) as url:
        assert ask(url, wire(folder, key).pack(latents(1)[0])).status == 200
        refused = ask(url, wire(folder).pack(latents(1)[0]))
        assert refused.status == 400 and "no HMAC" in error(refused)
