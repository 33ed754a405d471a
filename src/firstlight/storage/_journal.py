"""The journal: an append-only file that is the truth about streams, order, positions and groups.

Format, version 1, little-endian: 16 bytes ``FLJRNL01`` and zeros, then entries ``u32 length | u32 crc32 | msgpack``.
An entry that is cut off or damaged ends the journal: everything behind it was not acknowledged as written, because an
acknowledgement waits until its entry is in the file.

At each start the state is written anew into a compact journal, so that it does not grow with every acknowledgement ever
made.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Protocol, TypeAlias

import msgspec

from firstlight.errors import CorruptError, StorageError
from firstlight.storage._files import storage_error, write_all

__all__ = [
    "BatchStored",
    "BytesLost",
    "GroupProgress",
    "Journal",
    "JournalEntry",
    "JournalReport",
    "LocalJournal",
    "MessagesKept",
    "MetaSet",
    "SegmentKnown",
    "StreamCreated",
    "StreamDeleted",
    "StreamEnded",
    "read_journal",
]

_MAGIC = b"FLJRNL01" + bytes(8)
_FRAME = struct.Struct("<II")
_MAX_ENTRY = 256 * 1024 * 1024


#: Numbers as the order in memory holds them: larger ones were never written by us, whatever the checksum says.
_U63: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]


class _Entry(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Base of what the journal holds; a tag tells the kinds apart."""


class StreamCreated(_Entry, tag=1):
    """Names a stream; everything else refers to its number. Numbers are never used again."""

    stream_no: int
    beamtime: str
    source: str
    stream: str
    created_ns: int


class BatchStored(_Entry, tag=2):
    """A batch was taken in, or (same ``batch`` again) its bytes were persisted later.

    ``runs`` are ``(first_id, count, row)``; ``segment`` 0 means that the bytes were in memory only.
    """

    stream_no: int
    batch: _U63
    runs: tuple[tuple[_U63, _U32, _U32], ...]
    part: _U32
    parts: _U32
    producer: int
    sequence: int
    stored_ns: int
    length: _U63
    segment: _U63 = 0
    offset: _U63 = 0


class StreamEnded(_Entry, tag=3):
    """A stream was finished (``aborted`` is None) or given up for a reason."""

    stream_no: int
    last_id: int
    ended_ns: int
    next_stream: str | None = None
    aborted: str | None = None


class MetaSet(_Entry, tag=4):
    """JSON of a stream, or of a beamtime and source when ``stream_no`` is 0; None when it was deleted."""

    stream_no: int
    beamtime: str
    source: str
    json: bytes | None


class GroupProgress(_Entry, tag=5):
    """What a group needs no more: acknowledged, or passed without (delivered without acknowledgement, skipped, parked).

    With ``reset_after`` everything behind that id is open again, before the rest of the entry applies.
    """

    stream_no: int
    group: str
    acked: tuple[tuple[int, int], ...] = ()
    passed: tuple[tuple[int, int], ...] = ()
    parked: tuple[tuple[int, int], ...] = ()
    reset_after: int | None = None


class StreamDeleted(_Entry, tag=6):
    """The stream is gone with everything in it."""

    stream_no: int


class MessagesKept(_Entry, tag=7):
    """Somebody asked to keep these messages; batches of theirs that are in memory are persisted."""

    stream_no: int
    ids: tuple[tuple[int, int], ...]


class BytesLost(_Entry, tag=8):
    """Segments that were dropped by retention, or found missing or cut."""

    segments: tuple[int, ...]


class SegmentKnown(_Entry, tag=9):
    """All before byte ``end`` of this segment file was entered in the journal, streams deleted since included."""

    segment: int
    beamtime: str
    source: str
    end: int


JournalEntry: TypeAlias = (
    StreamCreated
    | BatchStored
    | StreamEnded
    | MetaSet
    | GroupProgress
    | StreamDeleted
    | MessagesKept
    | BytesLost
    | SegmentKnown
)

_DECODER: msgspec.msgpack.Decoder[JournalEntry] = msgspec.msgpack.Decoder(JournalEntry)
_ENCODER = msgspec.msgpack.Encoder()


