"""The broker: streams, groups and policies, whatever language a client speaks.

The native server and every gateway call these verbs; nobody else touches streams or storage. Everything runs in one thread
and returns at once; what takes time is answered through callbacks.
"""

from __future__ import annotations

import asyncio
import difflib
import fnmatch
import functools
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from firstlight.broker._group import Group
from firstlight.broker._stream import Audience, Selection, Stream, merged_meta
from firstlight.broker._subscription import Receiver, Subscription
from firstlight.errors import (
    ConfigurationError,
    DataError,
    DuplicateIdError,
    StorageError,
    StreamFinishedError,
    StreamNotFoundError,
)
from firstlight.model import Ack, Batch, Keep, Policy, Ranges, Row, StreamId, parse_query
from firstlight.monitoring import Health, Registry
from firstlight.storage import (
    GONE,
    BatchStored,
    Index,
    MemoryRegion,
    MessagesKept,
    MetaSet,
    Role,
    Segment,
    Slot,
    StorageSettings,
    Store,
    StreamCreated,
    StreamDeleted,
    StreamEnded,
    indexed,
)
from firstlight.wire import StreamInfo

__all__ = ["Broker", "BrokerSettings", "Published"]

logger = logging.getLogger(__name__)

_MAX_ID = 2**63 - 1
#: So much metadata may wait to be indexed before producers have to wait.
_MAX_INDEX_BACKLOG = 256 << 20
_MAX_PRODUCERS_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """What a service does with messages.

    Parameters
    ----------
    policy
        For sources that nothing else says anything about.
    policies
        By pattern of source names (``eiger*``); the first that matches wins over what a producer wishes.
    retention_every_s
        How often limits of age and size are enforced.
    """

    storage: StorageSettings = StorageSettings()
    policy: Policy = Policy()
    policies: Mapping[str, Policy] = field(default_factory=dict)
    retention_every_s: float = 10.0


class Published(NamedTuple):
    """What became of a batch: the id of its first message, and how many of its messages were there before."""

    first_id: int
    duplicates: int


class _Place(NamedTuple):
    """Owner of a slot."""

    stream: Stream
    batch: int


