"""Our messages and streams as the JSON records that clients of ASAP::O know."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from firstlight.broker import Broker, Stream
from firstlight.errors import DataError
from firstlight.gateways.asapo._buffers import Buffers
from firstlight.gateways.asapo._notes import without_note
from firstlight.model import Batch, StreamId

__all__ = ["NO_NEXT_STREAM", "Records", "StreamRecord"]

#: What clients are told of a stream that was finished without a hint to the next one.
NO_NEXT_STREAM = "asapo_no_next"
#: The ingest mode of what native producers send: it came through memory, there is a record, and no file.
_NATIVE_MODE = 9


class _Record(msgspec.Struct, rename={"id": "_id"}):
    """A message; the order of the fields is that of the original, which some scripts search in as text."""

    id: int
    size: int
    name: str
    timestamp: int
    source: str
    ib_source: str
    buf_id: int
    stream: str
    dataset_substream: int
    ingest_mode: int
    meta: msgspec.Raw
    time_id: int


class _DatasetRecord(msgspec.Struct, rename={"id": "_id"}):
    """A dataset; older clients read the number of its parts as `size`."""

    id: int
    dataset_size: int
    size: int
    timestamp: int
    messages: list[_Record]
    time_id: int


class StreamRecord(msgspec.Struct, rename="camel"):
    """A stream."""

    last_id: int
    name: str
    timestamp_created: int
    timestamp_last: int
    finished: bool
    next_stream: str


class _Message(NamedTuple):
    """A message, or a part of a dataset, wherever its bytes are."""

    id: int
    part: int
    parts: int
    arrival: int
    timestamp_ns: int
    size: int
    meta: bytes
    #: Where its bytes are: batch and row; None if they are not held any more.
    place: tuple[int, int] | None


class Records:
    """Looks messages up and writes their records."""

    def __init__(self, broker: Broker, buffers: Buffers) -> None:
        self._broker = broker
        self._buffers = buffers

    # -- streams ----------------------------------------------------------------------------------------------------

    def stream(self, beamtime: str, source: str, name: str) -> Stream | None:
        """The stream; None if there is none, which is no error to these clients."""
        return self._broker.streams.get(StreamId(beamtime, source, name))

    def streams(self, beamtime: str, source: str) -> list[Stream]:
        """Those of a source that have anything in them, in the order in which they began."""
        found = [
            stream
            for stream in self._broker.streams.values()
            if (stream.id.beamtime, stream.id.source) == (beamtime, source) and _exists(stream)
        ]
        return sorted(found, key=lambda stream: (_began_ns(stream), stream.no))

    def sources(self, beamtime: str) -> list[str]:
        """Of a beamtime, in order of their names."""
        return sorted({s.id.source for s in self._broker.streams.values() if s.id.beamtime == beamtime and _exists(s)})

    def stream_info(self, stream: Stream) -> StreamRecord:
        """What clients know of a stream."""
        return StreamRecord(
            stream.order.last_id, stream.id.stream, _began_ns(stream), stream.last_ns, stream.ended is not None,
            (stream.ended.next_stream or "") if stream.ended is not None else "",
        )  # fmt: skip

    # -- messages ---------------------------------------------------------------------------------------------------

    async def message(self, stream: Stream, message_id: int, source: str) -> bytes | None:
        """The record of a message as JSON; None if there is none, or it is gone without a trace.

        Parameters
        ----------
        source
            Where its data can be had, as ``host:port``.
        """
        if stream.order.parts > 1:
            return await self.dataset(stream, message_id, source)
        found = self._in_memory(stream, message_id, 0)
        if found is None:
            rest = await self._from_index(stream, [message_id])
            if not rest:
                return None
            found = rest[0]
        return msgspec.json.encode(self._record(stream, found, source))

    async def messages(self, stream: Stream, ids: Sequence[int], source: str) -> bytes:
        """The records of many as a JSON array."""
        by_id: dict[int, list[_Message]] = {}
        for found in await self._from_index(stream, ids):
            by_id.setdefault(found.id, []).append(found)
        records: list[_Record | _DatasetRecord] = []
        for message_id in ids:
            parts = by_id.get(message_id, [])
            if parts and stream.order.parts > 1:
                records.append(self._dataset_record(stream, parts, source))
            elif parts:
                records.append(self._record(stream, parts[0], source))
        return msgspec.json.encode(records)

    async def dataset(self, stream: Stream, dataset_id: int, source: str, *, substream: int = 0) -> bytes | None:
        """The record of a dataset as JSON, with the parts that are there, or only one of them; None if there are none."""
        wanted = [
            part
            for part in stream.order.part_numbers
            if substream in (0, part) and stream.order.find(dataset_id, part) is not None
        ]
        here = [self._in_memory(stream, dataset_id, part) for part in wanted]
        parts = [found for found in here if found is not None]
        if len(parts) < len(wanted):
            rest = {found.part: found for found in await self._from_index(stream, [dataset_id])}
            parts = [rest[part] for part in wanted if part in rest]
        if not parts:
            return None
        return msgspec.json.encode(self._dataset_record(stream, parts, source))

    def _in_memory(self, stream: Stream, message_id: int, part: int) -> _Message | None:
        piece = stream.order.find(message_id, part)
        slot = stream.order.slots.get(piece.batch) if piece is not None else None
        if piece is None or slot is None:
            return None
        try:
            # A producer on this machine can still write into its batch: it is read like one from a stranger.
            batch = Batch.parse(self._broker.room.region_of(slot).view(slot))
            row = batch.row(piece.row)
            meta = bytes(batch.meta(row))
        except (DataError, struct.error):
            return None
        return _Message(
            row.id, row.part, row.parts, batch.header.first_arrival + piece.row, row.timestamp_ns, row.blob_size, meta,
            (piece.batch, piece.row),
        )  # fmt: skip

    async def _from_index(self, stream: Stream, ids: Sequence[int]) -> list[_Message]:
        found = await asyncio.wrap_future(self._broker.records(stream, ids))
        return [
            _Message(
                record.id, record.part, record.parts, record.arrival, record.timestamp_ns, record.size,
                record.meta_json, self._place(stream, record.id, record.part),
            )
            for record in found
        ]  # fmt: skip

    def _place(self, stream: Stream, message_id: int, part: int) -> tuple[int, int] | None:
        piece = stream.order.find(message_id, part)
        if piece is None or not stream.order.has_bytes(piece.batch):
            return None
        return piece.batch, piece.row

    # -- writing them -----------------------------------------------------------------------------------------------

    def _record(self, stream: Stream, found: _Message, source: str) -> _Record:
        meta, note = without_note(found.meta)
        # Data that did not come through us are in a file, or nowhere.
        elsewhere = note is not None and note.size is not None
        buf_id = 0 if elsewhere or found.place is None else self._buffers.number(stream, *found.place)
        return _Record(
            id=found.id,
            size=found.size if note is None or note.size is None else note.size,
            name=note.name if note is not None else f"processed/{stream.id.source}/{stream.id.stream}/{found.id}",
            timestamp=max(found.timestamp_ns, 0),
            source=source,
            ib_source="",
            buf_id=buf_id,
            stream=stream.id.stream,
            dataset_substream=found.part,
            ingest_mode=note.mode if note is not None else _NATIVE_MODE,
            meta=msgspec.Raw(meta),
            time_id=found.arrival,
        )

    def _dataset_record(self, stream: Stream, parts: Sequence[_Message], source: str) -> _DatasetRecord:
        first = min(parts, key=lambda found: found.arrival)
        return _DatasetRecord(
            first.id, first.parts, first.parts, max(first.timestamp_ns, 0),
            [self._record(stream, found, source) for found in parts], first.arrival,
        )  # fmt: skip


def _began_ns(stream: Stream) -> int:
    """Metadata may be there long before the first message, which is what counts."""
    return stream.first_ns or stream.created_ns


def _exists(stream: Stream) -> bool:
    """Metadata alone make no stream."""
    return stream.order.n_messages > 0 or stream.ended is not None
