"""Streams of a running service as a source."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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
from firstlight.pipeline._sources.forward import Reference, References
from firstlight.pipeline._sources.source import Arrival, Ended, Found, Requests, Source, Tidings

__all__ = ["Live", "OpenLive", "patiently", "silence"]

_Made = TypeVar("_Made")

#: So long a reader waits before it looks at its clock and at whether it shall stop.
_SLICE_S = 0.1


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
        self._ended: tuple[str, float] | None = None
        self._followed: dict[str, Consumer] = {}
        self.client = source.connect()
        self._references = References(self.client)

    def tidings(self) -> Iterator[Tidings]:
        """What arrives; each message comes along."""
        for lot in self.lots():
            if not lot:
                yield None
            lot.reverse()
            while lot:  # one that is worked on does not keep those before it
                yield lot.pop()

    def lots(self) -> Iterator[list[Arrival | Ended]]:
        """What arrived together, at whichever input; nothing when nothing came for a moment. See `TellsInLots`."""
        where = self._source
        # Acknowledged when the run is done with a message: until then it is kept, where the policy is to keep.
        self._followed = {
            name: self.client.consume(
                name, beamtime=where.beamtime, stream=where.stream, datasets=where.datasets, ack="manual"
            )
            for name in self._inputs
        }
        heard_s = dict.fromkeys(self._inputs, time.monotonic())
        following = dict(self._followed)
        while following:
            ready = self.client.wait_for_any(following.values(), _SLICE_S)
            lot = [told for name, consumer in following.items() if consumer in ready for told in _told(name, consumer)]
            heard = {told.name for told in lot}
            for name in following.keys() - heard:
                if (reason := self._given_up(heard_s[name])) is not None:
                    lot.append(Ended(name, reason, following[name].lost))
            for end in [told for told in lot if isinstance(told, Ended)]:
                self._ended = (end.name, time.monotonic())
                del following[end.name]
            if not lot:
                self._check_silence(max(heard_s.values()), following)
            yield lot
            del lot  # whose messages nobody should keep while the next ones are waited for
            # Behind the yield: what the caller does with messages is no silence of the stream.
            heard_s |= dict.fromkeys(heard, time.monotonic())

    def _check_silence(self, heard_s: float, following: Iterable[str]) -> None:
        where = self._source
        if where.timeout is None or time.monotonic() - heard_s <= where.timeout:
            return
        for name in following:
            try:
                self.client.info(name, beamtime=where.beamtime, stream=where.stream)
            except StreamNotFoundError:
                raise silence(where, name, exists=False) from None
        raise silence(where, next(iter(following)), exists=True)

    def _given_up(self, heard_s: float) -> str | None:
        """Why to wait no longer for an input that was heard then; None to wait on."""
        limit_s = self._source.after_end_s
        if limit_s is None or self._ended is None:
            return None
        other, ended_s = self._ended
        # What it sends now would be here within a slice.
        if time.monotonic() - max(heard_s, ended_s) <= max(limit_s, _SLICE_S):
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
        self.client.close()

    def __enter__(self) -> OpenLive:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _told(name: str, consumer: Consumer) -> list[Arrival | Ended]:
    """What a consumer that has something to say says."""
    try:
        found = consumer.receive_many(_SLICE_S)
    except StreamAbortedError as error:
        return [Ended(name, error.values["reason"], consumer.lost)]
    return [Arrival(name, message.id, message) for message in found] or [Ended(name, None, consumer.lost)]


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
