"""Recordings of dranspose (``.cbors``) as a source.

A file is a row of CBOR items, one for each event of an ingester: ``Tag 55799 (Tag 42877 ([event number, {stream: Tag 42878
([typ, [frames]])}]))``; since 0.1 the list has a third element, when the event was taken in.
"""

from __future__ import annotations

import gzip
import heapq
import mmap
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import cbor2

from firstlight.connectors import cbor_item_end, cbor_loads
from firstlight.errors import ConfigurationError, CorruptError, DataError, MessageNotFoundError
from firstlight.gateways.dranspose._recorded import EVENTS, Frames, Internal, message_from
from firstlight.model import Dataset, Message
from firstlight.pipeline import Arrival, Ended, Tidings

__all__ = ["EVENT_TAG", "FRAMES_TAG", "Cbors", "CborsFile", "OpenCbors"]

EVENT_TAG = 42877
FRAMES_TAG = 42878


class Cbors:
    """Events from files that dranspose recorded, merged by event number; each process reads them by itself.

    The input of the pipeline is `EVENTS`: each of its messages is an event with all streams that any file has for it.
    Message ids are event numbers plus one.

    Parameters
    ----------
    paths
        ``.cbors`` files of one scan, one for each ingester; ``.gz`` ones are unpacked into a temporary file.

    Raises
    ------
    ConfigurationError
        If there are no files, one does not exist, or its name says that it is a pickle: those can run any code.

    Examples
    --------
    ::

        payload = Payload("src.worker:FluorescenceWorker", "src.reducer:FluorescenceReducer")
        run(payload.pipeline(), Cbors(["xspress3.cbors", "contrast.cbors.gz"]), on=Processes(2)).result()
    """

    live = False

    def __init__(self, paths: Sequence[str | Path]) -> None:
        # A worker process may have another working directory.
        self.paths = tuple(Path(path).absolute() for path in paths)
        if not self.paths:
            raise ConfigurationError("which recordings? Name at least one .cbors file")
        for path in self.paths:
            if not path.is_file():
                raise ConfigurationError(f"there is no recording {path}", path=str(path))
            if path.name.removesuffix(".gz").endswith((".pkls", ".pickle", ".pkl")):
                raise ConfigurationError(
                    f"{path} is a row of pickles, which can run any code: read it with dranspose and record it as .cbors",
                    path=str(path),
                )

    def open(self, inputs: Sequence[str]) -> OpenCbors:
        """Map the files; they are read as events are asked for."""
        if tuple(inputs) != (EVENTS,):
            raise ConfigurationError(f"a recording of dranspose has one input, {EVENTS!r}, not {list(inputs)}")
        return OpenCbors([CborsFile(path) for path in self.paths])


class Item(NamedTuple):
    """One item of a file: the part of event `number` that the file has, at byte `offset`."""

    number: int
    offset: int


