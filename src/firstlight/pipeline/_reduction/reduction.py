"""The reducing side of a run: every event counts once, whatever is delivered how often."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firstlight.errors import DataError, PipelineError, WorkerError
from firstlight.model import Ranges, View
from firstlight.monitoring import Histogram
from firstlight.pipeline._align.values import (
    Action,
    Again,
    Dropped,
    Incomplete,
    KnowsNever,
    Late,
    Ready,
    Unmatched,
    index_of,
    number_of,
)
from firstlight.pipeline._parameters import Retunes
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.combine import check_combined
from firstlight.pipeline._reduction.in_order import InOrder
from firstlight.pipeline._reduction.recent import Recent
from firstlight.pipeline._reduction.records import Record, UserError
from firstlight.pipeline._reduction.reducers import Finishes, PartError, Ticks, Timer, in_order, max_held, parts_of
from firstlight.pipeline._reduction.state import kind_of, packed_state, restore_state
from firstlight.pipeline._reduction.stats import Counts, EventError, Stats
from firstlight.pipeline._step import reducer_error

__all__ = ["Reduction", "Saved"]


@dataclass(frozen=True, slots=True)
class Saved:
    """A reduction at one moment.

    Attributes
    ----------
    reducer
        The class.
    state
        What it had added up, as bytes.
    counts
        As `Counts.to_plain` writes them.
    held
        Numbers of the records that wait for others; neither the reducer nor the counts know of them.
    """

    reducer: str
    state: bytes
    counts: Mapping[str, Any]
    held: tuple[int, ...] = ()


class Reduction:
    """The reducer of one run and everything counted about it. Thread safe.

    Parameters
    ----------
    live
        Record latencies; of a recording they would say when it was made.
    """

    def __init__(self, pipeline: Pipeline, *, live: bool) -> None:
        self._pipeline = pipeline
        self._live = live
        self._lock = threading.Lock()
        #: What is there and what is done is told and asked while the reducer is at work, which may take its time.
        self._seeing = threading.Lock()
        self._width = pipeline.width
        self._begin_with(pipeline.make_reducer())
        if pipeline.combine is not None:
            check_combined(pipeline)
        self._counts = Counts()
        self.recent = Recent(pipeline)
        self._started = time.monotonic()
        self._began_ns = time.time_ns()
        self._ended: float | None = None
        self._latency = Histogram()
        self._for_everyone: set[int] = set()
        #: By number of a record to come, attempts at its event that were counted when they failed.
        self._told_attempts: dict[int, int] = {}
        self._missing: dict[str, Ranges] = {}
        self._evicted: dict[str, int] = {}
        self._parameters: Mapping[str, Any] | None = None
        self._available = 0
        self._has_finished = False
        #: Changes of the reducer, and after how many of them it failed to show itself.
        self._changes = self._failed_at = 0

    def _begin_with(self, reducer: Any) -> None:
        self.reducer = reducer
        #: Only if the reducer wants order: what waits, and which records there will be, by number.
        self._order = InOrder[Record](max_held(reducer)) if in_order(reducer) else None
        self._expected = Ranges()
        if self._order is not None and isinstance(self._pipeline.align, KnowsNever):
            for first, last in self._pipeline.align.never:
                self._order.without(*self._numbers(first, last))
        now_s = time.monotonic()
        self._timers = [Timer(name, part, now_s) for name, part in parts_of(reducer).items() if isinstance(part, Ticks)]

    # -- what happens -----------------------------------------------------------------------------------------------

    def take(self, record: Record) -> None:
        """Count a record, and give its result to the reducer, unless it came before.

        Raises
        ------
        WorkerError
            If the reducer raised, and the pipeline stops at errors.
        """
        with self._lock:
            if record.kind == "combined":
                self._take_combined(record)
                return
            if record.number in self._counts.seen:
                self._counts.duplicates += record.number not in self._for_everyone
                return
            self._see(record.number)
            self.recent.took(record)
            if record.kind != "result":
                self._count(record)
                self._no_result(record)
                self._has_none(record.number, record.number)
            elif self._order is None:
                self._give([record])
            else:
                n_late = self._order.n_late
                ready = self._order.put(record.number, record)
                self._counts.late_results += self._order.n_late - n_late
                self._give(ready)

    def _take_combined(self, record: Record) -> None:
        """As a whole or not at all; what it has to do with events that are done with, others have done meanwhile."""
        if known := sum(b - a + 1 for first, last in record.covers for a, b in self._counts.seen.within(first, last)):
            self._counts.duplicates += known
            return
        part = self._pipeline.make_reducer()
        restore_state(part, record.value, self._pipeline.results)
        numbers = [number for first, last in record.covers for number in range(first, last + 1)]
        for number in numbers:
            self._see(number)
            self.recent.took(Record(index_of(number, self._width), "result"))
        self._count(record)
        self._changes += 1
        try:
            self.reducer.merge(part)
        except Exception as error:  # noqa: BLE001 - user code
            for number in numbers:
                self._counts.parked.add(index_of(number, self._width), index_of(number, self._width))
            where = (
                f"when it merged the results of {len(numbers)} events, {index_of(numbers[0], self._width)} among them"
            )
            self._failed(reducer_error(self._pipeline, where, error), error)
            return
        self._counts.results += len(numbers)
        self._note_latency(record)

    def _note_latency(self, record: Record) -> None:
        # What was stored before we began says how old it is, not how long we take.
        if self._live and record.event_ns >= self._began_ns:
            self._latency.record(max((time.time_ns() - record.event_ns) * 1e-9, 0.0))

    def _count(self, record: Record) -> None:
        untold = max(record.attempts - 1 - self._told_attempts.pop(record.number, 0), 0)
        self._counts.retried += untold
        self._counts.errors += untold

    def _has_none(self, first: int, last: int) -> None:
        """The records with the numbers ``first .. last`` hold up no results."""
        if self._order is not None:
            self._give(self._order.without(first, last))

    def _give(self, records: list[Record]) -> None:
        for record in records:
            self._count(record)
            self._reduce(record)
            self._note_latency(record)

    def _see(self, number: int) -> None:
        index = index_of(number, self._width)
        with self._seeing:
            self._counts.seen.add(number, number)
            if self._width == 1 or self._all_seen(index):
                self._counts.done.add(index, index)

    def _all_seen(self, index: int) -> bool:
        first, last = self._numbers(index, index)
        return self._counts.seen.first_missing(first) > last

    def _numbers(self, first: int, last: int) -> tuple[int, int]:
        """The first and the last number of the events ``first .. last``."""
        return number_of(first, 0, self._width), number_of(last + 1, 0, self._width) - 1

    def _reduce(self, record: Record) -> None:
        self._changes += 1
        try:
            self.reducer.add(record.index, record.value)
        except Exception as error:  # noqa: BLE001 - user code
            self._counts.parked.add(record.index, record.index)
            failure = reducer_error(self._pipeline, f"at the result of event {record.index}", error, index=record.index)
            self._failed(failure, error)
            return
        self._counts.results += 1

    def _failed(self, failure: WorkerError, error: Exception) -> None:
        """The reducer raised: that ends the run, or is counted."""
        if self._pipeline.on_error == "stop":
            raise failure from error
        self._counts.errors += 1
        words = UserError(failure.values["error_type"], failure.text, failure.values["traceback_text"])
        self._counts.last_errors.append(EventError(failure.values["event_index"], words))

    def _no_result(self, record: Record) -> None:
        if record.kind == "none":
            self._counts.empty += 1
            return
        (self._counts.lost if record.kind == "lost" else self._counts.parked).add(record.index, record.index)
        if record.error is not None:
            self._counts.errors += record.kind == "error"
            self._counts.last_errors.append(EventError(record.index, record.error))

    def died(self, index: int | None, *, verdict: Record | None = None, hung: bool = False) -> None:
        """A worker process ended, maybe at event `index`, which somebody else gets unless there is a `verdict`."""
        with self._lock:
            self._counts.workers_died += 1
            self._counts.hung += hung
            if verdict is not None:  # whoever takes it, or tells that it ended the run, counts this death
                self._told_attempts[verdict.number] = verdict.attempts - 1
            elif index is not None:
                self._counts.errors += 1
                self._counts.retried += 1

    def worker_failed(self, error: WorkerError) -> None:
        """User code raised at an event, and the run ends with that."""
        with self._lock:
            index = error.values.get("event_index")
            if index is not None:
                self._counts.errors += 1
                words = UserError(error.values["error_type"], error.text, error.values["traceback_text"])
                self._counts.last_errors.append(EventError(index, words))

    def failed_between(self, words: UserError) -> None:
        """User code raised at no event, and the run goes on."""
        with self._lock:
            self._counts.errors += 1
            self._counts.last_errors.append(EventError(None, words))

    def offered(self, total: int) -> None:
        """The inputs have offered so many events."""
        with self._seeing:
            self._available = max(total, self._available)

    def formed(self, action: Action, parts: Sequence[Ready] = ()) -> None:
        """An event was formed or given up, or a message came that belongs to none.

        Parameters
        ----------
        parts
            What workers get of an event that was formed.
        """
        if isinstance(action, Ready):
            self._formed(action, parts)
            return
        with self._lock:
            match action:
                case Incomplete(first, last):
                    self._counts.incomplete.add(first, last)
                    self._has_none(*self._numbers(first, last))
                case Dropped(first, last):
                    self._counts.dropped.add(first, last)
                    self._has_none(*self._numbers(first, last))
                case Late(name, number):
                    self._counts.late.setdefault(name, Ranges()).add(number, number)
                case Again(name, number):
                    self._counts.again.setdefault(name, Ranges()).add(number, number)
                case Unmatched(name, number):
                    self._counts.unmatched.setdefault(name, Ranges()).add(number, number)

    def _formed(self, event: Ready, parts: Sequence[Ready]) -> None:
        self.recent.formed(event)
        everyone = any(part.everyone for part in parts)
        if len(parts) == self._width and not event.missing and not everyone and self._order is None:
            return
        with self._lock:
            if event.missing:
                self._counts.partial.add(event.index, event.index)
            shares = {part.share: part for part in parts}
            if not shares and event.index not in self._counts.done:  # what is there of it, no worker is to see
                self._counts.empty += 1
            for share in range(self._width):
                number = number_of(event.index, share, self._width)
                if share not in shares and number not in self._counts.seen:  # there is no such record to wait for
                    self._see(number)
                    self._has_none(number, number)
                elif share in shares and shares[share].everyone:
                    self._for_everyone.add(number)
                self._expected.add(number, number)

    def all_formed(self, events: Ranges | None = None) -> None:
        """There will be no other events: than these, or if they are left out than those that were formed."""
        with self._lock:
            if self._order is not None:
                known = (self._expected if events is None else events).copy()
                for first, last in self._counts.seen:
                    known.add(first, last)
                self._give(self._order.only(known))

    def missed(self, missing: Mapping[str, Ranges]) -> None:
        """The ids that inputs did not have."""
        with self._lock:
            self._missing = {name: ids.copy() for name, ids in missing.items()}

    def evicted(self, name: str, n: int) -> None:
        """Of an input that is at its end so many messages were gone before they could be read."""
        if n:
            with self._lock:
                self._evicted[name] = n

    def tick(self) -> None:
        """Call the reducers whose time has come.

        Raises
        ------
        WorkerError
            If one raised, and the pipeline stops at errors.
        """
        now_s = time.monotonic()
        for timer in self._timers:
            if timer.due(now_s):
                with self._lock:
                    self._changes += 1
                    try:
                        timer.call(now_s)
                    except Exception as error:  # noqa: BLE001 - user code
                        self._between(timer.name, "when its tick() was called", error)

    def _between(self, name: str, where: str, error: Exception) -> None:
        """A reducer raised at no event."""
        if name:
            part = PartError(name)
            part.__cause__ = error
            error = part
        self._failed(reducer_error(self._pipeline, where, error), error)

    def retune(self, parameters: Mapping[str, Any]) -> None:
        """Tell the reducers that want to know what the parameters are.

        Raises
        ------
        WorkerError
            If one raised, and the pipeline stops at errors.
        """
        with self._lock:
            self._retune(parameters)

    def _retune(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = parameters
        for name, part in parts_of(self.reducer).items():
            if isinstance(part, Retunes):
                self._changes += 1
                try:
                    part.retune(parameters)
                except Exception as error:  # noqa: BLE001 - user code
                    self._between(name, "when its parameters were changed", error)

    def conclude(self, *, finish: bool) -> None:
        """Nothing more comes: give the reducer what still waits, and tell it that the scan is over if it is to `finish`.

        Raises
        ------
        WorkerError
            If it raised, and the pipeline stops at errors.
        """
        with self._lock:
            if self._order is not None:
                self._give(self._order.rest())
            if not finish or self._has_finished or not isinstance(self.reducer, Finishes):
                return
            self._has_finished = True  # also if Ctrl-C comes now
            self._changes += 1
            try:
                self.reducer.finish()
            except Exception as error:  # noqa: BLE001 - user code
                self._failed(reducer_error(self._pipeline, "when its finish() was called", error), error)

    def ended(self) -> None:
        """The run is over; its clock stops."""
        with self._lock:
            self._ended = time.monotonic()

    # -- going on -----------------------------------------------------------------------------------------------------

    def save(self) -> Saved:
        """What another run needs to go on from here.

        Raises
        ------
        DataError
            If the reducer holds something that cannot be written down.
        """
        with self._lock:
            held = tuple(self._order.held) if self._order is not None else ()
            counts = self._counts.without(held, [index_of(number, self._width) for number in held]).to_plain()
            return Saved(kind_of(self.reducer), packed_state(self.reducer, self._pipeline.results), counts, held)

    def restore(self, saved: Saved) -> None:
        """Go on from what another run has saved; before anything else.

        Raises
        ------
        DataError
            If it cannot be read, or is that of another reducer; then nothing has changed.
        WorkerError
            As `retune`: what was told to the reducer that was there is told to this one.
        """
        reducer = self._pipeline.make_reducer()
        if saved.reducer != kind_of(reducer):
            raise DataError(f"it is of the reducer {saved.reducer}, not {kind_of(reducer)}")
        restore_state(reducer, saved.state, self._pipeline.results)
        try:
            counts = Counts.from_plain(saved.counts)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"its counts cannot be read: {error!r}") from error
        with self._lock:
            self._begin_with(reducer)
            with self._seeing:
                self._counts = counts
            self._changes += 1
            for first, last in counts.seen:
                self._has_none(first, last)
            if self._parameters is not None:
                self._retune(self._parameters)

    # -- looking at it ----------------------------------------------------------------------------------------------

    def seen_of(self, stretches: Iterable[tuple[int, int]]) -> Ranges:
        """Those of these numbers of which a record came."""
        with self._seeing:
            return Ranges(piece for first, last in stretches for piece in self._counts.seen.within(first, last))

    @property
    def n_held(self) -> int:
        """Results that wait for others."""
        return len(self._order.held) if self._order is not None else 0

    def has_seen(self, number: int) -> bool:
        """Whether a record of this number came."""
        with self._seeing:
            return number in self._counts.seen

    def is_done(self, index: int) -> bool:
        """Whether all records of this event came."""
        with self._seeing:
            return index in self._counts.done

    @property
    def view_version(self) -> int:
        """Another number whenever there may be something else to see; 0 while there is nothing."""
        return self._changes if self._counts.results else 0

    def snapshot(self) -> dict[str, View]:
        """The views; empty before the first result.

        Raises
        ------
        WorkerError
            If the reducer raises, or returns something else than views by name.
        """
        with self._lock:
            if not self._counts.results:
                return {}
            try:
                views = dict(self.reducer.snapshot())
            except Exception as error:  # user code
                # Several may ask, and more often than anything changes: it is one failure.
                failure = reducer_error(self._pipeline, "when it was asked for its views", error)
                if self._failed_at != self._changes:
                    self._note_view_failure(failure)
                self._failed_at = self._changes
                raise failure from error
        for name, view in views.items():
            if not isinstance(view, View):
                raise PipelineError(
                    f"the reducer of pipeline {self._pipeline.name!r} shows {name!r} as a {type(view).__name__}; "
                    "wrap it into Image, Line, Scalar or another View"
                )
        return views

    def _note_view_failure(self, failure: WorkerError) -> None:
        self._counts.errors += 1
        words = UserError(failure.values["error_type"], failure.text, failure.values["traceback_text"])
        # The same words a hundred times would push those of events out.
        if EventError(None, words) not in self._counts.last_errors:
            self._counts.last_errors.append(EventError(None, words))

    def stats(self) -> Stats:
        """The numbers now."""
        with self._lock:
            return self._counts.stats(
                held=self.n_held,
                missing=dict(self._missing),
                evicted=dict(self._evicted),
                available=self._available,
                latency_s=self._latency.snapshot(),
                elapsed_s=(self._ended or time.monotonic()) - self._started,
            )
