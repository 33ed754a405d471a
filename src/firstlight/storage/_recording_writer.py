"""Writes a recording: entries one behind the other, each as a whole, so that a file that is cut off can be read."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from firstlight.errors import ConfigurationError, DiskFullError, StorageError
from firstlight.model import Batch, Buffer, StreamId, runs_of
from firstlight.storage._files import storage_error, sync_folder, write_all
from firstlight.storage._recording_format import (
    BLOCK,
    ROW,
    EndEntry,
    EntryKind,
    MetaEntry,
    StreamEntry,
    entry_header,
    file_header,
    padded,
    trailer,
)

__all__ = ["RecordingWriter", "index_rows"]


class RecordingWriter:
    """Makes one recording; may be used by several threads at once.

    Parameters
    ----------
    path
        The file to make.
    replace
        Put it in the place of one that is there.

    Raises
    ------
    ConfigurationError
        If the file exists and is not to be replaced.
    StorageError
        If it cannot be made; `DiskFullError` if there is no room.

    Examples
    --------
    ::

        with RecordingWriter("scan.flrec") as out:
            number = out.begin(stream, created_ns=info.created_ns)
            out.append(number, batch)
            out.end(number, EndEntry("finished"))
    """

    def __init__(self, path: str | Path, *, replace: bool = False) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._index = bytearray()
        self._n_streams = 0
        #: Bytes of whole entries.
        self.end_offset = 0
        self._fd = self._create(replace)
        self._closed = False
        try:
            self.end_offset = write_all(self._fd, [file_header(time.time_ns())], 0, self.path)
        except StorageError:
            os.close(self._fd)
            self.path.unlink(missing_ok=True)  # left behind, it would refuse the next attempt
            raise

    def _create(self, replace: bool) -> int:
        if replace:
            # Not emptied in place: somebody may read, or have mapped, the old one.
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
        try:
            return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError as error:
            raise ConfigurationError(
                f"{self.path} exists; choose another name, or replace it on purpose (--force)", path=str(self.path)
            ) from error
        except OSError as error:
            raise storage_error(error, "create", self.path) from error

    # -- entries ----------------------------------------------------------------------------------------------------

    def begin(self, stream: StreamId, *, created_ns: int) -> int:
        """A stream begins; returns its number in this file."""
        with self._lock:
            self._n_streams += 1
            number = self._n_streams
        entry = StreamEntry(stream.beamtime, stream.source, stream.stream, created_ns)
        self._write_json(EntryKind.STREAM, entry, number)
        return number

    def set_meta(self, beamtime: str, source: str, stream: str, meta: dict[str, Any]) -> None:
        """Metadata of a stream, or of beamtime and source if `stream` is empty."""
        self._write_json(EntryKind.META, MetaEntry(beamtime, source, stream, meta), 0)

    def end(self, stream_no: int, end: EndEntry) -> None:
        """How a stream ended."""
        self._write_json(EntryKind.END, end, stream_no)

    def append(self, stream_no: int, batch: Batch, row: int = 0, n: int | None = None) -> int:
        """`n` messages of a batch from `row` on, by default all of it; returns the bytes that the file grew by.

        Raises
        ------
        DiskFullError, StorageError
            Nothing of this call is in the file then.
        """
        n = batch.n_messages - row if n is None else n
        if n == batch.n_messages:
            at = batch.header.blobs_offset
            # A copy: the service may be about to note in it where it writes the batch, between our checksum and our write.
            head, body = memoryview(bytes(batch.buffer[:at])), [batch.buffer[at : batch.length]]
        else:
            pieces = batch.select(row, n)
            head, body = memoryview(pieces[0]), [memoryview(piece) for piece in pieces[1:]]
        rows = index_rows(batch, row, n, stream_no)
        return self._write(EntryKind.BATCH, head, body, stream_no, rows)

    def _write_json(self, kind: EntryKind, value: msgspec.Struct, stream_no: int) -> None:
        head = memoryview(msgspec.json.encode(value))
        self._write(kind, head, [], stream_no, [(0, 0, 0, 0, 0, stream_no, 0, 0, int(kind), 0)])

    def _write(
        self, kind: EntryKind, head: memoryview, body: Sequence[Buffer], stream_no: int, rows: list[tuple[int, ...]]
    ) -> int:
        size, body_crc = len(head), 0
        for piece in body:  # outside of the lock: it takes as long as the writing
            size += len(piece)
            body_crc = zlib.crc32(piece, body_crc)
        zeros = bytes(padded(size) - size)
        with self._lock:
            at = self.end_offset
            block = entry_header(at, kind, head, body_crc, size, stream_no=stream_no, recorded_ns=time.time_ns())
            self._write_at(at, [block, head, *body, zeros])
            for row in rows:
                self._index += ROW.pack(at, *row)
            self.end_offset = at + BLOCK + padded(size)
        return BLOCK + padded(size)

    def _write_at(self, at: int, pieces: Sequence[Buffer]) -> None:
        try:
            write_all(self._fd, [piece for piece in pieces if len(piece)], at, self.path)
        except StorageError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, at)  # what is there stays readable, and the index finds some room
            if isinstance(error, DiskFullError):
                raise DiskFullError(
                    f"cannot write to {self.path}: the disk is full; what is in the file can be read. Free some space "
                    "and record the rest again",
                    **error.values,
                ) from error
            raise

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Write the index, and flush all to the device.

        Raises
        ------
        DiskFullError, StorageError
            The file can be read even so, as one that was cut off.
        """
        if self._closed:
            return
        self._closed = True
        try:
            at = self.end_offset
            self._write(EntryKind.INDEX, memoryview(self._index), [], 0, [])
            end = self.end_offset
            try:
                self._write_at(end, [trailer(at, end + BLOCK)])
                self.end_offset = end + BLOCK
                os.fsync(self._fd)
            except OSError as error:
                raise error if isinstance(error, StorageError) else storage_error(error, "flush", self.path) from error
        finally:
            os.close(self._fd)
        sync_folder(self.path.absolute().parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StorageError:
            if error is None:  # the error that brought us here matters more
                raise


def index_rows(batch: Batch, row: int, n: int, stream_no: int) -> list[tuple[int, ...]]:
    """Rows of the index without the offset; `row` counts in what is written."""
    stored_ns = batch.header.stored_ns
    if n == 1:
        one = batch.row(row)
        return [(stored_ns, one.id, one.blob_size, 1, 0, stream_no, one.part, one.parts, int(EntryKind.BATCH), 0)]
    table: NDArray[np.void] = batch.table()[row : row + n]
    part, parts = int(table["part"][0]), int(table["parts"][0])
    sizes = table["blob_size"]
    return [
        (
            stored_ns, run.first_id, int(sizes[run.row : run.row + run.n].sum()), run.n, run.row, stream_no, part,
            parts, int(EntryKind.BATCH), 0,
        )
        for run in runs_of(table["id"])
    ]  # fmt: skip
