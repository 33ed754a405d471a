"""Segment files: batches of one source, one behind the other, exactly as they travelled.

A file begins with one page of description, ``FLSEGMT1`` and a JSON object ended by a zero byte; from byte 4096 on come
batches, each at a multiple of 4096. Before the first batch of a stream stands a batch with the flag `DECLARES_STREAM`, whose
metadata names beamtime, source and stream, so a file can be read alone. A file that is being written has room set aside
behind the last batch, which reads as zeros. ``docs/reference/segment-format.md`` describes all of it for other programs.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from firstlight.errors import CorruptError, DataError, StorageError
from firstlight.model._batch import ALIGNMENT, HEADER_SIZE, Batch, batch_head, read_header
from firstlight.model._ids import StreamId
from firstlight.storage._files import storage_error, write_all

__all__ = ["DECLARES_STREAM", "SegmentEntry", "SegmentFile", "SegmentWriter", "open_direct", "segment_path"]

SEGMENT_MAGIC = b"FLSEGMT1"
#: Flag in the header of a batch that names a stream instead of carrying messages.
DECLARES_STREAM = 1
_FLAGS_AT = 20
#: Room is set aside in steps, so that a quiet source does not hold a gigabyte.
_FIRST_STEP, _LAST_STEP = 1 << 20, 64 << 20


def segment_path(root: Path, beamtime: str, source: str, number: int) -> Path:
    """Where segment `number` of a source lies below the data directory."""
    return root / "segments" / _folder(beamtime) / _folder(source) / f"{number:08d}.segment"


def _folder(name: str) -> str:
    text = quote(name, safe=" +=,@()[]{}~")
    if text.startswith("."):  # "." and ".." are names of their own, others would be hidden
        text = f"%2E{text[1:]}"
    if len(text) > 200:  # a file system takes 255 bytes a name
        text = f"{text[:180]}~{blake2b(name.encode(), digest_size=8).hexdigest()}"
    return text


def open_direct(path: Path, flags: int) -> tuple[int, bool]:
    """Open a file past the page cache where the file system can; returns ``(descriptor, direct)``."""
    try:
        return os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC, 0o644), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise storage_error(error, "open", path) from error
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o644), False
    except OSError as error:
        raise storage_error(error, "open", path) from error


class SegmentWriter:
    """Appends batches to one new segment file.

    Parameters
    ----------
    root
        The data directory.
    number
        Unique in the data directory.
    """

    def __init__(self, root: Path, beamtime: str, source: str, number: int) -> None:
        self.number = number
        self.path = segment_path(root, beamtime, source, number)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, "create", self.path.parent) from error
        self._fd, self.direct = open_direct(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        #: Bytes written.
        self.end = 0
        self._room = 0
        self._step = _FIRST_STEP
        self._declared: set[int] = set()
        #: Page-aligned memory for what does not come from a ring.
        self._scratch = mmap.mmap(-1, ALIGNMENT)
        description = {
            "segment": number, "beamtime": beamtime, "source": source,
            "created_ns": time.time_ns(), "alignment": ALIGNMENT,
        }  # fmt: skip
        self._write_page(SEGMENT_MAGIC + msgspec.json.encode(description))

    def _write_page(self, data: bytes) -> None:
        assert len(data) < ALIGNMENT
        self._scratch[:] = data.ljust(ALIGNMENT, b"\0")
        self.end += self._write([memoryview(self._scratch)], ALIGNMENT)

    def append(self, batches: list[tuple[StreamId, int, memoryview]], *, checksum_blobs: bool) -> list[int]:
        """Write batches, each in memory padded to pages; returns their offsets in the file.

        Parameters
        ----------
        batches
            ``(stream, stream_no, padded memory)``; headers and checksums are completed in place.

        Raises
        ------
        DiskFullError, StorageError
            Nothing of this call counts then; the next call writes over it.
        """
        for stream, stream_no, _ in batches:
            if stream_no not in self._declared:
                self._write_page(_declaration(stream, stream_no, self.number))
                self._declared.add(stream_no)
        offsets, at = [], self.end
        for _, _, memory in batches:
            batch = Batch(memory, read_header(memory))
            batch.seal(segment=self.number, checksum_blobs=checksum_blobs)
            memory[batch.length :] = bytes(len(memory) - batch.length)
            offsets.append(at)
            at += len(memory)
        self._write([memory for _, _, memory in batches], at - self.end)
        self.end = at
        return offsets

    def _write(self, pieces: list[memoryview], n_bytes: int) -> int:
        if self.end + n_bytes > self._room:
            self._set_aside(self.end + n_bytes)
        try:
            return write_all(self._fd, pieces, self.end, self.path)
        except StorageError as error:
            if not self.direct or error.values.get("code") != errno.EINVAL:
                raise
            # Some file systems accept O_DIRECT at open and refuse it at the first write.
            os.close(self._fd)
            self._fd, self.direct = os.open(self.path, os.O_RDWR | os.O_CLOEXEC), False
            return write_all(self._fd, pieces, self.end, self.path)

    def _set_aside(self, needed: int) -> None:
        room = needed + self._step
        self._step = min(self._step * 2, _LAST_STEP)
        try:
            os.posix_fallocate(self._fd, self._room, room - self._room)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC):
                raise storage_error(error, "make room in", self.path) from error
            return  # a step too far, or not offered here: the write itself will tell
        self._room = room

    @property
    def unlinked(self) -> bool:
        """Somebody deleted the file under us: what is written now would vanish."""
        return os.fstat(self._fd).st_nlink == 0

    def sync(self) -> None:
        """Flush to the device."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise storage_error(error, "flush", self.path) from error

    def close(self) -> None:
        """Give the unused room back."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.end)
        os.close(self._fd)


def _declaration(stream: StreamId, stream_no: int, segment: int) -> bytes:
    meta = {"beamtime": stream.beamtime, "source": stream.source, "stream": stream.stream, "stream_no": stream_no}
    head = bytearray(
        batch_head([(0, time.time_ns(), 0, 0, 0)], [msgspec.json.encode(meta)], [0], producer=0, sequence=0, sent_ns=0)
    )
    batch = Batch.parse(head)
    batch.stamp(stream_no=stream_no, stored_ns=0, first_arrival=0)
    struct.pack_into("<I", head, _FLAGS_AT, DECLARES_STREAM)
    batch.seal(segment=segment, checksum_blobs=False)
    return bytes(head)


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One batch found in a segment file."""

    offset: int
    batch: Batch
    stream: StreamId


