"""The websocket: views as they change, to each client what it wants and as fast as it takes it.

Nothing is queued. A client gets, whenever it has taken what it was sent, the newest of each view that it has not seen;
what changed twice in between, it sees once. How a run ended it sees in any case. docs/reference/live-protocol.md tells the words.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
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
#: The last words, when the server is closed.
_LAST_WITHIN_S = 2.0
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
        self._ending = asyncio.Event()
        self._sending: set[asyncio.Task[None]] = set()

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
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
            try:
                await asyncio.wait({listening, sending}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (listening, sending):
                    task.cancel()
                await asyncio.gather(listening, sending, return_exceptions=True)
        await client.leave()

    async def finish(self) -> None:
        """Show everybody what there is at the end, as far as they take it in time; they are sent nothing afterwards."""
        if not self._n_clients:
            return
        if self._looking is not None:
            self._looking.cancel()
        self._run_at_s = 0.0
        await self._look_once(anew=True)
        self._ending.set()
        if self._sending:
            await asyncio.wait(self._sending, timeout=_LAST_WITHIN_S)

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

    async def _look_once(self, *, anew: bool = False) -> None:
        now_s, words = asyncio.get_running_loop().time(), self._run_words
        if now_s >= self._run_at_s:
            self._run_at_s = now_s + _RUN_EVERY_S
            words = _words({"type": "run"} | await run_in_threadpool(self._run_now))
        latest, before = await run_in_threadpool(partial(self._snapshots.latest, anew=anew)), self._latest
        news = before is None or (latest.version, latest.state) != (before.version, before.state)
        news = news or words != self._run_words
        self._latest, self._run_words = latest, words
        if news:
            self._changed.set()
            self._changed = asyncio.Event()

    async def _send(self, client: _Client) -> None:
        while True:
            changed, is_last = self._changed, self._ending.is_set()
            client.wishes_changed.clear()
            if self._latest is not None:
                for snapshot in client.due(self._latest):
                    await client.update(snapshot, self._run_words)
            if is_last:
                return
            again_s = self._every_s if client.is_behind else None
            await _any_of(changed, client.wishes_changed, self._ending, within_s=again_s)
            if not client.wishes_changed.is_set():
                await _any_of(client.wishes_changed, self._ending, within_s=client.rests_s)


async def _any_of(*events: asyncio.Event, within_s: float | None = None) -> None:
    """Wait until one of them is set, or so long."""
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waiting:
            wait.cancel()


class _Client:
    """What one client wants and has."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._wanted: frozenset[str] | None = frozenset()
        self._sent: dict[str, int] = {}
        self._told_views = self._told_run = ""
        self._n_wishes = 0
        self._told = (0, 0, "")
        self._seen_run = 0
        self._held_bytes = 0
        self.is_behind = False
        self._every_s = 0.0
        self._next_s = 0.0
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
        self._every_s = wish.every_s
        self._next_s = 0.0
        self._n_wishes += 1
        self.wishes_changed.set()

    @property
    def rests_s(self) -> float:
        """So long until it wants another round."""
        return max(self._next_s - asyncio.get_running_loop().time(), 0.0)

    def due(self, latest: Snapshot) -> list[Snapshot]:
        """What to send now: also how the run ended that it has seen, if that was not long ago."""
        behind = latest.ended is not None and 0 < self._seen_run < latest.run
        self._seen_run = latest.run
        return [latest.ended, latest] if latest.ended is not None and behind else [latest]

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
        told = (self._n_wishes, latest.run, latest.state)
        if not self._n_wishes or not (new or told != self._told):
            return
        self._told, self.is_behind = told, False
        self._next_s = asyncio.get_running_loop().time() + self._every_s
        try:
            for now in new:
                frame = await run_in_threadpool(getattr, now, "frame")
                if not room.take(len(frame)):
                    self.is_behind = True  # it gets this one, or a newer one, when others have taken theirs
                else:
                    self._held_bytes += len(frame)
                    self._sent[now.name] = now.version
                    async with asyncio.timeout(_TAKEN_WITHIN_S):
                        await self._socket.send_bytes(frame)
            # Words are sent when what was before them is taken, but for a little.
            if not self.is_behind:
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
