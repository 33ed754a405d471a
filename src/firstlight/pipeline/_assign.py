"""Assignment: which worker gets which event. A pure state machine; whoever has least to do gets the next event."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from firstlight.pipeline._align import Ready

__all__ = ["Assignment", "Dispatch"]


class Assignment(NamedTuple):
    """Give these events to that worker."""

    worker: int
    events: list[Ready]


class Dispatch:
    """Events that are complete, and who has them.

    An event is in exactly one place: it *waits*, or one worker *has* it, until it is done. A worker that is lost gives
    back what it had, in front of everything that waits, so that nothing is overtaken for long.

    An event for everyone goes to each worker before anything that was offered behind it, and to each that starts later;
    it is done when one worker has done it.

    Parameters
    ----------
    per_worker
        Events that a worker has at most, with the one that it works on; may be changed at any time.
    """

    def __init__(self, per_worker: int) -> None:
        self.per_worker = per_worker
        self._waiting: deque[Ready] = deque()
        self._has: dict[int, dict[int, Ready]] = {}
        self._for_everyone: dict[int, Ready] = {}
        self._owed: dict[int, list[Ready]] = {}
        self._begun: set[int] = set()

    def add_worker(self, worker: int) -> None:
        """A worker is ready for events."""
        self._has[worker] = {}
        self._owed[worker] = list(self._for_everyone.values())

    def lose_worker(self, worker: int) -> list[int]:
        """A worker is gone; returns the indices of the events that wait again."""
        self._owed.pop(worker, None)
        # What is for everyone the others have as well, and so will whoever comes instead.
        events = [event for event in self._has.pop(worker, {}).values() if not event.everyone]
        self._waiting.extendleft(reversed(events))
        return [event.index for event in events]

    def offer(self, event: Ready) -> None:
        """An event is complete."""
        if not event.everyone:
            self._waiting.append(event)
            return
        self._for_everyone[event.index] = event
        self._begun.add(event.index)
        for owed in self._owed.values():
            owed.append(event)

    def done(self, worker: int, indices: Iterable[int]) -> None:
        """The worker's records of these events are safe."""
        has = self._has.get(worker, {})
        for index in indices:
            has.pop(index, None)
            self._begun.discard(index)

    def give_up(self, index: int) -> None:
        """Nobody shall get this event any more."""
        self._waiting = deque(event for event in self._waiting if event.index != index)
        self._begun.discard(index)
        if self._for_everyone.pop(index, None) is not None:
            self._owed = {worker: [e for e in owed if e.index != index] for worker, owed in self._owed.items()}

    def assign(self) -> list[Assignment]:
        """Hand out what waits, as far as the workers take it."""
        given: dict[int, list[Ready]] = {}
        for worker, owed in self._owed.items():
            if owed:
                self._has[worker].update((event.index, event) for event in owed)
                given[worker], self._owed[worker] = owed, []
        # Only those that have less than half, so that what is handed out comes in lots and not one by one.
        hungry = [worker for worker, has in self._has.items() if 2 * len(has) <= self.per_worker]
        while self._waiting and hungry:
            worker = min(hungry, key=lambda number: len(self._has[number]))
            if len(self._has[worker]) >= self.per_worker:
                break
            event = self._waiting.popleft()
            self._has[worker][event.index] = event
            given.setdefault(worker, []).append(event)
        return [Assignment(worker, events) for worker, events in given.items()]

    def n_at(self, worker: int) -> int:
        """Events that a worker has."""
        return len(self._has.get(worker, ()))

    @property
    def n_waiting(self) -> int:
        """Events that nobody has."""
        return len(self._waiting)

    @property
    def idle(self) -> bool:
        """Nothing waits, and nobody has anything."""
        return not self._waiting and not self._begun and not any(self._has.values())