class CborsFile:
    """One file, read forwards to find the events, and again anywhere to fetch them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _unpacked(path) if path.suffix == ".gz" else path.open("rb")
        self._map: mmap.mmap | None = None
        self._size = 0
        self._at, self._last = 0, -1

    def _grow(self) -> bool:
        """Look whether the file has become longer: what is spooled does."""
        size = self._file.seek(0, 2)
        if size <= self._size:
            return False
        self._size = size
        # The old map goes when the last frame that was read from it does.
        self._map = mmap.mmap(self._file.fileno(), size, prot=mmap.PROT_READ)
        return True

    def next_item(self) -> Item | None:
        """The next event; None at the end of the file, and may be asked again when that has grown.

        Raises
        ------
        CorruptError
            If the file is damaged, cut off, of another kind, or holds more than one scan.
        """
        if self._at >= self._size and not self._grow():
            return None
        offset = self._at
        self._at, event = self._decoded(offset)
        if event.number <= self._last:
            raise self._corrupt(
                offset,
                f"event {event.number} comes after event {self._last}: the file holds more than one scan; split it",
            )
        self._last = event.number
        return Item(event.number, offset)

    def read(self, offset: int) -> Internal:
        """The item at `offset`; frames of 4 kB or more are views of the file."""
        if offset >= self._size:
            self._grow()
        return self._decoded(offset)[1]

    def _decoded(self, offset: int) -> tuple[int, Internal]:
        assert self._map is not None
        try:
            end = cbor_item_end(self._map, offset)
            item = cbor_loads(memoryview(self._map)[offset:end], (EVENT_TAG, FRAMES_TAG))
        except DataError as error:
            where = error.values.get("offset")
            raise self._corrupt(offset if where is None else where, error.text) from error
        return end, self._checked(item, offset)

    def _checked(self, item: Any, offset: int) -> Internal:
        if not isinstance(item, cbor2.CBORTag) or item.tag != EVENT_TAG:
            raise self._corrupt(
                offset, f"there is no event (tag {EVENT_TAG}): recordings of a detector's own messages are not events"
            )
        match item.value:
            case [int(number), Mapping() as streams, *_] if number >= 0:
                return Internal(number, {str(name): self._frames(name, f, offset) for name, f in streams.items()})
        raise self._corrupt(offset, "an event is [number, {stream: frames}, time], and this is not")

    def _frames(self, name: Any, found: Any, offset: int) -> Frames:
        if isinstance(found, cbor2.CBORTag) and found.tag == FRAMES_TAG:
            match found.value:
                case [str(typ), list() | tuple() as frames] if all(isinstance(f, bytes | memoryview) for f in frames):
                    return Frames(typ, frames)
        raise self._corrupt(offset, f"stream {name!r} is not [type, [frames]] (tag {FRAMES_TAG})")

    def _corrupt(self, offset: int, text: str) -> CorruptError:
        return CorruptError(f"{self.path}, byte {offset}: {text}", path=str(self.path), offset=offset)

    def close(self) -> None:
        """Close the file; frames that were read stay valid."""
        self._file.close()


def _unpacked(path: Path) -> IO[bytes]:
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - it stays open, and goes when it is closed
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    except (OSError, EOFError) as error:
        unpacked.close()
        raise CorruptError(f"{path} cannot be unpacked: {error}", path=str(path), offset=None) from error
    unpacked.flush()
    return unpacked


class OpenCbors:
    """`Cbors` at work."""

    def __init__(self, files: list[CborsFile]) -> None:
        self._files = files
        self._merged = _merged(files)
        #: Where the parts of each event are: file and offset.
        self._places: dict[int, list[tuple[CborsFile, int]]] = {}

    def tidings(self) -> Iterator[Tidings]:
        """The events, as their numbers go."""
        while (number := self._next()) is not None:
            yield Arrival(EVENTS, number + 1)
        yield Ended(EVENTS)

    def _next(self) -> int | None:
        """Find one more event."""
        found = next(self._merged, None)
        if found is None:
            return None
        number, places = found
        self._places[number] = places
        return number

    def fetch(self, ids: Mapping[str, int]) -> dict[str, Message | Dataset]:
        """The event with this id."""
        number = ids[EVENTS] - 1
        while number not in self._places:
            if self._next() is None:
                raise MessageNotFoundError(f"there is no event {number} in the recording", id=number + 1)
        return {EVENTS: message_from(self._read(number))}

    def _read(self, number: int) -> Internal:
        streams: dict[str, Frames] = {}
        for file, offset in self._places[number]:
            for name, frames in file.read(offset).streams.items():
                if name in streams:
                    raise CorruptError(
                        f"{file.path}, byte {offset}: another file has stream {name!r} in event {number}, too",
                        path=str(file.path), offset=offset,
                    )  # fmt: skip
                streams[name] = frames
        return Internal(number, streams)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> OpenCbors:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _merged(files: Sequence[CborsFile]) -> Iterator[tuple[int, list[tuple[CborsFile, int]]]]:
    """Events with the places of their parts, by number."""

    def lane(place: int, file: CborsFile) -> Iterator[tuple[int, int, int]]:
        return ((item.number, place, item.offset) for item in iter(file.next_item, None))

    number, places = -1, list[tuple[CborsFile, int]]()
    for found, place, offset in heapq.merge(*(lane(place, file) for place, file in enumerate(files))):
        if found != number and places:
            yield number, places
            places = []
        number = found
        places.append((files[place], offset))
    if places:
        yield number, places
