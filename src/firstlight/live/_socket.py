"""The websocket: views as they change, to each client what it wants and as fast as it takes it.

Nothing is queued. A client gets, whenever it has taken what it was sent, the newest of each view that it has not seen;
what changed twice in between, it sees once. docs/reference/live-protocol.md tells the words.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect

from firstlight.hdf5tree import plain, room
from firstlight.live._snapshots import Snapshot, Snapshots, ViewNow

__all__ = ["LiveSocket"]

logger = logging.getLogger(__name__)

#: Clients of the websocket at once.
_MAX_CLIENTS = 100
_TAKEN_WITHIN_S = 20.0
_RUN_EVERY_S = 1.0
_MAX_NAMES = 1000
_TRY_AGAIN_LATER = 1013
_GONE = (WebSocketDisconnect, ConnectionError, TimeoutError, RuntimeError)


class _Subscribe(msgspec.Struct, forbid_unknown_fields=True):
    """What a client says."""

    subscribe: list[str] | str
    every_s: float = 0.0


class LiveSocket:
    """Serves the websocket, all clients from one look at the run.

    Parameters
    ----------
    run_now
        Facts about the run.
    every_s
        Between two looks, as long as somebody is there to see.
    """

    def __init__(self, snapshots: Snapshots, run_now: Callable[[], dict[str, Any]], *, every_s: float = 0.2) -> None:
        self._snapshots = snapshots
        self._run_now = run_now
        self._every_s = every_s
        self._n_clients = 0
        self._looking: asyncio.Task[None] | None = None
        #: None until somebody has looked.
        self._latest: Snapshot | None = None
        self._run_words = ""
        self._run_at_s = 0.0
        self._changed = asyncio.Event()

    async def serve(self, socket: WebSocket) -> None:
        """Serve one client until it leaves."""
        if self._n_clients >= _MAX_CLIENTS:
            await socket.close(_TRY_AGAIN_LATER)
            return
        await socket.accept()
        client = _Client(socket)
        async with self._watching():
            listening = asyncio.create_task(client.listen())
            sending = asyncio.create_task(self._send(client))
            try:
                await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (listening, sending):
                    task.cancel()
                await asyncio.gather(listening, sending, return_exceptions=True)
        await client.leave()

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        """While there is somebody, the run is looked at."""
        self._n_clients += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        try:
            yield
        finally:
            self._n_clients -= 1
            if not self._n_clients and self._looking is not None:
                self._looking.cancel()
                self._looking = self._latest = None

    async def _look(self) -> None:
        while True:
            try:
                await self._look_once()
            except Exception:  # views are made by user code, and a look that ends would leave all clients in the dark
                logger.exception("views cannot be sent")
            await asyncio.sleep(self._every_s)

    async def _look_once(self) -> None:
        now_s, words = asyncio.get_running_loop().time(), self._run_words
        if now_s >= self._run_at_s:
            self._run_at_s = now_s + _RUN_EVERY_S
            words = _words({"type": "run"} | await run_in_threadpool(self._run_now))
        latest, before = await run_in_threadpool(self._snapshots.latest), self._latest
        news = before is None or (latest.version, latest.state) != (before.version, before.state)
        news = news or words != self._run_words
        self._latest, self._run_words = latest, words
        if news:
            self._changed.set()
            self._changed = asyncio.Event()

    async def _send(self, client: _Client) -> None:
        while True:
            changed = self._changed
            if self._latest is not None:
                await client.update(self._latest, self._run_words)
            if client.wishes_changed.is_set():
                client.wishes_changed.clear()
                continue
            waiting = [asyncio.ensure_future(event.wait()) for event in (changed, client.wishes_changed)]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waiting:
                    wait.cancel()
            await asyncio.sleep(max(client.every_s - self._every_s, 0.0))


class _Client:
    """What one client wants and has."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._wanted: frozenset[str] | None = frozenset()
        self._sent: dict[str, int] = {}
        self._told_views = self._told_run = ""
        self._n_wishes = 0
        self._told = (0, "")
        self._held_bytes = 0
        self.every_s = 0.0
        self.wishes_changed = asyncio.Event()

    async def listen(self) -> None:
        """Take wishes until the client leaves; one that cannot be read changes nothing."""
        while True:
            try:
                message = await self._socket.receive()
                if message["type"] != "websocket.receive":
                    return
                self._wish(message.get("text") or message.get("bytes") or "")
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
                await self._say(_words({"type": "error", "text": f"what was said cannot be read: {error}"}))
            except _GONE:
                return

    def _wish(self, text: str | bytes) -> None:
        wish = msgspec.json.decode(text, type=_Subscribe)
        if isinstance(wish.subscribe, str) and wish.subscribe != "*":
            raise ValueError('subscribe takes "*" or a list of names')
        if len(wish.subscribe) > _MAX_NAMES or not 0 <= wish.every_s <= 3600:
            raise ValueError(f"at most {_MAX_NAMES} names, and every_s from 0 to 3600")
        self._wanted = None if isinstance(wish.subscribe, str) else frozenset(wish.subscribe)
        self.every_s = wish.every_s
        self._n_wishes += 1
        self.wishes_changed.set()

    async def update(self, latest: Snapshot, run_words: str) -> None:
        """Send what the client has not seen, and wait until it has taken it."""
        views = _words({"type": "views", "views": [_named(now) for now in latest.views.values()]})
        if views != self._told_views:
            self._told_views = views
            await self._say(views)
        if run_words and run_words != self._told_run:
            self._told_run = run_words
            await self._say(run_words)
        wanted = [now for name, now in latest.views.items() if self._wanted is None or name in self._wanted]
        new = [now for now in wanted if self._sent.get(now.name) != now.version]
        told = (self._n_wishes, latest.state)
        if not self._n_wishes or not (new or told != self._told):
            return
        self._told = told
        try:
            for now in new:
                frame = await run_in_threadpool(getattr, now, "frame")
                # Where there is no room for this client now, it gets a newer one later.
                if room.take(len(frame)):
                    self._held_bytes += len(frame)
                    self._sent[now.name] = now.version
                    async with asyncio.timeout(_TAKEN_WITHIN_S):
                        await self._socket.send_bytes(frame)
            # Words are sent when what was before them is taken, but for a little.
            await self._say(_words({"type": "sent", "version": latest.version, "state": latest.state}))
        finally:
            room.give_back(self._held_bytes)
            self._held_bytes = 0

    async def _say(self, words: str) -> None:
        async with asyncio.timeout(_TAKEN_WITHIN_S):
            await self._socket.send_text(words)

    async def leave(self) -> None:
        """Close, if the client has not."""
        try:
            async with asyncio.timeout(1.0):
                await self._socket.close()
        except _GONE:
            pass


def _named(now: ViewNow) -> dict[str, Any]:
    """What a view is, without what changes all the time."""
    return {name: now.facts[name] for name in ("name", "kind", "title", "unit", "temporality")}


def _words(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=plain).decode()
