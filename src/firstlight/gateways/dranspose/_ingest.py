"""Ingester classes of dranspose without its distribution: what their ``run_source`` yields becomes messages of a stream.

A message has the id of its place in the scan: the begin is 1. What tells its own frame number (STINS, Eiger, Xspress3)
is placed by that, so that a frame that is lost leaves a gap and shifts nothing; other messages are counted. An ingester
may have several streams, also such that software triggers.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from dranspose.ingester import IsSoftwareTriggered

from firstlight.client import Producer
from firstlight.errors import ConfigurationError, DataError, FirstlightError
from firstlight.gateways.dranspose._classes import load_class
from firstlight.gateways.dranspose._dump import Dump
from firstlight.gateways.dranspose._triggered import Pace, Triggers

__all__ = ["Ingest", "Out", "Placing"]

logger = logging.getLogger(__name__)

#: Types whose first frame is JSON with the number of the frame: where that stands, and whether a series begins with 0.
_NUMBERED = {
    "STINS": ("frame", True),
    "EIGER_LEGACY": ("frame", True),
    "xspress": ("frame", True),
    "PCAP": ("frame_number", False),
    "albaem": ("frame_number", False),
}
_ENDS = {"htype": ("series_end", "dseries_end-1.0"), "message_type": ("series-end",)}


class Ingest:
    """An ingester class and its settings.

    Parameters
    ----------
    target
        ``module:Class``, for example ``dranspose.ingesters:ZmqPullSingleIngester``.
    settings
        As its settings class calls them, for example ``upstream_url``.

    Raises
    ------
    ConfigurationError
        If there is no such class, or its settings do not fit.
    """

    def __init__(self, target: str, settings: Mapping[str, str]) -> None:
        self.target = target
        self._kind = load_class(target)
        self._given = dict(settings)
        if not hasattr(self._kind, "run_source"):
            raise ConfigurationError(f"{target} is no ingester class: it has no run_source()", target=target)
        self._made("check")

    def _made(self, *streams: str) -> Any:
        """A new object, without what it would need to talk to other services of dranspose."""
        try:
            settings = _settings_class(self._kind)(ingester_streams=list(streams), **self._given)
            return self._kind(settings=settings)
        except Exception as error:  # settings that do not fit, or the user's class
            text = " ".join(str(error).split())
            raise ConfigurationError(f"ingester {self.target} cannot be made: {text}", target=self.target) from error

    @contextmanager
    def start(self, streams: Sequence[str], outs: Mapping[str, Out], pace: Pace) -> Iterator[None]:
        """Receive one scan in a thread, until it has ended or this context does.

        Parameters
        ----------
        streams
            All that it can receive.
        outs
            Where those of the scan go.
        pace
            Of the scan.
        """
        taking = _Taking(self._made(*streams), outs, pace)
        thread = threading.Thread(target=taking.run, name=f"ingest {', '.join(outs)}", daemon=True)
        thread.start()
        taking.ready.wait()
        try:
            yield
        finally:
            taking.stop()
            thread.join()
            for out in outs.values():
                out.close()


def _settings_class(kind: type) -> Any:
    """By its name, as dranspose finds it: of the class itself, or of what it is derived from."""
    for base in kind.__mro__:
        found = getattr(sys.modules[base.__module__], base.__name__.replace("Ingester", "Settings"), None)
        if isinstance(found, type) and found is not base:
            return found
    raise ConfigurationError(f"{kind.__module__}:{kind.__name__} has no settings class beside it")


class Placing:
    """Which place of the scan a message has.

    Parameters
    ----------
    n_messages
        In the scan; the first is the begin, the last the end.
    """

    def __init__(self, n_messages: int) -> None:
        self._n = n_messages
        self._last = 0
        #: Place minus number.
        self._offset: int | None = None

    def place(self, typ: str, first_frame: bytes) -> tuple[int, bool]:
        """The id of a message, and whether the stream ends with it."""
        header = _header(first_frame) if typ != "contrast" else {}
        if any(header.get(key) in values for key, values in _ENDS.items()):
            # The end has its place, whatever was lost before.
            self._last = max(self._n, self._last + 1)
            return self._last, True
        self._last = self._placed(typ, header)
        return self._last, self._last >= self._n

    def _placed(self, typ: str, header: dict[str, Any]) -> int:
        following = self._last + 1
        key, from_zero = _NUMBERED.get(typ, ("", False))
        number = header.get(key)
        if type(number) is not int:
            return following
        if self._offset is None:
            self._offset = 2 if from_zero else following - number
        place = number + self._offset
        if not following <= place <= self._n:
            # No number of this scan: a source that goes on counting over scans, or begins anew.
            self._offset = following - number
            return following
        return place


def _header(first_frame: bytes) -> dict[str, Any]:
    if first_frame[:1] != b"{":
        return {}
    try:
        found = msgspec.json.decode(first_frame)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


class Out:
    """Where the messages of one stream go in a scan.

    Parameters
    ----------
    producer
        Is finished with the last message, or aborted when the ingester fails; else left as it is.
    n_messages
        That the stream has in the scan.
    dump
        Records what comes.
    """

    def __init__(self, stream: str, producer: Producer, n_messages: int, dump: Dump | None = None) -> None:
        self.stream = stream
        self._producer = producer
        self._placing = Placing(n_messages)
        self._dump = dump

    def send(self, data: Any) -> tuple[int, bool]:
        """Pass on what came; the id that it has, and whether it was the last."""
        frames = _frames(data)
        number, is_last = self._placing.place(data.typ, frames[0] if frames else b"")
        self._put(number, data, frames)
        return number, is_last

    def put(self, number: int, data: Any) -> None:
        """Pass on what belongs to message `number`."""
        self._put(number, data, _frames(data))

    def _put(self, number: int, data: Any, frames: list[bytes]) -> None:
        if self._dump is not None:
            self._dump.write(number, data)
        about = {"typ": data.typ, "lengths": [len(frame) for frame in frames]}
        self._producer.send(b"".join(frames), id=number, meta={"dranspose": about})

    def finish(self) -> None:
        """That was all."""
        self._producer.finish()

    def abort(self, reason: str) -> None:
        """Give the stream up."""
        try:
            self._producer.abort(reason)
        except FirstlightError as error:
            logger.warning("could not abort stream %r: %s", self.stream, error)

    def close(self) -> None:
        """Whatever became of it."""
        self._producer.close()
        if self._dump is not None:
            self._dump.close()


def _frames(data: Any) -> list[bytes]:
    if not hasattr(data, "frames"):
        raise DataError(f"an ingester gives StreamData, not {type(data).__name__}")
    return [bytes(getattr(frame, "buffer", frame)) for frame in data.frames]


class _Taking:
    """One scan of one ingester, in a thread with an event loop of its own."""

    def __init__(self, ingester: Any, outs: Mapping[str, Out], pace: Pace) -> None:
        self.ready = threading.Event()
        self._ingester = ingester
        self._outs = outs
        self._pace = pace
        self._loop = asyncio.new_event_loop()
        self._triggers: Triggers | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def run(self) -> None:
        """Receive."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._run())
        finally:
            self._loop.close()
            self.ready.set()

    async def _run(self) -> None:
        import zmq.asyncio

        self._ingester.ctx = zmq.asyncio.Context()
        self._tasks = [asyncio.create_task(self._take(stream, out)) for stream, out in self._outs.items()]
        # The ingester connects before it waits for the first time.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.ready.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self._outs:
            await self._disconnect(stream)
        self._ingester.ctx.destroy(linger=0)

    async def _disconnect(self, stream: str) -> None:
        try:
            await self._ingester.stop_source(stream)
        except Exception:  # the ingester's own code, and the scan is over
            logger.exception("stop_source() of the ingester of stream %r raised", stream)

    async def _take(self, stream: str, out: Out) -> None:
        try:
            await self._receive(stream, out)
        except Exception as error:  # the ingester's own code
            logger.exception("ingester of stream %r failed", stream)
            out.abort(f"the ingester failed: {type(error).__name__}: {error}")
        finally:
            self._pace.ended(stream)

    async def _receive(self, stream: str, out: Out) -> None:
        source: AsyncIterator[Any] = self._ingester.run_source(stream)
        try:
            async for data in source:
                if isinstance(data, IsSoftwareTriggered):
                    await self._trigger(stream, out, source)
                    break
                number, is_last = out.send(data)
                self._pace.came(stream, number)
                if is_last:
                    break
        finally:
            await source.aclose()  # type: ignore[attr-defined]  # a generator
        out.finish()

    async def _trigger(self, stream: str, out: Out, source: AsyncIterator[Any]) -> None:
        """All messages of a stream that has something whenever its ingester is asked."""
        self._pace.is_triggered(stream)
        if self._triggers is None:
            self._triggers = Triggers(self._ingester, self._pace, list(self._outs))
        await self._triggers.follow(stream, out, source)

    def stop(self) -> None:
        """End it from another thread."""
        try:
            self._loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:
            pass  # the loop is closed: it has ended by itself

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
