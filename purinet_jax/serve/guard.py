"""The middleware that adds the security headers and refuses requests for other hosts and from other sites' pages."""

import hmac
import re

from starlette.datastructures import Headers, MutableHeaders
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


def has_token(headers: Headers, token: bytes) -> bool:
    """Whether a request carries the server's token, as `Authorization: Bearer …` or `X-Api-Key: …`."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        given = headers.get("x-api-key", "")
    return hmac.compare_digest(given.strip().encode("latin-1"), token)


class Guard:
    """ASGI middleware.

    Attributes:
      hosts: names that requests may call the server by, without ports, None for any.
      sites: names, without ports, of sites whose pages may use the server, in addition to its own.
      token: requests that carry it may come from any page; None if there is none.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None, sites: frozenset[str], token: bytes | None) -> None:
        self._app = app
        self._hosts = hosts
        self._sites = sites
        self._token = token

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
        # Without this check, any page on the web could keep the server busy.
        if scope["method"] == "POST" and self._is_from_other_site(headers):
            return Refusal("cross_site", "pages of other sites may not use this server; --allowed-hosts adds sites")
        return None

    def _is_from_other_site(self, headers: Headers) -> bool:
        # Pages can set neither header; browsers send the first only over TLS and to the loopback.
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site in ("same-origin", "none"):
            return False
        if self._token is not None and has_token(headers, self._token):
            return False
        if site == "cross-site" or origin is None:  # programs other than browsers send neither
            return site == "cross-site"
        host = _without_default_port(origin.partition("://")[2])  # empty for "null"
        # A page cannot add X-Forwarded-Host to a request for another site, because no preflight request succeeds.
        own = (headers.get("host", ""), headers.get("x-forwarded-host", "").partition(",")[0])
        return not host or (host not in map(_without_default_port, own) and without_port(host) not in self._sites)


def _without_default_port(host: str) -> str:
    return re.sub(r":(80|443)?$", "", host.strip().lower())
