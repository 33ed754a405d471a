"""Results in the order of their events: a pure state machine that holds what came early until what was before is known."""

from __future__ import annotations

from typing import Generic, TypeVar

from firstlight.model import Ranges

__all__ = ["InOrder"]

_Item = TypeVar("_Item")


class InOrder(Generic[_Item]):
    """Holds items until every event before theirs has had its item, or is known to have none.

    Parameters
    ----------
    max_held
        So many items are held at most. Beyond that the oldest gap is passed over; what comes for it later is given at
        once, and counted in `n_late`.
    """

    def __init__(self, max_held: int) -> None:
        self._max_held = max_held
        self._next = 1
        self._held: dict[int, _Item] = {}
        self._without = Ranges()
        self.n_late = 0

    @property
    def held(self) -> dict[int, _Item]:
        """What waits, by event."""
        return self._held

    def put(self, index: int, item: _Item) -> list[_Item]:
        """The item of event `index`; returns what can be given now, in order."""
        if index < self._next:
            self.n_late += 1
            return [item]
        self._held[index] = item
        return self._released()

    def without(self, first: int, last: int) -> list[_Item]:
        """The events ``first .. last`` will never have an item; returns what can be given now, in order."""
        first = max(first, self._next)
        if first > last:
            return []
        self._without.add(first, last)
        return self._released()

    def only(self, events: Ranges) -> list[_Item]:
        """There will be no other events than these; returns what can be given now, in order."""
        for first, last in events.missing_within(self._next, events.max):
            self._without.add(first, last)
        return self._released()

    def rest(self) -> list[_Item]:
        """Nothing more comes: everything that waits, in order."""
        items = [self._held[index] for index in sorted(self._held)]
        self._next = max(self._held, default=self._next - 1) + 1
        self._held.clear()
        return items

    def _released(self) -> list[_Item]:
        ready: list[_Item] = []
        while self._held:
            self._next = self._without.first_missing(self._next)
            if self._next in self._held:
                ready.append(self._held.pop(self._next))
                self._next += 1
            elif len(self._held) > self._max_held:
                self._next = min(self._held)
            else:
                break
        self._without.discard(1, self._next - 1)
        return ready
