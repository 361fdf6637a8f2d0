"""Checks of a request before its body is read, and the headers of every answer.

- The ``Host`` header must name this machine while the server listens on loopback: a web page whose name is changed to
  the address 127.0.0.1 (DNS rebinding) sends its own name.
- Requests of web pages from elsewhere are rejected by ``Origin`` and ``Sec-Fetch-Site``.
- With a token, all requests need it except those for the page itself, which has no data.
- The size of the body is limited, whether it is declared or not.
"""

import hmac
import ipaddress
import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CONTENT_POLICY", "RETRY_AFTER", "Guard", "is_loopback"]

RETRY_AFTER = {"retry-after": "2"}
"""Header of answers with status 503, in seconds."""
HELD = 8
"""The bodies of all requests together may have this many times the size of one."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
PUBLIC = ("/", "/health", "/openapi.json")
PUBLIC_FOLDERS = ("/page/", "/views/")  # the addresses of views cannot be guessed
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Return True for the name or address of this machine that other machines cannot reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Middleware with the checks of this module.

    Args:
        app: the application.
        host: address that the server listens on.
        token: token that requests need, or an empty text.
        max_bytes: limit on the size of a body.
    """

    def __init__(self, app: ASGIApp, host: str, token: str, max_bytes: int) -> None:
        self.app, self.token, self.max_bytes = app, token, max_bytes
        self.local = is_loopback(host)
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        problem = self._problem(scope, Headers(scope=scope))
        if problem is not None:
            await _refuse(send, *problem)
            return
        counted = _Counted(self, receive)
        try:
            await self.app(scope, counted, _with_headers(send))
        finally:
            self.held -= counted.seen

    def _problem(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.local and not is_loopback(_name_of(host)):
            return 403, f"the server listens on this machine only, and `Host` is {host[:100]!r}"
        if scope["method"] not in SAFE_METHODS:
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                return 403, f"requests of pages from {origin[:100]!r} are not accepted"
            if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
                return 403, "requests of pages from other sites are not accepted"
        path = scope["path"]
        if self.token and path not in PUBLIC and not path.startswith(PUBLIC_FOLDERS):
            kind, _, given = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token.encode("utf-8"))
            if kind.lower() != "bearer" or not same:
                return 401, "a token is required: send the header Authorization: Bearer TOKEN"
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_bytes:
            return 413, _too_large(self.max_bytes)
        return None


class _Counted:
    """The messages of a request, as long as its body and those of all requests are not too large."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self.guard, self.receive, self.seen = guard, receive, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        size = len(message.get("body", b""))
        self.seen += size
        self.guard.held += size
        if self.seen > self.guard.max_bytes:
            raise HTTPException(413, _too_large(self.guard.max_bytes))
        if self.guard.held > HELD * self.guard.max_bytes:
            raise HTTPException(503, "too many requests are being read; try again later", RETRY_AFTER)
        return message


def _too_large(limit: int) -> str:
    return f"the request is larger than the limit of {limit / (1 << 20):.3g} MiB"


def _name_of(host: str) -> str:
    """Return a Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return add


async def _refuse(send: Send, status: int, text: str) -> None:
    extra: Mapping[str, str] = {"www-authenticate": "Bearer"} if status == 401 else {}
    body = json.dumps({"error": text}).encode()
    headers = {**HEADERS, **extra, "content-type": "application/json", "content-length": str(len(body))}
    start = {"type": "http.response.start", "status": status}
    start["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send(start)
    await send({"type": "http.response.body", "body": body})
