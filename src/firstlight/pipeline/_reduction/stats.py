"""A run in numbers: while they are counted, and as they are shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from firstlight.model import Ranges
from firstlight.monitoring import Histogram, HistogramSnapshot
from firstlight.pipeline._reduction.records import UserError

__all__ = ["Counts", "EventError", "Stats"]

#: Texts of so many errors are kept; all are counted.
_KEPT_ERRORS = 100


@dataclass(frozen=True, slots=True)
class EventError:
    """Why an event has no result; `index` is None for what was raised between events."""

    index: int | None
    error: UserError


@dataclass(frozen=True, slots=True)
class Stats:
    """A run in numbers, at one moment.

    Every event that was formed is in exactly one of `results`, `held`, `empty`, `parked` and `lost` when it is done with, and
    in exactly one of `complete` and `partial`; what was not formed is `incomplete` or `dropped`.

    Attributes
    ----------
    events
        Events that are done with.
    results, empty
        Events with a result that was given to the reducer, and those for which the worker returned None. Where events
        have several shares, each counts.
    held
        Events with a result that waits until the reducer, which wants them in order, has had those before.
    late_results
        Results that were given out of order, because too many others would have had to wait for them.
    errors
        Exceptions of user code, each attempt counted, and deaths of worker processes.
    retried
        Calls of the worker beyond the first one for an event, and events given to somebody else after a worker died.
    parked
        Events that were given up after so many attempts, or whose result the reducer did not take.
    lost
        Events whose messages were no longer held when their turn came, or are damaged in their file.
    duplicates
        Second copies of records, dropped.
    complete
        Events that are done with and had everything.
    partial
        Events that were formed although inputs had nothing for them, as asked by `Partial`.
    dropped
        Events that were given up because inputs had nothing for them, as asked by `Drop`.
    incomplete
        Events that some inputs have and others, which have ended, do not.
    late
        For each input the events that it had its part of after their deadline.
    again
        For each input the events that it had a second part of: a repeated trigger.
    unmatched
        For each input the ids of messages that belong to no event.
    missing
        For each input the events that it had nothing for, below the highest that any input had; known at the end.
    evicted
        For each input the number of messages that were gone before they could be read; known at its end. Where each
        message is an event, and the service hands them out, these events are `lost`.
    workers_died
        Worker processes that ended without being asked to.
    hung
        Of these, those that were killed because they were too long at one event.
    available
        Events of which something has come so far.
    latency_s
        From the service having the last message of an event until its result was reduced, in seconds; live only, and only of
        events that came after the run began.
    elapsed_s
        Since the run began.
    last_errors
        Up to 100 of the errors, the oldest first.
    """

    events: int = 0
    results: int = 0
    empty: int = 0
    held: int = 0
    late_results: int = 0
    errors: int = 0
    retried: int = 0
    parked: Ranges = field(default_factory=Ranges)
    lost: Ranges = field(default_factory=Ranges)
    duplicates: int = 0
    complete: Ranges = field(default_factory=Ranges)
    partial: Ranges = field(default_factory=Ranges)
    dropped: Ranges = field(default_factory=Ranges)
    incomplete: Ranges = field(default_factory=Ranges)
    late: Mapping[str, Ranges] = field(default_factory=dict)
    again: Mapping[str, Ranges] = field(default_factory=dict)
    unmatched: Mapping[str, Ranges] = field(default_factory=dict)
    missing: Mapping[str, Ranges] = field(default_factory=dict)
    evicted: Mapping[str, int] = field(default_factory=dict)
    workers_died: int = 0
    hung: int = 0
    available: int = 0
    latency_s: HistogramSnapshot = field(default_factory=lambda: Histogram().snapshot(), repr=False)
    elapsed_s: float = 0.0
    last_errors: tuple[EventError, ...] = ()

    @property
    def rate_hz(self) -> float:
        """Events per second since the run began."""
        return self.events / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def lag(self) -> int:
        """Events that wait to be worked on."""
        return max(self.available - self.events - len(self.incomplete) - len(self.dropped), 0)

    @property
    def lacks_some(self) -> bool:
        """The answer is not that of everything that was taken: events were given up, or messages were gone."""
        return bool(self.parked or self.lost or self.evicted)

    def facts(self) -> dict[str, Any]:
        """The same as JSON; of the errors only how many there are."""
        latency = self.latency_s
        facts: dict[str, Any] = {
            "events_per_second": round(self.rate_hz, 3),
            "lag": self.lag,
            "latency_p50_s": latency.quantile(0.5) if latency.count else None,
            "latency_p99_s": latency.quantile(0.99) if latency.count else None,
            "elapsed_s": round(self.elapsed_s, 3),
        }
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("latency_s", "last_errors")}
        return {name: _listed(value) for name, value in own.items()} | facts


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _listed(part) for name, part in value.items()}
    return list(value) if isinstance(value, Ranges) else value


def _errors() -> deque[EventError]:
    return deque(maxlen=_KEPT_ERRORS)


@dataclass(slots=True)
class Counts:
    """What a run has counted so far, under the names that `Stats` has; a run that continues another one goes on from it."""

    #: The records that there are, by number, and the events that are done with.
    seen: Ranges = field(default_factory=Ranges)
    done: Ranges = field(default_factory=Ranges)
    results: int = 0
    empty: int = 0
    late_results: int = 0
    errors: int = 0
    retried: int = 0
    duplicates: int = 0
    workers_died: int = 0
    hung: int = 0
    parked: Ranges = field(default_factory=Ranges)
    lost: Ranges = field(default_factory=Ranges)
    partial: Ranges = field(default_factory=Ranges)
    dropped: Ranges = field(default_factory=Ranges)
    incomplete: Ranges = field(default_factory=Ranges)
    late: dict[str, Ranges] = field(default_factory=dict)
    again: dict[str, Ranges] = field(default_factory=dict)
    unmatched: dict[str, Ranges] = field(default_factory=dict)
    last_errors: deque[EventError] = field(default_factory=_errors)

    def stats(self, **more: Any) -> Stats:
        """The numbers now, with those that are not counted here."""
        values = {f.name: _copied(getattr(self, f.name)) for f in fields(self) if f.name not in ("seen", "done")}
        complete = self.done.copy()
        for first, last in self.partial:
            complete.discard(first, last)
        return Stats(events=len(self.done), complete=complete, **values, **more)

    def without(self, numbers: Iterable[int], events: Iterable[int]) -> Counts:
        """The same before these records came, of these events."""
        counts = replace(self, seen=self.seen.copy(), done=self.done.copy())
        for number in numbers:
            counts.seen.discard(number, number)
        for index in events:
            counts.done.discard(index, index)
        return counts

    def to_plain(self) -> dict[str, Any]:
        """The numbers as lists and dictionaries, to be written down."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Counts:
        """What `to_plain` wrote; raises KeyError, TypeError or ValueError if it is something else."""
        counts = cls()
        for f in fields(cls):
            setattr(counts, f.name, _read(getattr(counts, f.name), values[f.name]))
        return counts


def _copied(value: Any) -> Any:
    if isinstance(value, Ranges):
        return value.copy()
    if isinstance(value, dict):
        return {name: found.copy() for name, found in value.items()}
    return tuple(value) if isinstance(value, deque) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Ranges):
        return [list(pair) for pair in value]
    if isinstance(value, dict):
        return {name: _plain(found) for name, found in value.items()}
    if isinstance(value, deque):
        return [[shown.index, shown.error.type, shown.error.text, shown.error.traceback] for shown in value]
    return value


def _read(like: Any, value: Any) -> Any:
    if isinstance(like, Ranges):
        return Ranges((int(first), int(last)) for first, last in value)
    if isinstance(like, dict):
        return {str(name): _read(Ranges(), found) for name, found in value.items()}
    if isinstance(like, deque):
        like.extend(EventError(index, UserError(*words)) for index, *words in value)
        return like
    return int(value)
