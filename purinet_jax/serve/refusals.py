"""What the server refuses: its limits, and each error as a status, a word for programs and a reason for people."""

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

MAX_HEAD_BYTES = 16 << 10
"""Limit of a request's path and headers together, bytes."""

ERRORS = {
    "parameter": (400, "A parameter cannot be understood."),
    "form": (400, "The form cannot be read, or has no file in its field image."),
    "token": (401, "The token is missing or wrong."),
    "cross_site": (403, "The request comes from a page of another site."),
    "not_found": (404, "There is nothing at this path."),
    "unknown_kind": (404, "There is no such kind."),
    "method_not_allowed": (405, "The path needs another method."),
    "slow_upload": (408, "The upload takes too long."),
    "too_many_bytes": (413, "The upload has too many bytes."),
    "too_many_pixels": (413, "The image has too many pixels."),
    "not_an_image": (415, "The upload is not an image, or a damaged one."),
    "wrong_host": (421, "The Host header names another server."),
    "busy": (429, "Too many images are in progress; Retry-After says when to try again, in seconds."),
    "head": (431, "The path and the headers are too long."),
    "internal": (500, "The server failed; its log says why."),
    "memory": (503, "There is not enough memory."),
    "timeout": (503, "The image was not ready in time."),
}
"""Error word → HTTP status and description."""


@dataclass(frozen=True)
class Limits:
    """Limits of requests. The pixels of an image are limited by `Worker`.

    Attributes:
      bytes: size of an upload (413).
      images: images in progress at once (429).
      seconds: from a request's head to its response (503, or 408 during the upload).
    """

    bytes: int = 32 << 20
    images: int = 64
    seconds: float = 60.0


class Refusal(HTTPException):
    """A request that is refused with one of `ERRORS` and a reason."""

    def __init__(self, error: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(ERRORS[error][0], reason, headers)
        self.error = error

    def response(self) -> JSONResponse:
        """Returns the error as JSON."""
        return JSONResponse({"error": self.error, "reason": self.detail}, self.status_code, self.headers)
