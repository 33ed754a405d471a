"""The batch: the one form in which messages travel, lie in memory and lie on disk.

A batch is one or more messages of one stream, as one contiguous record::

    header (128 bytes) | table (48 bytes a message) | metas | padding | blobs

The wire sends it as it is, the ring holds it as it is, and a segment file is a row of them. So a message is
brought into this form once, by its producer, and nobody copies or translates it again. All numbers are little-endian.
The layout is described for others in ``docs/reference/segment-format.md``.

Metas are JSON objects joined by commas, so that the whole region, put into brackets, is a JSON array: the index reads
the metadata of a thousand messages in one call. Blobs start at multiples of 8 bytes, the first one at a multiple of 64.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from firstlight.errors import DataError

__all__ = [
    "ALIGNMENT",
    "BATCH_MAGIC",
    "HEADER_SIZE",
    "MAX_MESSAGES",
    "ROW_SIZE",
    "Batch",
    "BatchHeader",
    "Buffer",
    "Row",
    "Run",
    "batch_head",
    "batch_parts",
    "read_header",
    "runs_of",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

BATCH_MAGIC = b"FLBATCH1"
HEADER_SIZE = 128
ROW_SIZE = 48
#: Batches begin at multiples of this in memory and on disk: what O_DIRECT asks for.
ALIGNMENT = 4096
#: The table stays below 200 kB.
MAX_MESSAGES = 4096
MAX_METAS_BYTES = 64 * 1024 * 1024

_HEADER = struct.Struct("<8sQIIQQQqqIIQQQQ16xII")
_ROW = struct.Struct("<QqQQIIHHI")
_ROW_DTYPE = np.dtype(
    [
        ("id", "<u8"),
        ("timestamp_ns", "<i8"),
        ("blob_offset", "<u8"),
        ("blob_size", "<u8"),
        ("meta_offset", "<u4"),
        ("meta_size", "<u4"),
        ("part", "<u2"),
        ("parts", "<u2"),
        ("flags", "<u4"),
    ]
)
assert _HEADER.size == HEADER_SIZE and _ROW.size == _ROW_DTYPE.itemsize == ROW_SIZE

_U64 = struct.Struct("<Q")
_I64 = struct.Struct("<q")
_U32 = struct.Struct("<I")


_COMMA = ord(",")
#: Up to so many rows are looked at one by one.
_FEW = 8


class _AnyObject(msgspec.Struct):
    """Any JSON object: its members are walked over, which costs a third of taking them out."""


_META_LIST = msgspec.json.Decoder(list[_AnyObject])
_META_ONE = msgspec.json.Decoder(_AnyObject)
#: What can be wrong with JSON; too many brackets within each other are a `RecursionError`.
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Row(NamedTuple):
    """One message's line in the table; offsets count from the start of the metas and of the blobs."""

    id: int
    timestamp_ns: int
    blob_offset: int
    blob_size: int
    meta_offset: int
    meta_size: int
    part: int
    parts: int
    flags: int


class Run(NamedTuple):
    """Neighbouring rows whose ids count up by one, and that are the same part of their datasets."""

    first_id: int
    n: int
    row: int

    @property
    def last_id(self) -> int:
        return self.first_id + self.n - 1


class BatchHeader(NamedTuple):
    """The first 128 bytes.

    ``stream_no``, ``stored_ns`` and ``first_arrival`` are filled in by the service, ``segment`` and the checksums when
    the batch is written to disk; a producer leaves them zero. ``producer`` and ``sequence`` tell a batch that is
    sent again after a lost connection from a new one.
    """

    magic: bytes
    length: int
    n_messages: int
    flags: int
    stream_no: int
    producer: int
    sequence: int
    sent_ns: int
    stored_ns: int
    metas_offset: int
    metas_size: int
    blobs_offset: int
    blobs_size: int
    first_arrival: int
    segment: int
    blobs_crc: int
    head_crc: int


