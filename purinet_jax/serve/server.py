"""The running server: its socket, its token, and its end. SIGTERM and Ctrl-C let it answer those who wait, and take no
new ones.
"""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from purinet_jax.errors import InputError
from purinet_jax.serve.app import LONGEST_HEAD, Limits, Measures, make_app
from purinet_jax.serve.worker import Worker

TOKEN_VARIABLE = "PURINET_TOKEN"
"""The environment's variable that may hold the token."""

# Connections beyond these are refused at once; each takes a file descriptor, of which processes often have 1,024.
_CONNECTIONS = 512

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""What requests may call a server on the loopback."""


def read_token(file: Path | None) -> str | None:
    """The token that requests must bear: a file's, else the environment's, or None.

    Raises:
      InputError: the file cannot be read, or what there is is no token: empty, of several lines or not of ASCII.
    """
    if file is None:
        text, name = os.environ.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if text is None:
            return None
    else:
        name = str(file)
        try:
            text = file.read_text("ascii")
        except UnicodeDecodeError:
            text = ""
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise InputError(f"{name}: holds no token; one is a line of ASCII letters and digits")
    return token


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port that is taken is known before the network is loaded.

    Raises:
      InputError: the host has no such address, or the port is taken or not allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise InputError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from error


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's own loopback, which no other machine reaches."""
    return host in ("127.0.0.1", "localhost", "::1")


def address(listening: socket.socket, host: str) -> str:
    """The URL of a server that listens."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"


def serve(
    make_worker: Callable[[Measures], Worker],
    listening: socket.socket,
    host: str,
    limits: Limits = Limits(),  # noqa: B008
    *,
    token: str | None = None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Serves until SIGTERM or SIGINT comes and whoever is waiting then has been answered.

    Args:
      make_worker: called with where the network's batches are counted.
      listening: from `listen`; closed in the end.
      host: the one it listens on. On the loopback, only requests for a loopback's name are answered.
      limits, token: as of `make_app`.
      ready: called when pictures can be made.
    """
    measures = Measures()
    worker = make_worker(measures)
    hosts = LOOPBACK_HOSTS if is_loopback(host) else None
    config = configure(make_app(worker, measures, limits, token=token, hosts=hosts), limits)
    # uvicorn takes these signals for as long as it runs, and raises them again when it has ended well.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ready()
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()


def configure(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    """How uvicorn serves an application: with bounds of its own, and nothing guessed from what is installed."""
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=LONGEST_HEAD,
        timeout_graceful_shutdown=round(limits.seconds) + 5,
    )
