"""Feeds a recording back into a service: the same messages, ids, parts and ends, in their intervals or faster."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from firstlight.client import Client, Producer, batch_of, send_rows
from firstlight.errors import (
    ConfigurationError,
    DuplicateIdError,
    MessageEvictedError,
    StreamFinishedError,
    StreamNotFoundError,
)
from firstlight.model import Batch, Message, Row, StreamId
from firstlight.monitoring import Histogram
from firstlight.pipeline._sources.pace import Pace
from firstlight.storage import EndEntry, RecordedStream, RecordingFile

__all__ = ["Due", "Replayed", "replay"]

_OPEN_AHEAD_S = 0.2


class Due(NamedTuple):
    """Messages side by side in one batch, whose time has come."""

    stream: StreamId
    batch: Batch
    row: int
    n: int
    at_ns: int
    stream_no: int

    @property
    def first(self) -> Row:
        """The first of them."""
        return self.batch.row(self.row)


@dataclass
class Replayed:
    """What became of a replay.

    Attributes
    ----------
    n_messages, n_bytes
        Handed over; bytes without metadata.
    n_duplicates
        Of these the service had before, identical.
    late_s
        By how much messages were handed over after they were due; empty without a speed.
    stopped
        Before everything was sent; the streams that were not ended then are open.
    problem
        Why not all of the file could be read; empty if it could.
    """

    n_messages: int = 0
    n_bytes: int = 0
    n_duplicates: int = 0
    streams: list[StreamId] = field(default_factory=list)
    late_s: Histogram = field(default_factory=Histogram)
    stopped: bool = False
    problem: str = ""


def replay(
    client: Client,
    path: str | Path,
    *,
    speed: float | None = None,
    beamtime: str | None = None,
    suffix: str = "",
    one_by_one: bool = False,
    go_on: Callable[[Due], bool] = lambda due: True,
    stop: threading.Event | None = None,
) -> Replayed:
    """Send what a recording holds.

    A message that the service has, identical, is counted and not an error, also in a stream that was finished. Metadata
    of sources and streams are set where there are none.

    Parameters
    ----------
    speed
        1.0 keeps the intervals in which the service got the messages, 2.0 halves them; None sends as fast as possible.
    beamtime
        Where all streams go; None: where they came from.
    suffix
        Behind the name of every stream.
    one_by_one
        Send each message for itself, and wait until it is stored.
    go_on
        Called with what is due before it is sent; False ends the replay.
    stop
        Ends it as well, also while nothing is due.

    Raises
    ------
    ConfigurationError
        If two streams would become one.
    DuplicateIdError
        If the service has another message with the same id.
    StreamFinishedError
        If a stream is finished in the service and does not have the message.
    CorruptError
        If the file is damaged where it is read.

    Examples
    --------
    ::

        with Client() as client:
            replay(client, "scan_0042.flrec", speed=1.0, beamtime="commissioning")
    """
    pace = Pace(speed)
    stop = stop or threading.Event()
    with RecordingFile(path) as file, ExitStack() as stack:
        sending = _Sending(client, file, _targets(file, beamtime, suffix), stack)
        for due in _dues(file, sending.targets, one_by_one=one_by_one):
            # Opening a stream takes some ms, which must not make its first message late.
            early_s = pace.left_s(due.at_ns) - _OPEN_AHEAD_S if sending.begun else 0.0
            if not stop.wait(max(early_s, 0.0)):
                sending.prepare(due)
            if stop.wait(max(pace.left_s(due.at_ns), 0.0)) or not go_on(due):
                sending.done.stopped = True
                break
            if speed is not None:
                sending.done.late_s.record(max(-pace.left_s(due.at_ns), 0.0))
            sending.send(due, flush=one_by_one)
        sending.finish()
        return sending.done


def _targets(file: RecordingFile, beamtime: str | None, suffix: str) -> dict[int, StreamId]:
    found = {
        number: StreamId(beamtime or stream.id.beamtime, stream.id.source, stream.id.stream + suffix)
        for number, stream in file.streams.items()
    }
    for target, n in Counter(found.values()).items():
        if n > 1:
            raise ConfigurationError(
                f"{file.path} has {target.source}/{target.stream} in {n} beamtimes, which cannot all go into {beamtime}; leave "
                "that out, or record one beamtime",
                stream=str(target),
            )
    return found


def _dues(file: RecordingFile, targets: dict[int, StreamId], *, one_by_one: bool) -> Iterator[Due]:
    """What is to be sent, in order."""
    pending: Due | None = None
    offset = -1
    for line in file.rows:
        row, n, number = int(line["row"]), int(line["n"]), int(line["stream_no"])
        if pending is not None and line["offset"] == offset and row == pending.row + pending.n:
            file.batch_of(line)
            pending = pending._replace(n=pending.n + n)  # ids do not count up here, and still it is one batch
            continue
        if pending is not None:
            yield from _in_steps(pending, one_by_one=one_by_one)
        offset = int(line["offset"])
        pending = Due(targets[number], file.batch_of(line), row, n, int(line["stored_ns"]), number)
    if pending is not None:
        yield from _in_steps(pending, one_by_one=one_by_one)


def _in_steps(due: Due, *, one_by_one: bool) -> Iterator[Due]:
    if not one_by_one:
        yield due
        return
    for row in range(due.row, due.row + due.n):
        yield due._replace(row=row, n=1)


class _Outlet(Protocol):
    """Where the messages of one stream go."""

    def send(self, due: Due, *, flush: bool) -> None:
        """Send, or compare with what is there."""

    def end(self, end: EndEntry | None) -> int:
        """Nothing more will come; returns how many were there before."""


class _Sending:
    """The streams that are being sent."""

    def __init__(self, client: Client, file: RecordingFile, targets: dict[int, StreamId], stack: ExitStack) -> None:
        self.targets = targets
        self.done = Replayed(streams=list(targets.values()), problem=file.problem)
        self._client = client
        self._file = file
        self._stack = stack
        self._outlets: dict[int, _Outlet] = {}
        self._left = {number: stream.n_messages for number, stream in file.streams.items() if stream.n_messages}
        self._metas: set[tuple[str, str]] = set()
        self.begun = False
        for number in targets:
            if number not in self._left:  # no messages, but somebody waits for its end
                self._end(number, self._outlet(number))

    def prepare(self, due: Due) -> None:
        """Open the stream, if that was not done."""
        self.begun = True
        self._outlet(due.stream_no)

    def send(self, due: Due, *, flush: bool) -> None:
        outlet = self._outlet(due.stream_no)
        outlet.send(due, flush=flush)
        self.done.n_messages += due.n
        self.done.n_bytes += sum(row.blob_size for row in due.batch.rows(due.row, due.n))
        self._left[due.stream_no] -= due.n
        if not self._left[due.stream_no]:
            self._end(due.stream_no, outlet)

    def finish(self) -> None:
        """Close what is still open, without an end."""
        for outlet in list(self._outlets.values()):
            self.done.n_duplicates += outlet.end(None)
        self._outlets.clear()

    def _end(self, number: int, outlet: _Outlet) -> None:
        end = self._file.streams[number].end
        if end is not None and end.next_stream is not None:
            end = EndEntry(end.state, end.reason, self._next(self._file.streams[number], end.next_stream))
        self.done.n_duplicates += outlet.end(end)
        self._outlets.pop(number, None)

    def _next(self, stream: RecordedStream, name: str) -> str:
        """The stream that a recorded one goes on in, by the name that it gets here."""
        wanted = StreamId(stream.id.beamtime, stream.id.source, name)
        return next((self.targets[no].stream for no, other in self._file.streams.items() if other.id == wanted), name)

    def _outlet(self, number: int) -> _Outlet:
        outlet = self._outlets.get(number)
        if outlet is None:
            outlet = self._outlets[number] = self._opened(self._file.streams[number], self.targets[number])
        return outlet

    def _opened(self, stream: RecordedStream, target: StreamId) -> _Outlet:
        client = self._client
        self._set_source_meta(stream.id, target)
        try:
            info = client.info(target.source, beamtime=target.beamtime, stream=target.stream)
        except StreamNotFoundError:
            header = stream.meta
        else:
            if info.finished or info.aborted is not None:
                return _Compared(client, target)
            known = client.meta(target.source, beamtime=target.beamtime, stream=target.stream)
            header = stream.meta if known is None else None
        producer = client.produce(
            target.source, beamtime=target.beamtime, stream=target.stream, header=header, finish=False
        )
        self._stack.callback(producer.close)
        return _Sent(producer)

    def _set_source_meta(self, stream: StreamId, target: StreamId) -> None:
        meta = self._file.source_meta.get((stream.beamtime, stream.source))
        place = (target.beamtime, target.source)
        if meta is None or place in self._metas:
            return
        self._metas.add(place)
        if self._client.meta(target.source, beamtime=target.beamtime) is None:
            self._client.set_meta(target.source, meta, beamtime=target.beamtime)


class _Sent:
    """A stream that takes messages."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    def send(self, due: Due, *, flush: bool) -> None:
        send_rows(self._producer, due.batch, due.row, due.n)
        if flush:
            self._producer.flush()

    def end(self, end: EndEntry | None) -> int:
        producer = self._producer
        producer.flush()
        if end is not None and end.state == "finished":
            producer.finish(end.next_stream)
        elif end is not None and end.state == "aborted":
            producer.abort(end.reason or "no reason given")
        producer.close()
        return producer.n_duplicates


