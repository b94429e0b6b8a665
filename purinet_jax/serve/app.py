"""The web application: the page, `POST /v1/{kind}`, and what is said of the server's health. It trusts nobody: uploads
are counted while they arrive and never written, nothing in a request names a file or an address, and whoever cannot be
served is told why, as JSON.
"""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from purinet_jax.data.images import TooManyPixels
from purinet_jax.errors import InputError
from purinet_jax.prediction.rendering import KINDS, Kind, Style, read_colour
from purinet_jax.serve.openapi import describe
from purinet_jax.serve.worker import Worker
from purinet_jax.version import __version__

logger = logging.getLogger(__name__)

FORMATS = {"png": "image/png", "webp": "image/webp"}
"""What pictures are answered in, and the media type of each."""

# The page and its parts: path, file in page/, media type.
_PAGE = (
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
    ("/zip.js", "zip.js", "text/javascript; charset=utf-8"),
    ("/icon.svg", "icon.svg", "image/svg+xml"),
    ("/grip.svg", "grip.svg", "image/svg+xml"),
)

_SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

LONGEST_HEAD = 16 << 10
"""Of a request's address and headers, bytes."""

# All uploads that are held may be as large together as this many of the largest.
_LARGEST_HELD = 8
# What multipart may add to a file.
_MULTIPART_ROOM = 1 << 14
# A client that is still sending does not hear a refusal: for so long its bytes are thrown away first, seconds.
_PATIENCE = 5.0


@dataclass(frozen=True)
class Limits:
    """What is refused.

    Attributes:
      bytes: of an upload (413).
      pictures: that are waited for at a time (429).
      seconds: from a request's head to its answer (503, or 408 where the upload itself takes longer).

    The pixels of a picture (413) are limited by `Worker`.
    """

    bytes: int = 32 << 20
    pictures: int = 64
    seconds: float = 60.0


class Refusal(Exception):
    """A request that is answered with an error: an HTTP status, a word for programs, and a reason for people."""

    def __init__(self, status: int, error: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(reason)
        self.status, self.error, self.reason, self.headers = status, error, reason, headers


class _Gone(Exception):
    """The client has hung up."""


class Measures:
    """What `/metrics` tells Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("purinet_requests", "Pictures asked for.", ["kind", "status"], registry=self.registry)
        self.seconds = Histogram(
            "purinet_request_seconds",
            "From a request's head to its answer, of pictures that were made.",
            ["kind"],
            buckets=(0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self.waiting = Gauge("purinet_pictures_waiting", "Pictures that are being made now.", registry=self.registry)
        self.held = Gauge("purinet_upload_bytes", "Uploads that are held in memory now.", registry=self.registry)
        self.batch = Histogram(
            "purinet_batch_pictures",
            "Pictures in one batch of the network.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )


def make_app(
    worker: Worker,
    measures: Measures,
    limits: Limits = Limits(),
    *,
    token: str | None = None,
    hosts: frozenset[str] | None = None,
) -> Starlette:
    """The application, for any ASGI server.

    Args:
      worker: makes the pictures; closed when the application is.
      measures: where they are counted.
      limits: what is refused.
      token: what requests for pictures and measures must bear (`Authorization: Bearer …`); None for no token.
      hosts: the names and addresses that the server answers to, without ports; None for any. A server on the loopback
        must be given them: otherwise a page on the web that has its own name point there could use it.
    """
    service = _Service(worker, measures, limits, token)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)

    routes = [Route(path, _page(name, media_type)) for path, name, media_type in _PAGE]
    routes += [
        Route("/health", service.health),
        Route("/metrics", service.metrics),
        Route("/openapi.json", service.description),
        Route("/v1", service.about),
        Route("/v1/{kind}", service.picture, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, hosts=hosts)],
        exception_handlers={Refusal: _refused, HTTPException: _unknown, Exception: _failed},
        lifespan=lifespan,
    )


def _page(name: str, media_type: str) -> Callable[[Request], Response]:
    content = (files("purinet_jax.serve") / "page" / name).read_bytes()

    def answer(_: Request) -> Response:
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    return answer


def _error(status: int, error: str, reason: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": error, "reason": reason}, status, headers)


def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return _error(refusal.status, refusal.error, refusal.reason, refusal.headers)


def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reasons = {404: "nothing is here; /openapi.json says what there is", 405: f"not by {request.method}"}
    words = {404: "not_found", 405: "method_not_allowed"}
    status = error.status_code
    return _error(status, words.get(status, "refused"), reasons.get(status, error.detail), error.headers)


def _failed(_: Request, error: Exception) -> Response:
    return _error(500, "internal", "something went wrong; the server's log has more")  # which Starlette's caller writes


class _Guard:
    """Puts the security headers on every answer, and refuses requests for other hosts and from other sites' pages."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_SECURITY)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        request = Request(scope)
        host = re.sub(r":\d*$", "", request.headers.get("host", "")).lower()
        answer: ASGIApp = self._app
        head = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(k) + len(v) for k, v in scope["headers"])
        if head > LONGEST_HEAD:
            answer = _error(431, "head", f"the request's head has more than {LONGEST_HEAD:,} bytes")
        elif self._hosts is not None and host not in self._hosts:
            answer = _error(421, "wrong_host", "this server does not answer to that name; --host names another")
        # Browsers say where a request comes from. Without this, any page on the web could keep the server busy.
        elif request.headers.get("sec-fetch-site") == "cross-site" and request.method == "POST":
            answer = _error(403, "cross_site", "pages of other sites may not use this server")
        await answer(scope, receive, send_with_headers)


