"""Uploads: read into memory from a request's body or form, counted while they arrive, never written to disk."""

import asyncio
import io
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from purinet_jax.serve.refusals import Refusal

# All uploads together may hold this many times the bytes of the largest one.
_LARGEST_HELD = 8
# What a form may add to its file, bytes.
_FORM_BYTES = 1 << 14
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
    content_type = request.headers.get("content-type", "")
    is_form = content_type.lower().startswith("multipart/form-data")
    most = limit + is_form * _FORM_BYTES
    too_large = Refusal("too_many_bytes", f"the upload has more than {limit:,} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large

    async def counted() -> AsyncGenerator[bytes, None]:
        async for chunk in body:
            upload.size += len(chunk)
            if upload.size > most:
                raise too_large
            if sum(other.size for other in uploads) > _LARGEST_HELD * most:
                raise Refusal("busy", "too many large uploads at once", {"retry-after": "1"})
            yield chunk

    if is_form:
        data = await _read_form(content_type, counted())
        if len(data) > limit:
            raise too_large
        return data
    with io.BytesIO() as buffer:  # closed by a refusal, whose traceback would keep a list of chunks in memory
        async for chunk in counted():
            buffer.write(chunk)
        return buffer.getvalue()


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

    def __init__(self, headers: Headers, chunks: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers, self._complete_only(chunks), max_files=1)

    def on_end(self) -> None:
        self._complete = True

    async def _complete_only(self, chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            yield chunk
        if not self._complete:
            raise MultiPartException("it is incomplete")


async def _read_form(content_type: str, chunks: AsyncGenerator[bytes, None]) -> bytes:
    # The parser is given the boundary only, since Python caches the name of every charset that it looks up.
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    headers = Headers(raw=[(b"content-type", b'multipart/form-data; boundary="%b"' % boundary)])
    try:
        form = await _FormParser(headers, chunks).parse()
    except MultiPartException as error:
        raise Refusal("form", f"the form cannot be read: {error.message}") from None
    file = form.get("image")
    data = await file.read() if isinstance(file, UploadFile) else None
    await form.close()
    if data is None:
        raise Refusal("form", "the form needs a file in its field image")
    return data
