"""The broker: streams, groups and policies, whatever language a client speaks.

The native server and every gateway call these verbs; nobody else touches streams or storage. Everything runs in one thread
and returns at once; what takes time is answered through callbacks.
"""

from __future__ import annotations

import asyncio
import difflib
import fnmatch
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from firstlight.broker._group import Deliver, Group
from firstlight.broker._intake import Intake, Place, Published
from firstlight.broker._measures import Measures
from firstlight.broker._read_back import ReadBack, Reading
from firstlight.broker._room import Room
from firstlight.broker._search import Search
from firstlight.broker._stream import Selection, Stream, merged_meta
from firstlight.broker._subscription import Receiver, Subscription
from firstlight.errors import (
    ConfigurationError,
    StreamFinishedError,
    StreamNotFoundError,
)
from firstlight.model import Ack, Keep, Policy, Query, StreamId
from firstlight.monitoring import Health, Registry
from firstlight.storage import (
    IndexedMessage,
    MemoryRegion,
    MetaSet,
    Segment,
    Slot,
    StorageSettings,
    Store,
    StreamCreated,
    StreamDeleted,
    StreamEnded,
)
from firstlight.wire import StreamInfo

__all__ = ["Broker", "BrokerSettings", "Published"]

logger = logging.getLogger(__name__)

