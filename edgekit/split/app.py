"""The server's routes: the Open Inference Protocol over the models of a repository, and its metrics.

Nothing here computes: inputs are read and run in the repository's threads, so the event loop stays free.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgekit import __version__
from edgekit.errors import BadInput
from edgekit.split import protocol
from edgekit.split.batching import Answer, Busy
from edgekit.split.metrics import Metrics
from edgekit.split.models import Model
from edgekit.split.packet import WrongModel
from edgekit.split.repository import Limits, NotServed, Repository, Served

RETRY_AFTER_S = 1
WATCH_S = 2.0
log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]


@dataclasses.dataclass(frozen=True)
class Service:
    """What is served and within which bounds.

    paths: bundles by the names of their models.
    tokens: whoever sends one of them is heard; with none everybody is.
    key: of the packets' HMAC.
    read_s: how long a request's body may take to arrive; answer_s: its answer, once it is there.
    memory_bytes: of all bodies that are held at once.
    """

    paths: Mapping[str, Path]
    limits: Limits = dataclasses.field(default_factory=Limits)
    tokens: tuple[bytes, ...] = dataclasses.field(default=(), repr=False)
    key: bytes | None = dataclasses.field(default=None, repr=False)
    read_s: float = 10.0
    answer_s: float = 10.0
    memory_bytes: int = 2**27


class Refused(Exception):
    """A request that is not answered. again: whether it may be sent again later. read: whether its body was."""

    def __init__(self, status: int, message: str, again: bool = False, read: bool = True) -> None:
        super().__init__(message)
        self.status, self.again, self.read = status, again, read


def create_app(service: Service) -> Starlette:
    """The ASGI application; it loads its bundles when it starts, and ends when all it took in is answered."""
    server = _Server(service)
    model = "/v2/models/{model}"
    routes = [
        Route("/v2/health/{what:str}", _guarded(server.health)),
        Route("/v2", _guarded(server.about, service)),
        Route("/metrics", _guarded(server.metrics, service)),
    ]
    for prefix in (model, model + "/versions/{version}"):
        routes += [
            Route(prefix, _guarded(server.metadata, service)),
            Route(prefix + "/ready", _guarded(server.model_ready, service)),
            Route(prefix + "/infer", _guarded(server.infer, service), methods=["POST"]),
        ]
    return Starlette(routes=routes, lifespan=server.lifespan)


def _guarded(handler: Handler, service: Service | None = None) -> Handler:
    """The handler for those who have a token, if a service is given, with its errors as answers."""

    async def guarded(request: Request) -> Response:
        try:
            if service is not None:
                _check_token(request, service.tokens)
            return await handler(request)
        except Exception as error:
            return _refusal(error)

    return guarded


def _check_token(request: Request, tokens: tuple[bytes, ...]) -> None:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    sent = given.strip().encode() if scheme.lower() == "bearer" else b""
    # All are compared, each in constant time, so that the time says nothing of which was how near.
    if tokens and not sum(hmac.compare_digest(sent, token) for token in tokens):
        raise Refused(401, "this server wants a token: send 'Authorization: Bearer TOKEN'", read=False)


def _refusal(error: Exception) -> Response:
    refused = _as_refused(error)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if refused.again else {}
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if not refused.read:
        headers["Connection"] = "close"  # or all that is still coming would have to be read
    return JSONResponse({"error": str(refused)}, refused.status, headers)


def _as_refused(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(429, "too many requests wait; try again later", again=True)
    for kind, status in ((NotServed, 404), (WrongModel, 409), (BadInput, 400)):
        if isinstance(error, kind):
            return Refused(status, str(error))
    if isinstance(error, ClientDisconnect):
        return Refused(400, "the client went away")
    log.error("a request failed", exc_info=error)
    return Refused(500, "this is a fault of the server; its log has more")


class _Server:
    def __init__(self, service: Service) -> None:
        self._service, self._metrics = service, Metrics()
        self._held_bytes = 0

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        service = self._service
        self._repository = Repository(service.paths, service.limits, service.key)
        await self._repository.refresh()
        watch = asyncio.create_task(self._repository.watch(WATCH_S))
        yield
        watch.cancel()
        await self._repository.close()

    async def health(self, request: Request) -> Response:
        if request.path_params["what"] not in ("live", "ready"):
            raise Refused(404, "there is /v2/health/live and /v2/health/ready")
        return Response()  # what is not ready does not listen yet

    async def about(self, _request: Request) -> Response:
        return JSONResponse({"name": "edgekit", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def metrics(self, _request: Request) -> Response:
        return Response(self._metrics.exposition(), media_type=self._metrics.content_type)

    async def metadata(self, request: Request) -> Response:
        found = self._find(request).model
        return JSONResponse(
            {
                "name": found.name,
                "versions": self._repository.versions(found.name),
                "platform": "onnx_onnxruntime",
                "inputs": [dataclasses.asdict(found.input)],
                "outputs": [dataclasses.asdict(one) for one in found.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        self._find(request)
        return Response()

    def _find(self, request: Request, content: bytes | None = None) -> Served:
        given = request.path_params
        return self._repository.find(given["model"], given.get("version"), content)

    async def infer(self, request: Request) -> Response:
        name = request.path_params["model"]
        try:
            response = await self._infer(request)
        except Exception as error:
            response = _refusal(error)
        self._metrics.request(name if name in self._repository.names else "", response.status_code)
        return response

    async def _infer(self, request: Request) -> Response:
        model = self._find(request).model
        size = _body_bytes(request, protocol.most_body_bytes(model.most_bytes))
        if self._held_bytes + size > self._service.memory_bytes:
            raise Refused(503, "too much is being received; try again later", again=True, read=False)
        self._held_bytes += size
        try:
            body = await self._body(request, size)
            return await self._answer(request, model, body)
        finally:
            self._held_bytes -= size

    async def _body(self, request: Request, size: int) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._service.read_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > size:
                        raise Refused(400, f"the body is longer than its Content-Length, {size}", read=False)
        except TimeoutError:
            raise Refused(408, f"{len(body)} of {size} bytes came in {self._service.read_s} s", read=False) from None
        return bytes(body)

    async def _answer(self, request: Request, model: Model, body: bytes) -> Response:
        head_length, id = request.headers.get(protocol.HEAD_LENGTH), request.headers.get(protocol.REQUEST_ID, "")
        asked = protocol.parse(body, head_length, model.input, id)
        served = self._find(request, asked.content)
        wanted = asked.wanted([one.name for one in served.model.outputs])
        answer = await self._submitted(served, asked.content)
        name, version = served.model.name, served.model.version
        content, headers = protocol.answer(name, version, asked.id, answer.value, wanted)
        self._metrics.inference(name, len(asked.content), answer.queue_ms, answer.run_ms, answer.batch)
        timing = f"queue;dur={answer.queue_ms:.3f}, run;dur={answer.run_ms:.3f}"
        return Response(content, headers={**headers, "Server-Timing": timing})

    async def _submitted(self, served: Served, content: bytes) -> Answer:
        try:
            async with asyncio.timeout(self._service.answer_s):
                answer = await served.batcher.submit(content)
        except TimeoutError:
            raise Refused(503, f"no answer within {self._service.answer_s} s; try again later", again=True) from None
        if isinstance(answer.value, BadInput):
            raise answer.value
        return answer


def _body_bytes(request: Request, most: int) -> int:
    """How long the body is going to be. Raises Refused where nobody knows, or it is too long."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "bodies are taken as they are, without Content-Encoding", read=False)
    length = request.headers.get("content-length", "")
    if not length.isascii() or not length.isdigit():
        raise Refused(411, "send the body in one piece, with its Content-Length", read=False)
    if len(length) > 12 or int(length) > most:
        raise Refused(413, f"the body has {length[:20]} bytes; this model's have at most {most}", read=False)
    return int(length)
