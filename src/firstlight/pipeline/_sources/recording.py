"""Recordings as a source: what `firstlight record` wrote, read without a service."""

from __future__ import annotations

import heapq
import logging
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import ConfigurationError, CorruptError, MessageNotFoundError, StreamNotFoundError
from firstlight.model import Batch, Dataset, Message, StreamId
from firstlight.pipeline._sources.forward import Reference
from firstlight.pipeline._sources.pace import Pace
from firstlight.pipeline._sources.source import Arrival, Ended, Found, Tidings
from firstlight.storage import RecordedStream, RecordingFile

__all__ = ["OpenRecording", "Recording"]

logger = logging.getLogger(__name__)

#: So long a run is not looked after while the next message is not due.
_SLICE_S = 0.1


class Recording:
    """Messages from a file of `firstlight record`, read in place; each process maps it by itself.

    Messages arrive in the order in which the service got them, and inputs end as their streams did: a stream that was
    aborted aborts the run. A stream whose end is not in the file, because the recorder was stopped or killed before,
    counts as finished, and that is logged.

    Parameters
    ----------
    path
        The file.
    stream
        Name of the stream to read; may be left out if each input has only one.
    beamtime
        The same for the beamtime.
    speed
        1.0: messages arrive in their original intervals; 2.0: twice as fast; None: as fast as they are taken.

    Raises
    ------
    ConfigurationError
        If there is no such file, or the speed is none.

    Examples
    --------
    ::

        run(saxs, Recording("scan_0042.flrec"), on=Processes(4)).result()
    """

    live = False

    def __init__(
        self,
        path: str | Path,
        *,
        stream: str | None = None,
        beamtime: str | None = None,
        speed: float | None = None,
    ) -> None:
        self.path = Path(path).absolute()  # a worker process may have another working directory
        self.stream = stream
        self.beamtime = beamtime
        self.speed = speed
        Pace(speed)
        if not self.path.is_file():
            raise ConfigurationError(f"there is no recording {path}", path=str(path))

    def open(self, inputs: Sequence[str]) -> OpenRecording:
        """Map the file, and find the streams; blobs are not touched."""
        file = RecordingFile(self.path)
        try:
            tables = {name: _Table(file, *self._chosen(file, name)) for name in inputs}
        except BaseException:
            file.close()
            raise
        return OpenRecording(file, tables, Pace(self.speed))

    def _chosen(self, file: RecordingFile, name: str) -> tuple[int, RecordedStream]:
        found = [
            (number, stream)
            for number, stream in file.streams_of(name)
            if self.stream in (None, stream.id.stream) and self.beamtime in (None, stream.id.beamtime)
        ]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(stream.id) for _, stream in found)
            raise ConfigurationError(
                f"{self.path} holds several streams of {name!r}; choose stream= and beamtime= of {names}"
            )
        held = ", ".join(sorted(str(stream.id) for stream in file.streams.values())) or "none"
        what = f"stream {self.stream!r} of {name!r}" if self.stream is not None else f"source {name!r}"
        raise StreamNotFoundError(
            f"there is no {what} in {self.path}; its streams: {held}", stream=self.stream, similar=[]
        )


class _Place(NamedTuple):
    offset: int
    row: int


class _Runs:
    """The messages of one part, by id."""

    def __init__(self, rows: NDArray[np.void]) -> None:
        rows = rows[np.argsort(rows["first_id"], kind="stable")]
        self._first: list[int] = rows["first_id"].tolist()
        self._n: list[int] = rows["n"].tolist()
        self._offset: list[int] = rows["offset"].tolist()
        self._row: list[int] = rows["row"].tolist()

    def find(self, number: int) -> _Place | None:
        at = bisect_right(self._first, number) - 1
        if at < 0 or number >= self._first[at] + self._n[at]:
            return None
        return _Place(self._offset[at], self._row[at] + number - self._first[at])


class _Table:
    """Where the messages of one stream lie."""

    def __init__(self, file: RecordingFile, number: int, stream: RecordedStream) -> None:
        self.stream = stream
        self.rows = file.rows[file.rows["stream_no"] == number]
        self.parts = int(self.rows["parts"].max(initial=1))
        self._runs = {int(part): _Runs(self.rows[self.rows["part"] == part]) for part in np.unique(self.rows["part"])}

    def arrivals(self) -> Iterator[tuple[int, int]]:
        """``(stored_ns, id)`` as they arrived; a dataset arrives with the last of its parts, or not at all."""
        seen: Counter[int] = Counter()
        for stored_ns, first, n in zip(
            *(self.rows[name].tolist() for name in ("stored_ns", "first_id", "n")), strict=True
        ):
            for number in range(first, first + n):
                if self.parts <= 1:
                    yield stored_ns, number
                    continue
                seen[number] += 1
                if seen[number] == self.parts:
                    del seen[number]
                    yield stored_ns, number
        if seen:
            logger.warning("%d datasets of %s are not complete and were passed over", len(seen), self.stream.id)

    def places(self, number: int) -> list[_Place]:
        """Of all parts that are there."""
        return [place for runs in self._runs.values() if (place := runs.find(number)) is not None]


