"""The bytes of a recording: one portable file that holds streams as they were.

A file header, entries, and, when the file was closed, an index and a trailer; each begins at a multiple of 64, so that
arrays in a mapped file are aligned. ``docs/reference/recording-format.md`` describes all of it for other programs.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

import msgspec
import numpy as np

from firstlight.errors import DataError
from firstlight.model import Buffer, StreamId

__all__ = [
    "BLOCK",
    "END_MAGIC",
    "RECORDING_MAGIC",
    "ROW",
    "ROW_DTYPE",
    "VERSION",
    "EndEntry",
    "Entry",
    "EntryKind",
    "MetaEntry",
    "StreamEntry",
    "entry_header",
    "file_header",
    "padded",
    "read_entry_header",
    "read_file_header",
    "read_trailer",
    "trailer",
]

RECORDING_MAGIC = b"FLRECORD"
END_MAGIC = b"FLRECEND"
VERSION = 1
#: Everything begins at a multiple of this: what arrays ask for at most, a line of the cache.
BLOCK = 64

_MARK = b"FLRE"
_FILE = struct.Struct("<8sIIq36xI")
_ENTRY = struct.Struct("<4sIQQQIIqII4xI")
_TRAILER = struct.Struct("<8sQQ36xI")
assert _FILE.size == _ENTRY.size == _TRAILER.size == BLOCK

#: A row of the index: an entry, or of a batch those of its messages whose ids count up by one.
ROW_DTYPE = np.dtype(
    [
        ("offset", "<u8"),
        ("stored_ns", "<i8"),
        ("first_id", "<u8"),
        ("blob_bytes", "<u8"),
        ("n", "<u4"),
        ("row", "<u4"),
        ("stream_no", "<u4"),
        ("part", "<u2"),
        ("parts", "<u2"),
        ("kind", "<u4"),
        ("zero", "<u4"),
    ]
)
ROW = struct.Struct("<QqQQIIIHHII")
assert ROW.size == ROW_DTYPE.itemsize


class EntryKind(IntEnum):
    """What an entry holds."""

    #: A stream begins: `StreamEntry`.
    STREAM = 1
    #: Metadata of a stream, or of a source in a beamtime: `MetaEntry`.
    META = 2
    #: Messages: a batch as it came.
    BATCH = 3
    #: How a stream ended, or where the recording left it: `EndEntry`.
    END = 4
    #: Rows of `ROW_DTYPE`, the last entry of a file that was closed.
    INDEX = 5


class StreamEntry(msgspec.Struct, frozen=True):
    """Names of a stream; all other entries know it by its number."""

    beamtime: str
    source: str
    stream: str
    created_ns: int

    @property
    def id(self) -> StreamId:
        """The names, checked."""
        return StreamId(self.beamtime, self.source, self.stream)


class MetaEntry(msgspec.Struct, frozen=True):
    """Metadata; `stream` is empty for those of beamtime and source. The last one of a name counts."""

    beamtime: str
    source: str
    stream: str
    meta: dict[str, object]


class EndEntry(msgspec.Struct, frozen=True):
    """``state`` is finished, aborted or open; `n_lost` messages were gone before they could be recorded."""

    state: str
    reason: str | None = None
    next_stream: str | None = None
    n_lost: int = 0


class Entry(NamedTuple):
    """The header of an entry. `size` is that of its payload, whose first `head_size` bytes `head_crc` covers."""

    offset: int
    kind: int
    size: int
    head_size: int
    stream_no: int
    recorded_ns: int
    head_crc: int
    body_crc: int

    @property
    def payload_at(self) -> int:
        return self.offset + BLOCK

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.offset + BLOCK + padded(self.size)


def padded(size: int) -> int:
    """`size` filled up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def file_header(created_ns: int) -> bytes:
    """The first block of a file."""
    return _sealed(_FILE.pack(RECORDING_MAGIC, VERSION, 0, created_ns, 0))


def read_file_header(block: Buffer) -> tuple[int, int]:
    """``(version, created_ns)``.

    Raises
    ------
    DataError
        If it is not the first block of a recording.
    """
    magic, version, _, created_ns, crc = _FILE.unpack(block)
    if magic != RECORDING_MAGIC:
        raise DataError(f"it begins with {magic!r}")
    if crc != _crc(block):
        raise DataError("the checksum of its first block is wrong")
    return version, created_ns


def entry_header(
    offset: int, kind: EntryKind, head: Buffer, body_crc: int, size: int, *, stream_no: int, recorded_ns: int
) -> bytes:
    """The block before a payload of `size` bytes that begins with `head`."""
    return _sealed(_ENTRY.pack(
        _MARK, kind, offset, size, len(head), stream_no, 0, recorded_ns, zlib.crc32(head), body_crc, 0
    ))  # fmt: skip


def read_entry_header(view: memoryview, offset: int) -> Entry:
    """The entry at `offset`, which lies in `view` as a whole.

    Raises
    ------
    DataError
        If there is no entry, or not all of it.
    """
    block = view[offset : offset + BLOCK]
    if len(block) < BLOCK:
        raise DataError(f"an entry is cut off {len(block)} bytes behind its beginning")
    mark, kind, place, size, head_size, stream_no, _, recorded_ns, head_crc, body_crc, crc = _ENTRY.unpack(block)
    if mark != _MARK or place != offset or crc != _crc(block):
        raise DataError("there is no entry")
    # Sizes may be near 2^64: compared with what is there before anything is added to them.
    if size > len(view) - offset - BLOCK or padded(size) > len(view) - offset - BLOCK or head_size > size:
        raise DataError(f"an entry of {size} bytes is cut off behind {len(view) - offset - BLOCK}")
    return Entry(offset, kind, size, head_size, stream_no, recorded_ns, head_crc, body_crc)


def trailer(index_at: int, length: int) -> bytes:
    """The last block of a file that was closed."""
    return _sealed(_TRAILER.pack(END_MAGIC, index_at, length, 0))


def read_trailer(view: memoryview) -> int | None:
    """Where the index is; None if the file was not closed."""
    if len(view) < 2 * BLOCK:
        return None
    block = view[len(view) - BLOCK :]
    magic, index_at, length, crc = _TRAILER.unpack(block)
    whole = magic == END_MAGIC and crc == _crc(block) and length == len(view) and index_at < length
    return index_at if whole else None


def _sealed(block: bytes) -> bytes:
    return block[:-4] + struct.pack("<I", _crc(block))


def _crc(block: Buffer) -> int:
    return zlib.crc32(memoryview(block)[: BLOCK - 4])
