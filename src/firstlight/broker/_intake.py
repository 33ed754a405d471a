"""How a batch becomes part of a stream: checked, compared with what is there, ordered, and made to last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from firstlight.broker._measures import Measures
from firstlight.broker._room import Room
from firstlight.broker._stream import Stream
from firstlight.errors import DataError, DuplicateIdError, StreamFinishedError, StreamNotFoundError
from firstlight.model import Ack, Batch, Keep, Ranges, Row, Run
from firstlight.storage import GONE, BatchStored, MemoryRegion, MessagesKept, Slot, Store, indexed

__all__ = ["Intake", "Place", "Published"]

_MAX_ID = 2**63 - 1
_MAX_PRODUCERS_REMEMBERED = 1000


class Published(NamedTuple):
    """What became of a batch: the id of its first message, and how many of its messages were there before."""

    first_id: int
    duplicates: int


class Place(NamedTuple):
    """Owner of a slot."""

    stream: Stream
    batch: int


class _Offer(NamedTuple):
    """A batch that somebody wants to be taken in: it lies in the front of a reserved slot."""

    stream: Stream
    region: MemoryRegion
    reserved: Slot
    batch: Batch
    first: Row
    runs: list[Run]
    ack: Ack
    on_stored: Callable[[Published], None]


class Intake:
    """Takes batches into streams.

    Parameters
    ----------
    touch
        Called with a stream that has something new.
    """

    def __init__(self, store: Store, room: Room, measures: Measures, touch: Callable[[Stream], None]) -> None:
        self._store = store
        self._room = room
        self._measures = measures
        self._touch = touch

    def publish(
        self,
        stream: Stream,
        region: MemoryRegion,
        reserved: Slot,
        length: int,
        *,
        ack: Ack,
        on_stored: Callable[[Published], None],
    ) -> None:
        """See `Broker.publish`."""
        batch = Batch.parse(region.memory.view[reserved.offset : reserved.offset + length])
        batch.check_metas()
        header = batch.header
        known = stream.producers.get(header.producer) if header.producer else None
        if known is not None and header.sequence <= known[0]:
            first_id = known[1] if header.sequence == known[0] else 0
            self._when_safe(stream, ack, lambda: on_stored(Published(first_id, 0)))
            return
        if stream.deleted:
            raise StreamNotFoundError(f"the stream {stream.id} was deleted", stream=str(stream.id))
        first = batch.row(0)
        stream.order.check_parts(first.part, first.parts)
        runs = self._number(stream, batch, first)
        offer = _Offer(
            stream, region, reserved, batch, first._replace(id=runs[0].first_id), runs, ack, on_stored
        )  # fmt: skip
        duplicates = Ranges(both for run in runs for both in stream.order.duplicates(run, first.part))
        if stream.ended is not None and len(duplicates) < batch.n_messages:
            # What was sent again because its answer was lost is no news, and no mistake.
            text = f"the stream {stream.id} is finished; nothing can be sent to it"
            raise StreamFinishedError(text, stream=str(stream.id))
        if duplicates:
            self._take_rest(offer, duplicates)
        else:
            self._take(offer, duplicates=0)

    def _number(self, stream: Stream, batch: Batch, first: Row) -> list[Run]:
        """The runs of ids, given by the producer or, where it left them at 0, now."""
        runs = batch.runs()
        if any(run.first_id == 0 for run in runs):
            if len(runs) < batch.n_messages or any(run.first_id for run in runs) or first.parts > 1:
                raise DataError(
                    "ids can be left to the service for all messages of a batch, or none, and not for datasets"
                )
            batch.assign_ids(stream.order.last_id + 1)
            runs = [Run(stream.order.last_id + 1, batch.n_messages, 0)]
        largest = max(run.last_id for run in runs)
        if largest > _MAX_ID:
            raise DataError(f"id {largest} is too large; ids go up to 2^63 - 1", id=largest)
        if len(runs) > 1 and len(Ranges((run.first_id, run.last_id) for run in runs)) < batch.n_messages:
            raise DuplicateIdError(f"one batch for {stream.id} has the same id twice")
        return runs

    def _take_rest(self, offer: _Offer, there: Ranges) -> None:
        """Some of the ids are there already: those must be identical; the rest is stored as a smaller batch."""
        stream, batch = offer.stream, offer.batch
        rows = batch.rows()
        for row in rows:
            if row.id in there and not self._same(stream, batch, row):
                self._measures.rejected.add(batch.n_messages)
                stream.counters.rejected += batch.n_messages
                raise DuplicateIdError(
                    f"already have record with same id: message {row.id} of {stream.id} was stored before with other "
                    "content",
                    id=row.id,
                )
        n = sum(1 for row in rows if row.id in there)
        self._measures.duplicates.add(n)
        stream.counters.duplicates += n
        fresh = [number for number, row in enumerate(rows) if row.id not in there]
        if not fresh:
            published = Published(rows[0].id, n)
            self._when_safe(stream, offer.ack, lambda: offer.on_stored(published))
            return
        rest = b"".join(batch.pick(fresh))
        view = offer.region.memory.view[offer.reserved.offset : offer.reserved.offset + len(rest)]
        view[:] = rest
        smaller = Batch.parse(view)
        self._take(offer._replace(batch=smaller, first=smaller.row(0), runs=smaller.runs()), duplicates=n)

    def _same(self, stream: Stream, batch: Batch, row: Row) -> bool:
        """Whether the stored message has the same metadata and bytes. What is gone cannot be compared, and counts as same."""
        piece = stream.order.find(row.id, row.part)
        assert piece is not None
        slot = stream.order.slots.get(piece.batch)
        segment, offset, _ = stream.order.place(piece.batch)
        if slot is not None:
            return _equal(Batch.parse(self._room.region_of(slot).view(slot)), piece.row, batch, row)
        if segment == GONE:
            return True
        with self._store.open_segment(stream.id, segment) as file:
            return _equal(file.batch_at(offset), piece.row, batch, row)

    def _take(self, offer: _Offer, *, duplicates: int) -> None:
        stream, batch, first, runs = offer.stream, offer.batch, offer.first, offer.runs
        now = time.time_ns()
        order = stream.order
        arrival = order.n_messages + 1
        batch.stamp(stream_no=stream.no, stored_ns=now, first_arrival=arrival)
        slot = offer.region.ring.commit(offer.reserved, batch.length)
        number = order.add(runs, part=first.part, parts=first.parts, length=batch.length)
        slot.owner = Place(stream, number)
        order.slots[number] = slot
        stream.last_ns = now
        stream.first_ns = stream.first_ns or now
        header = batch.header
        if header.producer:
            _remember(stream, header.producer, header.sequence, first.id)
        self._count(stream, batch)
        entry = BatchStored(
            stream.no, number, tuple((run.first_id, run.n, run.row) for run in runs), first.part, first.parts,
            header.producer, header.sequence, now, batch.length,
        )  # fmt: skip
        published = Published(first.id, duplicates)
        self._touch(stream)  # those who wait for messages come before those who wait for receipts
        self._make_last(stream, offer.region, slot, entry, offer.ack, lambda: offer.on_stored(published))
        self._store.index(indexed(stream.no, batch, arrival, first=first, runs=runs))

    def _count(self, stream: Stream, batch: Batch) -> None:
        stream.counters.received += batch.n_messages
        self._measures.messages_in.add(batch.n_messages)
        self._measures.bytes_in.add(batch.length)
        self._measures.batches_in.add()

    # -- making it last ---------------------------------------------------------------------------------------------

    def _make_last(
        self,
        stream: Stream,
        region: MemoryRegion,
        slot: Slot,
        entry: BatchStored,
        ack: Ack,
        on_stored: Callable[[], None],
    ) -> None:
        policy = stream.policy
        if policy.persists:
            sync = policy.keep is Keep.DURABLE or ack is Ack.SYNCED
            self._persist(stream, region, slot, entry, sync=sync, on_done=None if ack is Ack.MEMORY else on_stored)
        else:
            self._store.note(entry, urgent=False)
            if policy.holds:
                stream.hold(slot, [(first, first + n - 1) for first, n, _ in entry.runs])
        if ack is Ack.MEMORY or not policy.persists:
            on_stored()

    def _persist(
        self,
        stream: Stream,
        region: MemoryRegion,
        slot: Slot,
        entry: BatchStored,
        *,
        sync: bool,
        on_done: Callable[[], None] | None,
    ) -> None:
        def done(segment: int, offset: int) -> None:
            stream.order.set_place(entry.batch, segment, offset)
            self._room.freed()
            if on_done is not None:
                on_done()

        self._store.persist(slot, region.view(slot), stream.id, entry, sync=sync, on_done=done)

    def _when_safe(self, stream: Stream, ack: Ack, act: Callable[[], None]) -> None:
        """Call `act` when everything taken in so far is as safe as `ack` says."""
        if ack is Ack.MEMORY or not stream.policy.persists:
            act()
        else:
            self._store.note(None, sync=ack is Ack.SYNCED, on_done=act)

    def keep(self, stream: Stream, ids: Iterable[tuple[int, int]]) -> int:
        """See `Broker.keep`."""
        order = stream.order
        wanted = [
            piece for first, last in ids for part in order.part_numbers for piece in order.pieces(first, last, part)
        ]
        kept = []
        for piece in wanted:
            segment = order.place(piece.batch)[0]
            slot = order.slots.get(piece.batch)
            if segment == GONE:
                continue
            kept.append(piece)
            stream.kept.add(piece.first_id, piece.first_id + piece.n - 1)
            if segment <= 0 and slot is not None and piece.batch not in stream.persisting:
                stream.persisting.add(piece.batch)
                region = self._room.region_of(slot)
                entry = _entry(stream, piece.batch, Batch.parse(region.view(slot)))
                self._persist(stream, region, slot, entry, sync=False, on_done=None)
        if kept:
            intervals = tuple((piece.first_id, piece.first_id + piece.n - 1) for piece in kept)
            self._store.note(MessagesKept(stream.no, intervals))
        return sum(piece.n for piece in kept)


def _remember(stream: Stream, producer: int, sequence: int, first_id: int) -> None:
    stream.producers.pop(producer, None)
    stream.producers[producer] = (sequence, first_id)
    if len(stream.producers) > _MAX_PRODUCERS_REMEMBERED:
        del stream.producers[next(iter(stream.producers))]


def _entry(stream: Stream, number: int, batch: Batch) -> BatchStored:
    row, header = batch.row(0), batch.header
    runs = tuple((run.first_id, run.n, run.row) for run in batch.runs())
    return BatchStored(stream.no, number, runs, row.part, row.parts, header.producer, header.sequence,
                       header.stored_ns, header.length)  # fmt: skip


def _equal(stored: Batch, stored_row: int, batch: Batch, row: Row) -> bool:
    other = stored.row(stored_row)
    return stored.meta(other) == batch.meta(row) and stored.blob(other) == batch.blob(row)
