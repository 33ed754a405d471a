"""Which messages a run may still need. What it does not need any more its source is told, so that nothing is given up too
early and nothing is kept for ever."""

from __future__ import annotations

import time
from collections.abc import Iterable

from firstlight.model import Ranges
from firstlight.pipeline._align.by_index import Aligner, Ready
from firstlight.pipeline._sources.source import Keeps, OpenSource

__all__ = ["Wanted"]

_SWEEP_EVERY_S = 0.25
#: What is done within this time is told in one go, unless there is nothing else to do.
_TELL_EVERY_S = 0.005


class Wanted:
    """Messages that have come and are not done with.

    Those of an event are done with it. Those that never become part of an event, and those of several events, are found
    by looking now and then at what the aligner and the events under way still have.

    Parameters
    ----------
    opened
        Is told, if it wants to know.
    """

    def __init__(self, opened: OpenSource, aligner: Aligner) -> None:
        self._keeps = opened if isinstance(opened, Keeps) else None
        self._aligner = aligner
        self._there: dict[str, Ranges] = {}
        self._done: dict[str, Ranges] = {}
        self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        self._tell_at = 0.0

    def arrived(self, name: str, number: int) -> None:
        """A message is there."""
        if self._keeps is not None:
            self._there.setdefault(name, Ranges()).add(number, number)

    def done(self, event: Ready) -> None:
        """Nobody needs this event any more."""
        if self._keeps is not None:
            for name, number in event.ids.items():
                if name not in event.rows:  # the other triggers of that message may be under way
                    self._done.setdefault(name, Ranges()).add(number, number)

    def tell(self, under_way: Iterable[Ready], *, idle: bool) -> None:
        """Tell the source what is done with, and now and then look for what else is.

        Parameters
        ----------
        under_way
            The events that are formed and not done.
        idle
            There are none: the source may wait for room.
        """
        if self._keeps is None or not self._there:
            return
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep(under_way)
        elif now < self._tell_at and not idle:
            return
        self._tell_at = now + _TELL_EVERY_S
        done, self._done = self._done, {}
        for name, numbers in done.items():
            for first, last in numbers:
                self._there[name].discard(first, last)
                self._keeps.done(name, first, last)

    def _sweep(self, under_way: Iterable[Ready]) -> None:
        self._sweep_at = time.monotonic() + _SWEEP_EVERY_S
        wanted = self._aligner.held()
        for event in under_way:
            for name, number in event.ids.items():
                wanted[name].add(number, number)
        for name, there in self._there.items():
            done = self._done.setdefault(name, Ranges())
            for first, last in there:
                for a, b in wanted[name].missing_within(first, last):
                    done.add(a, b)
