"""What a consumer group has, had and still needs: a pure state machine.

Events come in (messages published, members that come and go, credit, acknowledgements, time), and `Group.deliver` answers
with what to hand to whom. Nothing here knows of sockets, memory or disks; the time is an argument. All numbers are ids.

An id is at any moment in exactly one place: *to do*, *pending* (a member has it), *waiting* (to be delivered again at some
time) or *passed* (acknowledged, skipped, lost or parked). It leaves *pending* only by acknowledgement, or goes back to be
delivered again: that is at-least-once delivery.
"""

from __future__ import annotations

import dataclasses
import heapq
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from firstlight.model import Ranges

__all__ = ["Deliver", "Group", "GroupCounters", "Order", "Progress"]

_END = 1 << 63


class Order(StrEnum):
    """Which message comes next."""

    ID = "id"
    """The smallest id that is there; one that arrives late is delivered when it comes."""
    ARRIVAL = "arrival"
    """In the order in which the service got them."""
    LATEST = "latest"
    """The newest only; what came before it is skipped and counted."""


class Deliver(NamedTuple):
    """Hand the messages ``first .. last`` to `member`, for the `attempt`-th time."""

    member: int
    first: int
    last: int
    attempt: int


class Progress(NamedTuple):
    """What changed since the last call of `Group.take_progress`, for the journal."""

    acked: tuple[tuple[int, int], ...]
    passed: tuple[tuple[int, int], ...]
    parked: tuple[tuple[int, int], ...]
    reset_after: int | None


@dataclass(slots=True)
class GroupCounters:
    """Messages, since the group was created or the service started."""

    delivered: int = 0
    acknowledged: int = 0
    redelivered: int = 0
    parked: int = 0
    skipped: int = 0
    lost: int = 0
    late: int = 0


@dataclass(slots=True)
class _Member:
    credit: int = 0
    n_pending: int = 0


@dataclass(slots=True)
class _Pending:
    first: int
    last: int
    member: int
    attempt: int
    deadline: float
    live: bool = True


class _ByArrival:
    """Intervals, first come first served."""

    def __init__(self) -> None:
        self._queue: deque[tuple[int, int]] = deque()
        self._n = 0

    def add(self, first: int, last: int) -> None:
        if self._queue and self._queue[-1][1] + 1 == first:
            self._queue[-1] = (self._queue[-1][0], last)
        else:
            self._queue.append((first, last))
        self._n += last - first + 1

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        return [(max(a, first), min(b, last)) for a, b in self._queue if a <= last and b >= first]

    def discard(self, first: int, last: int) -> None:
        rest: deque[tuple[int, int]] = deque()
        for a, b in self._queue:
            if b < first or a > last:
                rest.append((a, b))
                continue
            if a < first:
                rest.append((a, first - 1))
            if b > last:
                rest.append((last + 1, b))
        self._queue = rest
        self._n = sum(b - a + 1 for a, b in rest)

    def take(self, limit: int) -> tuple[int, int]:
        first, last = self._queue.popleft()
        if last - first >= limit:
            self._queue.appendleft((first + limit, last))
            last = first + limit - 1
        self._n -= last - first + 1
        return first, last

    def __len__(self) -> int:
        return self._n

    def __bool__(self) -> bool:
        return self._n > 0


