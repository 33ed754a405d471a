"""Streams that software triggers: an ingester of dranspose is asked for a value whenever the frames of an event have come.

Under dranspose one ingester is asked when its own frames of an event are there. Here it waits for those of all ingesters of
the scan, so that a value belongs to the frames also where the detector has an ingester of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from firstlight.errors import DataError
from firstlight.gateways.dranspose._map import ScanMap

__all__ = ["Pace", "Triggers"]

logger = logging.getLogger(__name__)


class Pace:
    """How far the streams of a scan are. Thread safe: each ingester tells of its own, and asks about the others."""

    def __init__(self, scan: ScanMap) -> None:
        self._scan = scan
        self._reached: dict[str, int] = {}
        self._triggered: set[str] = set()
        self._over: set[str] = set()
        self._listeners: list[Callable[[], None]] = []

    def came(self, stream: str, number: int) -> None:
        """A message, and with it whatever will ever come before it."""
        self._reached[stream] = number
        self._tell()

    def ended(self, stream: str) -> None:
        """Nothing more will come."""
        self._over.add(stream)
        self._tell()

    def is_triggered(self, stream: str) -> None:
        """Nobody has to wait for this stream: it has something whenever its ingester is asked."""
        self._triggered.add(stream)
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this, from whatever thread, when there is news."""
        self._listeners.append(listener)

    def events(self, streams: Sequence[str]) -> Iterator[dict[str, int]]:
        """The events in which one of these streams has a message, in order: the ids of the messages of all streams."""
        return (places for places in self._scan.places() if any(stream in places for stream in streams))

    def has(self, places: Mapping[str, int]) -> bool:
        """Whether an event has all the messages that it will get without anybody being asked."""
        return all(
            stream in self._triggered or stream in self._over or self._reached.get(stream, 0) >= number
            for stream, number in places.items()
        )


class Sends(Protocol):
    """Where messages of a stream go."""

    def put(self, number: int, data: Any, /) -> None:
        """Pass on what belongs to message `number`."""


class Triggers:
    """Asks one ingester for the values of its streams that software triggers, event after event.

    Parameters
    ----------
    streams
        All of the scan that this ingester receives: it is asked for each event in which one of them has something, as
        dranspose does.
    """

    def __init__(self, ingester: Any, pace: Pace, streams: Sequence[str]) -> None:
        self._ingester = ingester
        self._pace = pace
        self._streams = streams
        self._outs: dict[str, Sends] = {}
        self._sources: dict[str, AsyncIterator[Any]] = {}
        #: Streams whose ``run_source`` has yielded for the next event already.
        self._begun: set[str] = set()
        self._news = asyncio.Event()
        self._asking: asyncio.Task[None] | None = None

    async def follow(self, stream: str, out: Sends, source: AsyncIterator[Any]) -> None:
        """Send all messages of a stream; its ``run_source`` has yielded once."""
        self._outs[stream], self._sources[stream] = out, source
        self._begun.add(stream)
        if self._asking is None:
            loop = asyncio.get_running_loop()
            self._pace.listen(lambda: _call(loop, self._news.set))
            self._asking = asyncio.create_task(self._ask())
        try:
            await asyncio.shield(self._asking)
        except asyncio.CancelledError:
            # Before anybody closes a source: it may be waited for.
            self._asking.cancel()
            await asyncio.wait([self._asking])
            raise

    async def _ask(self) -> None:
        if not hasattr(self._ingester, "software_trigger"):
            raise DataError("run_source() yields IsSoftwareTriggered, and there is no software_trigger()")
        values = iter(self._ingester.software_trigger())
        for places in self._pace.events(self._streams):
            await self._until(places)
            wanted = {stream: await self._own(stream) for stream in places if stream in self._sources}
            given = next(values, None)
            if given is None:
                raise DataError("software_trigger() ended before the scan did")
            for stream, data in wanted.items():
                self._send(stream, places[stream], given.get(stream) if data is None else data)
            await asyncio.sleep(0)  # streams without any other wait nowhere else

    async def _until(self, places: Mapping[str, int]) -> None:
        while True:
            self._news.clear()
            if self._pace.has(places):
                return
            await self._news.wait()

    async def _own(self, stream: str) -> Any:
        """What ``run_source`` has for an event: data, or None where software has to be asked."""
        if stream in self._begun:
            self._begun.discard(stream)
            return None
        try:
            found = await anext(self._sources[stream])
        except StopAsyncIteration:
            raise DataError(f"run_source() of stream {stream!r} ended before the scan did") from None
        return found if hasattr(found, "frames") else None

    def _send(self, stream: str, number: int, data: Any) -> None:
        if data is None:
            logger.error("software_trigger() gave nothing for stream %r: its message %d is missing", stream, number)
        else:
            self._outs[stream].put(number, data)


def _call(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(what)
    except RuntimeError:
        pass  # the loop is closed: nobody waits there any more
