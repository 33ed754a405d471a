"""Who gets which event: a pure state machine. Events go in, and who is there; out comes what to hand to whom."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple, TypeAlias

from firstlight.pipeline._align.values import Ready, Share, index_of, number_of

__all__ = ["Assignment", "Dispatch"]

#: Keys whose worker is remembered, about 100 bytes each. Which worker gets the others is computed from the key.
_MAX_KEYS = 100_000

_Key: TypeAlias = tuple[frozenset[str], Hashable]

_ANYBODY = Share()


class Assignment(NamedTuple):
    """Give these events to that worker."""

    worker: int
    events: list[Ready]


class _Waiting(NamedTuple):
    event: Ready
    share: Share
    n_bytes: int


class Dispatch:
    """Events that are complete, and who has them.

    An event, or share of one, is in exactly one place: it *waits*, or one worker *has* it, until it is done. Of those that
    wait and that it may have, a worker gets the lowest; whoever has least to do gets the next. A worker that is lost gives
    back what it had.

    Shares with a key go where that key was *placed*: with the worker that got the first of them. They wait for that
    worker, and nothing else waits for them. A worker that is lost loses its keys. Behind so many keys the worker follows
    from the key alone, so that nothing need be remembered: less even, and still the same worker.

    The shares of an event go to different workers, unless tags or keys leave no choice.

    An event for everyone goes to each worker before anything that was offered behind it, behind what waits for that worker
    and has a lower number, and to each that starts later; it is done when one worker has done it.

    Parameters
    ----------
    workers
        The tags of each worker, which is called by its place here.
    per_worker
        Events that a worker has at most, with the one that it works on; may be changed at any time, as may ``lot``: so many
        events a worker gets in a row before the next one is looked at.
    max_bytes
        Of the messages of these events, as far as more than one is concerned; None: however many.
    width
        Shares that an event has at most. A *number* is that of `number_of`.
    """

    def __init__(
        self,
        workers: Sequence[frozenset[str]],
        *,
        per_worker: int,
        max_bytes: int | None = None,
        width: int = 1,
        max_keys: int = _MAX_KEYS,
    ) -> None:
        self._tags = tuple(workers)
        self.per_worker = per_worker
        self.lot = 1
        self._max_bytes = max_bytes
        self._width = width
        self._waiting: dict[int, _Waiting] = {}
        #: Numbers as heaps: for whoever has the tags, and for one worker because of their key. Some may wait no more.
        self._open: dict[frozenset[str], list[int]] = {}
        self._bound: list[list[int]] = [[] for _ in workers]
        #: Of each worker all of these in which it looks.
        self._heaps: list[list[list[int]]] = [[heap] for heap in self._bound]
        self._places = _Places(self._tags, max_keys)
        #: Of a key that has no place the numbers that wait; the first of them is open to all.
        self._unplaced: dict[_Key, list[int]] = {}
        self._has: dict[int, dict[int, _Waiting]] = {}
        self._n_bytes: dict[int, int] = {}
        #: What a worker has worked on, and not made safe yet.
        self._kept: dict[int, dict[int, _Waiting]] = {}
        self._for_everyone: dict[int, _Waiting] = {}
        self._owed: dict[int, list[int]] = {}
        self._begun: set[int] = set()
        #: Of events with several shares: how many are not done, and who has, or had, one.
        self._n_open_shares: dict[int, int] = {}
        self._took: dict[int, set[int]] = {}

    # -- what happens -------------------------------------------------------------------------------------------------

    def add_worker(self, worker: int) -> None:
        """A worker is ready for events."""
        self._has[worker] = {}
        self._n_bytes[worker] = 0
        self._owed[worker] = [
            number for number, waiting in self._for_everyone.items() if waiting.share.tags <= self._tags[worker]
        ]

    def lose_worker(self, worker: int) -> list[int]:
        """A worker is gone; returns the numbers of what waits again."""
        self._owed.pop(worker, None)
        had = self._has.pop(worker, None)
        if had is None:
            return []
        had |= self._kept.pop(worker, {})
        self._places.forget(worker)
        # What is for everyone the others have as well, and so will whoever comes instead.
        again = sorted(number for number, waiting in had.items() if not waiting.share.everyone)
        for number in again:
            self._waiting[number] = had[number]
            self._took.get(had[number].event.index, set()).discard(worker)
        bound = self._bound[worker].copy()
        self._bound[worker].clear()
        for number in sorted([*again, *bound]):
            if number in self._waiting:
                self._queue(number, self._waiting[number].share)
        return again

    def offer(self, event: Ready, share: Share = _ANYBODY, *, n_bytes: int = 0) -> None:
        """An event is complete; `n_bytes` is the size of its messages, 0 if that is not known."""
        number = number_of(event.index, event.share, self._width)
        waiting = _Waiting(event, share, n_bytes)
        if share.everyone:
            self._for_everyone[number] = waiting
            self._begun.add(number)
            for worker, owed in self._owed.items():
                if share.tags <= self._tags[worker]:
                    owed.append(number)
            return
        if self._width > 1:
            self._n_open_shares[event.index] = self._n_open_shares.get(event.index, 0) + 1
        self._waiting[number] = waiting
        self._queue(number, share)

    def done(self, worker: int, numbers: Iterable[int]) -> list[Ready]:
        """The worker's records of these are safe; returns the events that this ends, where events have no shares."""
        has, kept = self._has.get(worker, {}), self._kept.get(worker, {})
        finished = []
        for number in numbers:
            found = has.pop(number, None)
            if found is not None:
                self._n_bytes[worker] -= found.n_bytes
            else:
                found = kept.pop(number, None)
            if found is not None:
                self._close(number, found)
                if self._width == 1 and not found.share.everyone:
                    finished.append(found.event)
            self._begun.discard(number)
        return finished

    def worked(self, worker: int, numbers: Iterable[int]) -> None:
        """The worker has worked on these; it has time for others, though the results are not safe yet."""
        has, kept = self._has.get(worker, {}), self._kept.setdefault(worker, {})
        for number in numbers:
            found = has.pop(number, None)
            if found is not None:
                self._n_bytes[worker] -= found.n_bytes
                kept[number] = found

    def again(self, worker: int, numbers: Iterable[int]) -> None:
        """What the worker did of these does not count: they wait again."""
        has, kept = self._has.get(worker, {}), self._kept.get(worker, {})
        for number in numbers:
            found = kept.pop(number, None)
            if found is None and number in has:
                found = has.pop(number)
                self._n_bytes[worker] -= found.n_bytes
            if found is not None:
                self._waiting[number] = found
                self._queue(number, found.share)

    def give_up(self, number: int) -> None:
        """Nobody shall get this any more."""
        self._begun.discard(number)
        if self._for_everyone.pop(number, None) is not None:
            self._owed = {worker: [n for n in owed if n != number] for worker, owed in self._owed.items()}
        waiting = self._waiting.pop(number, None)
        if waiting is None:
            return
        self._close(number, waiting)
        key = (waiting.share.tags, waiting.share.key)
        unplaced = self._unplaced.get(key, [])
        if number in unplaced:
            was_first = unplaced[0] == number
            unplaced.remove(number)
            if not unplaced:
                del self._unplaced[key]
            elif was_first:
                heappush(self._open[waiting.share.tags], unplaced[0])

    def assign(self) -> list[Assignment]:
        """Hand out what waits, as far as the workers take it."""
        given: dict[int, list[Ready]] = {}
        for worker in self._owed:
            self._give_owed(worker, given)
        # Only those that have less than half, so that what is handed out comes in lots and not one by one.
        room = [worker for worker, has in self._has.items() if 2 * len(has) <= self.per_worker]
        while self._waiting and room:
            worker = min(room, key=lambda number: len(self._has[number]))
            for _ in range(self.lot):
                found = self._next_for(worker)
                if found is not None:
                    self._give(worker, found, self._waiting.pop(found), given)
                    self._give_owed(worker, given)
                if found is None or len(self._has[worker]) >= self.per_worker:
                    room.remove(worker)
                    break
        for worker in self._owed:  # others may have taken what it would have been behind
            self._give_owed(worker, given)
        return [Assignment(worker, events) for worker, events in given.items()]

    def _give_owed(self, worker: int, given: dict[int, list[Ready]]) -> None:
        """Hand out what is for everyone, as far as it is its turn: the end of a series must not overtake its frames."""
        owed = self._owed[worker]
        if not owed:
            return
        lowest = self._lowest_for(worker)[0]
        for number in owed:
            if lowest is None or number < lowest:
                self._give(worker, number, self._for_everyone[number], given)
        self._owed[worker] = [number for number in owed if lowest is not None and number > lowest]

    # -- who may have what --------------------------------------------------------------------------------------------

    def takers(self, share: Share) -> tuple[int, ...]:
        """The workers that may have such a share, whether they are there or not."""
        return self._places.able(share.tags)

    def _queue(self, number: int, share: Share) -> None:
        """Let something wait where its worker will find it."""
        if share.key is not None:
            key = (share.tags, share.key)
            if key in self._unplaced:
                self._unplaced[key].append(number)
                return
            worker = self._places.worker(key)
            if worker is not None:
                heappush(self._bound[worker], number)
                return
            self._unplaced[key] = [number]
        heap = self._open.get(share.tags)
        if heap is None:
            heap = self._open[share.tags] = []
            for worker in self.takers(share):
                self._heaps[worker].append(heap)
        heappush(heap, number)

    def _lowest_for(self, worker: int) -> tuple[int | None, list[int]]:
        """The lowest number that this worker may have, and where it waits."""
        best: int | None = None
        source: list[int] = []
        bound = self._bound[worker]
        for heap in self._heaps[worker]:
            number = self._first_in(heap, worker, bound=heap is bound)
            if number is not None and (best is None or number < best):
                best, source = number, heap
        return best, source

    def _next_for(self, worker: int) -> int | None:
        """Take the lowest number that this worker may have out of where it waits; None if there is none."""
        best, source = self._lowest_for(worker)
        if best is None or self._is_too_large(worker, self._waiting[best]):
            return None
        _remove(source, best)
        share = self._waiting[best].share
        if share.key is not None and source is not self._bound[worker]:
            self._place((share.tags, share.key), worker)
        return best

    def _first_in(self, heap: list[int], worker: int, *, bound: bool) -> int | None:
        waiting = self._waiting
        while heap and heap[0] not in waiting:
            heappop(heap)
        if not heap or bound or self._width == 1 or self._may_take(worker, heap[0]):
            return heap[0] if heap else None
        return min((n for n in heap if n in self._waiting and self._may_take(worker, n)), default=None)

    def _may_take(self, worker: int, number: int) -> bool:
        """Whether this leaves the shares of the event with different workers, or nobody else could have it anyway."""
        took = self._took.get(index_of(number, self._width))
        return not took or worker not in took or took.issuperset(self.takers(self._waiting[number].share))

    def _is_too_large(self, worker: int, waiting: _Waiting) -> bool:
        return (
            self._max_bytes is not None
            and bool(self._has[worker])
            and self._n_bytes[worker] + waiting.n_bytes > self._max_bytes
        )

    def _place(self, key: _Key, worker: int) -> None:
        self._places.put(key, worker)
        for number in self._unplaced.pop(key)[1:]:
            heappush(self._bound[worker], number)

    def _give(self, worker: int, number: int, waiting: _Waiting, given: dict[int, list[Ready]]) -> None:
        self._has[worker][number] = waiting
        self._n_bytes[worker] += waiting.n_bytes
        if self._width > 1 and not waiting.share.everyone:
            self._took.setdefault(waiting.event.index, set()).add(worker)
        given.setdefault(worker, []).append(waiting.event)

    def _close(self, number: int, waiting: _Waiting) -> None:
        """A share is done with."""
        if self._width == 1 or waiting.share.everyone:
            return
        index = waiting.event.index
        self._n_open_shares[index] -= 1
        if not self._n_open_shares[index]:
            del self._n_open_shares[index]
            self._took.pop(index, None)

    # -- looking at it ------------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> Iterator[Ready]:
        """Events, or shares, that somebody has or will get."""
        for some in (self._waiting, self._for_everyone, *self._has.values(), *self._kept.values()):
            yield from (waiting.event for waiting in some.values())

    @property
    def n_keys(self) -> int:
        """Keys whose worker is remembered."""
        return len(self._places)

    @property
    def n_waiting(self) -> int:
        """Events, or shares, that nobody has."""
        return len(self._waiting)

    @property
    def has_idle(self) -> bool:
        """A worker has nothing to do."""
        return not all(self._has.values())

    @property
    def idle(self) -> bool:
        """Nothing waits, and nobody has anything."""
        handed_out = not self._waiting and not any(self._owed.values())
        return handed_out and not self._begun and not any(self._has.values()) and not any(self._kept.values())


