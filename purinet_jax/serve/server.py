"""The running server: its socket, its token and its end. SIGTERM and Ctrl-C let it finish the requests in progress."""

import asyncio
import os
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from purinet_jax import interrupts
from purinet_jax.errors import InputError
from purinet_jax.files import read_bytes, reason
from purinet_jax.serve.app import make_app
from purinet_jax.serve.guard import without_port
from purinet_jax.serve.refusals import MAX_HEAD_BYTES, Limits
from purinet_jax.serve.worker import Worker

_TOKEN_VARIABLE = "PURINET_TOKEN"

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""Names of the loopback, which other machines cannot reach, as in a URL."""

# Further connections are refused at once; each takes a file descriptor, of which processes often have 1,024.
_CONNECTIONS = 512
# What a client may take for the head of a request, so that silent connections do not use them up.
_HEAD_SECONDS = 10.0


def read_token(file: Path | None) -> str | None:
    """Returns the token that requests need: a file's, else that of the environment (`PURINET_TOKEN`), else None.

    Raises InputError if the file cannot be read, or the token is empty, of several words or not ASCII.
    """
    try:  # editors of Windows write a byte order mark
        text = os.environ.get(_TOKEN_VARIABLE) if file is None else read_bytes(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        text = ""
    token = None if text is None else text.strip()
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise InputError(f"{file or _TOKEN_VARIABLE}: holds no token; one is a line of ASCII letters and digits")
    return token


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket, so that a port in use is reported before the network is loaded.

    Raises InputError if the host has no such address, or the port is in use or not allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:  # UnicodeError: not a name of a host
        raise InputError(f"{host}:{port}: cannot listen there: {reason(error)}") from error


def in_url(host: str) -> str:
    """Returns a host as a URL writes it."""
    return f"[{host}]" if ":" in host else host


class _Protocol(H11Protocol):
    """uvicorn's, which also closes a connection whose request's head is not complete within `_HEAD_SECONDS`."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer = self.loop.call_later(_HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel()
        elif self._timer is None:  # of a request after the first
            self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def make_server(
    worker: Worker, host: str, limits: Limits, token: str | None = None, allowed_hosts: Iterable[str] = ()
) -> uvicorn.Server:
    """Returns uvicorn's server of `make_app`.

    On the loopback, requests must call it by one of `LOOPBACK_HOSTS` or of `allowed_hosts`: a reverse proxy may pass on
    the `Host` header with its own name. Pages of `allowed_hosts` may use it in addition to its own page.
    """
    sites = frozenset(map(without_port, allowed_hosts))
    hosts = LOOPBACK_HOSTS | sites if in_url(host) in LOOPBACK_HOSTS else None
    config = uvicorn.Config(
        make_app(worker, limits, token=token, hosts=hosts, sites=sites),
        loop="asyncio",
        http=_Protocol,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_graceful_shutdown=round(limits.seconds) + 5,
    )
    return uvicorn.Server(config)


def serve(server: uvicorn.Server, listening: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests in progress and closes the worker and the socket."""

    def stop(kind: int, frame: FrameType | None) -> None:
        if kind == signal.SIGINT:
            interrupts.stopped = kind
        server.handle_exit(kind, frame)

    # uvicorn handles these signals while it runs, and raises them again when it has shut down.
    previous = {kind: signal.signal(kind, stop) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listening])
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
        listening.close()