#: Where the fields lie that are filled in later.
_FLAGS_AT, _STREAM_NO_AT, _STORED_AT, _ARRIVAL_AT = 20, 24, 56, 88
_SEGMENT_AT, _BLOBS_CRC_AT, _HEAD_CRC_AT = 96, 120, 124


def _aligned(n: int, to: int) -> int:
    return (n + to - 1) & -to


def batch_head(
    rows: Sequence[tuple[int, int, int, int, int]],
    metas: Sequence[bytes],
    blob_sizes: Sequence[int],
    *,
    producer: int,
    sequence: int,
    sent_ns: int,
    blobs_at: int | None = None,
) -> bytes:
    """Everything of a batch that comes before the first blob.

    Parameters
    ----------
    rows
        ``(id, timestamp_ns, part, parts, flags)`` a message; id 0 asks the service for one.
    metas
        One JSON object a message, ``b"{}"`` where there is nothing to say.
    blob_sizes
        In bytes; the blobs themselves follow, each padded to 8 bytes (`batch_parts` does that).
    blobs_at
        Where the first blob begins, if it is there already (a loaned array); by default right behind the metas.

    Raises
    ------
    DataError
        If there are no messages or too many, or the metadata does not fit.
    """
    n = len(rows)
    if not 0 < n <= MAX_MESSAGES:
        raise DataError(f"a batch holds 1 to {MAX_MESSAGES} messages, not {n}", n_messages=n)
    metas_offset = HEADER_SIZE + n * ROW_SIZE
    joined = metas[0] if n == 1 else b",".join(metas)
    if len(joined) > MAX_METAS_BYTES:
        raise DataError(
            f"metadata of {len(joined)} bytes is too long; the limit is {MAX_METAS_BYTES}", size=len(joined)
        )
    blobs_offset = _aligned(metas_offset + len(joined), 64)
    if blobs_at is not None:
        if blobs_at < blobs_offset:
            raise DataError(f"the metadata needs {blobs_offset} bytes, {blobs_at} were set aside", size=blobs_offset)
        blobs_offset = blobs_at
    table = bytearray(n * ROW_SIZE)
    blob_at = meta_at = at = 0
    for (message_id, timestamp_ns, part, parts, flags), meta, size in zip(rows, metas, blob_sizes, strict=True):
        _ROW.pack_into(table, at, message_id, timestamp_ns, blob_at, size, meta_at, len(meta), part, parts, flags)
        at += ROW_SIZE
        meta_at += len(meta) + 1
        blob_at += (size + 7) & -8
    blobs_size = blob_at if n > 1 else blob_sizes[0]
    header = _HEADER.pack(
        BATCH_MAGIC, blobs_offset + blobs_size, n, 0, 0, producer, sequence, sent_ns, 0,
        metas_offset, len(joined), blobs_offset, blobs_size, 0, 0, 0, 0,
    )  # fmt: skip
    return b"".join((header, table, joined, bytes(blobs_offset - metas_offset - len(joined))))


_PADDING = tuple(bytes(n) for n in range(8))


def batch_parts(head: bytes, blobs: Sequence[Buffer]) -> list[Buffer]:
    """The pieces whose concatenation is the batch: `head`, then the blobs with their padding, nothing copied."""
    if len(blobs) == 1:
        return [head, blobs[0]]
    pieces: list[Buffer] = [head]
    for blob in blobs:
        pieces.append(blob)
        if pad := -len(blob) & 7:
            pieces.append(_PADDING[pad])
    return pieces