class Journal(Protocol):
    """Where the truth is written: a local file here, a database when several nodes share streams."""

    def append(self, entries: Iterable[JournalEntry]) -> None:
        """Write the entries, in order; on return they survive the death of this process."""

    def sync(self) -> None:
        """On return everything appended survives the loss of power."""

    @property
    def vanished(self) -> bool:
        """What is appended now would be lost, although appending works."""

    def close(self) -> None: ...


class LocalJournal:
    """A journal in one file.

    Parameters
    ----------
    path
        Created when absent; otherwise entries go behind what is there, which must be whole: see `write_compact`.

    Raises
    ------
    StorageError
        If the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_error(error, "open", path) from error
        self._end = os.lseek(self._fd, 0, os.SEEK_END)
        if self._end < len(_MAGIC):
            write_all(self._fd, [_MAGIC], 0, path)
            self._end = len(_MAGIC)

    @property
    def size(self) -> int:
        """Bytes."""
        return self._end

    def append(self, entries: Iterable[JournalEntry]) -> None:
        """Write the entries in one call.

        Raises
        ------
        StorageError
            If the disk is full or gone. Nothing of these entries counts then.
        """
        pieces = []
        for entry in entries:
            payload = _ENCODER.encode(entry)
            pieces.append(_FRAME.pack(len(payload), zlib.crc32(payload)))
            pieces.append(payload)
        data = b"".join(pieces)
        try:
            write_all(self._fd, [data], self._end, self.path)
        except StorageError:
            # Whole entries may have arrived. Behind a shorter one, written over their beginning, they would count.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self._end += len(data)

    @property
    def vanished(self) -> bool:
        """The file was deleted or replaced under us."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError as error:
            raise storage_error(error, "look at", self.path) from error

    def sync(self) -> None:
        """Flush to the device."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise storage_error(error, "flush", self.path) from error

    def close(self) -> None:
        os.close(self._fd)


class JournalReport(msgspec.Struct):
    """What reading a journal found."""

    entries: int = 0
    bytes_read: int = 0
    bytes_dropped: int = 0
    reason: str = ""


def read_journal(path: Path, report: JournalReport) -> Iterator[JournalEntry]:
    """Read the entries of a journal, up to the first that is cut off or damaged; the file is not changed.

    Parameters
    ----------
    report
        Filled in while reading; after the last entry it says how many bytes behind it were dropped and why.

    Raises
    ------
    CorruptError
        If the file is not a journal, or one of a version that this program does not know.
    StorageError
        If it cannot be opened.
    """
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(len(_MAGIC))
        if magic != _MAGIC:
            if not magic or _MAGIC.startswith(magic):  # created, and the machine stopped
                report.bytes_dropped, report.reason = len(magic), "the header is incomplete"
                return
            raise CorruptError(
                f"{path} is not a journal of this version: it begins with {magic[:8]!r} instead of {_MAGIC[:8]!r}",
                path=str(path), offset=0,
            )  # fmt: skip
        report.bytes_read = len(_MAGIC)
        while True:
            head = file.read(_FRAME.size)
            if not head:
                return
            entry, reason, length = _read_entry(file.read, head)
            if entry is None:
                report.bytes_dropped = size - report.bytes_read
                report.reason = f"at byte {report.bytes_read}: {reason}"
                return
            report.bytes_read += _FRAME.size + length
            report.entries += 1
            yield entry


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise storage_error(error, "open", path) from error


def _read_entry(read: _Read, head: bytes) -> tuple[JournalEntry | None, str, int]:
    if len(head) < _FRAME.size:
        return None, "an entry is cut off", 0
    length, crc = _FRAME.unpack(head)
    if length > _MAX_ENTRY:
        return None, f"an entry claims {length} bytes", 0
    payload = read(length)
    if len(payload) < length:
        return None, "an entry is cut off", 0
    if zlib.crc32(payload) != crc:
        return None, "an entry is damaged (checksum)", 0
    try:
        return _DECODER.decode(payload), "", length
    except msgspec.DecodeError as error:
        return None, f"an entry cannot be read ({error})", 0


class _Read(Protocol):
    def __call__(self, size: int, /) -> bytes: ...
