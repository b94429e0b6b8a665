"""A server on the loopback, in a thread of the tests' process, and a client that shows the complete response."""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from purinet_jax.serve import Limits, Worker, listen, make_server


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return f"{self.status} {self.json['error']}"


@dataclass(frozen=True)
class Served:
    port: int
    worker: Worker

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, dict(headers or {}), encode_chunked=hasattr(body, "__next__"))
            response = connection.getresponse()
            return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Response:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Response:
        return self.request("POST", path, body, headers)

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").body.decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])


@contextmanager
def serving(
    predictor: Any,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    **worker_options: Any,
) -> Iterator[Served]:
    worker = Worker(predictor, **worker_options)
    server = make_server(worker, "127.0.0.1", limits or Limits(), token, allowed_hosts)
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server")
        thread.start()
        try:
            yield Served(listening.getsockname()[1], worker)
        finally:
            server.should_exit = True
            thread.join()
    assert not worker.alive
