"""The Open Inference Protocol, version 2, over HTTP: what a request for inference says and how an answer is written.

KServe's and Triton's, with the binary tensor extension: a JSON head, then the bytes of tensors, little-endian, the
head's length in `Inference-Header-Content-Length`. A length of 0 means no head: all of the body is the one input, the
answer is binary, and the request's id stands in `X-Request-Id`, which is an addition of ours.
Every model here takes one UINT8 tensor [n]: a packet, or an encoded picture.
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.errors import BadInput

HEAD_LENGTH = "Inference-Header-Content-Length"
REQUEST_ID = "X-Request-Id"
DATATYPES: dict[np.dtype[Any], str] = {
    np.dtype(dtype): name
    for name, dtype in {
        "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
        "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
        "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
    }.items()
}  # fmt: skip
DTYPES = {name: dtype for dtype, name in DATATYPES.items()}
MOST_ID_LETTERS = 256
HEAD_BYTES = 2**14
JSON_BYTES_A_VALUE = 5
"""A byte as JSON: three digits, a comma and, as Python writes it, a space."""
MOST_JSON_BYTES = 2**20
"""What is longer must come as binary; reading it as JSON would keep all other requests waiting."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """An input or output as metadata shows it; -1 in `shape` is a free size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Request:
    """What a client asks. outputs: the wanted ones and whether as binary; None for all of them, `binary` or not."""

    id: str
    content: bytes
    outputs: dict[str, bool] | None
    binary: bool

    def wanted(self, known: Sequence[str]) -> dict[str, bool]:
        """The outputs to answer with, and which of them as binary. Raises BadInput for one that is not there."""
        if self.outputs is None:
            return dict.fromkeys(known, self.binary)
        unknown = next((name for name in self.outputs if name not in known), None)
        if unknown is not None:
            raise BadInput(f"outputs: there is no {unknown!r}; the model gives {', '.join(known)}")
        return self.outputs


def most_body_bytes(content_bytes: int) -> int:
    """The longest body that is taken for an input of at most so many bytes."""
    return HEAD_BYTES + max(content_bytes, min(JSON_BYTES_A_VALUE * content_bytes, MOST_JSON_BYTES))


def parse(body: bytes, head_length: str | None, spec: Spec, id: str = "") -> Request:
    """A request's body.

    Args:
        head_length: the header of that name; None where all of the body is JSON.
        spec: of the model's one input.
        id: of a request without a head.

    Raises:
        BadInput: it is no such request; the message says where.
    """
    if head_length is None:
        return _request(_json(body), b"", spec)
    if not head_length.isascii() or not head_length.isdigit() or int(head_length[:12]) > len(body):
        raise BadInput(f"{HEAD_LENGTH} is {head_length[:20]!r}; the body has {len(body)} bytes")
    length = int(head_length)
    if length == 0:
        return Request(id[:MOST_ID_LETTERS], body, None, True)
    return _request(_json(body[:length]), body[length:], spec)


def _json(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the body is no JSON ({str(error)[:100]})") from None
    if not isinstance(found, dict):
        raise BadInput("the body must be a JSON object with inputs")
    return found


def _request(head: dict[str, Any], rest: bytes, spec: Spec) -> Request:
    id, inputs = head.get("id", ""), head.get("inputs")
    if not isinstance(id, str) or len(id) > MOST_ID_LETTERS:
        raise BadInput(f"id must be a string of at most {MOST_ID_LETTERS} letters")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadInput(f"inputs must be a list of one tensor, {spec.name!r}")
    outputs, binary = head.get("outputs"), _flag(head, "binary_data_output")
    return Request(id, _content(inputs[0], rest, spec), _outputs(outputs, binary), binary)


def _content(tensor: dict[str, Any], rest: bytes, spec: Spec) -> bytes:
    """The bytes of the one input."""
    for key, wanted in (("name", spec.name), ("datatype", spec.datatype)):
        if tensor.get(key) != wanted:
            raise BadInput(f"inputs[0].{key} is {str(tensor.get(key))[:40]!r}; the model takes {wanted!r}")
    size = _parameters(tensor).get("binary_data_size")
    if (size is None) == ("data" not in tensor):
        raise BadInput("inputs[0] must have either data or parameters.binary_data_size")
    if size is not None and size != len(rest):
        raise BadInput(f"inputs[0] has binary_data_size {str(size)[:20]}; after the head come {len(rest)} bytes")
    if size is None and rest:
        raise BadInput(f"after the head come {len(rest)} bytes that belong to no input")
    content = rest if size is not None else _listed(tensor["data"])
    if tensor.get("shape") != [len(content)]:
        raise BadInput(f"inputs[0].shape is {str(tensor.get('shape'))[:40]}; the data has the shape [{len(content)}]")
    return content


def _listed(data: Any) -> bytes:
    # bytes() alone would take a whole number for a size, and allocate it.
    if not isinstance(data, list) or not all(type(value) is int and 0 <= value <= 255 for value in data):
        raise BadInput("inputs[0].data must be a flat list of whole numbers from 0 to 255")
    return bytes(data)


def _outputs(outputs: Any, binary: bool) -> dict[str, bool] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list) or not all(isinstance(one, dict) and "name" in one for one in outputs):
        raise BadInput("outputs must be a list of objects with a name")
    return {str(one["name"]): _flag(one, "binary_data", binary) for one in outputs}


def _flag(holder: dict[str, Any], name: str, default: bool = False) -> bool:
    value = _parameters(holder).get(name, default)
    if not isinstance(value, bool):
        raise BadInput(f"parameters.{name} must be true or false")
    return value


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    found = holder.get("parameters", {})
    if not isinstance(found, dict):
        raise BadInput("parameters must be an object")
    return found


def answer(
    model: str, version: str, id: str, outputs: Mapping[str, np.ndarray], wanted: Mapping[str, bool]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer and its headers."""
    described, tail = [], []
    for name, binary in wanted.items():
        array = outputs[name]
        one: dict[str, Any] = {"name": name, "datatype": DATATYPES[array.dtype], "shape": list(array.shape)}
        if binary:
            tail.append(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
            one["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            # JSON has no NaN and no infinity.
            one["data"] = np.where(np.isfinite(array), array, np.array(None)).reshape(-1).tolist()
        described.append(one)
    head = json.dumps({"model_name": model, "model_version": version, "id": id, "outputs": described}).encode()
    if not tail:
        return head, {"Content-Type": "application/json"}
    return b"".join((head, *tail)), {"Content-Type": "application/octet-stream", HEAD_LENGTH: str(len(head))}


def headers(id: str) -> dict[str, str]:
    """Those of a request whose body is the input alone: the shortest form, and a retry shows by the id."""
    return {"Content-Type": "application/octet-stream", HEAD_LENGTH: "0", REQUEST_ID: id}


def read_answer(body: bytes, head_length: str | None) -> tuple[str, dict[str, np.ndarray]]:
    """The id and the outputs of an answer whose outputs are all binary; the inverse of `answer`.

    Raises:
        BadInput: it is no such answer.
    """
    try:
        length = int(head_length or "")
        head, outputs = json.loads(body[:length]), {}
        for one in head["outputs"]:
            size = one["parameters"]["binary_data_size"]
            dtype = DTYPES[one["datatype"]].newbyteorder("<")
            outputs[one["name"]] = np.frombuffer(body[length : length + size], dtype).reshape(one["shape"])
            length += size
        if length != len(body):
            raise ValueError(f"{len(body) - length} bytes more than its tensors take")
        return head.get("id", ""), outputs
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadInput(f"the server's answer is none of the Open Inference Protocol ({error!r:.100})") from None
