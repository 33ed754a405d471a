"""Alignment by time: each message of the reference, and the messages of the others that were taken nearest to it.

Two messages belong together when each is the nearest to the other, and the times are no further apart than the tolerance.
That can be said as soon as the neighbours of both are there, which is one message later; so the answer does not depend on
the order in which messages arrive, and a lost message keeps only its own neighbours waiting.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from firstlight.errors import ConfigurationError
from firstlight.model import Dataset, Message, Ranges
from firstlight.pipeline._align.by_index import Aligner, check_inputs
from firstlight.pipeline._align.by_key import ReferenceForming
from firstlight.pipeline._align.forming import check_policy
from firstlight.pipeline._align.values import Action, Descriptor, Unmatched, WhenIncomplete, is_time

__all__ = ["ByTimestamp"]

_EARLIEST, _LATEST = float("-inf"), float("inf")


@dataclass(frozen=True, slots=True)
class ByTimestamp:
    """An event is a message of the reference, and from each other input the one taken nearest to it in time.

    Parameters
    ----------
    tolerance_s
        Largest difference of two timestamps that belong together.
    reference
        The input whose messages make the events; their ids are the indices.
    incomplete
        As of `ByIndex`; an event begins with the message of the reference.

    Notes
    -----
    Timestamps are those of the producers, whose clocks have to agree. Within an input a later id has a later time. Of two
    that are equally near, the earlier one counts.

    Raises
    ------
    ConfigurationError
        If the tolerance is no time, or less than nothing.
    """

    tolerance_s: float
    reference: str = field(kw_only=True)
    incomplete: WhenIncomplete = field(default="wait", kw_only=True)

    def __post_init__(self) -> None:
        check_policy(self.incomplete)
        if not is_time(self.tolerance_s) or not self.tolerance_s * 1e9 < _LATEST:
            raise ConfigurationError(f"tolerance_s of ByTimestamp is seconds from 0 on, not {self.tolerance_s!r}")

    @property
    def by_id(self) -> bool:
        """Times tell what belongs together."""
        return False

    @property
    def looks_inside(self) -> bool:
        """For the timestamp."""
        return True

    def aligner(self, inputs: Sequence[str]) -> Aligner:
        """A new state, for inputs of these names."""
        check_inputs("reference of ByTimestamp", [self.reference], inputs)
        return _TimeAligner(inputs, self.incomplete, self.reference, round(self.tolerance_s * 1e9))

    def describe(self, name: str, message: Message | Dataset) -> Descriptor:
        """When it was taken; of a dataset, when its first part was."""
        first = message if isinstance(message, Message) else next(iter(message))
        return Descriptor(message.id, first.timestamp_ns)


class _Timeline:
    """The messages of one input that may still matter, in order; of all others, that they were there."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.times: list[int] = []
        self.ended = False
        self._time_of: dict[int, int] = {}
        #: Ids that came, as stretches without a hole: of each the first and the last, and when they were taken.
        self._came = Ranges()
        self._edges: dict[int, int] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._came

    def add(self, number: int, time_ns: int) -> tuple[float, float]:
        """One more message; returns from when to when more is known by that."""
        self._came.add(number, number)
        self._time_of[number] = self._edges[number] = time_ns
        at = bisect_left(self.times, time_ns)
        self.ids.insert(at, number)
        self.times.insert(at, time_ns)
        earliest: float = self._edges.get(number - 1, _EARLIEST if number == 1 else time_ns)
        latest: float = self._edges.get(number + 1, _LATEST if self.ended else time_ns)
        for inner in (number - 1, number, number + 1):
            if inner - 1 in self._came and inner + 1 in self._came:
                self._edges.pop(inner, None)
        return earliest, latest

    def forget(self, number: int) -> None:
        """That message does not matter any more."""
        time_ns = self._time_of.pop(number, None)
        if time_ns is not None:
            at = self.ids.index(number, bisect_left(self.times, time_ns))
            del self.ids[at], self.times[at]

    def known(self, time_ns: int) -> bool:
        """Whether the messages before and after this time are there, and none can come between them any more."""
        if self.ended:
            return True
        stretch = self._came.last_where(lambda first: self._edges[first] <= time_ns)
        if stretch is None:
            return 1 in self._came
        return self._edges[stretch[1]] >= time_ns

    def within(self, earliest: float, latest: float) -> list[int]:
        """Ids of the messages in this time, both ends included."""
        return self.ids[bisect_left(self.times, earliest) : bisect_right(self.times, latest)]

    def time(self, number: int) -> int:
        """Of a message that still matters."""
        return self._time_of[number]