class _Compared:
    """A stream that is finished: it has the same messages, or something is wrong."""

    def __init__(self, client: Client, stream: StreamId) -> None:
        self._client = client
        self._stream = stream
        self._n = 0

    def send(self, due: Due, *, flush: bool) -> None:
        stream = self._stream
        rows = due.batch.rows(due.row, due.n)
        there: dict[tuple[int, int], Message] = {}
        try:
            for message in self._client.get_many(
                stream.source, [row.id for row in rows], beamtime=stream.beamtime, stream=stream.stream, min_parts=1
            ):
                there[message.id, message.part] = message
        except MessageEvictedError:
            self._n += due.n  # what is gone cannot be compared, and counts as the same, as it does for the service
            return
        for row in rows:
            self._compare(due.batch, row, there.get((row.id, row.part)))
            self._n += 1

    def _compare(self, batch: Batch, row: Row, there: Message | None) -> None:
        if there is None:
            raise StreamFinishedError(
                f"the stream {self._stream} is finished and has no message {row.id}; replay into another beamtime "
                "(--into) or other streams (--stream-suffix)",
                stream=str(self._stream), id=row.id,
            )  # fmt: skip
        other, number = batch_of(there)
        if other.meta(other.row(number)) != batch.meta(row) or there.data != batch.blob(row):
            raise DuplicateIdError(
                f"the stream {self._stream} has another message {row.id}; replay into another beamtime (--into) or "
                "other streams (--stream-suffix)",
                id=row.id,
            )  # fmt: skip

    def end(self, end: EndEntry | None) -> int:
        return self._n