class Broker:
    """All streams of one service.

    Parameters
    ----------
    root
        The data directory.
    loop
        Everything is called from this event loop's thread.

    Raises
    ------
    StorageError, ConfigurationError
        If the directory or the settings cannot be used.
    """

    def __init__(
        self,
        root: Path,
        settings: BrokerSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.health = Health()
        self.registry = Registry()
        self._loop = loop
        self._clock = clock
        self.store = Store(
            root, settings.storage, health=self.health, post=self._post, on_evict=self._evicted, defer=self._defer
        )
        self._streams: dict[StreamId, Stream] = {}
        self._beamtime_meta: dict[tuple[str, str], bytes] = {}
        self._policies: dict[tuple[str, str], Policy] = {}
        self._subscriptions: dict[Stream, list[Subscription]] = {}
        self._expected: dict[StreamId, list[Callable[[Stream], None]]] = {}
        self._members = itertools.count(1)
        self._dirty: dict[Stream, None] = {}
        self._unsaved: dict[tuple[int, str], Stream] = {}
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._reading: dict[tuple[int, int], list[Subscription]] = {}
        self._starved: dict[Subscription, None] = {}
        self._room_wanted: list[Callable[[], None]] = []
        #: Rings in which a producer waits for room, and since when.
        self.short_since: dict[MemoryRegion, float] = {}
        self._queries_running: set[tuple[int, str]] = set()
        self._closed = False
        self._measure()
        self._restore()
        self._retention_timer = loop.call_later(settings.retention_every_s, self._enforce_retention)

    def _post(self, act: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(act)

    def _defer(self, delay_s: float, act: Callable[[], None]) -> None:
        if delay_s:
            self._loop.call_later(delay_s, act)
        else:
            self._loop.call_soon(act)

    def _measure(self) -> None:
        counter = self.registry.counter
        self.messages_in = counter("messages_received", help="messages taken in")
        self.bytes_in = counter("received", unit="bytes", help="bytes of batches taken in")
        self.batches_in = counter("batches_received", help="batches taken in")
        self.duplicates = counter("messages_duplicate", help="messages that were there before, identical")
        self.rejected = counter("messages_rejected", help="messages that were refused with an error")
        self.messages_out = counter("messages_delivered", help="messages handed to consumers")
        self.evicted_unsaved = counter(
            "messages_evicted_unsaved", help="messages that left memory and are nowhere else"
        )
        self.lost_unread = counter(
            "messages_lost_unread", help="messages that a consumer should have got and whose bytes were gone"
        )
        self.read_back_bytes = counter("read_back", unit="bytes", help="bytes read from disk again for slow consumers")
        self.internal_errors = counter(
            "internal_errors", help="messages that the service could not handle because of a bug"
        )
        store = self.store
        self.registry.probe("streams", lambda: len(self._streams), help="streams")
        self.registry.probe("subscriptions", lambda: sum(map(len, self._subscriptions.values())), help="consumers")
        self.registry.probe("persist_backlog", lambda: store.backlog_bytes, unit="bytes", help="waiting to be written")
        self.registry.probe("persisted", lambda: store.bytes_persisted, unit="bytes", help="written to segments")
        self.registry.probe("disk_used", lambda: store.bytes_on_disk, unit="bytes", help="in segment files")
        self.registry.probe(
            "index_backlog", lambda: store.indexer.backlog_bytes, unit="bytes", help="metadata to be indexed"
        )
        for role in Role:
            for what in ("used", "pinned", "size"):
                read = functools.partial(self._ring_bytes, role, what)
                self.registry.probe(
                    f"memory_{what}", read, unit="bytes", help=f"{what} bytes of a ring", ring=str(role)
                )

    def _ring_bytes(self, role: Role, what: str) -> int:
        return sum(getattr(r.ring, what) for r in self.store.pool.regions.values() if r.role is role)

    def _restore(self) -> None:
        found = self.store.recovered
        self._next_stream_no = found.next_stream_no
        for state in found.streams.values():
            stream = Stream.from_state(state, self._policy_for(state.id, None))
            self._streams[state.id] = stream
        self._beamtime_meta = found.beamtime_meta
        for line in found.report.lines():
            logger.warning("recovery: %s", line)
        self.recovery = found.report
        self._reindex()

    def _reindex(self) -> None:
        """Let the index catch up with what is on disk, where the service died before it was indexed."""
        for stream in self._streams.values():
            for name in stream.policy.fields:
                self.store.change_index(functools.partial(_declare, name))
            future = self.store.ask_index(functools.partial(_count, stream.no))
            future.add_done_callback(functools.partial(self._reindex_stream, stream))

    def _reindex_stream(self, stream: Stream, indexed: Future[int]) -> None:
        # In a thread of the index: what was on disk at the start does not change any more, only its order is read.
        order = stream.order
        on_disk = [batch for batch in range(order.n_batches) if order.place(batch)[0] > 0]
        if indexed.exception() is not None or indexed.result() >= sum(map(order.count_of, on_disk)):
            return
        logger.info("indexing %d batches of %s again", len(on_disk), stream.id)
        arrival = 1
        for batch in range(order.n_batches):
            segment, offset, _ = order.place(batch)
            if segment > 0:
                self._index_from_disk(stream, segment, offset, arrival)
            arrival += order.count_of(batch)

    def _index_from_disk(self, stream: Stream, segment: int, offset: int, arrival: int) -> None:
        try:
            with self.store.open_segment(stream.id, segment) as file:
                batch = indexed(stream.no, file.batch_at(offset), arrival)
        except StorageError as error:
            logger.error("messages of %s cannot be searched: %s", stream.id, error)
            return
        while self.store.indexer.backlog_bytes > _MAX_INDEX_BACKLOG // 4 and not self._closed:
            time.sleep(0.01)
        self._post(functools.partial(self.store.index, batch))

    # -- streams ----------------------------------------------------------------------------------------------------

    @property
    def streams(self) -> Mapping[StreamId, Stream]:
        return self._streams

    def stream(self, stream_id: StreamId) -> Stream:
        """The stream.

        Raises
        ------
        StreamNotFoundError
            If there is none; with names that come close.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            similar = difflib.get_close_matches(str(stream_id), [str(other) for other in self._streams], n=3)
            hint = f"; did you mean {' or '.join(similar)}?" if similar else "; `firstlight ls` lists what there is"
            raise StreamNotFoundError(f"there is no stream {stream_id}{hint}", stream=str(stream_id), similar=similar)
        return stream

    def create(self, stream_id: StreamId, wish: Policy | None = None) -> Stream:
        """The stream, made if there is none."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            return stream
        now = time.time_ns()
        no, self._next_stream_no = self._next_stream_no, self._next_stream_no + 1
        stream = Stream(stream_id, no, now, self._policy_for(stream_id, wish), last_ns=now)
        self._streams[stream_id] = stream
        self.store.note(StreamCreated(no, stream_id.beamtime, stream_id.source, stream_id.stream, now))
        # A new number, unless the journal was lost and the index was not.
        self.store.change_index(lambda index: index.delete_stream(no))
        for name in stream.policy.fields:
            self.store.change_index(functools.partial(_declare, name))
        for act in self._expected.pop(stream_id, []):
            act(stream)
        return stream

    def expect(self, stream_id: StreamId, act: Callable[[Stream], None]) -> Callable[[], None]:
        """Call `act` when the stream is made; returns what to call to stop waiting."""
        waiting = self._expected.setdefault(stream_id, [])
        waiting.append(act)

        def cancel() -> None:
            if act in waiting:
                waiting.remove(act)
            if not waiting:
                self._expected.pop(stream_id, None)

        return cancel

    def _policy_for(self, stream_id: StreamId, wish: Policy | None) -> Policy:
        for pattern, policy in self.settings.policies.items():
            if fnmatch.fnmatchcase(stream_id.source, pattern):
                return policy
        key = (stream_id.beamtime, stream_id.source)
        if wish is not None:
            self._policies.setdefault(key, wish)
        return self._policies.get(key, self.settings.policy)

    def infos(
        self, *, beamtime: str = "", source: str = "", state: str = "all", from_stream: str = ""
    ) -> list[StreamInfo]:
        """Streams, oldest first; `from_stream` begins the list at the stream of this name."""
        chosen = sorted(
            (s for s in self._streams.values() if beamtime in ("", s.id.beamtime) and source in ("", s.id.source)),
            key=lambda stream: (stream.created_ns, stream.no),
        )
        if from_stream:
            names = [stream.id.stream for stream in chosen]
            chosen = chosen[names.index(from_stream) :] if from_stream in names else []
        if state not in ("all", "finished", "unfinished"):
            raise ConfigurationError(f"streams can be listed by state all, finished or unfinished, not {state!r}")
        if state != "all":
            chosen = [s for s in chosen if (s.ended is not None) == (state == "finished")]
        return [stream.info() for stream in chosen]

    def delete(self, stream_id: StreamId) -> bool:
        """Forget a stream with all its messages, groups and metadata; False if there is none."""
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return False
        stream.deleted = True
        stream.release_all()
        order = stream.order
        batches = [order.place(batch)[0] for batch in range(order.n_batches)]
        for slot in list(order.slots.values()):
            slot.ring.discard(slot)
        order.slots.clear()
        end = StreamEnded(stream.no, order.last_id, time.time_ns(), aborted="the stream was deleted")
        for subscription in self._subscriptions.pop(stream, []):
            subscription.over = True
            subscription.receiver.ended(order.last_id, end)
        self.store.note(StreamDeleted(stream.no))
        self.store.change_index(lambda index: index.delete_stream(stream.no))
        self.store.forget_stream(stream.no, [segment for segment in batches if segment > 0])
        return True

    # -- publishing -------------------------------------------------------------------------------------------------

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
        """Take the batch in that lies in the front of a reserved slot.

        Parameters
        ----------
        on_stored
            Called when the batch is as safe as `ack` says, maybe at once.

        Raises
        ------
        DataError, StreamError
            If nothing of it was stored. The slot is as before, the caller may use it again.
        """
        batch = Batch.parse(region.memory.view[reserved.offset : reserved.offset + length])
        batch.check_metas()
        row = batch.row(0)
        header = batch.header
        known = stream.producers.get(header.producer) if header.producer else None
        if known is not None and header.sequence <= known[0]:
            first_id = known[1] if header.sequence == known[0] else 0
            self._when(stream, ack, lambda: on_stored(Published(first_id, 0)))
            return
        if stream.deleted:
            raise StreamNotFoundError(f"the stream {stream.id} was deleted", stream=str(stream.id))
        if stream.ended is not None:
            raise StreamFinishedError(
                f"the stream {stream.id} is finished; nothing can be sent to it", stream=str(stream.id)
            )
        stream.order.check_parts(row.part, row.parts)
        self._check_ids(stream, batch)
        duplicates = [both for run in batch.runs() for both in stream.order.duplicates(run, row.part)]
        if duplicates:
            self._publish_rest(stream, region, reserved, batch, duplicates, ack, on_stored)
            return
        self._take_in(stream, region, reserved, batch, ack, on_stored)

    def _check_ids(self, stream: Stream, batch: Batch) -> None:
        first = batch.row(0)
        if batch.n_messages == 1:
            zeros, largest = int(first.id == 0), first.id
        else:
            ids = batch.table()["id"]
            zeros, largest = int((ids == 0).sum()), int(ids.max())
            if not zeros and len(set(ids.tolist())) < len(ids):
                raise DuplicateIdError(f"one batch for {stream.id} has the same id twice")
        if largest > _MAX_ID:
            raise DataError(f"id {largest} is too large; ids go up to 2^63 - 1", id=largest)
        if not zeros:
            return
        if zeros < batch.n_messages or first.parts > 1:
            raise DataError("ids can be left to the service for all messages of a batch, or none, and not for datasets")
        batch.assign_ids(stream.order.last_id + 1)

    def _publish_rest(
        self,
        stream: Stream,
        region: MemoryRegion,
        reserved: Slot,
        batch: Batch,
        duplicates: list[tuple[int, int]],
        ack: Ack,
        on_stored: Callable[[Published], None],
    ) -> None:
        """Some of the ids are there already: those must be identical; the rest is stored as a smaller batch."""
        there = Ranges(duplicates)
        rows = batch.rows()
        for row in rows:
            if row.id in there and not self._same(stream, batch, row.id, row.part):
                self.rejected.add(batch.n_messages)
                stream.counters.rejected += batch.n_messages
                raise DuplicateIdError(
                    f"already have record with same id: message {row.id} of {stream.id} was stored before with other content",
                    id=row.id,
                )
        n = sum(1 for row in rows if row.id in there)
        self.duplicates.add(n)
        stream.counters.duplicates += n
        fresh = [number for number, row in enumerate(rows) if row.id not in there]
        first_id = rows[0].id
        if not fresh:
            self._when(stream, ack, lambda: on_stored(Published(first_id, n)))
            return
        rest = b"".join(batch.pick(fresh))
        view = region.memory.view[reserved.offset : reserved.offset + len(rest)]
        view[:] = rest
        self._take_in(stream, region, reserved, Batch.parse(view), ack, lambda _: on_stored(Published(first_id, n)))

    def _same(self, stream: Stream, batch: Batch, message_id: int, part: int) -> bool:
        """Whether the stored message has the same metadata and bytes. What is gone cannot be compared, and counts as same."""
        piece = stream.order.find(message_id, part)
        assert piece is not None
        slot = stream.order.slots.get(piece.batch)
        segment, offset, _ = stream.order.place(piece.batch)
        row = next(row for row in batch.rows() if row.id == message_id)
        if slot is not None:
            stored = Batch.parse(self.region_of(slot).view(slot))
            return _equal(stored, piece.row, batch, row)
        if segment == GONE:
            return True
        with self.store.open_segment(stream.id, segment) as file:
            return _equal(file.batch_at(offset), piece.row, batch, row)

    def _take_in(
        self,
        stream: Stream,
        region: MemoryRegion,
        reserved: Slot,
        batch: Batch,
        ack: Ack,
        on_stored: Callable[[Published], None],
    ) -> None:
        now = time.time_ns()
        order = stream.order
        first_arrival = order.n_messages + 1
        batch.stamp(stream_no=stream.no, stored_ns=now, first_arrival=first_arrival)
        row = batch.row(0)
        runs = batch.runs()
        slot = region.ring.commit(reserved, batch.length)
        number = order.add(runs, part=row.part, parts=row.parts, length=batch.length)
        slot.owner = _Place(stream, number)
        order.slots[number] = slot
        stream.last_ns = now
        header = batch.header
        if header.producer:
            self._remember(stream, header.producer, header.sequence, row.id)
        self._count(stream, batch)
        entry = BatchStored(
            stream.no, number, tuple((run.first_id, run.n, run.row) for run in runs), row.part, row.parts,
            header.producer, header.sequence, now, batch.length,
        )  # fmt: skip
        published = Published(row.id, 0)
        self._make_last(stream, region, slot, entry, ack, lambda: on_stored(published))
        self.store.index(indexed(stream.no, batch, first_arrival))
        self._touch(stream)

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
            self._persist(stream, region, slot, entry, sync=policy.keep is Keep.DURABLE or ack is Ack.SYNCED,
                          on_done=None if ack is Ack.MEMORY else on_stored)  # fmt: skip
        else:
            self.store.note(entry)
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
            self.room_freed()
            if on_done is not None:
                on_done()

        self.store.persist(slot, region.view(slot), stream.id, entry, sync=sync, on_done=done)

    def _when(self, stream: Stream, ack: Ack, act: Callable[[], None]) -> None:
        """Call `act` when everything taken in so far is as safe as `ack` says."""
        if ack is Ack.MEMORY or not stream.policy.persists:
            act()
        else:
            self.store.note(None, sync=ack is Ack.SYNCED, on_done=act)

    def _remember(self, stream: Stream, producer: int, sequence: int, first_id: int) -> None:
        stream.producers.pop(producer, None)
        stream.producers[producer] = (sequence, first_id)
        if len(stream.producers) > _MAX_PRODUCERS_REMEMBERED:
            del stream.producers[next(iter(stream.producers))]

    def _count(self, stream: Stream, batch: Batch) -> None:
        stream.counters.received += batch.n_messages
        self.messages_in.add(batch.n_messages)
        self.bytes_in.add(batch.length)
        self.batches_in.add()

    def region_of(self, slot: Slot) -> MemoryRegion:
        """The memory in which a slot lies."""
        return next(region for region in self.store.pool.regions.values() if region.ring is slot.ring)

    def end(self, stream: Stream, *, next_stream: str | None = None, aborted: str | None = None,
            on_stored: Callable[[], None] | None = None) -> None:  # fmt: skip
        """Finish a stream, or abort it for a reason. Doing the same again changes nothing.

        Raises
        ------
        StreamFinishedError
            If it ended before in another way.
        """
        if stream.ended is not None:
            if (stream.ended.next_stream, stream.ended.aborted) != (next_stream, aborted):
                how = f"aborted ({stream.ended.aborted})" if stream.ended.aborted else "finished"
                raise StreamFinishedError(f"the stream {stream.id} was {how} before", stream=str(stream.id))
        else:
            stream.ended = StreamEnded(stream.no, stream.order.last_id, time.time_ns(), next_stream, aborted)
            self.store.note(stream.ended)
            self._touch(stream)
        if on_stored is not None:
            self.store.note(None, on_done=on_stored)

    # -- room -------------------------------------------------------------------------------------------------------

    def reserve(self, n_bytes: int, times: int, own: MemoryRegion | None) -> tuple[MemoryRegion, Slot] | None:
        """Room for a batch, or None as long as there is none; call again from `when_room`.

        Parameters
        ----------
        times
            Make it room for so many batches, if that is easy.
        own
            The producer's own region, for large batches.
        """
        if self.store.indexer.backlog_bytes > _MAX_INDEX_BACKLOG:
            return None
        pool = self.store.pool
        if own is not None and n_bytes * 2 <= own.size:
            region = own
        else:
            region = pool.shared_region(pool.role_for(n_bytes))
        slot = region.ring.reserve(n_bytes * times) if times > 1 else None
        slot = slot or region.ring.reserve(n_bytes)
        if slot is None:
            self.short_since.setdefault(region, self._clock())
            return None
        self.short_since.pop(region, None)
        return region, slot

    def when_room(self, act: Callable[[], None]) -> None:
        """Call `act` once, when some memory may have become free."""
        self._room_wanted.append(act)
        self._arm(self._clock() + 0.05)

    def room_freed(self) -> None:
        """Something was unpinned or given back: whoever waits for room tries again."""
        if self._room_wanted:
            wanted, self._room_wanted = self._room_wanted, []
            for act in wanted:
                act()
        if self._starved:
            starved, self._starved = self._starved, {}
            for subscription in starved:
                subscription.pump()

    def unpin(self, slot: Slot) -> None:
        """A consumer no longer looks at this slot."""
        slot.unpin()
        if not slot.pins:
            self.room_freed()

    def _evicted(self, slot: Slot) -> None:
        place: _Place | None = slot.owner
        if place is None:
            return
        if place.stream.order.evicted(place.batch):
            n = place.stream.order.count_of(place.batch)
            place.stream.counters.evicted_unsaved += n
            self.evicted_unsaved.add(n)

    # -- consuming --------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        stream: Stream,
        receiver: Receiver,
        *,
        group: str | None = None,
        selection: Selection = Selection(),
        start: str | int = "earliest",
        ids: Iterable[tuple[int, int]] | None = None,
        acknowledge: bool = True,
        redeliver_after_s: float | None = None,
        max_attempts: int = 0,
        holding: Iterable[tuple[int, int]] = (),
    ) -> Subscription:
        """Begin to read a stream; nothing comes before `credit`.

        Parameters
        ----------
        group
            Share the messages with the other members of this group. None: get all of them, without acknowledgement.
        start
            Without a group: ``earliest``, ``latest`` (what comes from now on, and the newest), or an id to begin behind.
        ids
            Only these, then the subscription ends (without a group).
        """
        member = next(self._members)
        if group is not None:
            state = stream.join(group, selection, acknowledge=acknowledge, redeliver_after_s=redeliver_after_s,
                                max_attempts=max_attempts)  # fmt: skip
        else:
            state = self._private_group(stream, selection, start, ids)
        state.attach(member, holding=holding, now=self._clock())
        subscription = Subscription(
            stream, state, group, member, selection, receiver, finite=ids is not None, read_back=self._read_back
        )
        self._subscriptions.setdefault(stream, []).append(subscription)
        if selection.query is not None:
            self._run_query(stream, stream.audience(selection), selection.query)
        self._touch(stream)
        return subscription

    def _private_group(
        self, stream: Stream, selection: Selection, start: str | int, ids: Iterable[tuple[int, int]] | None
    ) -> Group:
        group = Group(order=selection.order, acknowledge=False)
        audience = stream.audience(selection)
        if ids is not None:
            for first, last in ids:
                for a, b in audience.lane.ready.within(first, last):
                    group.publish(a, b)
            return group
        if start == "latest":
            start = max(audience.lane.ready.max - 1, 0)
        elif start == "earliest":
            start = 0
        elif isinstance(start, str):
            raise ConfigurationError(f"a consumer starts at earliest, latest or behind an id, not at {start!r}")
        stream.subscribe(group, selection, after_id=start)
        return group

    def unsubscribe(self, subscription: Subscription) -> None:
        """The consumer is gone; what it did not acknowledge is delivered to others."""
        stream = subscription.stream
        subscription.over = True
        self._starved.pop(subscription, None)
        own = self._subscriptions.get(stream, [])
        if subscription in own:
            own.remove(subscription)
        if not own:
            self._subscriptions.pop(stream, None)
        subscription.group.detach(subscription.member, self._clock())
        if subscription.group_name is None:
            stream.unsubscribe(subscription.group)
        else:
            self._save(stream, subscription.group_name)
        self._touch(stream)

    def credit(self, subscription: Subscription, n: int) -> None:
        """The consumer can take `n` more messages."""
        subscription.group.credit(subscription.member, n)
        self._touch(subscription.stream)

    def settle(
        self,
        subscription: Subscription,
        acked: Iterable[tuple[int, int]],
        nacked: Iterable[tuple[int, int, float]] = (),
        *,
        on_saved: Callable[[], None] | None = None,
    ) -> None:
        """Acknowledge, or give back with a delay in s; `on_saved` is called when that survives a crash."""
        stream, group = subscription.stream, subscription.group
        for first, last in acked:
            group.ack(first, last)
        for first, last, delay_s in nacked:
            group.nack(first, last, delay_s=delay_s, now=self._clock())
        if subscription.group_name is not None:
            self._save(stream, subscription.group_name)
        if on_saved is not None:
            self.store.note(None, on_done=on_saved)
        if stream.held and stream.release_held():
            self.room_freed()
        self._touch(stream)

    def set_cursor(self, stream: Stream, group: str, last_id: int) -> None:
        """The group goes on behind `last_id`; what it had delivered behind that is delivered again."""
        state = stream.group_state(group)
        audience = stream.audience(stream.groups[group][0])
        state.set_cursor(last_id, audience.lane.ids(1, audience.told))
        for subscription in self._subscriptions.get(stream, []):
            if subscription.group is state:
                subscription.queue.clear()
        self._save(stream, group)
        self._touch(stream)

    def _save(self, stream: Stream, group: str) -> None:
        entry = stream.progress_entry(group)
        if entry is not None:
            self.store.note(entry)

    # -- queries ----------------------------------------------------------------------------------------------------

    def find(self, stream: Stream, query: str, limit: int | None = None) -> Future[list[int]]:
        """The ids of the messages that match, in the order that the query asks for.

        Raises
        ------
        QueryError
            If the query cannot be read.
        """
        parsed = parse_query(query)
        return self.store.ask_index(lambda index: index.query(stream.no, parsed, limit=limit))

    def _run_query(self, stream: Stream, audience: Audience, query: str) -> None:
        """Put what is new and matches into the lane of a query; once at a time for each."""
        key = (stream.no, query)
        last = stream.order.n_messages
        first = audience.searched + 1
        if key in self._queries_running or first > last:
            return
        self._queries_running.add(key)
        parsed = parse_query(query)
        future = self.store.ask_index(lambda index: index.matching(stream.no, parsed, first, last))

        def done(found: Future[list[int]]) -> None:
            self._queries_running.discard(key)
            if found.exception() is not None:
                logger.error("query %r on %s: %s", query, stream.id, found.exception())
                return
            audience.searched = last
            for message_id in found.result():
                if message_id not in audience.lane.ready:
                    audience.lane.append(message_id, 1)
            self._touch(stream)

        future.add_done_callback(lambda f: self._post(lambda: done(f)))

    # -- metadata ---------------------------------------------------------------------------------------------------

    def set_meta(self, stream_id: StreamId, meta: bytes, *, mode: str = "replace", upsert: bool = True) -> None:
        """Metadata of a stream (made if there is none yet); JSON text of an object."""
        stream = self.create(stream_id)
        stream.meta = merged_meta(stream.meta, meta, mode, upsert=upsert, what=str(stream_id))
        self.store.note(MetaSet(stream.no, stream_id.beamtime, stream_id.source, stream.meta))

    def set_beamtime_meta(
        self, beamtime: str, source: str, meta: bytes, *, mode: str = "replace", upsert: bool = True
    ) -> None:
        """Metadata of a beamtime and source."""
        key = (beamtime, source)
        merged = merged_meta(self._beamtime_meta.get(key), meta, mode, upsert=upsert, what=f"beamtime {beamtime}")
        self._beamtime_meta[key] = merged
        self.store.note(MetaSet(0, beamtime, source, merged))

    def beamtime_meta(self, beamtime: str, source: str) -> bytes | None:
        return self._beamtime_meta.get((beamtime, source))

    # -- keeping ----------------------------------------------------------------------------------------------------

    def keep(self, stream: Stream, ids: Iterable[tuple[int, int]]) -> int:
        """Persist these messages of a source whose policy is ``keep``; returns how many are, or will be, on disk."""
        order = stream.order
        wanted = [
            piece for first, last in ids for part in order.part_numbers for piece in order.pieces(first, last, part)
        ]
        count = 0
        intervals = []
        for piece in wanted:
            segment = order.place(piece.batch)[0]
            slot = order.slots.get(piece.batch)
            if segment == GONE:
                continue
            count += piece.n
            intervals.append((piece.first_id, piece.first_id + piece.n - 1))
            if segment <= 0 and slot is not None and piece.batch not in stream.persisting:
                stream.persisting.add(piece.batch)
                self._persist(
                    stream, self.region_of(slot), slot, self._entry(stream, piece.batch, slot), sync=False, on_done=None
                )
        for first, last in intervals:
            stream.kept.add(first, last)
        if intervals:
            self.store.note(MessagesKept(stream.no, tuple(intervals)))
        return count

    def _entry(self, stream: Stream, number: int, slot: Slot) -> BatchStored:
        batch = Batch.parse(self.region_of(slot).view(slot))
        row, header = batch.row(0), batch.header
        runs = tuple((run.first_id, run.n, run.row) for run in batch.runs())
        return BatchStored(stream.no, number, runs, row.part, row.parts, header.producer, header.sequence,
                           header.stored_ns, header.length)  # fmt: skip

    # -- reading back -----------------------------------------------------------------------------------------------

    def _read_back(self, stream: Stream, batch: int, subscription: Subscription) -> bool:
        """Begin to read a batch from disk; False if its bytes turn out to be gone."""
        key = (stream.no, batch)
        if key in self._reading:
            waiting = self._reading[key]
            if subscription not in waiting:
                waiting.append(subscription)
            return True
        segment, offset, length = stream.order.place(batch)
        region = self.store.pool.shared_region(Role.READ_BACK)
        if length > region.size // 2:
            region = self.store.pool.shared_region(Role.LARGE)
        slot = region.ring.reserve(length)
        if slot is None:
            self._starved[subscription] = None
            self._arm(self._clock() + 0.05)
            return True
        self._reading[key] = [subscription]
        future = self.store.read_back(stream.id, segment, offset, region, slot)
        future.add_done_callback(lambda f: self._post(lambda: self._was_read(stream, batch, region, slot, f)))
        return True

    def _was_read(self, stream: Stream, batch: int, region: MemoryRegion, slot: Slot, future: Future[None]) -> None:
        waiting = self._reading.pop((stream.no, batch))
        error = None if future.cancelled() else future.exception()
        if error is None and not future.cancelled() and not stream.deleted:
            length = stream.order.place(batch)[2]
            used = region.ring.commit(slot, length)
            region.ring.cancel(slot)
            used.owner = _Place(stream, batch)
            stream.order.slots[batch] = used
            self.read_back_bytes.add(length)
        else:
            region.ring.cancel(slot)
            if isinstance(error, StorageError):
                logger.error("cannot read batch %d of %s again: %s", batch, stream.id, error)
                stream.counters.unreadable += stream.order.count_of(batch)
                stream.order.set_place(batch, GONE, 0)
        for subscription in waiting:
            subscription.pump()

    # -- the pulse --------------------------------------------------------------------------------------------------

    def _touch(self, stream: Stream) -> None:
        """Something changed; deliver at the end of this turn of the loop, once for everything that changes until then."""
        self._dirty[stream] = None
        if not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._deliver)

    def _deliver(self) -> None:
        self._scheduled = False
        dirty, self._dirty = self._dirty, {}
        for stream in dirty:
            self._deliver_stream(stream)

    def _deliver_stream(self, stream: Stream) -> None:
        for (_, query), audience in list(stream.audiences.items()):
            if query is not None:
                self._run_query(stream, audience, query)
            audience.tell()
        now = self._clock()
        subscriptions = self._subscriptions.get(stream, [])
        by_member = {subscription.member: subscription for subscription in subscriptions}
        for group in {id(s.group): s.group for s in subscriptions}.values():
            wake = group.tick(now)
            for order in group.deliver(now):
                by_member[order.member].plan(order)
                self.messages_out.add(order.last - order.first + 1)
            if wake is not None:
                self._arm(wake)
        for subscription in list(subscriptions):
            subscription.pump()

    def _arm(self, when: float) -> None:
        """Wake up at `when` at the latest."""
        if self._timer is not None and not self._timer.cancelled():
            if self._timer.when() <= self._loop.time() + max(0.0, when - self._clock()):
                return
            self._timer.cancel()
        if not self._closed:
            self._timer = self._loop.call_later(max(0.0, when - self._clock()), self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.room_freed()
        for stream in list(self._subscriptions):
            self._deliver_stream(stream)

    # -- retention and the end --------------------------------------------------------------------------------------

    def _enforce_retention(self) -> None:
        self._retention_timer = self._loop.call_later(self.settings.retention_every_s, self._enforce_retention)
        sources: dict[tuple[str, str], Policy] = {}
        for stream in self._streams.values():
            sources[stream.id.beamtime, stream.id.source] = stream.policy
        for (beamtime, source), policy in sources.items():
            if policy.retention_s is None and policy.retention_bytes is None:
                continue
            before = None if policy.retention_s is None else time.time_ns() - int(policy.retention_s * 1e9)
            gone = self.store.over_limit(beamtime, source, before_ns=before, max_bytes=policy.retention_bytes)
            if gone:
                self._expire(beamtime, source, gone)

    def _expire(self, beamtime: str, source: str, gone: list[Segment]) -> None:
        numbers = {segment.number for segment in gone}
        for stream in self._streams.values():
            if (stream.id.beamtime, stream.id.source) == (beamtime, source):
                stream.order.lose_segment(numbers)
        self.store.drop_segments(gone)
        logger.info("retention deleted %d segments of %s/%s", len(gone), beamtime, source)

    def close(self) -> None:
        """Save what groups did, write what waits, and stop."""
        self._closed = True
        for timer in (self._timer, self._retention_timer):
            if timer is not None:
                timer.cancel()
        for stream in self._streams.values():
            for name in stream.groups:
                self._save(stream, name)
        self.store.close()


def _count(stream_no: int, index: Index) -> int:
    return index.count(stream_no)


def _declare(name: str, index: Index) -> None:
    index.declare(name)


def _equal(stored: Batch, stored_row: int, batch: Batch, row: Row) -> bool:
    other = stored.row(stored_row)
    return stored.meta(other) == batch.meta(row) and stored.blob(other) == batch.blob(row)
