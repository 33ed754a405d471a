"""Reads a recording: with its index where the file was closed, entry by entry where it was cut off."""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from firstlight.errors import ConfigurationError, CorruptError, DataError, StorageError
from firstlight.model import MAX_MESSAGES, Batch, StreamId
from firstlight.storage._files import storage_error
from firstlight.storage._recording_format import (
    BLOCK,
    RECORDING_MAGIC,
    ROW,
    ROW_DTYPE,
    VERSION,
    EndEntry,
    Entry,
    EntryKind,
    MetaEntry,
    StreamEntry,
    read_entry_header,
    read_file_header,
    read_trailer,
)
from firstlight.storage._recording_writer import index_rows

__all__ = ["RecordedStream", "RecordingFile", "is_recording"]

T = TypeVar("T")

_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
#: Batches that were read last; each was verified, and messages of one batch are mostly asked for together.
_MAX_BATCHES_KNOWN = 256


@dataclass
class RecordedStream:
    """One stream of a recording.

    Attributes
    ----------
    end
        How it ended, or where the recording left it; None if the file does not tell.
    meta
        Its header.
    n_messages, n_bytes
        That are in the file; parts of datasets are counted one by one, bytes without metadata.
    """

    id: StreamId
    created_ns: int
    meta: dict[str, Any] | None = None
    end: EndEntry | None = None
    n_messages: int = 0
    n_bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0


@dataclass
class _Found:
    """What entries have told so far."""

    streams: dict[int, RecordedStream] = field(default_factory=dict)
    metas: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    rows: bytearray = field(default_factory=bytearray)


