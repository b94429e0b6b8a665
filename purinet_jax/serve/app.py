"""The web application: the page, `POST /v1/{kind}`, the interfaces of rembg and remove.bg, health, metrics and the
description of the interface."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from functools import partial
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
from purinet_jax.serve.guard import Guard, has_token
from purinet_jax.serve.metrics import Metrics
from purinet_jax.serve.openapi import describe
from purinet_jax.serve.parameters import FORMATS, MEDIA_TYPES, parse_style, readable_endings
from purinet_jax.serve.refusals import Limits, Refusal
from purinet_jax.serve.rembg import parse_rembg
from purinet_jax.serve.removebg import ACCOUNT, failure, parse_removebg, success
from purinet_jax.serve.uploads import Upload, checked, discard, read, read_fields
from purinet_jax.serve.worker import Task, Worker
from purinet_jax.version import __version__

_PAGE_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
_REMOVEBG = "/v1.0/"

_Body = AsyncGenerator[bytes, None]


def make_app(
    worker: Worker,
    limits: Limits,
    *,
    token: str | None = None,
    hosts: frozenset[str] | None = None,
    sites: frozenset[str] = frozenset(),
) -> Starlette:
    """Returns the application, for any ASGI server.

    Args:
      worker: makes the images; closed when the application shuts down.
      limits: limits of requests.
      token: what requests for images and metrics must carry (`Authorization: Bearer …`), if not None.
      hosts: names that requests may call the server by, without ports; None for any. On the loopback they are needed:
        otherwise a web page could point its own name there and use the server.
      sites: names, without ports, of sites whose pages may use the server, in addition to its own page. It is needed
        if a reverse proxy changes the `Host` header and does not set `X-Forwarded-Host`.
    """
    key = None if token is None else token.encode()
    endpoints = _Endpoints(worker, limits, key)

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
            Route("/api/remove", endpoints.rembg, methods=["GET", "POST"]),
            Route(f"{_REMOVEBG}removebg", endpoints.removebg, methods=["POST"]),
            Route(f"{_REMOVEBG}account", endpoints.removebg_account, methods=["GET"]),
        ],
        middleware=[Middleware(Guard, hosts=hosts, sites=sites, token=key)],
        exception_handlers={HTTPException: _refuse, Exception: _refuse},
        lifespan=lifespan,
    )


def _page_routes() -> Iterator[Route]:
    for file in (files("purinet_jax.serve") / "page").iterdir():
        media_type = _PAGE_TYPES[file.name.rpartition(".")[2]]
        response = Response(file.read_bytes(), headers={"cache-control": "no-cache"}, media_type=media_type)
        yield Route("/" + file.name.removeprefix("index.html"), response, methods=["GET"])


async def _refuse(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):  # Starlette logs it
        error = Refusal("internal", "something went wrong; the server's log has more")
    elif error.status_code == 405:
        error = Refusal("method_not_allowed", f"not by {request.method}", error.headers)
    elif not isinstance(error, Refusal):
        error = Refusal("not_found", "there is nothing here; /openapi.json describes the interface")
    return failure(error) if request.url.path.startswith(_REMOVEBG) else error.response()


class _Endpoints:
    """The endpoints and what they share."""

    def __init__(self, worker: Worker, limits: Limits, token: bytes | None) -> None:
        self._worker = worker
        self._limits = limits
        self._token = token
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
        about = {"version": __version__, "kinds": self._kinds, "formats": FORMATS, "inputs": readable_endings()}
        size, token = self._worker.size, self._token is not None
        return JSONResponse({**about, "size": size, "token": token, "limits": limits})

    async def image(self, request: Request) -> Response:
        kind = request.path_params["kind"]

        async def respond(body: _Body) -> Response:
            style = parse_style(kind, self._kinds, request.query_params)

            async def receive(upload: Upload) -> Task:
                return Task(await read(request, body, upload, self._uploads, self._limits.bytes), style)

            image, media_type = await self._make(request, receive)
            return Response(image, media_type=media_type)

        return await self._counted(request, kind if kind in self._kinds else "other", respond)

    async def rembg(self, request: Request) -> Response:
        async def respond(body: _Body) -> Response:
            if request.method == "GET":
                raise Refusal("url", "url: nothing is fetched; send the file itself by POST, in the field file")
            image, media_type = await self._make(request, partial(self._read_task, request, body, parse_rembg))
            return Response(image, media_type=media_type)

        return await self._counted(request, "rembg", respond)

    async def removebg(self, request: Request) -> Response:
        async def respond(body: _Body) -> Response:
            image, media_type = await self._make(request, partial(self._read_task, request, body, parse_removebg))
            return success(image, media_type, request.headers.get("accept", ""))

        return await self._counted(request, "removebg", respond)

    async def removebg_account(self, request: Request) -> Response:
        self._authorise(request)
        return JSONResponse(ACCOUNT)

    async def _read_task(
        self, request: Request, body: _Body, parse: Callable[[dict[str, str | bytes]], Task], upload: Upload
    ) -> Task:
        """Reads the fields of a request's body and query, and returns what `parse` makes of them."""
        fields = await read_fields(request, body, upload, self._uploads, self._limits.bytes)
        task = await asyncio.to_thread(parse, {**request.query_params, **fields})
        checked(task.data, self._limits.bytes)
        return task

    async def _counted(self, request: Request, kind: str, respond: Callable[[_Body], Awaitable[Response]]) -> Response:
        """Authorises a request for an image, returns what `respond` makes of its body, and counts it in the metrics."""
        start, status, body = time.monotonic(), 500, request.stream()
        try:
            self._authorise(request)
            response = await respond(body)
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
            self._metrics.requests.labels(kind, str(status)).inc()

    async def _make(self, request: Request, receive: Callable[[Upload], Awaitable[Task]]) -> tuple[bytes, str]:
        """Returns the image's file that a received task describes, and its media type, within the limits."""
        if len(self._uploads) >= self._limits.images:
            raise Refusal("busy", f"{len(self._uploads)} images are in progress", {"retry-after": "1"})
        upload = Upload()
        self._uploads.add(upload)
        future: Future[bytes] | None = None
        try:
            async with asyncio.timeout(self._limits.seconds):
                task = await receive(upload)
                ending = task.style.ending
                future = self._worker.submit(task)
                del task  # the worker frees the upload
                return await _result(future, request), MEDIA_TYPES[ending]
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
        if self._token is not None and not has_token(request.headers, self._token):
            reason = "needs the server's token: Authorization: Bearer … or X-Api-Key: …"
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
