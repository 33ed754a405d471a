"""Segment files: batches of one source, one behind the other, exactly as they travelled.

A file begins with one page of description, ``FLSEGMT1`` and a JSON object ended by a zero byte; from byte 4096 on
come batches, each at a multiple of 4096. Before the first batch of a stream stands a batch with the flag
`DECLARES_STREAM`, whose metadata names beamtime, source and stream, so a file can be read alone. A file that is being
written has room set aside behind the last batch, which reads as zeros. ``docs/reference/segment-format.md`` describes
all of it for other programs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
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

from firstlight.errors import ConfigurationError, CorruptError, DataError, StorageError
from firstlight.model import ALIGNMENT, HEADER_SIZE, Batch, BatchHeader, StreamId, batch_head, read_header
from firstlight.storage._files import storage_error, sync_folder, write_all

__all__ = ["DECLARES_STREAM", "SegmentEntry", "SegmentFile", "SegmentWriter", "open_direct", "segment_path"]

SEGMENT_MAGIC = b"FLSEGMT1"
#: Flag in the header of a batch that names a stream instead of carrying messages.
DECLARES_STREAM = 1
_FLAGS_AT = 20
#: Room is set aside in steps, so that a quiet source does not hold a gigabyte.
_FIRST_STEP, _LAST_STEP = 1 << 20, 64 << 20
_NO_ROOM_IN_ADVANCE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
#: Names of 1023 bytes each become up to twice as long in JSON, and a declaration has three of them.
_SCRATCH_SIZE = 3 * ALIGNMENT


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
        fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise storage_error(error, "open", path) from error
    # Not at open: a file system without it makes the file before it refuses, and then it exists.
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return fd, False
    return fd, True


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
        self._scratch = mmap.mmap(-1, _SCRATCH_SIZE)
        #: The name of the file is on the device, too.
        self._name_synced = False
        try:
            self._write_pages(_description(number, beamtime, source))
        except StorageError:
            # Left behind, it would refuse the next attempt, when there is room again, because it exists.
            os.close(self._fd)
            with contextlib.suppress(OSError):
                self.path.unlink()
            raise

    def _write_pages(self, data: bytes) -> None:
        size = _pages(len(data))
        self._scratch[:size] = data.ljust(size, b"\0")
        self.end += self._write([memoryview(self._scratch)[:size]], size)

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
        DataError
            If memory does not hold what it is said to hold: a producer on this machine can still write where its
            messages lie. ``number`` tells which of `batches`; nothing of this call counts.
        """
        for stream, stream_no, _ in batches:
            if stream_no not in self._declared:
                self._write_pages(_declaration(stream, stream_no, self.number))
                self._declared.add(stream_no)
        offsets, at = [], self.end
        for number, (_, stream_no, memory) in enumerate(batches):
            batch = Batch(memory, _expected_header(number, stream_no, memory))
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
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT)
            self.direct = False
            return write_all(self._fd, pieces, self.end, self.path)

    def _set_aside(self, needed: int) -> None:
        room = needed + self._step
        self._step = min(self._step * 2, _LAST_STEP)
        try:
            os.posix_fallocate(self._fd, self._room, room - self._room)
        except OSError as error:
            if error.errno not in _NO_ROOM_IN_ADVANCE:
                raise storage_error(error, "make room in", self.path) from error
            return  # a step too far, or not offered here: the write itself will tell
        self._room = room

    @property
    def unlinked(self) -> bool:
        """Somebody deleted the file under us: what is written now would vanish."""
        try:
            return os.fstat(self._fd).st_nlink == 0
        except OSError as error:
            raise storage_error(error, "look at", self.path) from error

    def sync(self) -> None:
        """Flush to the device; the first time with the folders that lead to the file."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise storage_error(error, "flush", self.path) from error
        if not self._name_synced:
            for folder in list(self.path.parents)[:4]:  # source, beamtime, "segments", data directory
                sync_folder(folder)
            self._name_synced = True

    def close(self) -> None:
        """Give the unused room back."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, self.end)
        os.close(self._fd)


def _pages(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _description(number: int, beamtime: str, source: str) -> bytes:
    facts = {"segment": number, "created_ns": time.time_ns(), "alignment": ALIGNMENT}
    page = SEGMENT_MAGIC + msgspec.json.encode(facts | {"beamtime": beamtime, "source": source})
    if len(page) < ALIGNMENT:
        return page
    return SEGMENT_MAGIC + msgspec.json.encode(facts)  # the declarations of streams hold the names, too


def _expected_header(number: int, stream_no: int, memory: memoryview) -> BatchHeader:
    # Looked at once, in a copy: what is checked is what is used.
    try:
        header = read_header(bytes(memory[:HEADER_SIZE]))
    except DataError as error:
        raise DataError(f"a batch was changed before it was written: {error}", number=number) from error
    if header.stream_no != stream_no or _pages(header.length) != len(memory):
        raise DataError("the header of a batch was changed before it was written", number=number)
    return header


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


class _Names(msgspec.Struct):
    beamtime: str
    source: str
    stream: str


class _Description(msgspec.Struct):
    segment: int


_NAMES = msgspec.json.Decoder(_Names)


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
        self._streams: dict[int, StreamId] = {}

    def _read_description(self) -> dict[str, Any]:
        page = bytes(self.view[:ALIGNMENT])
        if len(page) < ALIGNMENT or not page.startswith(SEGMENT_MAGIC):
            what = f"begins with {page[:8]!r}" if len(page) >= ALIGNMENT else f"has only {len(page)} bytes"
            raise CorruptError(f"{self.path} is not a segment file: it {what}", path=str(self.path), offset=0)
        try:
            text = str(page[8:].partition(b"\0")[0], "utf-8")
            found = msgspec.json.decode(text, type=dict[str, Any])
            msgspec.convert(found, _Description)
        except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CorruptError(
                f"the description of {self.path} is damaged: {error}", path=str(self.path), offset=8
            ) from error
        return found

    def __iter__(self) -> Iterator[SegmentEntry]:
        """The batches in the order in which they were written, up to the end or the first damage (see `problem`)."""
        return self.scan(ALIGNMENT)

    def scan(self, offset: int, end: int | None = None) -> Iterator[SegmentEntry]:
        """As iteration, from the known batch at `offset` on, up to the one at `end`.

        Streams are known by their names if their declarations were passed, now or before.
        """
        self.problem = ""
        end = self.size if end is None else min(end, self.size)
        while offset < end:
            region = self.view[offset:]
            if not any(region[:8]):
                return  # room set aside, not written yet
            try:
                batch = Batch.parse(region)
                batch.verify()
                if batch.header.segment != self.description["segment"]:
                    raise DataError(f"the batch belongs to segment {batch.header.segment}")
                stream = self._stream_of(batch)
            except DataError as error:
                self.problem = f"{self.path} at byte {offset}: {error}"
                return
            if not batch.header.flags & DECLARES_STREAM:
                yield SegmentEntry(offset, batch, stream)
            offset += _pages(batch.length)

    def _stream_of(self, batch: Batch) -> StreamId:
        number = batch.header.stream_no
        try:
            if batch.header.flags & DECLARES_STREAM:
                names = _NAMES.decode(batch.meta(batch.row(0)))
                self._streams[number] = StreamId(names.beamtime, names.source, names.stream)
            elif number not in self._streams:
                return StreamId(str(self.description["beamtime"]), str(self.description["source"]), f"#{number}")
        except (msgspec.DecodeError, ConfigurationError, KeyError) as error:
            raise DataError(f"nothing tells which stream number {number} is: {error}") from error
        return self._streams[number]

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
