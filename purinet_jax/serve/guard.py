"""The middleware that adds the security headers and refuses requests for other hosts and from other sites' pages."""

import re

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from purinet_jax.serve.refusals import MAX_HEAD_BYTES, Refusal

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def without_port(host: str) -> str:
    """Returns the host of "host:port", as the `Host` header has it, in lower case."""
    return re.sub(r":\d*$", "", host).lower()


class Guard:
    """ASGI middleware; `hosts` are the names that requests may call the server by, without ports, None for any."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal.response() if refusal else self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Request(scope).headers
        head = len(scope["raw_path"]) + len(scope["query_string"]) + sum(len(k) + len(v) for k, v in scope["headers"])
        if head > MAX_HEAD_BYTES:
            return Refusal("head", f"the path and the headers have more than {MAX_HEAD_BYTES:,} bytes")
        if self._hosts is not None and without_port(headers.get("host", "")) not in self._hosts:
            return Refusal("wrong_host", "this server does not have that name; --allowed-hosts adds names")
        # Browsers say where a request comes from. Without this check, any page on the web could keep the server busy.
        if headers.get("sec-fetch-site") == "cross-site" and scope["method"] == "POST":
            return Refusal("cross_site", "pages of other sites may not use this server")
        return None