class _TimeAligner(ReferenceForming):
    """The state of `ByTimestamp`."""

    def __init__(self, inputs: Sequence[str], incomplete: WhenIncomplete, reference: str, tolerance_ns: int) -> None:
        super().__init__(inputs, incomplete, reference)
        self._tolerance_ns = tolerance_ns
        self._lines = {name: _Timeline() for name in inputs}
        self._events = self._lines[reference]
        #: For each other input the events for which it is open what belongs to them.
        self._undecided = {name: _Timeline() for name in inputs if name != reference}
        #: Events for which it is decided what belongs to them, of every input; they may be settled before that.
        self._decided = Ranges()

    def arrived(self, name: str, message: Descriptor) -> list[Action]:
        """A message of the input `name` is there."""
        line = self._lines[name]
        if message.n_rows < 0:
            return [Unmatched(name, message.id)]
        if message.id in line:
            return []
        earliest, latest = line.add(message.id, message.timestamp_ns)
        if name == self._reference:
            for undecided in self._undecided.values():
                undecided.add(message.id, message.timestamp_ns)
            actions = self._put(name, message.id, message.id)
            self._let_go(message.id)
            for other in self._others():
                actions += self._decide(other, earliest, latest)
            return actions
        return self._decide(name, earliest, latest)

    def _others(self) -> list[str]:
        return [name for name in self._inputs if name != self._reference]

    def ended(self, name: str) -> list[Action]:
        """Nothing more will come from the input `name`; what it has may still wait for messages of the reference."""
        self._calm = False
        self._lines[name].ended = True
        actions: list[Action] = []
        for other in self._others() if name == self._reference else [name]:
            actions += self._decide(other, _EARLIEST, _LATEST)
        return actions

    def _decide(self, name: str, earliest: float, latest: float) -> list[Action]:
        """What can be said now about the events and the messages of the input `name` in this time."""
        actions: list[Action] = []
        for index in self._undecided[name].within(earliest, latest):
            actions += self._match(name, index)
        for number in self._lines[name].within(earliest, latest):
            actions += self._finish(name, number)
        return actions

    def _is_decided(self, name: str, index: int) -> bool:
        return index in self._have[name] or index in self._never[name] or index in self._expired

    def _let_go(self, index: int) -> None:
        """Forget events that are decided, unless one beside them may want a message that is nearer to them."""
        if not all(self._is_decided(name, index) for name in self._others()):
            return
        self._decided.add(index, index)
        for middle in (index - 1, index, index + 1):
            if all(beside in self._decided for beside in (middle - 1, middle, middle + 1)):
                self._events.forget(middle)

    def _match(self, name: str, index: int) -> list[Action]:
        """Give event `index` the message of `name` that belongs to it, if that can be said."""
        line = self._lines[name]
        time_ns = self._events.time(index)
        at = bisect_right(line.times, time_ns)
        if at and line.times[at - 1] == time_ns:  # none can be nearer
            return self._use(name, index, line.ids[at - 1])
        if not line.known(time_ns):
            return []
        best = None
        for number in self._near(name, index):
            nearest = self._nearest_event(line.time(number))
            if nearest is None:
                return []
            if nearest == index and best is None:
                best = number
        if best is not None:
            return self._use(name, index, best)
        self._undecided[name].forget(index)
        actions = self._will_not_come(name, index)
        self._let_go(index)
        return actions

    def _near(self, name: str, index: int) -> list[int]:
        """The messages of `name` before and after event `index` that are within the tolerance, the nearest first."""
        line = self._lines[name]
        time_ns = self._events.time(index)
        at = bisect_right(line.times, time_ns)
        found = [(abs(line.times[i] - time_ns), i) for i in (at - 1, at) if 0 <= i < len(line.ids)]
        return [line.ids[i] for distance, i in sorted(found) if distance <= self._tolerance_ns]

    def _nearest_event(self, time_ns: int) -> int | None:
        """The index of the event that is nearest, 0 if none is within the tolerance; None if that cannot be said yet."""
        after = bisect_right(self._events.times, time_ns)
        if after and self._events.times[after - 1] == time_ns:
            return self._events.ids[after - 1]
        return self._nearest_known(time_ns) if self._events.known(time_ns) else None

    def _nearest_known(self, time_ns: int) -> int:
        after = bisect_right(self._events.times, time_ns)
        found = [
            (abs(self._events.times[i] - time_ns), i) for i in (after - 1, after) if 0 <= i < len(self._events.ids)
        ]
        distance, at = min(found, default=(self._tolerance_ns + 1, 0))
        return self._events.ids[at] if distance <= self._tolerance_ns else 0

    def _use(self, name: str, index: int, number: int) -> list[Action]:
        self._lines[name].forget(number)
        self._undecided[name].forget(index)
        actions = self._put(name, index, number)
        self._let_go(index)
        return actions

    def _finish(self, name: str, number: int) -> list[Action]:
        """Let go of a message that belongs to no event, or came too late for its own."""
        nearest = self._nearest_event(self._lines[name].time(number))
        if nearest is None or (nearest and not self._is_decided(name, nearest)):
            return []
        if nearest in self._expired and nearest not in self._have[name] and nearest not in self._never[name]:
            return self._use(name, nearest, number)
        self._lines[name].forget(number)
        return [Unmatched(name, number)]

    def held(self) -> dict[str, Ranges]:
        """For each input the ids of messages that may still become part of an event."""
        held = super().held()
        for name in self._others():
            for number in self._lines[name].ids:
                held[name].add(number, number)
        return held

    def _expire(self, index: int) -> Action:
        """The deadline is over: what belongs to the event as far as is known now, does."""
        for name in self._others():
            if not self._is_decided(name, index):
                for number in self._near(name, index):
                    if index not in self._have[name] and self._nearest_known(self._lines[name].time(number)) == index:
                        self._lines[name].forget(number)
                        self._ids[index][name] = number
                        self._have[name].add(index, index)
        action = super()._expire(index)
        for undecided in self._undecided.values():
            undecided.forget(index)
        self._let_go(index)
        return action
