"""HTTP on a socket of ours: uvicorn in this event loop, with limits for those who send too much or nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from firstlight.broker._sockets import listening_socket

__all__ = ["HttpListener"]

#: Answers that are under way when the service stops get so long to be read.
_GRACE_S = 2
#: The time in the headers of answers is as old as this at most.
_TICK_S = 1.0
#: A connection may rest between two requests.
_KEEP_ALIVE_S = 60
#: A request's first line and headers must be here within this, and not be longer.
_HEAD_WITHIN_S = 20.0
_MAX_HEAD_BYTES = 64 << 10
#: What a client may say at once through a websocket.
_MAX_WORD_BYTES = 64 << 10
_MAX_CONNECTIONS = 2000
#: Requests that a client may send before it reads the answers.
_MAX_AHEAD = 32


class HttpListener:
    """Serves one application on one port.

    Parameters
    ----------
    port
        0 takes a free one.
    option, what
        How another port is chosen on the command line, and what is served; for errors.
    websockets
        Connections may become websockets, for an application that knows what to do with them.

    Raises
    ------
    ConfigurationError
        If there is no such address.
    ConnectionLostError
        If the port is taken.
    """

    def __init__(self, host: str, port: int, *, option: str, what: str = "HTTP", websockets: bool = False) -> None:
        self.host = host
        self._websockets = websockets
        self.sock = listening_socket(host, port, option=option, what=what)
        self._server: _Uvicorn | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.sock.getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens, for people."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def start(self, app: object) -> None:
        """Serve an ASGI application."""
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]  # Starlette is an ASGI application; its annotation and uvicorn's differ
            lifespan="off", access_log=False, log_config=None, server_header=False,
            timeout_graceful_shutdown=_GRACE_S, timeout_keep_alive=_KEEP_ALIVE_S, http=_Guarded,
            ws="websockets-sansio" if self._websockets else "none", ws_max_size=_MAX_WORD_BYTES,
            # What is sent is measured data, which hardly shrinks, and from this machine or the next.
            ws_per_message_deflate=False,
        )  # fmt: skip
        server = self._server = _Uvicorn(config)
        self._task = asyncio.create_task(server.serve(sockets=[self.sock]), name="http")
        await server.listening.wait()

    async def stop(self) -> None:
        """Stop serving; what is being answered is answered."""
        if self._server is not None:
            self._server.leave()
            self._server = None
            await self._task
        self.sock.close()


class _Uvicorn(uvicorn.Server):
    """Tells when it listens, leaves signals to the service, and does not look ten times a second whether to leave."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Stop serving."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        # Counter 0 renews what answers say about the time, as every tenth turn does.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), _TICK_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Guarded(HttpToolsProtocol):
    """Closes connections that send no end of a header, or none at all; the parser itself would collect for ever."""

    _in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(_HEAD_WITHIN_S, self._close)
        if len(self.connections) > _MAX_CONNECTIONS:
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > _MAX_HEAD_BYTES:
            self._close()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_head = False
        if self.transport.is_closing():
            return  # the rest of what was read at once
        super().on_headers_complete()
        if len(self.pipeline) > _MAX_AHEAD:
            # Each answer would let in as many more as fit into one read: a gigabyte of them, from one client.
            self._close()
            self.pipeline.clear()

    def on_message_complete(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()
