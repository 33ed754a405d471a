"""Forming events: what the aligners share once they know which event a message belongs to.

An event is *begun* by its first message, and *settled* once: delivered, or given up. Sets of events are kept as
stretches, so what is remembered grows with the gaps, and not with the length of the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from firstlight.errors import ConfigurationError
from firstlight.model import Ranges
from firstlight.pipeline._align.values import (
    Action,
    Again,
    Drop,
    Dropped,
    Incomplete,
    Late,
    Partial,
    Ready,
    WhenIncomplete,
)

__all__ = ["Forming", "Place", "check_policy"]

#: Deadlines are kept as exactly as this part of the time they give.
_DEADLINE_PART = 1 / 16


class Place(NamedTuple):
    """Where an input's part of an event is: in message `id`, as its trigger `row` if it holds several."""

    id: int
    row: int | None = None


def check_policy(incomplete: object) -> None:
    """Refuse what is no policy.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    if incomplete != "wait" and not isinstance(incomplete, Partial | Drop):
        raise ConfigurationError(f"incomplete is 'wait', Partial(after_s) or Drop(after_s), not {incomplete!r}")


class Forming:
    """Which events there are, and what became of them. A subclass tells which event a message belongs to.

    Parameters
    ----------
    incomplete
        What to do with events that lack something.
    """

    def __init__(self, inputs: Sequence[str], incomplete: WhenIncomplete) -> None:
        self._inputs = tuple(inputs)
        self._have = {name: Ranges() for name in self._inputs}
        self._never = {name: Ranges() for name in self._inputs}
        self._open = set(self._inputs)
        self._settled = Ranges()
        self._expired = Ranges()
        self._policy = incomplete
        self._deadlines = None if incomplete == "wait" else _Deadlines(incomplete.after_s)
        #: Nothing has ended, nothing is over its deadline: a message can only complete an event.
        self._calm = True
        self.n_begun = 0

    # -- what a subclass may know better ------------------------------------------------------------------------------

    #: Every input takes part in every event.
    _uniform = True

    def _wanted(self, index: int) -> tuple[str, ...]:
        """The inputs that take part in event `index`."""
        return self._inputs

    def _place(self, name: str, index: int) -> Place:
        """Where the part is that the input `name` has of event `index`."""
        return Place(index)

    def _forget(self, first: int, last: int) -> None:
        """Nobody asks for places in the events ``first .. last`` any more."""

    # -- what happens -------------------------------------------------------------------------------------------------

    def _present(self, name: str, index: int) -> list[Action]:
        """The input `name` has its part of event `index`."""
        every = self._have
        have = every[name]
        if index in have:
            return [Again(name, index)]
        have.add(index, index)
        wanted = self._wanted(index)
        absent = [other for other in wanted if other != name and index not in every[other]]
        if absent:
            return self._lacking(name, index, wanted, absent)
        if not self._calm and index in self._expired:
            return [Late(name, index)]
        self.n_begun += len(wanted) == 1
        return [self._deliver(index, wanted, ())]

    def _lacking(self, name: str, index: int, wanted: tuple[str, ...], absent: list[str]) -> list[Action]:
        if len(absent) == len(wanted) - 1:
            self._begin_event(index)
        if self._calm:
            return []
        if index in self._expired:
            return [Late(name, index)]
        return self._look_at(index, wanted, absent)

    def _begin_event(self, index: int) -> None:
        self.n_begun += 1
        if self._deadlines is not None:
            self._deadlines.begin(index)

    def _look_at(self, index: int, wanted: tuple[str, ...], absent: Sequence[str]) -> list[Action]:
        """What becomes of an event that lacks something, now."""
        gone = tuple(other for other in absent if other not in self._open or index in self._never[other])
        if not gone or index in self._settled:
            return []
        if not isinstance(self._policy, Partial):
            return [self._give_up(index, index, gone)]
        # Who has not ended may still have something to say: until the deadline.
        return [self._deliver(index, wanted, gone)] if len(gone) == len(absent) else []

    def _deliver(self, index: int, wanted: tuple[str, ...], missing: tuple[str, ...]) -> Ready:
        ids: dict[str, int] = {}
        rows: dict[str, int] = {}
        for name in wanted:
            if not missing or name not in missing:
                ids[name], row = self._place(name, index)
                if row is not None:
                    rows[name] = row
        self._settle(index, index)
        return Ready(index, ids, rows, missing)

    def _give_up(self, first: int, last: int, missing: tuple[str, ...]) -> Action:
        self._settle(first, last)
        return (Dropped if isinstance(self._policy, Drop) else Incomplete)(first, last, missing)

    def _settle(self, first: int, last: int) -> None:
        self._settled.add(first, last)
        self._forget(first, last)

    def _will_not_come(self, name: str, index: int) -> list[Action]:
        """The input `name` has, and will have, nothing for event `index`."""
        self._calm = False
        self._never[name].add(index, index)
        return self._reconsider(index)

    def _reconsider(self, index: int) -> list[Action]:
        wanted = self._wanted(index)
        absent = [name for name in wanted if index not in self._have[name]]
        # One that nobody has begun is no event yet, only a gap.
        return self._look_at(index, wanted, absent) if len(absent) < len(wanted) else []

    def ended(self, name: str) -> list[Action]:
        """Nothing more will come from the input `name`: events that wait for it are given up, or delivered without."""
        self._calm = False
        self._open.discard(name)
        actions: list[Action] = []
        for first, last in self._waiting():
            for a, b in self._have[name].missing_within(first, last):
                if self._uniform and not isinstance(self._policy, Partial):
                    actions.append(self._give_up(a, b, (name,)))
                else:
                    for index in range(a, b + 1):
                        actions += self._reconsider(index)
        return actions

    def tick(self, now_s: float) -> list[Action]:
        """The time is `now_s`, by any clock that does not run backwards: some events may be over their deadline."""
        if self._deadlines is None:
            return []
        actions: list[Action] = []
        for first, last in self._deadlines.due(now_s):
            for a, b in self._settled.missing_within(first, last):
                for index in range(a, b + 1):
                    actions.append(self._expire(index))
        return actions

    def _expire(self, index: int) -> Action:
        self._calm = False
        self._expired.add(index, index)
        wanted = self._wanted(index)
        absent = tuple(name for name in wanted if index not in self._have[name])
        if isinstance(self._policy, Partial):
            return self._deliver(index, wanted, absent)
        return self._give_up(index, index, absent)

    # -- looking at it ------------------------------------------------------------------------------------------------

    def _waiting(self) -> Ranges:
        begun = Ranges(sorted(interval for have in self._have.values() for interval in have))
        return Ranges(gap for first, last in begun for gap in self._settled.missing_within(first, last))

    @property
    def n_waiting(self) -> int:
        """Events that wait for some of their messages."""
        return len(self._waiting())

    def held(self) -> dict[str, Ranges]:
        """For each input the ids of messages that may still become part of an event."""
        waiting = self._waiting()
        return {
            name: Ranges(self._ids_of(name, a, b) for first, last in waiting for a, b in have.within(first, last))
            for name, have in self._have.items()
        }

    def _ids_of(self, name: str, first: int, last: int) -> tuple[int, int]:
        """The ids of the messages that the input `name` has for the events ``first .. last``."""
        return first, last

    def missing(self) -> dict[str, Ranges]:
        """For each input the events that it had nothing for, up to the last that any input had."""
        highest = max(have.max for have in self._have.values())
        return {name: Ranges(have.missing_within(1, highest)) for name, have in self._have.items()}


class _Deadlines:
    """When events that have begun are over their deadline; those that began at about the same time are one set."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._begun = Ranges()
        self._marks: deque[tuple[float, Ranges]] = deque()
        self._marked_s = float("-inf")

    def begin(self, index: int) -> None:
        """Event `index` has its first message."""
        self._begun.add(index, index)

    def due(self, now_s: float) -> Ranges:
        """The events that are over their deadline; each is told once."""
        if self._begun and now_s - self._marked_s >= self._after_s * _DEADLINE_PART:
            self._marks.append((now_s, self._begun))
            self._begun, self._marked_s = Ranges(), now_s
        due = Ranges()
        while self._marks and now_s - self._marks[0][0] >= self._after_s:
            for first, last in self._marks.popleft()[1]:
                due.add(first, last)
        return due