class OpenRecording:
    """`Recording` at work."""

    def __init__(self, file: RecordingFile, tables: dict[str, _Table], pace: Pace) -> None:
        self._file = file
        self._tables = tables
        self._others: dict[StreamId, _Table] = {}
        self._pace = pace

    def tidings(self) -> Iterator[Tidings]:
        """What arrived, in the order in which the service got it."""
        if self._file.problem:
            logger.warning("%s", self._file.problem)
        for stored_ns, name, number in _merged(self._tables):
            yield from self._wait(stored_ns)
            yield Arrival(name, number)
        for name, table in self._tables.items():
            yield _ended(name, table.stream)

    def _wait(self, at_ns: int) -> Iterator[None]:
        while (left_s := self._pace.left_s(at_ns)) > 0:
            time.sleep(min(left_s, _SLICE_S))
            if left_s > _SLICE_S:
                yield None

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Found]:
        """The messages of an event, not copied."""
        batch_at = self._file.batch_at
        return {name: self._found(self._tables[name], number, batch_at) for name, number in ids.items()}

    def look(self, name: str, number: int) -> Found:
        """A message for who wants its metadata only: its blob is not read, and may be damaged."""
        return self._found(self._tables[name], number, self._file.head_at)

    def resolve(self, reference: Reference) -> Found:
        """A message of any stream in the file."""
        stream = reference.stream_id
        if stream not in self._others:
            number = next((number for number, found in self._file.streams.items() if found.id == stream), None)
            if number is None:
                raise MessageNotFoundError(
                    f"{stream} is not in {self._file.path}, but referred to there", id=reference.id
                )
            self._others[stream] = _Table(self._file, number, self._file.streams[number])
        return self._found(self._others[stream], reference.id, self._file.batch_at)

    def _found(self, table: _Table, number: int, batch_at: Callable[[int], Batch]) -> Found:
        places = table.places(number)
        if not places:
            raise MessageNotFoundError(f"there is no message {number} of {table.stream.id} in the file", id=number)
        messages = [self._message(table.stream.id, number, place, batch_at) for place in places]
        return messages[0] if messages[0].parts <= 1 else Dataset(messages)

    def _message(self, stream: StreamId, number: int, place: _Place, batch_at: Callable[[int], Batch]) -> Message:
        batch = batch_at(place.offset)
        row = batch.row(place.row) if place.row < batch.n_messages else None
        if row is None or row.id != number:  # whoever made the index, it is the batch that counts
            raise CorruptError(
                f"the index of {self._file.path} has message {number} of {stream} at byte {place.offset}, where it is not",
                path=str(self._file.path), offset=place.offset,
            )  # fmt: skip
        return Message(stream, batch, row)

    def close(self) -> None:
        """Unmap the file; what was fetched stays valid until it goes."""
        self._file.close()

    def __enter__(self) -> OpenRecording:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _merged(tables: Mapping[str, _Table]) -> Iterator[tuple[int, str, int]]:
    """``(stored_ns, input, id)`` of all inputs as they arrived."""

    def lane(place: int, name: str, table: _Table) -> Iterator[tuple[int, int, str, int]]:
        return ((stored_ns, place, name, number) for stored_ns, number in table.arrivals())

    lanes = [lane(place, name, table) for place, (name, table) in enumerate(tables.items())]
    # By time only: within a lane the order of arrival is kept, also of messages that came in one batch.
    for stored_ns, _, name, number in heapq.merge(*lanes, key=lambda arrival: arrival[:2]):
        yield stored_ns, name, number


def _ended(name: str, stream: RecordedStream) -> Ended:
    end = stream.end
    if end is None or end.state == "open":
        logger.warning("how %s ended is not in the recording; what is there was taken", stream.id)
        return Ended(name, None, end.n_lost if end is not None else 0)
    return Ended(name, (end.reason or "no reason given") if end.state == "aborted" else None, end.n_lost)
