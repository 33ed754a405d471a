"""Writes streams of a running service into a recording, while they are taken or afterwards."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from firstlight.client import Client, Consumer, batch_of
from firstlight.errors import FirstlightError, StreamAbortedError, StreamNotFoundError, StreamTimeoutError
from firstlight.model import Batch, Message, Ranges, StreamId
from firstlight.storage import EndEntry, RecordingWriter
from firstlight.wire import StreamInfo

__all__ = ["Recorded", "Recorder"]

logger = logging.getLogger(__name__)

#: How often readers look whether they shall stop, and the recorder for streams that are new.
_SLICE_S = 0.2
#: Streams that are finished can wait for their turn; those that are being taken cannot.
_FINISHED_AT_ONCE = 4
_LIVE_AT_ONCE = 4096
_WILD = frozenset("*?[")


@dataclass
class Recorded:
    """What became of one stream: ``state`` is waiting, begun, finished, aborted or open."""

    id: StreamId
    state: str = "waiting"
    n_messages: int = 0
    n_bytes: int = 0
    n_lost: int = 0


class _Piece(NamedTuple):
    """Messages side by side in one batch."""

    batch: Batch
    row: int
    n: int


class Recorder:
    """Records all streams that match.

    Parameters
    ----------
    out
        Where they go; stays open.
    targets
        Names; each part may be a pattern with ``*``, ``?`` and ``[...]``. Streams may begin later.
    follow
        Go on when all streams have ended: others may begin.
    timeout
        Seconds without any message after which it is given up; None waits for ever.
    on_change
        Called with a stream that begins or ends, from any thread.
    on_absent
        Called with a name for which there is no stream when the recorder begins.
    on_bytes
        Called with the bytes that the file grew by, from any thread.

    Examples
    --------
    ::

        with Client() as client, RecordingWriter("scan.flrec") as out:
            Recorder(client, out, [StreamId.parse("eiger/scan_*")]).run()
    """

    def __init__(
        self,
        client: Client,
        out: RecordingWriter,
        targets: Sequence[StreamId],
        *,
        follow: bool = False,
        timeout: float | None = None,
        on_change: Callable[[Recorded], object] = lambda stream: None,
        on_absent: Callable[[StreamId], object] = lambda target: None,
        on_bytes: Callable[[int], object] = lambda n: None,
    ) -> None:
        self._client = client
        self._out = out
        self._targets = list(targets)
        self._follow = follow
        self._timeout = timeout
        self._on_change = on_change
        self._on_absent = on_absent
        self._on_bytes = on_bytes
        self._stopping = threading.Event()
        self._heard_s = time.monotonic()
        self._metas: dict[tuple[str, str], dict[str, Any] | None] = {}
        #: By name, in the order in which they were found.
        self.streams: dict[StreamId, Recorded] = {}

    def run(self, stop: threading.Event | None = None) -> list[Recorded]:
        """Record until all streams have ended, or `stop` is set.

        Raises
        ------
        StreamTimeoutError, StreamNotFoundError
            If nothing came for longer than the timeout; what came before is recorded.
        StorageError
            If it cannot be written; what was written before is whole.
        """
        stop = stop or threading.Event()
        under_way: list[Future[None]] = []
        with ThreadPoolExecutor(_LIVE_AT_ONCE) as live, ThreadPoolExecutor(_FINISHED_AT_ONCE) as finished:
            try:
                first = True
                while not stop.is_set():
                    for info in self._new_streams():
                        under_way.append((finished if info.finished else live).submit(self._record, info))
                    if first:
                        first = False
                        for target in self._absent():
                            self._on_absent(target)
                    if self._is_over(under_way):
                        break
                    stop.wait(_SLICE_S)
            finally:
                self._stopping.set()
                finished.shutdown(cancel_futures=True)
        for done in under_way:
            if not done.cancelled():
                done.result()
        self._note_source_metas()
        return list(self.streams.values())

    # -- which streams ----------------------------------------------------------------------------------------------

    def _new_streams(self) -> Iterator[StreamInfo]:
        for target in self._targets:
            for info in self._listed(target):
                stream = StreamId(info.beamtime, info.source, info.stream)
                if stream not in self.streams and _matches(stream, target):
                    self.streams[stream] = Recorded(stream)
                    self._heard_s = time.monotonic()
                    self._note_source_meta(stream.beamtime, stream.source)
                    yield info

    def _listed(self, target: StreamId) -> list[StreamInfo]:
        beamtime = "" if _WILD & set(target.beamtime) else target.beamtime
        source = "" if not beamtime or _WILD & set(target.source) else target.source
        try:
            return self._client.streams(source, beamtime=beamtime)
        except StreamNotFoundError:
            return []

    def _note_source_meta(self, beamtime: str, source: str) -> None:
        meta = self._client.meta(source, beamtime=beamtime)
        if meta is not None and meta != self._metas.get((beamtime, source)):
            self._out.set_meta(beamtime, source, "", meta)
        self._metas[beamtime, source] = meta

    def _note_source_metas(self) -> None:
        """What has changed meanwhile."""
        for beamtime, source in list(self._metas):
            self._note_source_meta(beamtime, source)

    def _is_over(self, under_way: list[Future[None]]) -> bool:
        for future in under_way:
            if future.done():
                future.result()  # an error of one ends all: a full disk is full for everybody
        missing = self._absent()
        over = not self._follow and not missing and all(future.done() for future in under_way)
        if not over and self._timeout is not None and time.monotonic() - self._heard_s > self._timeout:
            raise self._silence(missing)
        return over

    def _absent(self) -> list[StreamId]:
        return [target for target in self._targets if not any(_matches(stream, target) for stream in self.streams)]

    def _silence(self, missing: list[StreamId]) -> FirstlightError:
        if missing:
            return StreamNotFoundError(
                f"there is no stream {missing[0]}, and none came within {self._timeout:g} s; `firstlight ls` lists what "
                "there is",
                stream=str(missing[0]), similar=[],
            )  # fmt: skip
        waiting = [str(stream.id) for stream in self.streams.values() if stream.state == "begun"]
        names = ", ".join(waiting[:5]) or "any stream"
        return StreamTimeoutError(
            f"nothing came from {names} for {self._timeout:g} s, and it is not finished; what came before is recorded",
            stream=waiting[0] if waiting else "",
        )

    # -- one stream -------------------------------------------------------------------------------------------------

    def _record(self, info: StreamInfo) -> None:
        lane = self.streams[StreamId(info.beamtime, info.source, info.stream)]
        lane.state = "begun"
        self._on_change(lane)
        _Lane(self._client, self._out, lane, self._stopping, self._heard).record(info)
        self._on_change(lane)

    def _heard(self, n_bytes: int) -> None:
        self._heard_s = time.monotonic()
        self._on_bytes(n_bytes)


@dataclass
class _Lane:
    """Records one stream."""

    client: Client
    out: RecordingWriter
    lane: Recorded
    stopping: threading.Event
    on_bytes: Callable[[int], object]
    number: int = 0
    seen: Ranges = field(default_factory=Ranges)
    meta: dict[str, Any] | None = None

    def record(self, info: StreamInfo) -> None:
        stream = self.lane.id
        self.number = self.out.begin(stream, created_ns=info.created_ns)
        self._note_meta()
        with self._consumer() as consumer:
            end = self._follow(consumer)
            self.lane.n_lost = consumer.lost
        if info.parts != 1 and end.state != "open":  # who stopped it does not want what is left
            self._record_incomplete()
        self._note_meta()
        self.out.end(self.number, EndEntry(end.state, end.reason, end.next_stream, self.lane.n_lost))
        self.lane.state = end.state

    def _consumer(self, **more: Any) -> Consumer:
        stream = self.lane.id
        return self.client.consume(
            stream.source, beamtime=stream.beamtime, stream=stream.stream, timeout=_SLICE_S, **more
        )

    def _note_meta(self) -> None:
        """The header, if there is one and it is new."""
        stream = self.lane.id
        try:
            meta = self.client.meta(stream.source, beamtime=stream.beamtime, stream=stream.stream)
        except StreamNotFoundError:
            return  # deleted meanwhile
        if meta is not None and meta != self.meta:
            self.out.set_meta(stream.beamtime, stream.source, stream.stream, meta)
        self.meta = meta

    def _follow(self, consumer: Consumer) -> EndEntry:
        """Write what comes, and tell how the stream ended."""
        gathered: _Piece | None = None
        while True:
            try:
                message = next(consumer, None)
            except StreamTimeoutError:
                self._write(gathered)
                gathered = None
                if self.stopping.is_set():
                    return EndEntry("open")
                continue
            except StreamAbortedError as error:
                self._write(gathered)
                return EndEntry("aborted", error.values["reason"])
            except StreamNotFoundError:  # those who read it already are told that it is aborted
                self._write(gathered)
                return EndEntry("aborted", "the stream was deleted")
            if message is None:
                self._write(gathered)
                return EndEntry("finished", next_stream=consumer.next_stream)
            gathered = self._gather(gathered, message)
            if self.stopping.is_set():
                self._write(gathered)
                return EndEntry("open")

    def _gather(self, gathered: _Piece | None, message: Message) -> _Piece | None:
        """Messages of one batch are written together, as they came; what is whole is written at once."""
        batch, row = batch_of(message, guess=0 if gathered is None else gathered.row + gathered.n)
        if gathered is not None and batch is gathered.batch and row == gathered.row + gathered.n:
            gathered = gathered._replace(n=gathered.n + 1)
        else:
            self._write(gathered)
            gathered = _Piece(batch, row, 1)
        if gathered.row + gathered.n < batch.n_messages:
            return gathered
        self._write(gathered)
        return None

    def _write(self, piece: _Piece | None) -> None:
        if piece is None:
            return
        n_bytes = self.out.append(self.number, piece.batch, piece.row, piece.n)
        for row in piece.batch.rows(piece.row, piece.n):
            self.lane.n_bytes += row.blob_size
            if row.parts > 1:
                self.seen.add(row.id, row.id)
        self.lane.n_messages += piece.n
        self.on_bytes(n_bytes)

    def _record_incomplete(self) -> None:
        """Datasets of which parts never came are delivered only to those who ask for them."""
        stream = self.lane.id
        try:
            info = self.client.info(stream.source, beamtime=stream.beamtime, stream=stream.stream)
        except StreamNotFoundError:
            return
        if info.parts <= 1 or info.n_messages <= self.lane.n_messages:
            return
        known = self.seen.copy()  # the parts of one dataset come one after the other
        with self._consumer(min_parts=1) as consumer:
            for message in _until(consumer, info.last_id):
                if message.id not in known:
                    batch, row = batch_of(message)
                    self._write(_Piece(batch, row, 1))


def _until(consumer: Consumer, last_id: int) -> Iterator[Message]:
    """What is there by now, up to an id."""
    try:
        for message in consumer:
            if message.id > last_id:
                return
            yield message
    except (StreamTimeoutError, StreamAbortedError):
        return


def _matches(stream: StreamId, target: StreamId) -> bool:
    if stream == target:
        return True  # names may hold what patterns are made of
    return (
        fnmatchcase(stream.beamtime, target.beamtime)
        and fnmatchcase(stream.source, target.source)
        and fnmatchcase(stream.stream, target.stream)
    )
