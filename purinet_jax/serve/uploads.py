"""Uploads: read into memory from a request's body or form, counted while they arrive, never written to disk."""

import asyncio
import io
import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from purinet_jax.serve.refusals import Refusal

# All uploads together may hold this many times the bytes of the largest one.
_LARGEST_HELD = 8
# What a form may add to its file, bytes.
_FORM_BYTES = 1 << 14
_MOST_FIELDS = 100
_DISCARD_SECONDS = 5.0


@dataclass(eq=False)
class Upload:
    """An upload in progress and the bytes held for it."""

    size: int = 0


async def read(
    request: Request, body: AsyncGenerator[bytes, None], upload: Upload, uploads: Iterable[Upload], limit: int
) -> bytes:
    """Returns the uploaded file: the body of a request, or the file in the field `image` of a form.

    Args:
      request, body: the request and its `stream()`.
      upload, uploads: where its bytes are counted, and all in progress.
      limit: the most bytes of a file.

    Raises:
      Refusal: the upload or all together are too large, or the form cannot be read.
      ClientDisconnect: the client hangs up.
    """
    is_form = _content_type(request) == "multipart/form-data"
    chunks = _counted(request, body, upload, uploads, limit, limit + is_form * _FORM_BYTES)
    if not is_form:
        return await _joined(chunks)
    image = (await _read_form(request, chunks, _FORM_BYTES)).get("image")
    if not isinstance(image, bytes):
        raise Refusal("form", "the form needs a file in its field image")
    return checked(image, limit)


async def read_fields(
    request: Request, body: AsyncGenerator[bytes, None], upload: Upload, uploads: Iterable[Upload], limit: int
) -> dict[str, str | bytes]:
    """Returns the fields of a form, of either encoding, or of a JSON object: files as bytes, others as text unless they
    are empty. One may be a file in base64. Arguments and errors as of `read`."""
    content_type, most = _content_type(request), -(-limit // 3) * 4 + _FORM_BYTES
    chunks = _counted(request, body, upload, uploads, limit, most)
    if content_type == "multipart/form-data":
        fields = await _read_form(request, chunks, most)
    elif content_type == "application/json":
        fields = await asyncio.to_thread(_parse_json, await _joined(chunks))
    elif content_type == "application/x-www-form-urlencoded":
        fields = await asyncio.to_thread(_parse_urlencoded, await _joined(chunks))
    else:
        raise Refusal("form", "send a form (multipart/form-data) with the image as a file")
    return {name: value for name, value in fields.items() if value != ""}


def checked(image: bytes, limit: int) -> bytes:
    """Returns an image's file. Raises Refusal if it has more than `limit` bytes."""
    if len(image) > limit:
        raise _too_large(limit)
    return image


def _too_large(limit: int) -> Refusal:
    return Refusal("too_many_bytes", f"the upload has more than {limit:,} bytes")


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _counted(
    request: Request,
    body: AsyncGenerator[bytes, None],
    upload: Upload,
    uploads: Iterable[Upload],
    limit: int,
    most: int,
) -> AsyncGenerator[bytes, None]:
    """Yields the chunks of a body of at most `most` bytes while they are counted; `limit` is for the error."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(limit)
    async for chunk in body:
        upload.size += len(chunk)
        if upload.size > most:
            raise _too_large(limit)
        if sum(other.size for other in uploads) > _LARGEST_HELD * most:
            raise Refusal("busy", "too many large uploads at once", {"retry-after": "1"})
        yield chunk


async def _joined(chunks: AsyncGenerator[bytes, None]) -> bytes:
    with io.BytesIO() as buffer:  # closed by a refusal, whose traceback would keep a list of chunks in memory
        async for chunk in chunks:
            buffer.write(chunk)
        return buffer.getvalue()


def _parse_json(body: bytes) -> dict[str, str | bytes]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal("form", "the JSON cannot be read") from None
    if not isinstance(values, dict) or any(isinstance(value, dict | list) for value in values.values()):
        raise Refusal("form", "the JSON must be an object of texts, numbers and true or false")
    values = {name: value for name, value in values.items() if value is not None}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def _parse_urlencoded(body: bytes) -> dict[str, str | bytes]:
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise Refusal("form", "the form cannot be read") from None


async def discard(request: Request, body: AsyncGenerator[bytes, None]) -> None:
    """Drops what a client still sends, for a few seconds, since most clients read the response only afterwards."""
    if "expect" not in request.headers:  # such a client, like curl, waits for a response before it sends
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(_DISCARD_SECONDS):
                async for _ in body:
                    pass


class _FormParser(MultiPartParser):
    """Starlette's parser, but it keeps files in memory and refuses incomplete forms."""

    spool_max_size = 0  # no limit: by default files of more than 1 MiB go to disk
    _complete = False

    def __init__(self, headers: Headers, chunks: AsyncGenerator[bytes, None], text_bytes: int) -> None:
        chunks = self._complete_only(chunks)
        super().__init__(headers, chunks, max_files=1, max_fields=_MOST_FIELDS, max_part_size=text_bytes)

    def on_end(self) -> None:
        self._complete = True

    async def _complete_only(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            yield chunk
        if not self._complete:
            raise MultiPartException("it is incomplete")


async def _read_form(request: Request, chunks: AsyncGenerator[bytes, None], text_bytes: int) -> dict[str, str | bytes]:
    """Returns the fields of a form, of which one may be a file, and others have at most `text_bytes`."""
    # The parser is given the boundary only, since Python caches the name of every charset that it looks up.
    boundary = parse_options_header(request.headers["content-type"])[1].get(b"boundary", b"")
    headers = Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%b"' % boundary)])
    try:
        form = await _FormParser(headers, chunks, text_bytes).parse()
    except MultiPartException as error:
        raise Refusal("form", f"the form cannot be read: {error.message}") from None
    fields = {name: value if isinstance(value, str) else await value.read() for name, value in form.multi_items()}
    await form.close()
    return fields