class Batch:
    """A batch in a buffer, checked once; rows, metadata and blobs are read in place.

    Use `parse` for bytes that come from anywhere else than this process::

        batch = Batch.parse(buffer)
        for row in batch.rows():
            batch.meta(row), batch.blob(row)
    """

    __slots__ = ("buffer", "header")

    def __init__(self, buffer: memoryview, header: BatchHeader) -> None:
        self.buffer = buffer
        self.header = header

    @classmethod
    def parse(cls, buffer: Buffer) -> Batch:
        """Check every length and every offset of the batch at the start of `buffer`, without touching the blobs.

        Raises
        ------
        DataError
            If it is not a batch, is longer than the buffer, or any part of it points outside of it.
        """
        view = memoryview(buffer)
        header = read_header(view)
        if header.length > len(view):
            raise DataError(f"a batch of {header.length} bytes does not fit into {len(view)}", length=header.length)
        batch = cls(view[: header.length], header)
        batch._check_table()
        return batch

    @classmethod
    def known(cls, buffer: Buffer) -> Batch:
        """A batch that was parsed before, in memory that nobody else writes: it is not checked again."""
        view = memoryview(buffer)
        header = read_header(view)
        return cls(view[: header.length], header)

    def _check_table(self) -> None:
        header = self.header
        if header.n_messages == 1:
            row = self.row(0)
            bad = (
                row.blob_offset + row.blob_size > header.blobs_size
                or row.meta_offset != 0
                or row.meta_size != header.metas_size
                or row.part > row.parts
            )
            if bad:
                raise DataError(f"the table of a batch points outside of it: {row}", row=0)
            return
        # An array of a few rows takes longer to begin with than the rows take; what is wrong is found out below.
        if header.n_messages <= _FEW and self._few_are_right():
            return
        table = self.table()
        # Offsets are unsigned and may be near 2^64: compare without adding.
        size, offset = table["blob_size"], table["blob_offset"]
        bad_blob = (size > header.blobs_size) | (offset > header.blobs_size - np.minimum(size, header.blobs_size))
        starts = table["meta_offset"].astype(np.int64)
        ends = starts + table["meta_size"]
        metas_fit = (
            starts[0] == 0
            and ends[-1] == header.metas_size
            and np.array_equal(starts[1:], ends[:-1] + 1)
            and bool((np.frombuffer(self.metas, np.uint8)[ends[:-1]] == ord(",")).all())
        )
        if bad_blob.any() or not metas_fit or (table["part"] > table["parts"]).any():
            row_no = int(np.argmax(bad_blob)) if bad_blob.any() else 0
            raise DataError(f"the table of a batch points outside of it, first at row {row_no}", row=row_no)
        if (table["part"] != table["part"][0]).any() or (table["parts"] != table["parts"][0]).any():
            raise DataError("the messages of one batch are different parts of their datasets; send one batch a part")

    def _few_are_right(self) -> bool:
        """`_check_table`, row by row."""
        header, rows, metas = self.header, self.rows(), self.metas
        part, parts = rows[0].part, rows[0].parts
        meta_at, last = 0, rows[-1]
        for row in rows:
            if row.meta_offset != meta_at or row.part != part or row.parts != parts:
                return False
            if row.blob_offset + row.blob_size > header.blobs_size:
                return False
            meta_at += row.meta_size + 1
            if row is not last and not (meta_at <= header.metas_size and metas[meta_at - 1] == _COMMA):
                return False
        return meta_at - 1 == header.metas_size and part <= parts

    def check_metas(self) -> None:
        """Make sure that every meta is one JSON object.

        Raises
        ------
        DataError
            With the row of the first that is not.
        """
        try:
            if self._metas_are_objects():
                return
        except _NOT_JSON:
            pass
        for number, row in enumerate(self.rows()):
            meta = bytes(self.meta(row))
            try:
                str(meta, "utf-8")
                _META_ONE.decode(meta)
            except _NOT_JSON as error:
                text = f"metadata of message {row.id} is not a JSON object: {error}: {meta[:60]!r}"
                raise DataError(text, row=number) from None
        raise DataError("the metadata of a batch is not one JSON object a message")

    def _metas_are_objects(self) -> bool:
        metas = bytes(self.metas)
        str(metas, "utf-8")  # the decoder does not look into the text that it walks over
        n = self.header.n_messages
        if n == 1:
            _META_ONE.decode(metas)
            return True
        if len(_META_LIST.decode(b"[%b]" % metas)) != n:
            return False
        # A list of n objects, but the commas between messages may be others than those between objects. Only if they
        # are the same, there is an object a line when they become line ends: any other comma would be missing inside.
        lines = bytearray(metas)
        table = self.table()
        np.frombuffer(lines, np.uint8)[table["meta_offset"][1:].astype(np.int64) - 1] = ord("\n")
        return len(_META_ONE.decode_lines(lines)) == n

    @property
    def length(self) -> int:
        return self.header.length

    @property
    def n_messages(self) -> int:
        return self.header.n_messages

    def table(self) -> NDArray[np.void]:
        """The table as a structured array (n_messages,), a view."""
        return np.frombuffer(self.buffer, _ROW_DTYPE, self.header.n_messages, HEADER_SIZE)

    def row(self, number: int) -> Row:
        return Row._make(_ROW.unpack_from(self.buffer, HEADER_SIZE + number * ROW_SIZE))

    def rows(self, start: int = 0, count: int | None = None) -> list[Row]:
        """`count` rows from `start` on, as tuples of plain integers."""
        end = self.header.n_messages if count is None else start + count
        region = self.buffer[HEADER_SIZE + start * ROW_SIZE : HEADER_SIZE + end * ROW_SIZE]
        return [Row._make(values) for values in _ROW.iter_unpack(region)]

    @property
    def metas(self) -> memoryview:
        """All metadata: JSON objects joined by commas."""
        start = self.header.metas_offset
        return self.buffer[start : start + self.header.metas_size]

    def meta(self, row: Row) -> memoryview:
        start = self.header.metas_offset + row.meta_offset
        return self.buffer[start : start + row.meta_size]

    def blob(self, row: Row) -> memoryview:
        start = self.header.blobs_offset + row.blob_offset
        return self.buffer[start : start + row.blob_size]

    def runs(self) -> list[Run]:
        """The ids as runs that count up by one; most batches are a single run."""
        if self.header.n_messages == 1:
            return [Run(self.row(0).id, 1, 0)]
        return runs_of(self.table()["id"])

    def assign_ids(self, first_id: int) -> None:
        """Give the messages the ids ``first_id, first_id + 1, ...`` (the buffer must be writable)."""
        n = self.header.n_messages
        if n == 1:
            _U64.pack_into(self.buffer, HEADER_SIZE, first_id)
        else:
            self.table()["id"] = np.arange(first_id, first_id + n, dtype=np.uint64)

    def stamp(self, *, stream_no: int, stored_ns: int, first_arrival: int) -> None:
        """Fill in what only the service knows (the buffer must be writable); flags that a producer set are cleared."""
        _U32.pack_into(self.buffer, _FLAGS_AT, 0)
        _U64.pack_into(self.buffer, _STREAM_NO_AT, stream_no)
        _I64.pack_into(self.buffer, _STORED_AT, stored_ns)
        _U64.pack_into(self.buffer, _ARRIVAL_AT, first_arrival)
        self.header = self.header._replace(
            flags=0, stream_no=stream_no, stored_ns=stored_ns, first_arrival=first_arrival
        )

    def seal(self, *, segment: int, checksum_blobs: bool) -> None:
        """Note the segment and compute the checksums, right before the batch is written to disk."""
        _U64.pack_into(self.buffer, _SEGMENT_AT, segment)
        blobs_crc = (zlib.crc32(self._blobs()) or 1) if checksum_blobs else 0
        _U32.pack_into(self.buffer, _BLOBS_CRC_AT, blobs_crc)
        _U32.pack_into(self.buffer, _HEAD_CRC_AT, self._head_crc())

    def verify(self) -> None:
        """Compare the checksums.

        Raises
        ------
        DataError
            If the head, or the blobs where they have a checksum, are not what was sealed.
        """
        (head_crc,) = _U32.unpack_from(self.buffer, _HEAD_CRC_AT)
        if head_crc != self._head_crc():
            raise DataError("the checksum of a batch's header, table and metadata is wrong")
        (blobs_crc,) = _U32.unpack_from(self.buffer, _BLOBS_CRC_AT)
        if blobs_crc and (zlib.crc32(self._blobs()) or 1) != blobs_crc:
            raise DataError("the checksum of a batch's blobs is wrong")

    def _head_crc(self) -> int:
        end = self.header.metas_offset + self.header.metas_size
        return zlib.crc32(self.buffer[HEADER_SIZE:end], zlib.crc32(self.buffer[:_HEAD_CRC_AT]))

    def _blobs(self) -> memoryview:
        return self.buffer[self.header.blobs_offset : self.header.blobs_offset + self.header.blobs_size]

    def select(self, start: int, count: int) -> list[Buffer]:
        """The pieces of a smaller batch that holds `count` messages from row `start` on; blobs are not copied."""
        return self._smaller(self.rows(start, count), self.header.first_arrival + start)

    def pick(self, numbers: Sequence[int]) -> list[Buffer]:
        """As `select`, for any rows."""
        rows = self.rows()
        return self._smaller([rows[number] for number in numbers], 0)

    def _smaller(self, rows: list[Row], first_arrival: int) -> list[Buffer]:
        head = batch_head(
            [(r.id, r.timestamp_ns, r.part, r.parts, r.flags) for r in rows],
            [bytes(self.meta(r)) for r in rows],
            [r.blob_size for r in rows],
            producer=self.header.producer,
            sequence=self.header.sequence,
            sent_ns=self.header.sent_ns,
        )
        stamped = bytearray(head)
        small = Batch(memoryview(stamped), BatchHeader._make(_HEADER.unpack_from(stamped)))
        small.stamp(
            stream_no=self.header.stream_no,
            stored_ns=self.header.stored_ns,
            first_arrival=first_arrival,
        )
        return batch_parts(bytes(stamped), [self.blob(r) for r in rows])


