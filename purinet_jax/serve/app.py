"""The web application: the page, `POST /v1/{kind}`, health, metrics and the description of the interface."""

import asyncio
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from purinet_jax.data.images import TooManyPixels
from purinet_jax.errors import InputError
from purinet_jax.prediction.rendering import KINDS
from purinet_jax.serve.guard import Guard
from purinet_jax.serve.metrics import Metrics
from purinet_jax.serve.openapi import describe
from purinet_jax.serve.parameters import FORMATS, parse_style
from purinet_jax.serve.refusals import Limits, Refusal
from purinet_jax.serve.uploads import Upload, discard, read
from purinet_jax.serve.worker import Worker
from purinet_jax.version import __version__

_MEDIA_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}


def make_app(
    worker: Worker, limits: Limits, *, token: str | None = None, hosts: frozenset[str] | None = None
) -> Starlette:
    """Returns the application, for any ASGI server.

    Args:
      worker: makes the images; closed when the application shuts down.
      limits: limits of requests.
      token: what requests for images and metrics must carry (`Authorization: Bearer …`), if not None.
      hosts: names that requests may call the server by, without ports; None for any. On the loopback they are needed:
        otherwise a web page could point its own name there and use the server.
    """
    endpoints = _Endpoints(worker, limits, token)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)

    return Starlette(
        routes=[
            *_page_routes(),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
            Route("/openapi.json", endpoints.openapi),
            Route("/v1", endpoints.about),
            Route("/v1/{kind}", endpoints.image, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={HTTPException: _refuse, Exception: _refuse},
        lifespan=lifespan,
    )


def _page_routes() -> Iterator[Route]:
    for file in (files("purinet_jax.serve") / "page").iterdir():
        media_type = _MEDIA_TYPES[file.name.rpartition(".")[2]]
        response = Response(file.read_bytes(), headers={"cache-control": "no-cache"}, media_type=media_type)
        yield Route("/" + file.name.removeprefix("index.html"), response, methods=["GET"])


async def _refuse(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):  # Starlette logs it
        error = Refusal("internal", "something went wrong; the server's log has more")
    elif error.status_code == 405:
        error = Refusal("method_not_allowed", f"not by {request.method}", error.headers)
    elif not isinstance(error, Refusal):
        error = Refusal("not_found", "there is nothing here; /openapi.json describes the interface")
    return error.response()


class _Endpoints:
    """The endpoints and what they share."""

    def __init__(self, worker: Worker, limits: Limits, token: str | None) -> None:
        self._worker = worker
        self._limits = limits
        self._token = None if token is None else token.encode()
        self._kinds = tuple(kind for kind in KINDS if kind != "attention" or worker.attention)
        self._uploads: set[Upload] = set()
        self._metrics = Metrics()
        self._metrics.in_progress.set_function(lambda: len(self._uploads))
        self._metrics.upload_bytes.set_function(lambda: sum(upload.size for upload in self._uploads))
        worker.on_batch = self._metrics.batch_size.observe

    async def health(self, _: Request) -> Response:
        status, code = ("ok", 200) if self._worker.alive else ("the network has stopped", 503)
        return JSONResponse({"status": status}, code)

    async def metrics(self, request: Request) -> Response:
        self._authorise(request)
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(describe(self._kinds, self._limits, self._worker.pixels, self._token is not None))

    async def about(self, _: Request) -> Response:
        limits = {**vars(self._limits), "pixels": self._worker.pixels}
        about = {"version": __version__, "kinds": self._kinds, "formats": [*FORMATS], "size": self._worker.size}
        return JSONResponse({**about, "token": self._token is not None, "limits": limits})

    async def image(self, request: Request) -> Response:
        start, status = time.monotonic(), 500
        kind, body = request.path_params["kind"], request.stream()
        try:
            response = await self._image(request, body, kind)
            status = response.status_code
            self._metrics.seconds.labels(kind).observe(time.monotonic() - start)
            return response
        except Refusal as refusal:
            status = refusal.status_code
            if status != 408:
                await discard(request, body)
            raise
        except ClientDisconnect:
            status = 499  # as nginx counts requests whose client hung up
            return Response(status_code=status)
        finally:
            self._metrics.requests.labels(kind if kind in self._kinds else "other", str(status)).inc()

    async def _image(self, request: Request, body: AsyncGenerator[bytes, None], kind: str) -> Response:
        self._authorise(request)
        style = parse_style(kind, self._kinds, request.query_params)
        if len(self._uploads) >= self._limits.images:
            raise Refusal("busy", f"{len(self._uploads)} images are in progress", {"retry-after": "1"})
        upload = Upload()
        self._uploads.add(upload)
        future: Future[bytes] | None = None
        try:
            async with asyncio.timeout(self._limits.seconds):
                read_file = read(request, body, upload, self._uploads, self._limits.bytes)
                future = self._worker.submit(await read_file, style)
                return Response(await _result(future, request), media_type=FORMATS[style.ending[1:]])
        except TimeoutError:
            reason = f"not ready within {self._limits.seconds:g} seconds"
            if future is None:
                raise Refusal("slow_upload", f"the upload was {reason}") from None
            raise Refusal("timeout", reason, {"retry-after": "10"}) from None
        finally:
            if future is None:
                self._uploads.discard(upload)
            else:  # a thread that has started goes on after its client has left, and its upload counts until then
                loop = asyncio.get_running_loop()
                future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._uploads.discard, upload))

    def _authorise(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        token = given.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
        if self._token is not None and not hmac.compare_digest(token, self._token):
            reason = "needs the server's token: Authorization: Bearer …"
            raise Refusal("token", reason, {"www-authenticate": "Bearer"})


async def _result(future: Future[bytes], request: Request) -> bytes:
    """Returns the image's file, or raises ClientDisconnect if the client hangs up first."""
    image: asyncio.Future[Any] = asyncio.wrap_future(future)
    disconnect: asyncio.Future[Any] = asyncio.ensure_future(request.receive())  # nothing else comes after the body
    try:
        await asyncio.wait([image, disconnect], return_when=asyncio.FIRST_COMPLETED)
        if not image.done():
            raise ClientDisconnect
        return image.result()
    except InputError as error:
        word = "too_many_pixels" if isinstance(error, TooManyPixels) else "not_an_image"
        raise Refusal(word, str(error)) from None
    except MemoryError:
        raise Refusal("memory", "not enough memory for this image", {"retry-after": "10"}) from None
    finally:
        image.cancel()
        disconnect.cancel()