def is_recording(path: str | Path) -> bool:
    """Whether a file begins as a recording does; False if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(RECORDING_MAGIC)) == RECORDING_MAGIC
    except OSError:
        return False


class RecordingFile:
    """One recording, mapped: nothing is read before it is asked for, and blobs are not copied.

    Parameters
    ----------
    path
        The file. It may still be written: what is there by now is read.

    Raises
    ------
    CorruptError
        If it is not a recording, or not even its first block is whole.
    StorageError
        If it cannot be opened, or was written in another version of the format.

    Attributes
    ----------
    streams
        By their number in this file.
    source_meta
        Metadata by ``(beamtime, source)``.
    rows
        Which messages lie where: those whose ids count up by one in one batch, in the order in which the service got
        them (``offset, stored_ns, first_id, blob_bytes, n, row, stream_no, part, parts``).
    closed
        The recording came to its end; if not, it still goes on, was killed, or is damaged.
    problem
        Why not everything could be read; empty if the file is whole.
    n_dropped
        Bytes at the end that could not be read.

    Examples
    --------
    ::

        with RecordingFile("scan.flrec") as recording:
            for line in recording.rows:
                for row in recording.batch_of(line).rows(int(line["row"]), int(line["n"])):
                    print(recording.streams[int(line["stream_no"])].id, row.id)
        print(recording.problem or "read to its end")
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.view, self._map = _mapped(self.path)
        self.size = len(self.view)
        self.problem = ""
        self.n_dropped = 0
        self._batches: dict[int, Batch] = {}
        self._heads: dict[int, Batch] = {}
        self._end = self.size
        try:
            self.created_ns = self._check_header()
            index_at = read_trailer(self.view)
            found = None if index_at is None else self._by_index(index_at)
            self.closed = found is not None
            if found is None:
                found = self._by_scan()
        except BaseException:
            self.close()
            raise
        self._adopt(found)

    def _check_header(self) -> int:
        if self.size < BLOCK or bytes(self.view[: len(RECORDING_MAGIC)]) != RECORDING_MAGIC:
            what = f"it begins with {bytes(self.view[:8])!r}" if self.size >= BLOCK else f"it has {self.size} bytes"
            raise CorruptError(f"{self.path} is not a recording: {what}", path=str(self.path), offset=0)
        version = int.from_bytes(self.view[8:12], "little")
        if version != VERSION:
            raise StorageError(
                f"{self.path} is a recording in version {version} of the format, and this firstlight reads version "
                f"{VERSION}: take the firstlight that wrote it, or a newer one",
                path=str(self.path), version=version,
            )  # fmt: skip
        try:
            return read_file_header(self.view[:BLOCK])[1]
        except DataError as error:
            raise CorruptError(f"{self.path} is damaged: {error}", path=str(self.path), offset=0) from error

    # -- what is there ----------------------------------------------------------------------------------------------

    def _by_index(self, index_at: int) -> _Found | None:
        """What the index says; None, with a problem, if it cannot be used."""
        found = _Found()
        try:
            entry = read_entry_header(self.view, index_at)
            payload = self._head(entry)
            if entry.kind != EntryKind.INDEX or entry.size % ROW.size or entry.head_size != entry.size:
                raise DataError("its index is none")
            table = np.frombuffer(payload, ROW_DTYPE)
            for offset in table["offset"][table["kind"] != EntryKind.BATCH].tolist():
                self._note(read_entry_header(self.view[:index_at], offset), found)
            batches = table[table["kind"] == EntryKind.BATCH]
            if unknown := set(np.unique(batches["stream_no"]).tolist()) - found.streams.keys():
                raise DataError(f"its index has a stream {min(unknown)} that is not there")
            if (batches["n"] > MAX_MESSAGES).any() or (batches["n"] == 0).any():
                raise DataError("its index has batches that cannot be")
        except DataError as error:
            self.problem = f"the index of {self.path} is damaged ({error}); the file was searched instead"
            return None
        found.rows = bytearray(batches.tobytes())
        return found

    def _by_scan(self) -> _Found:
        """What the entries say, up to the end or the first that is not whole."""
        found = _Found()
        offset, reason = BLOCK, "it was not closed: its recorder was killed, or still writes"
        while offset < self.size:
            try:
                entry = read_entry_header(self.view, offset)
                self._note(entry, found)
            except DataError as error:
                reason = str(error)
                break
            offset = entry.end
            if entry.kind == EntryKind.INDEX:
                break
        self._end = offset
        self.n_dropped = self.size - offset
        dropped = f"; {self.n_dropped} bytes behind that are dropped" if self.n_dropped else ""
        self.problem = self.problem or f"{self.path} can be read up to byte {offset}: {reason}{dropped}"
        return found

    def _note(self, entry: Entry, found: _Found) -> None:
        head = self._head(entry)
        match entry.kind:
            case EntryKind.STREAM:
                told = _decoded(head, StreamEntry)
                found.streams[entry.stream_no] = RecordedStream(_names(told), told.created_ns)
            case EntryKind.META:
                meta = _decoded(head, MetaEntry)
                found.metas[meta.beamtime, meta.source, meta.stream] = meta.meta
            case EntryKind.END:
                self._stream(entry, found).end = _decoded(head, EndEntry)
            case EntryKind.BATCH:
                self._stream(entry, found)
                batch = self._parsed(entry)
                for row in index_rows(batch, 0, batch.n_messages, entry.stream_no):
                    found.rows += ROW.pack(entry.offset, *row)

    def _head(self, entry: Entry) -> memoryview:
        head = self.view[entry.payload_at : entry.payload_at + entry.head_size]
        if zlib.crc32(head) != entry.head_crc:
            raise DataError("the checksum of an entry is wrong")
        return head

    def _stream(self, entry: Entry, found: _Found) -> RecordedStream:
        if entry.stream_no not in found.streams:
            raise DataError(f"nothing tells which stream number {entry.stream_no} is")
        return found.streams[entry.stream_no]

    def _parsed(self, entry: Entry) -> Batch:
        batch = Batch.parse(self.view[entry.payload_at : entry.payload_at + entry.size])
        if batch.length != entry.size or entry.head_size != batch.header.blobs_offset:
            raise DataError(f"a batch of {batch.length} bytes stands in an entry of {entry.size}")
        return batch

    def _adopt(self, found: _Found) -> None:
        self.streams = found.streams
        self.source_meta = {
            (beamtime, source): meta for (beamtime, source, name), meta in found.metas.items() if not name
        }
        for stream in self.streams.values():
            stream.meta = found.metas.get((stream.id.beamtime, stream.id.source, stream.id.stream))
        rows = np.frombuffer(bytes(found.rows), ROW_DTYPE)
        self.rows: NDArray[np.void] = rows[np.argsort(rows["stored_ns"], kind="stable")]
        for number, stream in self.streams.items():
            own = self.rows[self.rows["stream_no"] == number]
            if len(own):
                stream.n_messages, stream.n_bytes = int(own["n"].sum()), int(own["blob_bytes"].sum())
                stream.first_ns, stream.last_ns = int(own["stored_ns"][0]), int(own["stored_ns"][-1])

    # -- messages ---------------------------------------------------------------------------------------------------

    def batch_at(self, offset: int) -> Batch:
        """The batch of the entry at `offset`, its checksums compared when it is first asked for.

        Raises
        ------
        CorruptError
            If there is no whole batch.
        """
        return self._known(self._batches, offset, self._verified)

    def head_at(self, offset: int) -> Batch:
        """As `batch_at`, for who wants ids, times and metadata only: blobs are not read, and may be damaged."""
        return self._known(self._heads, offset, self._verified_head)

    def _known(self, known: dict[int, Batch], offset: int, read: Callable[[int], Batch]) -> Batch:
        batch = known.get(offset)
        if batch is None:
            batch = read(offset)
            if len(known) >= _MAX_BATCHES_KNOWN:
                known.clear()
            known[offset] = batch
        return batch

    def batch_of(self, line: np.void) -> Batch:
        """The batch that one of `rows` tells of; it does have these messages.

        Raises
        ------
        CorruptError
            If there is no whole batch, or it has others.
        """
        offset, row, n = int(line["offset"]), int(line["row"]), int(line["n"])
        batch = self.batch_at(offset)
        if row + n > batch.n_messages or batch.row(row).id != line["first_id"] or batch.row(row).part != line["part"]:
            raise CorruptError(
                f"the index of {self.path} has messages at byte {offset} that are not there",
                path=str(self.path), offset=offset,
            )  # fmt: skip
        return batch

    def _verified(self, offset: int) -> Batch:
        batch = self._verified_head(offset)
        try:
            self._check_body(read_entry_header(self.view, offset))
        except DataError as error:
            raise self._corrupt(offset, error) from error
        return batch

    def _verified_head(self, offset: int) -> Batch:
        try:
            entry = read_entry_header(self.view, offset)
            self._head(entry)
            if entry.kind != EntryKind.BATCH:
                raise DataError("the entry holds no messages")
            return self._parsed(entry)
        except DataError as error:
            raise self._corrupt(offset, error) from error

    def _corrupt(self, offset: int, error: DataError) -> CorruptError:
        return CorruptError(f"{self.path} at byte {offset}: {error}", path=str(self.path), offset=offset)

    def _check_body(self, entry: Entry) -> None:
        body = self.view[entry.payload_at + entry.head_size : entry.payload_at + entry.size]
        if zlib.crc32(body) != entry.body_crc:
            raise DataError("the checksum of the blobs is wrong")

    def verify(self, on_bytes: Callable[[int], object] = lambda n: None) -> list[str]:
        """Compare all checksums; what is wrong, a line each.

        Parameters
        ----------
        on_bytes
            Called with the bytes that were looked at since the last call.
        """
        problems = []
        offset = BLOCK
        while offset < self._end - (BLOCK if self.closed else 0):
            try:
                entry = read_entry_header(self.view, offset)
            except DataError as error:
                problems.append(f"{self.path} at byte {offset}: {error}")
                break
            try:
                self._head(entry)
                self._check_body(entry)
                if entry.kind == EntryKind.BATCH:
                    self._parsed(entry)
            except DataError as error:
                problems.append(f"{self.path} at byte {offset}: {error}")
            on_bytes(entry.end - offset)
            offset = entry.end
        return problems

    def streams_of(self, source: str) -> Iterator[tuple[int, RecordedStream]]:
        """The streams of a source, with their numbers."""
        return ((number, stream) for number, stream in self.streams.items() if stream.id.source == source)

    def close(self) -> None:
        """Unmap the file; views of it that somebody still holds stay valid until they go."""
        self._batches.clear()
        self._heads.clear()
        self.view = memoryview(b"")
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> RecordingFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _mapped(path: Path) -> tuple[memoryview, mmap.mmap]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if size else mmap.mmap(-1, 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError):  # somebody emptied it in between
            raise CorruptError(f"{path} is not a recording: {error}", path=str(path), offset=0) from error
        raise storage_error(error, "open", path) from error
    return memoryview(mapped)[:size], mapped


def _decoded(payload: memoryview, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except _NOT_JSON as error:
        raise DataError(f"an entry cannot be read: {error}") from error


def _names(told: StreamEntry) -> StreamId:
    try:
        return told.id
    except ConfigurationError as error:
        raise DataError(f"an entry names a stream that cannot be: {error}") from error