def read_header(buffer: Buffer) -> BatchHeader:
    """Read and check the header alone.

    Raises
    ------
    DataError
        If the buffer is too short, the magic is wrong, or the regions overlap or lie outside of the stated length.
    """
    if len(buffer) < HEADER_SIZE:
        raise DataError(f"a batch has a header of {HEADER_SIZE} bytes; there are only {len(buffer)}", size=len(buffer))
    header = BatchHeader._make(_HEADER.unpack_from(buffer))
    if header.magic != BATCH_MAGIC:
        raise DataError(f"this is not a batch: it begins with {header.magic!r} instead of {BATCH_MAGIC!r}")
    if not 0 < header.n_messages <= MAX_MESSAGES:
        raise DataError(f"a batch holds 1 to {MAX_MESSAGES} messages, not {header.n_messages}")
    in_order = (
        header.metas_offset == HEADER_SIZE + header.n_messages * ROW_SIZE
        and header.metas_size <= MAX_METAS_BYTES
        and header.metas_offset + header.metas_size <= header.blobs_offset
        and header.blobs_offset + header.blobs_size == header.length
    )
    if not in_order:
        raise DataError(f"the regions of a batch overlap or lie outside of its {header.length} bytes")
    return header


def runs_of(ids: NDArray[np.uint64]) -> list[Run]:
    """Cut a sequence of ids into runs that count up by one.

    >>> runs_of(np.array([5, 6, 7, 9], dtype=np.uint64))
    [Run(first_id=5, n=3, row=0), Run(first_id=9, n=1, row=3)]
    """
    breaks = np.flatnonzero(ids[1:] != ids[:-1] + np.uint64(1)) + 1
    if not len(breaks):
        return [Run(int(ids[0]), len(ids), 0)]
    starts = [0, *breaks.tolist()]
    ends = [*starts[1:], len(ids)]
    return [Run(int(ids[a]), b - a, a) for a, b in zip(starts, ends, strict=True)]
