"""Collects work for another thread, because waking a thread costs more than most of the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Stage"]

T = TypeVar("T")


class Stage(Generic[T]):
    """Items on their way to a thread; used from one thread itself.

    Parameters
    ----------
    hand_over
        Takes a list of items.
    defer
        Calls a function after a delay in s; 0 is the end of this turn of the event loop.
    most
        So many items wait at most; None: any number.
    """

    def __init__(
        self,
        hand_over: Callable[[list[T]], None],
        defer: Callable[[float, Callable[[], None]], None],
        *,
        most: int | None = None,
    ) -> None:
        self._hand_over = hand_over
        self._defer = defer
        self._most = most
        self._items: list[T] = []
        #: How soon those that wait go, as it was asked for the most urgent of them.
        self._within_s: float | None = None
        self._n_flushes = 0

    def add(self, item: T, *, within_s: float) -> None:
        """Put an item behind the others, which it takes along: at the end of this turn (0), or so much later."""
        self._items.append(item)
        if self._most is not None and len(self._items) >= self._most:
            self.flush()
        elif self._within_s is None or within_s < self._within_s:
            self._within_s = within_s
            number = self._n_flushes
            self._defer(within_s, lambda: self._flush_for(number))

    def _flush_for(self, number: int) -> None:
        if number == self._n_flushes:  # they have not gone with others
            self.flush()

    def flush(self) -> None:
        """Hand everything over now."""
        self._within_s = None
        self._n_flushes += 1
        if self._items:
            items, self._items = self._items, []
            self._hand_over(items)
