"""Who may ask what: programs everything, pages of others little."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from firstlight.broker._guard import Guard, is_loopback


def admitted(
    *, kind: str = "http", method: str = "GET", host: str = "127.0.0.1", origins: Sequence[str] = (),
    headers: dict[str, str],
) -> bool:  # fmt: skip
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    async def send(message: Any) -> None: ...

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": method, "headers": raw, "path": "/"}
    asyncio.run(Guard(app, host=host, origins=origins)(scope, None, send))  # type: ignore[arg-type]
    return bool(reached)


@pytest.mark.parametrize("host", ["127.0.0.1:8420", "localhost:8420", "[::1]:8420", "127.0.1.1"])
def test_programs_on_this_machine_may_everything(host: str) -> None:
    for method in ("GET", "POST", "PUT"):
        assert admitted(method=method, headers={"host": host})


def test_a_foreign_name_for_loopback_is_refused() -> None:
    assert not admitted(headers={"host": "rebound.example.org"})
    assert not admitted(headers={})
    assert admitted(headers={"host": "rebound.example.org"}, host="0.0.0.0")
    assert admitted(headers={"host": "proxy.example.org"}, origins=["https://proxy.example.org"])
    assert admitted(headers={"host": "any.example.org"}, origins=["*"])


def test_pages_of_others_change_nothing() -> None:
    here = {"host": "localhost:8420"}
    for origin in ("https://evil.example.org", "http://localhost:3000", "null"):
        for method in ("POST", "PUT", "DELETE"):
            assert not admitted(method=method, headers={**here, "origin": origin}, origins=["*"])
    # Reading is between the browser and CORS.
    assert admitted(headers={**here, "origin": "https://evil.example.org"})
    assert admitted(method="POST", headers={**here, "origin": "http://localhost:8420"})


def test_websockets_have_no_cors_and_are_looked_at_here() -> None:
    def opened(origin: str, **more: Any) -> bool:
        return admitted(kind="websocket", headers={"host": "localhost:8420", "origin": origin}, **more)

    assert opened("http://localhost:8420") and opened("http://127.0.0.1:3000")
    assert not opened("https://evil.example.org")
    assert opened("https://h5web.example.org", origins=["https://h5web.example.org/"])
    assert admitted(kind="websocket", headers={"host": "localhost:8420"})


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "10.0.0.1", "", "localhost.example.org", "127.evil.example.org")))
