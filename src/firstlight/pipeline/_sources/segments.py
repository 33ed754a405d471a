"""Segment files as a source: what a service wrote, read years later without one."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from firstlight.errors import ConfigurationError, MessageNotFoundError, StorageError, StreamNotFoundError
from firstlight.model import Dataset, Message, StreamId
from firstlight.pipeline._sources.forward import Reference
from firstlight.pipeline._sources.source import Arrival, Ended, Found, Tidings
from firstlight.storage import SegmentFile, StreamState, journal_of, read_state

__all__ = ["Segments"]

logger = logging.getLogger(__name__)


class Segments:
    """Messages from the segment files of a service, read in place.

    A file that is damaged is read up to the damage, and that is logged. How a stream ended, and that it was empty,
    stands in the journal of the data directory. Where segments came without it, every input counts as finished.

    Parameters
    ----------
    path
        A data directory, or a folder or a segment file in one or of one: all segment files there are looked through.
    stream
        Name of the stream to read; may be left out if each input has only one.
    beamtime
        The same for the beamtime.

    Raises
    ------
    ConfigurationError
        If there is no segment file at this place.

    Examples
    --------
    ::

        run(saxs, Segments("/data/11016754", stream="scan_0042"), on=Processes(4)).result()
    """

    live = False

    def __init__(self, path: str | Path, *, stream: str | None = None, beamtime: str | None = None) -> None:
        self.path = Path(path)
        self.stream = stream
        self.beamtime = beamtime
        if not self._files() and journal_of(self.path) is None:
            raise ConfigurationError(f"there is no segment file at {self.path}", path=str(self.path))

    def _files(self) -> list[Path]:
        if self.path.is_dir():
            return sorted(self.path.rglob("*.segment"), key=lambda file: (file.name, str(file)))
        return [self.path] if self.path.is_file() else []

    def open(self, inputs: Sequence[str]) -> OpenSegments:
        """Look through the files; metadata are checked, blobs are not touched."""
        states = self._states()
        files = [SegmentFile(path) for path in self._files()]
        tables = {name: self._table(name, files, states) for name in inputs}
        for file in files:
            if file.problem:
                logger.warning("reading stopped early: %s", file.problem)
        return OpenSegments(files, tables, states)

    def _states(self) -> dict[StreamId, StreamState]:
        """What the journal says of streams, if there is one that can be read."""
        journal = journal_of(self.path)
        if journal is None:
            return {}
        try:
            return read_state(journal).by_id()
        except StorageError as error:
            logger.warning("how streams ended is not known: %s", error)
            return {}

    def _table(self, name: str, files: list[SegmentFile], states: Mapping[StreamId, StreamState]) -> _Table:
        found = _tables(files, name, stream=self.stream, beamtime=self.beamtime)
        if not found:  # messages that were in memory only do not make an empty stream
            empty = [stream for stream, state in states.items() if not state.order.n_messages]
            found = {stream: _Table(stream) for stream in empty if self._means(name, stream)}
        if len(found) == 1:
            return next(iter(found.values()))
        if found:
            names = ", ".join(sorted(map(str, found)))
            raise ConfigurationError(
                f"{self.path} holds several streams of {name!r}; choose stream= and beamtime= of {names}"
            )
        sources = ", ".join(sorted({str(file.description.get("source")) for file in files}))
        what = f"stream {self.stream!r} of {name!r}" if self.stream is not None else f"source {name!r}"
        raise StreamNotFoundError(
            f"there is no {what} in {self.path}; it holds {sources}", stream=self.stream, similar=[]
        )

    def _means(self, source: str, stream: StreamId) -> bool:
        return (
            stream.source == source
            and self.stream in (None, stream.stream)
            and self.beamtime in (None, stream.beamtime)
        )


def _tables(
    files: Sequence[SegmentFile], source: str, *, stream: str | None, beamtime: str | None
) -> dict[StreamId, _Table]:
    """The streams of a source."""
    found: dict[StreamId, _Table] = {}
    for number, file in enumerate(files):
        if file.description.get("source") != source:
            continue
        for entry in file:
            if stream in (None, entry.stream.stream) and beamtime in (None, entry.stream.beamtime):
                table = found.setdefault(entry.stream, _Table(entry.stream))
                table.add(number, entry.offset, entry.batch.header.stored_ns, [row.id for row in entry.batch.rows()])
    return found


class _Place(NamedTuple):
    file: int
    offset: int
    row: int


class _Table:
    """Where the messages of one stream lie."""

    def __init__(self, stream: StreamId) -> None:
        self.stream = stream
        self.places: dict[int, list[_Place]] = {}
        self.arrivals: list[tuple[int, int]] = []

    def add(self, file: int, offset: int, stored_ns: int, ids: list[int]) -> None:
        for row, number in enumerate(ids):
            if number not in self.places:
                self.arrivals.append((stored_ns, number))
            self.places.setdefault(number, []).append(_Place(file, offset, row))


class OpenSegments:
    """`Segments` at work."""

    def __init__(
        self, files: list[SegmentFile], tables: dict[str, _Table], states: Mapping[StreamId, StreamState]
    ) -> None:
        self._files = files
        self._tables = tables
        self._states = states
        self._others: dict[StreamId, _Table] = {}

    def tidings(self) -> Iterator[Tidings]:
        """What arrived, in the order in which the service stored it."""
        lanes = [
            [(stored_ns, place, name, number) for place, (stored_ns, number) in enumerate(sorted(table.arrivals))]
            for name, table in self._tables.items()
        ]
        for _, _, name, number in heapq.merge(*lanes):
            yield Arrival(name, number)
        for name, table in self._tables.items():
            yield Ended(name, _aborted(table.stream, self._states.get(table.stream)))

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Found]:
        """The messages of an event."""
        return {name: self._found(self._tables[name], number) for name, number in ids.items()}

    def resolve(self, reference: Reference) -> Found:
        """A message of any stream in the files."""
        stream = reference.stream_id
        if stream not in self._others:
            found = _tables(self._files, stream.source, stream=stream.stream, beamtime=stream.beamtime)
            self._others[stream] = found.get(stream, _Table(stream))
        return self._found(self._others[stream], reference.id)

    def _found(self, table: _Table, number: int) -> Found:
        places = table.places.get(number)
        if places is None:
            raise MessageNotFoundError(f"there is no message {number} of {table.stream} in the segments", id=number)
        messages = [self._message(table.stream, place) for place in places]
        return messages[0] if messages[0].parts <= 1 else Dataset(messages)

    def _message(self, stream: StreamId, place: _Place) -> Message:
        batch = self._files[place.file].batch_at(place.offset)
        return Message(stream, batch, batch.row(place.row))

    def close(self) -> None:
        """Unmap the files; what was fetched stays valid until it goes."""
        for file in self._files:
            file.close()

    def __enter__(self) -> OpenSegments:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _aborted(stream: StreamId, state: StreamState | None) -> str | None:
    """Why its producer gave a stream up."""
    if state is None or state.ended is None:
        logger.warning("how %s ended is not known; what is there was taken", stream)
        return None
    return state.ended.aborted
