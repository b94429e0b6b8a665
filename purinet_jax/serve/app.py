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
from purinet_jax.serve.uploads import Uploads, discard
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
      token: what requests for images and metrics must carry (`Authorization: Bearer …`); None for no token.
      hosts: names and addresses that requests may call the server by, without ports; None for any. A server on the
        loopback needs them: otherwise a web page could point its own name there and use the server.
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
        exception_handlers={HTTPException: _refuse, Exception: _fail},
        lifespan=lifespan,
    )


def _page_routes() -> Iterator[Route]:
    for file in (files("purinet_jax.serve") / "page").iterdir():
        media_type = _MEDIA_TYPES[file.name.rpartition(".")[2]]
        response = Response(file.read_bytes(), headers={"cache-control": "no-cache"}, media_type=media_type)
        yield Route("/" + file.name.removeprefix("index.html"), response, methods=["GET"])


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, Refusal):
        return error.response()
    if error.status_code == 405:
        return Refusal("method_not_allowed", f"not by {request.method}", error.headers).response()
    return Refusal("not_found", "there is nothing here; /openapi.json describes the interface").response()


async def _fail(_: Request, error: Exception) -> Response:
    return Refusal("internal", "something went wrong; the server's log has more").response()  # Starlette logs it


class _Endpoints:
    """The endpoints and what they share."""

    def __init__(self, worker: Worker, limits: Limits, token: str | None) -> None:
        self._worker = worker
        self._limits = limits
        self._token = None if token is None else token.encode()
        self._kinds = tuple(kind for kind in KINDS if kind != "attention" or worker.attention)
        self._uploads = uploads = Uploads(limits)
        self._metrics = Metrics()
        self._metrics.in_progress.set_function(lambda: len(uploads))
        self._metrics.upload_bytes.set_function(lambda: uploads.size)
        worker.on_batch = self._metrics.batch_size.observe

    async def health(self, _: Request) -> Response:
        alive = self._worker.alive
        return JSONResponse({"status": "ok" if alive else "the network has stopped"}, 200 if alive else 503)

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
        upload = self._uploads.begin()
        future: Future[bytes] | None = None
        try:
            async with asyncio.timeout(self._limits.seconds):
                future = self._worker.submit(await self._uploads.read(upload, request, body), style)
                return Response(await _result(future, request), media_type=FORMATS[style.ending[1:]])
        except TimeoutError:
            seconds = f"{self._limits.seconds:g} seconds"
            if future is None:
                raise Refusal("slow_upload", f"the upload took more than {seconds}") from None
            raise Refusal("timeout", f"not ready within {seconds}", {"retry-after": "10"}) from None
        finally:
            if future is None:
                self._uploads.end(upload)
            else:  # a thread that has started goes on after its client has left, and its upload counts until then
                loop = asyncio.get_running_loop()
                future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._uploads.end, upload))

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
    except TooManyPixels as error:
        raise Refusal("too_many_pixels", str(error)) from None
    except InputError as error:
        raise Refusal("not_an_image", str(error)) from None
    except MemoryError:
        raise Refusal("memory", "not enough memory for this image", {"retry-after": "10"}) from None
    finally:
        image.cancel()
        disconnect.cancel()
