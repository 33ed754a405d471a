"""One stream as the broker knows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from firstlight.broker._group import Group, Order
from firstlight.errors import StreamError
from firstlight.model import Policy, Ranges, StreamId
from firstlight.storage import GroupProgress, GroupState, Lane, Slot, StreamEnded, StreamOrder, StreamState
from firstlight.wire import MAX_ENVELOPE, GroupInfo, StreamInfo

__all__ = ["Audience", "Selection", "Stream", "StreamCounters"]


@dataclass(frozen=True, slots=True)
class Selection:
    """What a group wants of a stream: every group of one name has the same."""

    order: Order = Order.ID
    min_parts: int = 0
    query: str | None = None


@dataclass(slots=True)
class Audience:
    """The groups that read the same lane of a stream."""

    lane: Lane
    groups: list[Group] = field(default_factory=list)
    #: How much of the lane the groups know.
    told: int = 0
    #: Last arrival number that a query looked at.
    searched: int = 0

    def tell(self) -> bool:
        """Pass on what is new in the lane; False if nothing is."""
        if self.told == self.lane.total:
            return False
        for first, last in self.lane.ids(self.told + 1, self.lane.total):
            for group in self.groups:
                group.publish(first, last)
        self.told = self.lane.total
        return True


@dataclass(slots=True)
class StreamCounters:
    """Messages, since the service started."""

    received: int = 0
    duplicates: int = 0
    rejected: int = 0
    evicted_unsaved: int = 0
    unreadable: int = 0


@dataclass(eq=False)
class Stream:
    """Order, groups, policy and end of one stream."""

    id: StreamId
    no: int
    created_ns: int
    policy: Policy
    order: StreamOrder = field(default_factory=StreamOrder)
    last_ns: int = 0
    #: When the first message came; 0 before.
    first_ns: int = 0
    ended: StreamEnded | None = None
    meta: bytes | None = None
    producers: dict[int, tuple[int, int]] = field(default_factory=dict)
    kept: Ranges = field(default_factory=Ranges)
    counters: StreamCounters = field(default_factory=StreamCounters)
    deleted: bool = False

    def __post_init__(self) -> None:
        self.groups: dict[str, tuple[Selection, Group]] = {}
        #: Groups that the journal knows and nobody has joined since the service started.
        self.sleeping: dict[str, GroupState] = {}
        self.audiences: dict[tuple[int, str | None], Audience] = {}
        #: Batches on their way to disk because somebody asked to keep them.
        self.persisting: set[int] = set()
        #: Followers that acknowledge, as long as they are connected.
        self.keepers: list[Group] = []
        #: Batches that stay in memory until the groups are done with them, oldest first (policies block and refuse).
        self.held: deque[tuple[Slot, tuple[tuple[int, int], ...]]] = deque()

    @classmethod
    def from_state(cls, state: StreamState, policy: Policy) -> Stream:
        """The stream as it was when the service stopped."""
        stream = cls(state.id, state.no, state.created_ns, policy, state.order, state.last_stored_ns)
        stream.first_ns = state.batches[0].stored_ns if state.batches else 0
        stream.ended, stream.meta = state.ended, state.meta
        stream.producers = state.producers
        stream.kept = state.kept
        stream.sleeping = state.groups
        return stream

    # -- groups -----------------------------------------------------------------------------------------------------

    def audience(self, selection: Selection) -> Audience:
        """Those who read this lane; a lane of a query is filled by whoever runs queries."""
        key = (selection.min_parts, selection.query)
        audience = self.audiences.get(key)
        if audience is None:
            lane = Lane() if selection.query is not None else self.order.lane(selection.min_parts)
            audience = self.audiences[key] = Audience(lane, told=lane.total)
        return audience

    def searched(self, selection: Selection) -> bool:
        """Whether the lane of a selection knows everything that the stream has: a query looks a little later."""
        return selection.query is None or self.audience(selection).searched >= self.order.n_messages

    def join(self, name: str, selection: Selection, *, acknowledge: bool, redeliver_after_s: float | None,
             max_attempts: int) -> Group:  # fmt: skip
        """The group of this name, made if there is none.

        Raises
        ------
        StreamError
            If there is one that wants something else of the stream.
        """
        if name in self.groups:
            existing, group = self.groups[name]
            if existing != selection:
                raise StreamError(
                    f"group {name!r} on {self.id} reads {_describe(existing)}; it cannot also read {_describe(selection)}. "
                    "Choose another group name",
                    group=name,
                )
        else:
            saved = self.sleeping.pop(name, None) or GroupState()
            group = Group(order=selection.order, acked=saved.acked, passed=saved.passed, parked=saved.parked)
            self.groups[name] = (selection, group)
            self.subscribe(group, selection)
        # The newest member's wishes hold for what is delivered from now on.
        group.acknowledge, group.redeliver_after_s, group.max_attempts = acknowledge, redeliver_after_s, max_attempts
        return group

    def subscribe(self, group: Group, selection: Selection, *, after_id: int = 0) -> None:
        """Tell a group what there is behind `after_id`, and from now on what comes."""
        audience = self.audience(selection)
        for first, last in audience.lane.ids(1, audience.told):
            if last > after_id:
                group.publish(max(first, after_id + 1), last)
        audience.groups.append(group)

    def unsubscribe(self, group: Group) -> None:
        """A private group ends."""
        self.keepers = [other for other in self.keepers if other is not group]
        for key, audience in list(self.audiences.items()):
            audience.groups = [other for other in audience.groups if other is not group]
            if not audience.groups and key[1] is not None:
                del self.audiences[key]

    def group_state(self, name: str) -> Group:
        """A group to look at or to set; one that sleeps is woken with the plain selection."""
        if name in self.groups:
            return self.groups[name][1]
        return self.join(name, Selection(), acknowledge=True, redeliver_after_s=None, max_attempts=0)

    def progress_entry(self, name: str) -> GroupProgress | None:
        """The journal entry for what a group did since the last one."""
        progress = self.groups[name][1].take_progress()
        if progress is None:
            return None
        return GroupProgress(self.no, name, progress.acked, progress.passed, progress.parked, progress.reset_after)

    # -- messages held for the groups -------------------------------------------------------------------------------

    def hold(self, slot: Slot, runs: Iterable[tuple[int, int]]) -> None:
        """Keep a batch in memory until every group is done with it."""
        slot.pin()
        self.held.append((slot, tuple(runs)))

    def release_held(self) -> bool:
        """Let go of what every group, and every follower that keeps, is done with; True if that made room."""
        freed = False
        groups = [*(group for _, group in self.groups.values()), *self.keepers]
        while self.held and groups:
            slot, runs = self.held[0]
            if not all(group.done_with(first, last) for group in groups for first, last in runs):
                break
            self.held.popleft()
            slot.unpin()
            freed = True
        return freed

    def release_all(self) -> None:
        while self.held:
            self.held.popleft()[0].unpin()

    # -- looking at it ----------------------------------------------------------------------------------------------

    def info(self) -> StreamInfo:
        order = self.order
        ended = self.ended
        return StreamInfo(
            *(self.id.beamtime, self.id.source, self.id.stream),
            n_messages=order.n_messages, n_bytes=order.n_bytes, parts=order.parts, last_id=order.last_id,
            created_ns=self.created_ns, last_ns=self.last_ns,
            finished=ended is not None, aborted=ended.aborted if ended else None,
            next_stream=ended.next_stream if ended else None,
            in_memory=len(order.slots), on_disk=order.n_on_disk, gone=order.n_gone, policy=str(self.policy.keep),
        )  # fmt: skip

    def group_infos(self) -> list[GroupInfo]:
        found = [_group_info(name, selection, group) for name, (selection, group) in self.groups.items()]
        for name, state in self.sleeping.items():
            group = Group(acked=state.acked, passed=state.passed, parked=state.parked)
            for first, last in self.order.main.ready:
                group.publish(first, last)
            found.append(_group_info(name, Selection(), group))
        return sorted(found, key=lambda info: info.group)


def _group_info(name: str, selection: Selection, group: Group) -> GroupInfo:
    counters = group.counters
    return GroupInfo(
        group=name, order=str(selection.order), members=group.n_members, lag=group.lag, pending=group.n_pending,
        waiting=group.n_waiting, parked=len(group.parked), acknowledged=len(group.acked),
        last_acknowledged=group.acked.max, redelivered=counters.redelivered, lost=counters.lost, late=counters.late,
    )  # fmt: skip


def _describe(selection: Selection) -> str:
    text = f"in order of {selection.order}"
    if selection.min_parts:
        text += f" with at least {selection.min_parts} parts"
    return text + (f" where {selection.query}" if selection.query else "")


def merged_meta(old: bytes | None, new: bytes, mode: str, *, upsert: bool, what: str) -> bytes:
    """The metadata after an insert, replace or update (a deep merge).

    Raises
    ------
    StreamError
        If the JSON cannot be read, there is something to insert over, nothing to replace or update, or too much in the end.
    """
    if mode not in ("insert", "replace", "update"):
        raise StreamError(f"metadata can be inserted, replaced or updated, not {mode!r}")
    if mode == "insert" and old is not None:
        raise StreamError(f"cannot insert: {what} has metadata already; replace or update it")
    if mode != "insert" and old is None and not upsert:
        raise StreamError(f"cannot {mode}: metadata does not exist for {what}")
    try:
        value = msgspec.json.decode(new, type=dict[str, object])
        if mode == "update" and old is not None:
            value = _merge(msgspec.json.decode(old, type=dict[str, object]), value)
        merged = msgspec.json.encode(value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StreamError(f"JSON parse error in the metadata of {what}: {error}") from error
    except RecursionError as error:
        raise StreamError(f"the metadata of {what} has too many levels") from error
    if len(merged) > MAX_ENVELOPE:
        raise StreamError(f"the metadata of {what} would take {len(merged)} bytes, and may take {MAX_ENVELOPE}")
    return merged


def _merge(old: dict[str, object], new: dict[str, object]) -> dict[str, object]:
    merged = dict(old)
    for key, value in new.items():
        before = merged.get(key)
        merged[key] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged
