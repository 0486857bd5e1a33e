"""`edgekit split serve`: the application behind uvicorn, in one process or several that share a socket.

uvicorn bounds neither how long a request's head may take nor how long it may be, so `Patient` does. On SIGTERM it takes
no new connection, answers what it has taken in, and ends. A worker that dies is replaced; its clients try again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import signal
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import Multiprocess

from edgekit.errors import BadInput
from edgekit.split.app import RETRY_AFTER_S, Service, create_app
from edgekit.split.hosts import is_loopback
from edgekit.split.metrics import SHARED
from edgekit.split.models import load

HEAD_S = 10.0
MOST_HEAD_BYTES = 2**15
MOST_CONNECTIONS = 512
IDLE_S = 30
GRACE_S = 30
BACKLOG = 128
LOG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(process)d %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        "edgekit.split": {"level": "INFO", "handlers": ["stderr"]},
        "uvicorn": {"level": "ERROR", "handlers": ["stderr"]},
    },
}
FULL = (
    f"HTTP/1.1 503 Service Unavailable\r\nRetry-After: {RETRY_AFTER_S}\r\n"
    "Content-Length: 0\r\nConnection: close\r\n\r\n"
).encode()


@dataclasses.dataclass(frozen=True)
class Listen:
    """Where a server listens and who may hear it.

    certificate, private_key: PEM files for TLS.
    insecure: whether it may be heard beyond this machine without TLS or without tokens.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    certificate: Path | None = None
    private_key: Path | None = None
    insecure: bool = False


class Patient(HttpToolsProtocol):
    """uvicorn's protocol with bounds on a request's head and on the number of connections."""

    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._expect_head()
        if len(self.connections) > MOST_CONNECTIONS:
            transport.write(FULL)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_there()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        if self.cycle.more_body and not self.pipeline:  # answered before all was read: the rest is not waited for
            self.transport.close()
        super().on_response_complete()

    def shutdown(self) -> None:
        """The server ends. An idle connection is cut: over TLS a polite end would wait for the client's."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().shutdown()

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._timer = self.loop.call_later(HEAD_S, self.transport.abort)

    def _head_is_there(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def check(service: Service, listen: Listen) -> None:
    """Raises BadInput where the server would be heard by more than it should, or has nothing to serve."""
    if not service.paths:
        raise BadInput("give at least one bundle to serve")
    if (listen.certificate is None) != (listen.private_key is None):
        raise BadInput("TLS needs both --certificate and --private-key")
    missing = [
        *([] if listen.certificate else ["TLS (--certificate and --private-key)"]),
        *([] if service.tokens else ["a token (--token-file)"]),
    ]
    if missing and not listen.insecure and not is_loopback(listen.host):
        raise BadInput(
            f"{listen.host} is heard beyond this machine: give {' and '.join(missing)}, or --insecure where something "
            "in front of the server sees to that"
        )


def bind(listen: Listen) -> socket.socket:
    """The socket to listen on. Raises BadInput where the address cannot be had."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    # asyncio sends small writes at once (TCP_NODELAY) only on sockets that say TCP; others wait 40 ms for an answer.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((listen.host, listen.port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise BadInput(f"{listen.host}:{listen.port}: cannot listen there ({error.strerror or error})") from None
    return bound


def config(service: Service, listen: Listen) -> Config:
    """uvicorn's configuration. Raises BadInput where the certificate cannot be used."""
    if listen.certificate:
        _check_certificate(listen.certificate, listen.private_key)
    return Config(
        functools.partial(create_app, service),
        factory=True,
        http=Patient,
        ws="none",
        lifespan="on",
        workers=listen.workers,
        log_config=LOG,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
        ssl_certfile=listen.certificate,
        ssl_keyfile=listen.private_key,
    )


def _check_certificate(certificate: Path, private_key: Path | None) -> None:
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(f"{certificate}, {private_key}: cannot be used for TLS ({error})") from None


def serve(service: Service, listen: Listen, say: Callable[[str], Any]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        say: told the address once the bundles are known to be sound.

    Raises:
        BadInput: a bundle, the address or the certificate cannot be used.
    """
    check(service, listen)
    made = config(service, listen)
    for name, path in service.paths.items():  # here, where an error is the command's; workers would die of it
        load(name, path, service.key, service.limits.threads)
    with bind(listen) as bound:
        scheme = "https" if listen.certificate else "http"
        host, port = bound.getsockname()[:2]
        say(f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        if listen.workers == 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn raises it again when all is answered
            Server(made).run([bound])
        else:
            _serve_by_workers(made, bound)


def _serve_by_workers(made: Config, bound: socket.socket) -> None:
    with tempfile.TemporaryDirectory(prefix="edgekit-metrics-") as folder:
        os.environ[SHARED] = folder
        try:
            Multiprocess(made, [bound]).run()
        finally:
            del os.environ[SHARED]
