"""Who may ask: a browser carries requests of any page it shows, so it is looked at where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["LOOPBACK_ORIGINS", "Guard", "is_loopback"]

#: Pages served from this machine may read.
LOOPBACK_ORIGINS = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"
_POLICY_VIOLATION = 1008


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach this address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Refuses what a page of somebody else makes a browser do.

    Programs say no origin and may do everything. Pages of other origins may read if their origin is allowed (CORS
    tells the browser), and may never change anything. On loopback the name in the address must be one of loopback:
    otherwise a name of somebody else could be led here.

    Parameters
    ----------
    host
        Where the server listens.
    origins
        Allowed besides those of this machine; ``*`` allows all.
    """

    def __init__(self, app: ASGIApp, *, host: str, origins: Sequence[str]) -> None:
        self._app = app
        self._local = is_loopback(host)
        self._origins = {origin.rstrip("/") for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope)
        if not refusal:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await JSONResponse({"error": "Forbidden", "text": refusal}, 403)(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._local and "*" not in self._origins and not self._is_known(host):
            return f"this server is for programs on its machine; it is not called {host[:60]!r}"
        if origin is None or urlsplit(origin).netloc == host:
            return ""
        changes = scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if changes or (scope["type"] == "websocket" and not self._is_allowed(origin)):
            return f"a page of {origin[:60]} may not do that"
        return ""

    def _is_known(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        return is_loopback(name) or any(urlsplit(origin).hostname == name for origin in self._origins)

    def _is_allowed(self, origin: str) -> bool:
        return "*" in self._origins or origin in self._origins or is_loopback(urlsplit(origin).hostname or "")