#: Every message, in order of ids.
_PLAIN = Selection()


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

    storage: StorageSettings = field(default_factory=StorageSettings)
    policy: Policy = field(default_factory=Policy)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    retention_every_s: float = 10.0


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
        self._endings: list[Callable[[], None]] = []
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.measures = Measures(self.registry, self.store)
        self.registry.probe("streams", lambda: len(self._streams), help="streams")
        self.registry.probe("subscriptions", lambda: sum(map(len, self._subscriptions.values())), help="consumers")
        self.room = Room(self.store, loop=loop, clock=clock, arm=lambda delay_s: self._arm(clock() + delay_s))
        self._intake = Intake(self.store, self.room, self.measures, self._touch)
        self._read_back = ReadBack(self.store, self.room, self.measures, self._post)
        self._search = Search(self.store, post=self._post, touch=self._touch)
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
        self._search.catch_up(self._streams.values())

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
        self._search.begin(stream)
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
        self._search.forget(stream)
        self.store.forget_stream(stream.no, [segment for segment in batches if segment > 0])
        return True

    # -- producing --------------------------------------------------------------------------------------------------

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
        """Take the batch in that lies in the front of a slot reserved by `room`.

        Parameters
        ----------
        on_stored
            Called when the batch is as safe as `ack` says, maybe at once.

        Raises
        ------
        DataError, StreamError
            If nothing of it was stored. The slot is as before, the caller may use it again.
        """
        self._intake.publish(stream, region, reserved, length, ack=ack, on_stored=on_stored)

    def keep(self, stream: Stream, ids: Iterable[tuple[int, int]]) -> int:
        """Persist these messages of a source whose policy is ``keep``; returns how many are, or will be, on disk."""
        return self._intake.keep(stream, ids)

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
        if on_stored is not None and stream.policy.keep is not Keep.MEMORY:
            self.store.note(None, on_done=on_stored)
        elif on_stored is not None:
            on_stored()  # it outlives us no more than its messages do, so a full disk holds nobody up

    def _evicted(self, slot: Slot) -> None:
        place: Place | None = slot.owner
        if place is None:
            return
        if place.stream.order.evicted(place.batch):
            n = place.stream.order.count_of(place.batch)
            place.stream.counters.evicted_unsaved += n
            self.measures.evicted_unsaved.add(n)

    # -- consuming --------------------------------------------------------------------------------------------------

    def subscribe(
        self,
        stream: Stream,
        receiver: Receiver,
        *,
        group: str | None = None,
        selection: Selection = _PLAIN,
        start: str | int = "earliest",
        ids: Iterable[tuple[int, int]] | None = None,
        acknowledge: bool = True,
        redeliver_after_s: float | None = None,
        max_attempts: int = 0,
        holding: Iterable[tuple[int, int]] = (),
        keeps: bool = False,
        on_request: bool = False,
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
        keeps
            Without a group: messages are held until they are acknowledged, by policies that hold them for groups.
        on_request
            Without a group: nothing but what `request` asks for.
        """
        member = next(self._members)
        if group is not None:
            state = stream.join(group, selection, acknowledge=acknowledge, redeliver_after_s=redeliver_after_s,
                                max_attempts=max_attempts)  # fmt: skip
        else:
            state = self._private_group(stream, selection, start, () if on_request else ids)
            if keeps and ids is None:
                state.acknowledge = True
                stream.keepers.append(state)
        state.attach(member, holding=holding, now=self._clock())
        subscription = Subscription(
            stream, state, group, member, selection, receiver, finite=ids is not None, read_back=self._read_back.fetch,
            on_request=on_request,
        )  # fmt: skip
        self._subscriptions.setdefault(stream, []).append(subscription)
        if selection.query is not None:
            self._search.follow(stream, stream.audience(selection), selection.query)
        self._touch(stream)
        return subscription

    def _private_group(
        self, stream: Stream, selection: Selection, start: str | int, ids: Iterable[tuple[int, int]] | None
    ) -> Group:
        group = Group(order=selection.order, acknowledge=False, shared=False)
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
        if start:
            group.pass_over(1, start)
        return group

    def unsubscribe(self, subscription: Subscription) -> None:
        """The consumer is gone; what it did not acknowledge is delivered to others."""
        stream = subscription.stream
        subscription.over = True
        self.room.forget(subscription)
        own = self._subscriptions.get(stream, [])
        if subscription in own:
            own.remove(subscription)
        if not own:
            self._subscriptions.pop(stream, None)
        subscription.group.detach(subscription.member, self._clock())
        if subscription.group_name is None:
            stream.unsubscribe(subscription.group)
            if stream.held and stream.release_held():
                self.room.freed()
        else:
            self._save(stream, subscription.group_name)
        self._touch(stream)

    def credit(self, subscription: Subscription, n: int) -> None:
        """The consumer can take `n` more messages."""
        subscription.group.credit(subscription.member, n)
        self._touch(subscription.stream)

    def request(self, subscription: Subscription, ids: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Deliver these to a subscription that was made for requests; returns what of them is not there."""
        ready = subscription.stream.audience(subscription.selection).lane.ready
        missing: list[tuple[int, int]] = []
        for first, last in ids:
            for a, b in ready.within(first, last):
                subscription.plan(Deliver(subscription.member, a, b, 1))
                self.measures.messages_out.add(b - a + 1)
            missing += ready.missing_within(first, last)
        subscription.pump()
        return missing

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
            group.nack(subscription.member, first, last, delay_s=delay_s, now=self._clock())
        entry = stream.progress_entry(subscription.group_name) if subscription.group_name is not None else None
        if on_saved is not None and stream.policy.keep is Keep.MEMORY:
            on_saved()  # as the end of such a stream
            on_saved = None
        if entry is not None or on_saved is not None:
            self.store.note(entry, on_done=on_saved, urgent=False)
        if stream.held and stream.release_held():
            self.room.freed()
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

    # -- groups of those who ask for one message after the other ----------------------------------------------------

    def group(self, stream: Stream, name: str, selection: Selection = _PLAIN) -> Group:
        """The group of this name, made if there is none, for somebody who reads by `read` instead of a subscription.

        Raises
        ------
        StreamError
            If there is one that reads something else of the stream.
        """
        if name in stream.groups:
            there, group = stream.groups[name]
            if there == selection:
                return group
        return stream.join(name, selection, acknowledge=True, redeliver_after_s=None, max_attempts=0)

    def pass_over(self, stream: Stream, name: str, first: int, last: int) -> None:
        """The group has had these, by `read`, and gets them no more."""
        stream.groups[name][1].pass_over(first, last)
        self._save(stream, name)
        if stream.held and stream.release_held():
            self.room.freed()

    def acknowledge(self, stream: Stream, name: str, first: int, last: int) -> int:
        """These are done, whoever had them; returns how many were not acknowledged before."""
        fresh = stream.groups[name][1].ack(first, last)
        self._save(stream, name)
        if stream.held and stream.release_held():
            self.room.freed()
        return fresh

    def rewind(self, stream: Stream, name: str, last_id: int) -> None:
        """The group goes on behind `last_id`; other than with `set_cursor`, what it acknowledged stays acknowledged."""
        group = stream.groups[name][1]
        acked = group.acked.copy()
        self.set_cursor(stream, name, last_id)
        group.pass_over(1, last_id)
        for first, last in acked.within(last_id + 1, 1 << 63):
            group.ack(first, last)
        self._save(stream, name)

    # -- looking things up ------------------------------------------------------------------------------------------

    def read(self, stream: Stream, batch: int, on_ready: Callable[[Slot | None], None]) -> None:
        """Bring a batch into memory; `on_ready` gets its slot, or None if its bytes are gone; maybe at once.

        The slot is pinned: give it back with `room.unpin`.
        """
        Reading(stream, batch, on_ready, read_back=self._read_back).pump()

    def records(self, stream: Stream, ids: Sequence[int]) -> Future[list[IndexedMessage]]:
        """Everything about messages except their bytes, whether those are still held or not; in the order of `ids`.

        Parts of a dataset follow each other. What does not exist is left out.
        """
        return self.store.ask_index(lambda index: index.records(stream.no, ids))

    def find(self, stream: Stream, query: str | Query, limit: int | None = None) -> Future[list[int]]:
        """The ids of the messages that match, in the order that the query asks for.

        Raises
        ------
        QueryError
            If the query cannot be read.
        """
        return self._search.find(stream, query, limit)

    # -- metadata ---------------------------------------------------------------------------------------------------

    def set_meta(self, stream_id: StreamId, meta: bytes, *, mode: str = "replace", upsert: bool = True) -> None:
        """Metadata of a stream (made if there is none yet); JSON text of an object."""
        known = self._streams.get(stream_id)
        merged = merged_meta(known.meta if known else None, meta, mode, upsert=upsert, what=str(stream_id))
        # Only now: what is refused makes no stream.
        stream = self.create(stream_id)
        stream.meta = merged
        self.store.note(MetaSet(stream.no, stream_id.beamtime, stream_id.source, stream.meta))

    def set_beamtime_meta(
        self, beamtime: str, source: str, meta: bytes, *, mode: str = "replace", upsert: bool = True
    ) -> None:
        """Metadata of a beamtime and source."""
        key = (beamtime, source)
        merged = merged_meta(self._beamtime_meta.get(key), meta, mode, upsert=upsert, what=f"{beamtime}/{source}")
        self._beamtime_meta[key] = merged
        self.store.note(MetaSet(0, beamtime, source, merged))

    def beamtime_meta(self, beamtime: str, source: str) -> bytes | None:
        return self._beamtime_meta.get((beamtime, source))

    # -- the pulse --------------------------------------------------------------------------------------------------

    def _touch(self, stream: Stream) -> None:
        """Something changed; deliver at the end of this turn of the loop, once for everything that changes until then."""
        self._dirty[stream] = None
        if not self._closed:
            self._end_turn_soon()

    def at_end(self, act: Callable[[], None]) -> None:
        """Call `act` at the end of this turn of the loop, behind the deliveries."""
        self._endings.append(act)
        self._end_turn_soon()

    def _end_turn_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        dirty, self._dirty = self._dirty, {}
        for stream in dirty:
            self._deliver_or_report(stream)
        # What these cause belongs to the next turn, so that whoever takes much does not keep the others waiting.
        endings, self._endings = self._endings, []
        self._scheduled = False
        for act in endings:
            try:
                act()
            except Exception:  # a mistake of ours with one client must not stop the others
                logger.exception("what belongs to the end of a turn failed; this is a bug in the service")
                self.measures.internal_errors.add()

    def _deliver_or_report(self, stream: Stream) -> None:
        try:
            self._deliver_stream(stream)
        except Exception:  # a mistake of ours with one stream must not stop the others
            logger.exception("delivering %s failed; this is a bug in the service", stream.id)
            self.measures.internal_errors.add()

    def _deliver_stream(self, stream: Stream) -> None:
        for (_, query), audience in list(stream.audiences.items()):
            if query is not None:
                self._search.follow(stream, audience, query)
            audience.tell()
        now = self._clock()
        subscriptions = self._subscriptions.get(stream, [])
        by_member = {subscription.member: subscription for subscription in subscriptions}
        for group in {id(s.group): s.group for s in subscriptions}.values():
            wake = group.tick(now)
            for order in group.deliver(now):
                by_member[order.member].plan(order)
                self.measures.messages_out.add(order.last - order.first + 1)
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
        self.room.freed()
        for stream in list(self._subscriptions):
            self._deliver_or_report(stream)

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
        self._closed = self._search.closed = True
        for timer in (self._timer, self._retention_timer):
            if timer is not None:
                timer.cancel()
        for stream in self._streams.values():
            for name in stream.groups:
                self._save(stream, name)
        self.store.close()