class _Places:
    """Where keys are placed."""

    def __init__(self, tags: Sequence[frozenset[str]], max_keys: int) -> None:
        self._tags = tags
        self._max_keys = max_keys
        self._worker_of: dict[_Key, int] = {}
        # For good: otherwise keys that were never remembered could get another place when some are forgotten.
        self._is_full = False
        self._able: dict[frozenset[str], tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._worker_of)

    def able(self, tags: frozenset[str]) -> tuple[int, ...]:
        """The workers that have these tags."""
        if tags not in self._able:
            self._able[tags] = tuple(worker for worker, has in enumerate(self._tags) if tags <= has)
        return self._able[tags]

    def worker(self, key: _Key) -> int | None:
        """The worker of a key; None if that is still to be found."""
        worker = self._worker_of.get(key)
        if worker is not None or not self._is_full:
            return worker
        able = self.able(key[0])
        return able[hash(key[1]) % len(able)]

    def put(self, key: _Key, worker: int) -> None:
        self._worker_of[key] = worker
        self._is_full = self._is_full or len(self._worker_of) >= self._max_keys

    def forget(self, worker: int) -> None:
        """A worker is gone."""
        self._worker_of = {key: other for key, other in self._worker_of.items() if other != worker}


def _remove(heap: list[int], number: int) -> None:
    """Take a number out; it is the first but for shares that must go to somebody else."""
    if heap[0] == number:
        heappop(heap)
        return
    put_back = []
    while heap[0] != number:
        put_back.append(heappop(heap))
    heappop(heap)
    for other in put_back:
        heappush(heap, other)