class _Upload:
    """A request's body on its way."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.ended = False

    async def receive(self) -> bytes:
        """The next part. Raises _Gone where the client hangs up before the end."""
        message = await self._request.receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        self.ended = not message.get("more_body", False)
        return message.get("body", b"")

    async def discard(self) -> None:
        """Throws away what a client still sends, for a while, since it does not hear an answer before it has done so.
        One that asks first whether it may send (`Expect: 100-continue`, as curl does) is told at once."""
        if "expect" in self._request.headers:
            return
        with suppress(TimeoutError, _Gone):
            async with asyncio.timeout(_PATIENCE):
                while not self.ended:
                    await self.receive()


class _Place:
    """A request's place among those that are waited for, and the bytes that are held for it."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures
        self.held = 0
        measures.waiting.inc()

    def hold(self, more: int) -> None:
        self.held += more
        self._measures.held.inc(more)

    def leave(self) -> None:
        self._measures.held.dec(self.held)
        self._measures.waiting.dec()


class _Service:
    """The endpoints and what they share."""

    def __init__(self, worker: Worker, measures: Measures, limits: Limits, token: str | None) -> None:
        self._worker = worker
        self._measures = measures
        self._limits = limits
        self._token = None if token is None else token.encode()
        self._places: set[_Place] = set()
        self._kinds: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "attention" or worker.attention)

    async def health(self, _: Request) -> Response:
        """Whether the network answers."""
        alive = self._worker.alive
        return JSONResponse({"status": "ok" if alive else "the network has stopped"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text."""
        self._authorise(request)
        return Response(generate_latest(self._measures.registry), media_type=CONTENT_TYPE_LATEST)

    async def description(self, _: Request) -> Response:
        """The OpenAPI text."""
        text = describe(self._kinds, self._limits, self._worker.pixels, self._token is not None)
        return Response(json.dumps(text, indent=2), media_type="application/json")

    async def about(self, _: Request) -> Response:
        """What there is, for the page."""
        return JSONResponse(
            {
                "version": __version__,
                "kinds": self._kinds,
                "formats": list(FORMATS),
                "size": self._worker.size,
                "token": self._token is not None,
                "limits": {
                    "bytes": self._limits.bytes,
                    "pixels": self._worker.pixels,
                    "pictures": self._limits.pictures,
                    "seconds": self._limits.seconds,
                },
            }
        )

    async def picture(self, request: Request) -> Response:
        """An image in, its picture out."""
        kind = request.path_params["kind"]
        begin = time.monotonic()
        upload = _Upload(request)
        status = 500
        try:
            response = await self._picture(request, upload, kind, begin + self._limits.seconds)
            status = response.status_code
        except Refusal as refusal:
            status = refusal.status
            if status != 408:  # it had its time
                await upload.discard()
            raise
        except _Gone:
            status = 499  # nobody hears it; nginx counts such requests under this number
            response = Response(status_code=status)
        finally:
            known = kind if kind in self._kinds else "other"
            self._measures.requests.labels(known, str(status)).inc()
        if status == 200:
            self._measures.seconds.labels(kind).observe(time.monotonic() - begin)
        return response

    async def _picture(self, request: Request, upload: _Upload, kind: str, deadline: float) -> Response:
        self._authorise(request)
        style = self._style(kind, request)
        if len(self._places) >= self._limits.pictures:
            raise self._busy(f"{len(self._places)} pictures are being made already")
        place = _Place(self._measures)
        self._places.add(place)
        future: Future[bytes] | None = None
        try:
            try:
                async with asyncio.timeout(self._limits.seconds):
                    body = await self._read(request, upload, place)
                    form = _is_multipart(request)
                    data = await asyncio.to_thread(_file_in, request.headers["content-type"], body) if form else body
            except TimeoutError:
                raise Refusal(
                    408, "slow_upload", f"the upload took more than {self._limits.seconds:g} seconds"
                ) from None
            del body
            if len(data) > self._limits.bytes:
                raise _too_large(self._limits.bytes)
            future = self._worker.submit(data, style)
            del data
        finally:
            if future is None:
                self._leave(place)
        # A thread that has begun goes on when nobody waits any more, and the place is taken for so long.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave, place))
        return Response(await self._await(future, request, deadline), media_type=FORMATS[style.ending[1:]])

    async def _await(self, future: Future[bytes], request: Request, deadline: float) -> bytes:
        """The picture, unless the client hangs up or the time is over first."""
        picture: asyncio.Future[Any] = asyncio.wrap_future(future)
        gone: asyncio.Future[Any] = asyncio.ensure_future(
            request.receive()
        )  # after a whole request, nothing comes but its end
        done, _ = await asyncio.wait(
            {picture, gone}, timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
        )
        gone.cancel()
        if picture not in done:
            picture.cancel()
            if gone in done:
                raise _Gone
            raise Refusal(503, "timeout", f"not done within {self._limits.seconds:g} seconds", {"retry-after": "10"})
        try:
            return picture.result()
        except TooManyPixels as error:
            raise Refusal(413, "too_many_pixels", str(error)) from None
        except InputError as error:
            raise Refusal(415, "not_an_image", str(error)) from None
        except MemoryError:
            raise Refusal(503, "memory", "not enough memory for this picture", {"retry-after": "10"}) from None

    def _leave(self, place: _Place) -> None:
        self._places.discard(place)
        place.leave()

    def _busy(self, reason: str) -> Refusal:
        return Refusal(429, "busy", reason, {"retry-after": "1"})

    def _authorise(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        if scheme.lower() != "bearer" or not right:
            raise Refusal(
                401, "token", "needs the server's token: Authorization: Bearer …", {"www-authenticate": "Bearer"}
            )

    def _style(self, kind: str, request: Request) -> Style:
        """What a request's path and query ask for."""
        if kind not in self._kinds:
            raise Refusal(404, "unknown_kind", f"no such kind; there are {', '.join(self._kinds)}")
        query = request.query_params
        unknown = sorted(set(query) - {"threshold", "background", "format"})
        if unknown:
            raise Refusal(400, "parameter", "unknown parameter; there are threshold, background and format")
        try:
            threshold = float(query.get("threshold", "0.5"))
        except ValueError:
            threshold = 0.0
        if not 0 < threshold < 1:
            raise Refusal(400, "parameter", "threshold: must be a number between 0 and 1")
        background = None
        if "background" in query:
            if kind != "cutout":
                raise Refusal(400, "parameter", f"background: is for cutout, not {kind}")
            # Never `read_background`, which opens files.
            background = read_colour(query["background"])
            if background is None:
                raise Refusal(
                    400, "parameter", "background: must be a colour as CSS writes it, such as white or #80ff00"
                )
        ending = query.get("format", "png")
        if ending not in FORMATS:
            raise Refusal(400, "parameter", f"format: must be {' or '.join(FORMATS)}")
        chosen: Kind = next(known for known in self._kinds if known == kind)
        return Style(chosen, threshold, background, ending=f".{ending}")

    async def _read(self, request: Request, upload: _Upload, place: _Place) -> bytes:
        """A request's whole body, counted while it arrives."""
        most = self._limits.bytes + (_MULTIPART_ROOM if _is_multipart(request) else 0)
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            raise _too_large(self._limits.bytes)
        parts: list[bytes] = []
        try:
            while not upload.ended:
                part = await upload.receive()
                place.hold(len(part))
                if place.held > most:
                    raise _too_large(self._limits.bytes)
                if sum(other.held for other in self._places) > _LARGEST_HELD * most:
                    raise self._busy("too many large uploads at once")
                parts.append(part)
            return b"".join(parts)
        finally:
            parts.clear()  # a refusal's traceback would keep them for as long as its client still sends


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "too_many_bytes", f"the upload has more than {limit:,} bytes")


def _is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def _file_in(content_type: str, body: bytes) -> bytes:
    """The file in the field `image` of a form. Starlette's own parser puts large ones on the disk."""
    _, options = parse_options_header(content_type)
    found: list[bytes] = []
    headers: dict[bytes, bytes] = {}
    name = value = b""
    wanted = ended = False

    def header_name(data: bytes, start: int, end: int) -> None:
        nonlocal name
        name += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        nonlocal value
        value += data[start:end]

    def header_ended() -> None:
        nonlocal name, value
        headers[name.lower()] = value
        name = value = b""

    def headers_ended() -> None:
        nonlocal wanted
        wanted = parse_options_header(headers.get(b"content-disposition"))[1].get(b"name") == b"image"
        headers.clear()
        if wanted and found:
            raise Refusal(400, "form", "the form has more than one file in its field image")
        if wanted:
            found.append(b"")

    def part(data: bytes, start: int, end: int) -> None:
        if wanted:
            found.append(data[start:end])

    def form_ended() -> None:
        nonlocal ended
        ended = True

    callbacks: Any = {
        "on_header_field": header_name,
        "on_header_value": header_value,
        "on_header_end": header_ended,
        "on_headers_finished": headers_ended,
        "on_part_data": part,
        "on_end": form_ended,
    }
    try:
        MultipartParser(options.get(b"boundary", b""), callbacks).write(body)
    except FormParserError as error:
        raise Refusal(400, "form", f"the form cannot be read: {error}") from None
    if not ended:
        raise Refusal(400, "form", "the form is not whole")
    if not found:
        raise Refusal(400, "form", "the form needs a file in its field image")
    return b"".join(found)