class SegmentFile:
    """Reads one segment file, with or without a running service.

    Parameters
    ----------
    path
        The file; it is mapped, nothing is read before it is asked for.

    Raises
    ------
    CorruptError
        If it is not a segment file, or its description is damaged.

    Examples
    --------
    ::

        with SegmentFile("00000001.segment") as segment:
            for entry in segment:
                for row in entry.batch.rows():
                    print(entry.stream, row.id, entry.batch.meta(row).tobytes())
        print(segment.problem or "read to its end")
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if self.size else mmap.mmap(-1, 1)
        except OSError as error:
            raise storage_error(error, "open", self.path) from error
        self.view = memoryview(self._map)[: self.size]
        self.description = self._read_description()
        #: Why reading stopped before the end of the file; empty when everything was read.
        self.problem = ""

    def _read_description(self) -> dict[str, Any]:
        page = bytes(self.view[:ALIGNMENT])
        if len(page) < ALIGNMENT or not page.startswith(SEGMENT_MAGIC):
            what = f"begins with {page[:8]!r}" if len(page) >= ALIGNMENT else f"has only {len(page)} bytes"
            raise CorruptError(f"{self.path} is not a segment file: it {what}", path=str(self.path), offset=0)
        try:
            found = msgspec.json.decode(page[8:].rstrip(b"\0"), type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise CorruptError(f"the description of {self.path} is damaged: {error}", path=str(self.path), offset=8) from error
        return found

    def __iter__(self) -> Iterator[SegmentEntry]:
        """The batches in the order in which they were written, up to the end or the first damage (see `problem`)."""
        return self.scan(ALIGNMENT)

    def scan(self, offset: int) -> Iterator[SegmentEntry]:
        """As iteration, from a known batch on."""
        streams: dict[int, StreamId] = {}
        self.problem = ""
        while offset < self.size:
            region = self.view[offset:]
            if not any(region[:8]):
                return  # room set aside, not written yet
            try:
                batch = Batch.parse(region)
                batch.verify()
                if batch.header.segment != self.description["segment"]:
                    raise DataError(f"the batch belongs to segment {batch.header.segment}")
            except DataError as error:
                self.problem = f"{self.path} at byte {offset}: {error}"
                return
            if batch.header.flags & DECLARES_STREAM:
                names = msgspec.json.decode(batch.meta(batch.row(0)), type=dict[str, Any])
                streams[batch.header.stream_no] = StreamId(names["beamtime"], names["source"], names["stream"])
            else:
                stream = streams.get(batch.header.stream_no) or self._unnamed(batch.header.stream_no)
                yield SegmentEntry(offset, batch, stream)
            offset += -(-batch.length // ALIGNMENT) * ALIGNMENT

    def _unnamed(self, stream_no: int) -> StreamId:
        return StreamId(str(self.description["beamtime"]), str(self.description["source"]), f"#{stream_no}")

    def batch_at(self, offset: int) -> Batch:
        """The batch at a known place.

        Raises
        ------
        CorruptError
            If there is no whole batch.
        """
        try:
            batch = Batch.parse(self.view[offset : self.size])
            batch.verify()
        except DataError as error:
            raise CorruptError(f"{self.path} at byte {offset}: {error}", path=str(self.path), offset=offset) from error
        return batch

    def close(self) -> None:
        """Unmap the file; views of it that somebody still holds stay valid until they go."""
        self.view = memoryview(b"")
        with contextlib.suppress(BufferError):
            self._map.close()

    def __enter__(self) -> SegmentFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


assert HEADER_SIZE < ALIGNMENT
