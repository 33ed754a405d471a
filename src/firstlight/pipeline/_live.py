"""Streams of a running service as a source."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from firstlight.client import DEFAULT_URL, Client, Consumer
from firstlight.errors import (
    ConfigurationError,
    ConnectionLostError,
    FirstlightError,
    MessageNotFoundError,
    StreamAbortedError,
    StreamNotFoundError,
    StreamTimeoutError,
)
from firstlight.model import DEFAULT_BEAMTIME, StreamId
from firstlight.pipeline._forward import Reference, References
from firstlight.pipeline._sources import Arrival, Ended, Found, Requests, Source, Tell, Tidings
from firstlight.pipeline._threads import start

__all__ = ["Live", "OpenLive", "patiently", "silence"]

_Made = TypeVar("_Made")
_Lot: TypeAlias = list[Arrival | Ended]

#: So long a reader waits before it looks at its clock and at whether it shall stop.
_SLICE_S = 0.1
#: Lots on their way from the threads that follow several inputs; their messages are held in the service's memory.
_MAX_LOTS = 4


@dataclass(frozen=True)
class Live:
    """The streams of one name, one for each input, while they are taken or afterwards.

    Parameters
    ----------
    url
        Of the service.
    beamtime, stream
        Where: every input of the pipeline is a source that has, or will have, a stream of this name.
    group
        Gives a run on `Processes` a name, so that another run with the same name continues it (after a crash, or on a
        second machine at the same time): events that are done are not done again. Without it every run begins at the
        first event.
    checkpoint_s
        Seconds between two checkpoints of a run with a name: what its reducer has added up, from where another run goes on
        without reducing everything again. None: no checkpoints.
    timeout
        Seconds without a message of any input after which the run fails with `StreamTimeoutError`, or
        `StreamNotFoundError` if there is no such stream by then. None waits for ever: the scan may begin tomorrow.
    after_end_s
        Seconds without a message after which an input that is not finished, or not there at all, is given up when another
        one has ended: the run is ``aborted`` then, and what can be done without it is done. None waits for it.
    datasets
        The inputs are detectors made of modules; events hold a `Dataset` of each.
    reconnect_timeout
        Seconds to try when the connection is lost; then the run fails with `ConnectionLostError`.
    """

    url: str = DEFAULT_URL
    beamtime: str = DEFAULT_BEAMTIME
    stream: str = ""
    group: str | None = None
    checkpoint_s: float | None = 10.0
    timeout: float | None = None
    after_end_s: float | None = None
    datasets: bool = False
    reconnect_timeout: float = 60.0

    def __post_init__(self) -> None:
        StreamId(self.beamtime, "any", self.stream)
        if self.after_end_s is not None and not self.after_end_s >= 0:
            raise ConfigurationError(f"after_end_s is a time in seconds, or None, not {self.after_end_s!r}")
        if self.checkpoint_s is not None and not self.checkpoint_s > 0:
            raise ConfigurationError(f"checkpoint_s is a time in seconds above 0, or None, not {self.checkpoint_s!r}")

    @property
    def live(self) -> bool:
        """Latency means something, though not for the part of a stream that was there before the run began."""
        return True

    def connect(self) -> Client:
        """A client of the service, to be closed."""
        return Client(self.url, reconnect_timeout=self.reconnect_timeout)

    def open(self, inputs: Sequence[str]) -> OpenLive:
        """Connect."""
        return OpenLive(self, inputs)

    def stream_id(self, name: str) -> StreamId:
        """The stream of an input."""
        return StreamId(self.beamtime, name, self.stream)


class OpenLive:
    """`Live` at work: follows without a group, so that looking leaves no trace in the service."""

    def __init__(self, source: Live, inputs: Sequence[str]) -> None:
        self._source = source
        self._inputs = tuple(inputs)
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._heard_s = time.monotonic()
        self._ended: tuple[str, float] | None = None
        self._followed: dict[str, Consumer] = {}
        self.client = source.connect()
        self._references = References(self.client)

    def tidings(self) -> Iterator[Tidings]:
        """What arrives; each message comes along."""
        for lot in self._follow(self._inputs[0]) if len(self._inputs) == 1 else self._follow_all():
            if not lot:
                yield None
            lot.reverse()
            while lot:  # one that is worked on does not keep those before it
                yield lot.pop()

    def push(self, tell: Tell) -> None:
        """As `tidings`, told by the threads that follow the inputs; see `Pushes`."""
        over: queue.SimpleQueue[FirstlightError | None] = queue.SimpleQueue()
        self._start(tell, over.put)
        for _ in self._inputs:
            error = over.get()
            if error is not None:
                raise error

    def _follow_all(self) -> Iterator[_Lot]:
        told: queue.Queue[_Lot | FirstlightError | None] = queue.Queue(_MAX_LOTS)
        put = functools.partial(self._put, told)
        self._start(put, put)
        n_open = len(self._inputs)
        while n_open:
            try:
                lot = told.get(timeout=_SLICE_S)
            except queue.Empty:
                lot = []
            if isinstance(lot, FirstlightError):
                raise lot
            if lot is None:
                n_open -= 1
            else:
                yield lot

    def _put(self, told: queue.Queue[_Lot | FirstlightError | None], lot: _Lot | FirstlightError | None) -> bool:
        while lot != [] and not self._closing.is_set():
            try:
                told.put(lot, timeout=_SLICE_S)
            except queue.Full:
                self._heard_s = time.monotonic()  # what lies unread is no silence
            else:
                break
        return not self._closing.is_set()

    def _start(self, tell: Tell, over: Callable[[FirstlightError | None], object]) -> None:
        """Follow each input in a thread of its own, which says last that it is over, and of what."""
        for name in self._inputs:
            follow = functools.partial(self._tell, name, tell, over)
            self._threads.append(start(f"follow {name}", follow, over))

    def _tell(self, name: str, tell: Tell, over: Callable[[None], object]) -> None:
        for lot in self._follow(name):
            if self._closing.is_set() or not tell(lot):
                break
        over(None)

    def _follow(self, name: str) -> Iterator[_Lot]:
        where = self._source
        # Acknowledged when the run is done with a message: until then it is kept, where the policy is to keep.
        consumer = self._followed[name] = self.client.consume(
            name, beamtime=where.beamtime, stream=where.stream, datasets=where.datasets, ack="manual"
        )
        self._heard_s = heard_s = time.monotonic()
        while True:
            if not consumer.wait(_SLICE_S):
                if (reason := self._given_up(heard_s)) is not None:
                    yield [self._end(name, reason, consumer)]
                    return
                self._check_silence(name)
                yield []
                continue
            try:
                found = consumer.receive_many(_SLICE_S)
            except StreamAbortedError as error:
                yield [self._end(name, error.values["reason"], consumer)]
                return
            if not found:
                yield [self._end(name, None, consumer)]
                return
            lot: _Lot = [Arrival(name, message.id, message) for message in found]
            del found
            yield lot
            # Behind the yield: what the caller does with messages is no silence of the stream.
            self._heard_s = heard_s = time.monotonic()

    def _end(self, name: str, aborted: str | None, consumer: Consumer) -> Ended:
        self._ended = (name, time.monotonic())
        return Ended(name, aborted, consumer.lost)

    def _check_silence(self, name: str) -> None:
        where = self._source
        if where.timeout is None or time.monotonic() - self._heard_s <= where.timeout:
            return
        try:
            self.client.info(name, beamtime=where.beamtime, stream=where.stream)
        except StreamNotFoundError:
            raise silence(where, name, exists=False) from None
        raise silence(where, name, exists=True)

    def _given_up(self, heard_s: float) -> str | None:
        """Why to wait no longer for an input that was heard then; None to wait on."""
        limit_s = self._source.after_end_s
        if limit_s is None or self._ended is None:
            return None
        other, ended_s = self._ended
        if time.monotonic() - max(heard_s, ended_s) <= limit_s:
            return None
        return f"it was silent for {limit_s:g} s after {other} had ended"

    def done(self, name: str, first: int, last: int) -> None:
        """The service need not keep these messages for this run."""
        self._followed[name].ack_range(first, last)

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Found]:
        """The messages of an event, read in place where the service is on this machine."""
        return {name: self._get(name, number) for name, number in ids.items()}

    def requests(self, name: str) -> Requests:
        """For messages that are needed soon; see `FetchesAhead`."""
        where = self._source
        return self.client.requests(name, beamtime=where.beamtime, stream=where.stream, datasets=where.datasets)

    def _get(self, name: str, number: int) -> Found:
        where = self._source
        found: Iterator[Found] = self.client.get_many(
            name, [number], beamtime=where.beamtime, stream=where.stream, datasets=where.datasets
        )
        with contextlib.closing(found):  # type: ignore[type-var]  # a generator, which the annotation does not say
            for message in found:
                return message
        raise MessageNotFoundError(f"there is no message {number} in {where.stream_id(name)}", id=number)

    def resolve(self, reference: Reference) -> Found:
        """A message that an earlier pipeline refers to, in place as well."""
        return self._references.fetch(reference)

    def close(self) -> None:
        """Disconnect."""
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self.client.close()

    def __enter__(self) -> OpenLive:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def patiently(source: Source, connect: Callable[[], _Made], stopping: threading.Event) -> _Made:
    """Connect to a service that was there a moment ago, and may be restarting: try for as long as a lost connection is.

    Raises
    ------
    ConnectionLostError
        If it does not come back in time, or the run ends.
    """
    deadline = time.monotonic() + (source.reconnect_timeout if isinstance(source, Live) else 0.0)
    while True:
        try:
            return connect()
        except ConnectionLostError:
            if time.monotonic() >= deadline or stopping.wait(_SLICE_S):
                raise


def silence(where: Live, name: str, *, exists: bool) -> FirstlightError:
    """The error for an input that says nothing for longer than the source allows."""
    stream = where.stream_id(name)
    if exists:
        return StreamTimeoutError(
            f"nothing came from {stream} for {where.timeout:g} s, and it is not finished", stream=str(stream)
        )
    return StreamNotFoundError(
        f"there is no stream {stream}, and none came within {where.timeout:g} s; `firstlight ls` lists what there is",
        stream=str(stream), similar=[],
    )  # fmt: skip
