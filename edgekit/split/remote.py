"""The far end as a device sees it: one model of a server, over HTTP, asked again where that can help.

Inference changes nothing at the server, so every request may be sent again; all tries of one carry the same id. A
connection that broke, 429 and 5xx with Retry-After are tried again, with growing pauses; what the server calls wrong is
not.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import urllib3
from urllib3.exceptions import HTTPError, LocationValueError
from urllib3.util import Retry, Timeout

from edgekit.errors import BadInput, EdgekitError
from edgekit.split import protocol
from edgekit.split.hosts import is_loopback

AGAIN = (429, 502, 503, 504)
PAUSE_S, LONGEST_PAUSE_S = 0.1, 2


class Away(EdgekitError):
    """The server cannot be reached, or has no time, after all tries."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a model is served and how to get there.

    token: sent as a bearer token. ca: PEM of the authority that the server's certificate is from.
    insecure: whether a token may go over plain HTTP to another machine.
    timeout_s: of each try, to connect and between bytes. tries: after the first.
    """

    url: str
    model: str
    token: str | None = dataclasses.field(default=None, repr=False)
    ca: Path | None = None
    insecure: bool = False
    timeout_s: float = 10.0
    tries: int = 5

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(f"{self.url}: write the server as http://HOST:PORT or https://HOST:PORT")
        if self.token and parts.scheme == "http" and not self.insecure and not is_loopback(parts.hostname):
            raise BadInput(f"{self.url}: would show the token to everybody on the way; use https://, or --insecure")


class Reply(NamedTuple):
    """An answer and where its time went. wire_ms: all that was not the server's waiting or computing."""

    outputs: dict[str, np.ndarray]
    wire_ms: float
    queue_ms: float
    run_ms: float
    tries: int


class Remote:
    """Asks one server; may be used from several threads."""

    def __init__(self, address: Address, connections: int = 1) -> None:
        self._address, self._url = address, address.url.rstrip("/")
        headers = {"Authorization": f"Bearer {address.token}"} if address.token else {}
        retries = Retry(
            address.tries, allowed_methods=None, status_forcelist=AGAIN, raise_on_status=False,
            backoff_factor=PAUSE_S, backoff_max=LONGEST_PAUSE_S, backoff_jitter=PAUSE_S,
            retry_after_max=LONGEST_PAUSE_S, redirect=False,
        )  # fmt: skip
        self._headers = headers
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            retries=retries,
            timeout=Timeout(address.timeout_s),
            ca_certs=str(address.ca) if address.ca else None,
        )

    def infer(self, content: bytes, suffix: str = "") -> Reply:
        """What the model answers to an input.

        Args:
            suffix: of the model's name.

        Raises:
            Away: no answer, after all tries.
            BadInput: the server calls the request wrong, or its answer is none.
        """
        id = uuid.uuid4().hex
        began = time.perf_counter()
        headers = {**self._headers, **protocol.headers(id)}
        response = self._request("POST", f"/v2/models/{self._address.model}{suffix}/infer", content, headers)
        total_ms = 1e3 * (time.perf_counter() - began)
        found, outputs = protocol.read_answer(response.data, response.headers.get(protocol.HEAD_LENGTH))
        if found not in ("", id):  # a server of another make may not know of it
            raise BadInput(f"{self._url}: answered the request {found[:40]!r}; {id!r} was asked")
        queue_ms, run_ms = _server_ms(response.headers.get("Server-Timing", ""))
        tries = 1 + len(response.retries.history if response.retries else ())
        return Reply(outputs, total_ms - queue_ms - run_ms, queue_ms, run_ms, tries)

    def round_trip_ms(self) -> float:
        """How long the smallest question takes. Raises Away."""
        began = time.perf_counter()
        self._request("GET", "/v2/health/live")
        return 1e3 * (time.perf_counter() - began)

    def versions(self, suffix: str = "") -> list[str]:
        """Those of the model that are served, newest first. Raises Away; BadInput where there is no such model."""
        response = self._request("GET", f"/v2/models/{self._address.model}{suffix}", headers=self._headers)
        try:
            return [str(version) for version in json.loads(response.data)["versions"]]
        except (ValueError, KeyError, TypeError):
            raise BadInput(f"{self._url}: its answer is none of the Open Inference Protocol") from None

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        try:
            response = self._pool.request(method, self._url + path, body=body, headers=headers)
        except LocationValueError as error:
            raise BadInput(f"{self._url}: {error}") from None
        except HTTPError as error:
            raise Away(f"{self._url}: gives no answer ({_reason(error)})") from None
        if response.status in AGAIN:
            raise Away(f"{self._url}: has no time ({response.status})")
        if response.status != 200:
            raise BadInput(f"{self._url}: {_message(response)}")
        return response


def _reason(error: Any) -> str:
    return str(getattr(error, "reason", None) or error).split("object at")[-1][:200]


def _message(response: urllib3.BaseHTTPResponse) -> str:
    try:
        return str(json.loads(response.data)["error"])[:500]
    except (ValueError, KeyError, TypeError):
        return f"answered {response.status} to a request of the Open Inference Protocol"


def _server_ms(timing: str) -> tuple[float, float]:
    """Milliseconds that a request waited and ran, from `Server-Timing`; 0 for what is not said."""
    parts = {"queue": 0.0, "run": 0.0}
    for entry in timing.split(","):
        name, _, duration = entry.strip().partition(";dur=")
        if name in parts and duration.replace(".", "", 1).isdigit():
            parts[name] = float(duration)
    return parts["queue"], parts["run"]
