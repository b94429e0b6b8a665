"""What the server refuses: its limits, and each error as a status, a word for programs and a reason for people."""

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

MAX_HEAD_BYTES = 16 << 10
"""Limit of a request's path and headers together, bytes."""

ERRORS = {
    400: ("parameter", "form", "url", "no_object"),
    401: ("token",),
    403: ("cross_site",),
    404: ("not_found", "unknown_kind"),
    405: ("method_not_allowed",),
    408: ("slow_upload",),
    413: ("too_many_bytes", "too_many_pixels"),
    415: ("not_an_image",),
    421: ("wrong_host",),
    429: ("busy",),
    431: ("head",),
    500: ("internal",),
    503: ("memory", "timeout"),
}
"""HTTP status → the words for programs of its errors."""


@dataclass(frozen=True)
class Limits:
    """Limits of requests; the pixels of an image are limited by `Worker`."""

    bytes: int = 32 << 20
    """Size of an upload (413)."""
    images: int = 64
    """Images in progress at once (429)."""
    seconds: float = 60.0
    """Time from a request's head to its response (503, or 408 during the upload)."""


class Refusal(HTTPException):
    """A request that is refused with one of `ERRORS` and a reason for people."""

    def __init__(self, error: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(next(status for status, errors in ERRORS.items() if error in errors), reason, headers)
        self.error = error

    def response(self) -> JSONResponse:
        """Returns the error as JSON."""
        return JSONResponse({"error": self.error, "reason": self.detail}, self.status_code, self.headers)