@dataclass(eq=False)
class Group:
    """A named cursor shared by its members.

    Parameters
    ----------
    order
        Which message comes next.
    acknowledge
        False: a message is done when it was delivered. True: when a member says so.
    redeliver_after_s
        A message not acknowledged after this time goes to somebody else. None: never, as long as its member is there.
    max_attempts
        After so many deliveries a message is parked: listed as unacknowledged, delivered to nobody. 0: no limit.
    shared
        False: there is one member, and what it has comes back to nobody.
    acked, passed, parked
        From the journal.
    """

    order: Order = Order.ID
    acknowledge: bool = True
    redeliver_after_s: float | None = None
    max_attempts: int = 0
    shared: bool = True
    acked: Ranges = field(default_factory=Ranges)
    passed: Ranges = field(default_factory=Ranges)
    parked: Ranges = field(default_factory=Ranges)
    counters: GroupCounters = field(default_factory=GroupCounters)

    def __post_init__(self) -> None:
        self._todo: Ranges | _ByArrival = _ByArrival() if self.order is Order.ARRIVAL else Ranges()
        self._members: dict[int, _Member] = {}
        #: Members with credit: first who was done with everything last, because its caches are warm; then the one that waits
        #: longest.
        self._turn: deque[int] = deque()
        self._starts: list[int] = []
        self._pending: list[_Pending] = []
        self._deadlines: list[tuple[float, int, _Pending]] = []
        self._waiting: list[tuple[float, int, int, int]] = []
        self._ticket = 0
        self._highest = 0
        self._unsaved_acked = Ranges()
        self._unsaved_passed = Ranges()
        self._unsaved_parked = Ranges()
        self._reset_after: int | None = None

    # -- the stream -------------------------------------------------------------------------------------------------

    def publish(self, first: int, last: int) -> None:
        """Messages ``first .. last`` can be delivered now."""
        if first <= self._highest:
            late = min(last, self._highest)
            self.counters.late += late - first + 1
            if self.order is Order.LATEST:
                self._skip(first, late)
        for a, b in self._open_within(first, last):
            self._todo.add(a, b)

    def _open_within(self, first: int, last: int) -> list[tuple[int, int]]:
        """What of ``first .. last`` was neither passed nor acknowledged."""
        if not self.passed and not self.acked:
            return [(first, last)]
        return [
            piece
            for a, b in self.passed.missing_within(first, last)
            for piece in self.acked.missing_within(a, b)
        ]  # fmt: skip

    # -- members ----------------------------------------------------------------------------------------------------

    def attach(self, member: int, *, holding: Iterable[tuple[int, int]] = (), now: float = 0.0) -> None:
        """A member joins; `holding` are messages that it got before the connection was lost and still works on.

        It keeps those that nobody else has got meanwhile. One that is not there (its service died before it was written) is no
        message of this group yet: it is delivered when it comes again.
        """
        self._members[member] = _Member()
        for first, last in holding:
            for a, b in self._undelivered_within(first, last):
                self._todo.discard(a, b)
                self._drop_waiting(a, b)
                self._hand_out(member, a, b, 1, now)

    def _undelivered_within(self, first: int, last: int) -> Ranges:
        """What of ``first .. last`` is to do or waits to be delivered again."""
        found = Ranges(self._todo.within(first, last))
        for _, a, b, _ in self._waiting:
            if a <= last and b >= first:
                found.add(max(a, first), min(b, last))
        return found

    def detach(self, member: int, now: float) -> None:
        """A member is gone: what it had is delivered to others at once."""
        del self._members[member]
        if member in self._turn:
            self._turn.remove(member)
        for pending in [p for p in self._pending if p.member == member]:
            self._take_pending(pending.first, pending.last)
            self._again(pending.first, pending.last, pending.attempt, now)

    def credit(self, member: int, n: int) -> None:
        """The member can take `n` more messages."""
        state = self._members.get(member)
        if state is None:
            return
        if state.credit <= 0 < state.credit + n:
            self._turn.append(member)
        state.credit += n

    def _put_first_if_free(self, member: int) -> None:
        state = self._members.get(member)
        if state is not None and not state.n_pending and len(self._turn) > 1 and member in self._turn:
            self._turn.remove(member)
            self._turn.appendleft(member)

    @property
    def n_members(self) -> int:
        return len(self._members)

    # -- acknowledgements -------------------------------------------------------------------------------------------

    def ack(self, first: int, last: int) -> int:
        """These are done, whoever had them; returns how many were not acknowledged before."""
        fresh = 0
        for a, b in self.acked.missing_within(first, last):
            fresh += b - a + 1
            self._unsaved_acked.add(a, b)
        if not fresh:
            return 0
        self.acked.add(first, last)
        self.parked.discard(first, last)
        for member in {pending.member for pending in self._take_pending(first, last)}:
            self._put_first_if_free(member)
        self._todo.discard(first, last)
        self._drop_waiting(first, last)
        self.counters.acknowledged += fresh
        return fresh

    def nack(self, member: int, first: int, last: int, *, delay_s: float, now: float) -> int:
        """Deliver these again after a delay; returns how many that concerns.

        Only what `member` has: after a lost connection another one may have got a message that this one still held, and works on
        it.
        """
        count = 0
        for pending in self._take_pending(first, last):
            if pending.member != member:
                self._put_pending(dataclasses.replace(pending, live=True))
                continue
            count += pending.last - pending.first + 1
            self._again(pending.first, pending.last, pending.attempt, now + delay_s)
        return count

    def lose(self, first: int, last: int) -> None:
        """The bytes of these are gone; they are counted and never delivered."""
        self.counters.lost += last - first + 1
        self._take_pending(first, last)
        self._pass(first, last)

    def pass_over(self, first: int, last: int) -> None:
        """Somebody who is no member took these: nobody else gets them."""
        self._take_pending(first, last)
        self._todo.discard(first, last)
        self._drop_waiting(first, last)
        self._pass(first, last)

    def unacknowledged(self, ready: Ranges, first: int = 1, last: int = _END) -> list[tuple[int, int]]:
        """What of the deliverable ids is not acknowledged."""
        return [piece for a, b in ready.within(first, last) for piece in self.acked.missing_within(a, b)]

    # -- the cursor -------------------------------------------------------------------------------------------------

    def set_cursor(self, last_id: int, ready: Iterable[tuple[int, int]]) -> None:
        """Go on behind `last_id`: what is before is passed, what is behind is delivered (again).

        Parameters
        ----------
        ready
            All deliverable ids, as intervals in the order in which they shall come.
        """
        everything = list(ready)
        for ranges in (self.acked, self.passed, self.parked):
            ranges.discard(last_id + 1, _END)
        for unsaved in (self._unsaved_acked, self._unsaved_passed, self._unsaved_parked):
            unsaved.discard(last_id + 1, _END)
        self._reset_after = last_id if self._reset_after is None else min(last_id, self._reset_after)
        for pending in list(self._pending):
            self._take_pending(pending.first, pending.last)
        self._waiting.clear()
        self._todo = _ByArrival() if self.order is Order.ARRIVAL else Ranges()
        self._highest = last_id
        for first, last in everything:
            if first <= last_id:
                self._pass(first, min(last, last_id))
            if last > last_id:
                self._todo.add(max(first, last_id + 1), last)

    # -- time and delivery ------------------------------------------------------------------------------------------

    def tick(self, now: float) -> float | None:
        """Take back what is overdue; returns when to come again."""
        while self._deadlines and (self._deadlines[0][0] <= now or not self._deadlines[0][2].live):
            pending = heapq.heappop(self._deadlines)[2]
            if pending.live:
                self._take_pending(pending.first, pending.last)
                self._again(pending.first, pending.last, pending.attempt, now)
        times = [self._deadlines[0][0]] if self._deadlines else []
        # What is due already waits for a member that has credit, and that tells us by itself.
        if self._waiting and (self._turn or self._waiting[0][0] > now):
            times.append(self._waiting[0][0])
        return min(times, default=None)

    def deliver(self, now: float) -> list[Deliver]:
        """Hand out as much as there is and the members' credit allows."""
        found: list[Deliver] = []
        share = -(-len(self._todo) // max(len(self._turn), 1))
        while self._turn:
            waiting = self._waiting and self._waiting[0][0] <= now
            if not waiting and not self._todo:
                break
            member = self._turn.popleft()
            state = self._members[member]
            if waiting:
                delivery = self._deliver_again(member, state.credit, now)
            else:
                delivery = self._deliver_new(member, min(state.credit, share), now)
            found.append(delivery)
            state.credit -= delivery.last - delivery.first + 1
            if state.credit > 0:
                self._turn.append(member)
        return found

    def _deliver_again(self, member: int, limit: int, now: float) -> Deliver:
        _, first, last, attempt = heapq.heappop(self._waiting)
        if last - first >= limit:
            heapq.heappush(self._waiting, (now, first + limit, last, attempt))
            last = first + limit - 1
        self.counters.redelivered += last - first + 1
        self._hand_out(member, first, last, attempt + 1, now)
        return Deliver(member, first, last, attempt + 1)

    def _deliver_new(self, member: int, limit: int, now: float) -> Deliver:
        if isinstance(self._todo, _ByArrival):
            first, last = self._todo.take(limit)
        elif self.order is Order.LATEST:
            first = last = self._todo.max
            self._skip_before(last)
        else:
            interval = self._todo.next_interval(0)
            assert interval is not None
            first, last = interval[0], min(interval[1], interval[0] + limit - 1)
            self._todo.discard(first, last)
        self._highest = max(self._highest, last)
        self._hand_out(member, first, last, 1, now)
        return Deliver(member, first, last, 1)

    def _skip_before(self, latest: int) -> None:
        assert isinstance(self._todo, Ranges)
        older = self._todo
        older.discard(latest, latest)
        for first, last in older:
            self._skip(first, last)
        self._todo = Ranges()

    def _skip(self, first: int, last: int) -> None:
        self.counters.skipped += last - first + 1
        self._pass(first, last)

    def _hand_out(self, member: int, first: int, last: int, attempt: int, now: float) -> None:
        self.counters.delivered += last - first + 1
        if not self.acknowledge:
            self._pass(first, last)
            return
        deadline = now + self.redeliver_after_s if self.redeliver_after_s is not None else float("inf")
        self._put_pending(_Pending(first, last, member, attempt, deadline))

    def _put_pending(self, pending: _Pending) -> None:
        if pending.member in self._members:
            self._members[pending.member].n_pending += pending.last - pending.first + 1
        at = bisect_left(self._starts, pending.first)
        self._starts.insert(at, pending.first)
        self._pending.insert(at, pending)
        if pending.deadline != float("inf"):
            self._ticket += 1
            heapq.heappush(self._deadlines, (pending.deadline, self._ticket, pending))

    def _take_pending(self, first: int, last: int) -> list[_Pending]:
        """Cut ``first .. last`` out of what is pending; returns the pieces."""
        low = max(bisect_right(self._starts, first) - 1, 0)
        if low < len(self._pending) and self._pending[low].last < first:
            low += 1
        high = bisect_right(self._starts, last)
        if low >= high:
            return []
        hit = self._pending[low:high]
        del self._pending[low:high], self._starts[low:high]
        taken = []
        for p in hit:
            p.live = False
            if p.member in self._members:
                self._members[p.member].n_pending -= p.last - p.first + 1
            if p.first < first:
                self._put_pending(_Pending(p.first, first - 1, p.member, p.attempt, p.deadline))
            if p.last > last:
                self._put_pending(_Pending(last + 1, p.last, p.member, p.attempt, p.deadline))
            taken.append(_Pending(max(p.first, first), min(p.last, last), p.member, p.attempt, p.deadline, live=False))
        return taken

    def _again(self, first: int, last: int, attempt: int, when: float) -> None:
        if self.max_attempts and attempt >= self.max_attempts:
            self.counters.parked += last - first + 1
            self.parked.add(first, last)
            self._unsaved_parked.add(first, last)
            self._pass(first, last)
        else:
            heapq.heappush(self._waiting, (when, first, last, attempt))

    def _drop_waiting(self, first: int, last: int) -> None:
        if not any(a <= last and b >= first for _, a, b, _ in self._waiting):
            return
        rest: list[tuple[float, int, int, int]] = []
        for when, a, b, attempt in self._waiting:
            if a < first:
                rest.append((when, a, min(b, first - 1), attempt))
            if b > last:
                rest.append((when, max(a, last + 1), b, attempt))
        heapq.heapify(rest)
        self._waiting = rest

    def _pass(self, first: int, last: int) -> None:
        self.passed.add(first, last)
        self._unsaved_passed.add(first, last)

    # -- looking at it ----------------------------------------------------------------------------------------------

    @property
    def lag(self) -> int:
        """Messages that are deliverable and were not delivered yet."""
        return len(self._todo)

    @property
    def n_pending(self) -> int:
        """Messages that members have and did not acknowledge."""
        return sum(p.last - p.first + 1 for p in self._pending)

    @property
    def n_waiting(self) -> int:
        """Messages that will be delivered again."""
        return sum(last - first + 1 for _, first, last, _ in self._waiting)

    @property
    def drained(self) -> bool:
        """Nothing is left to deliver, and nothing can come back: members may still fail with what they have."""
        return not (self._todo or self._waiting or (self._pending and self.shared))

    def done_with(self, first: int, last: int) -> bool:
        """Every one of these is acknowledged or passed."""
        return not self._open_within(first, last)

    def take_progress(self) -> Progress | None:
        """What the journal does not know yet; None if it knows all."""
        if not (self._unsaved_acked or self._unsaved_passed or self._unsaved_parked or self._reset_after is not None):
            return None
        progress = Progress(
            tuple(self._unsaved_acked), tuple(self._unsaved_passed), tuple(self._unsaved_parked), self._reset_after
        )
        self._unsaved_acked, self._unsaved_passed, self._unsaved_parked = Ranges(), Ranges(), Ranges()
        self._reset_after = None
        return progress
