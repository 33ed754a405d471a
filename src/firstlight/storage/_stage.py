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
    patience_s
        How long items may wait that nobody waits for.
    """

    def __init__(
        self,
        hand_over: Callable[[list[T]], None],
        defer: Callable[[float, Callable[[], None]], None],
        *,
        patience_s: float,
    ) -> None:
        self._hand_over = hand_over
        self._defer = defer
        self._patience_s = patience_s
        self._items: list[T] = []
        self._soon = self._later = False

    def add(self, item: T, *, urgent: bool) -> None:
        """Put an item behind the others; an urgent one takes all of them along at the end of this turn."""
        self._items.append(item)
        if urgent and not self._soon:
            self._soon = True
            self._defer(0.0, self._flush_soon)
        elif not urgent and not self._later:
            self._later = True
            self._defer(self._patience_s, self._flush_later)

    def _flush_soon(self) -> None:
        self._soon = False
        self.flush()

    def _flush_later(self) -> None:
        self._later = False
        self.flush()

    def flush(self) -> None:
        """Hand everything over now."""
        if self._items:
            items, self._items = self._items, []
            self._hand_over(items)
