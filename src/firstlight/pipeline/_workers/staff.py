"""The worker processes of one run at work: what they say is done, and who dies is replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import assert_never

from firstlight.errors import ConfigurationError, PipelineError, WorkerError
from firstlight.model import Ranges
from firstlight.pipeline._align.values import index_of, number_of
from firstlight.pipeline._parameters import Stamp
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.records import Record, UserError, WireRecord, from_wire, numbers_of
from firstlight.pipeline._reduction.reduction import Reduction
from firstlight.pipeline._reduction.results import Results
from firstlight.pipeline._worker_views import WorkersShown
from firstlight.pipeline._workers.child import unguarded_text
from firstlight.pipeline._workers.crew import Crew
from firstlight.pipeline._workers.deaths import Death, Deaths, Fatal
from firstlight.pipeline._workers.pool import Gone, Pool, Said
from firstlight.pipeline._workers.talk import (
    Answer,
    Asked,
    Broke,
    FromWorker,
    Known,
    Left,
    Reported,
    Settled,
    Started,
    Stored,
    Worked,
)
from firstlight.pipeline._workers.watching import Watch

__all__ = ["Staff"]

logger = logging.getLogger(__name__)


class Staff:
    """Takes what workers say and what becomes of them, one after the other, from the thread of the run.

    Parameters
    ----------
    results
        Where records go; None if they come through the pipe.
    stamp
        The parameters, as records tell them.
    shows
        Gets what a worker shows.
    park
        Puts down the record of an event that nobody gets any more.
    hang_after_s
        See `Processes`.
    """

    def __init__(
        self, pipeline: Pipeline, pool: Pool, crew: Crew, reduction: Reduction, results: Results | None, *,
        stamp: Callable[[], Stamp], shows: Callable[[int, WorkersShown], None], park: Callable[[Record], None],
        hang_after_s: float | None,
    ) -> None:  # fmt: skip
        self._pipeline = pipeline
        self._width = pipeline.width
        self._pool = pool
        self._crew = crew
        self._reduction = reduction
        self._results = results
        self._stamp = stamp
        self._shows = shows
        self._park = park
        self._deaths = Deaths(max_attempts=pipeline.max_attempts)
        self._watch = Watch(pool, self._deaths, hang_after_s) if hang_after_s is not None else None

    def look(self) -> None:
        """A little time has passed."""
        if self._watch is not None:
            self._watch.look()
        self._crew.poll(self._pool)

    def take(self, happened: Said | Gone) -> None:
        """A worker has said something, or is gone.

        Raises
        ------
        FirstlightError
            What ends the run: an error that a worker left with, or too many deaths.
        """
        if isinstance(happened, Said):
            self._said(happened.number, happened.what)
        elif self._pool.pid(happened.number) == happened.pid:  # not one that was noticed before
            self._gone(happened.number)

    def take_last(self, happened: Said | Gone) -> None:
        """The same when all have left the run: records and views count, and nobody waits for an answer.

        Raises
        ------
        FirstlightError
            An error that the worker left with.
        """
        match happened:
            case Said(_, Reported(records)):
                self._reduce(records)
            case Said(number, WorkersShown() as shown):
                self._shows(number, shown)
            case Said(_, Broke(error)):
                raise error

    def _said(self, number: int, what: FromWorker) -> None:
        match what:
            case Started():
                self._crew.started(number)
            case Reported(records, busy):
                self._crew.was_busy(busy)
                self._reduce(records)
                self._reported(number, records)
            case Settled(indices, busy):
                self._crew.was_busy(busy)
                self._crew.settled(number, indices)
            case Worked(numbers, busy):
                self._crew.was_busy(busy)
                self._crew.worked(number, numbers)
            case Stored(stretches):
                self._stored(number, stretches)
            case WorkersShown():
                self._shows(number, what)
            case Asked(index):
                self._asked(number, index)
            case Left(at_end, aborted):
                self._crew.left(number, at_end=at_end, aborted=aborted)
            case Broke(error):
                raise error
            case _:
                assert_never(what)

    # -- records ------------------------------------------------------------------------------------------------------

    def _reduce(self, records: Sequence[WireRecord]) -> None:
        for wire in records:
            self._reduction.take(from_wire(wire, self._pipeline.results))

    def _reported(self, number: int, records: Sequence[WireRecord]) -> None:
        if self._pipeline.combine is None:
            self._crew.settled(number, [record[0] for record in records])
            return
        every = Ranges((one, one) for record in records for one in numbers_of(record))
        self._settle(number, every, self._reduction.seen_of(every))

    def _settle(self, number: int, every: Ranges, known: Ranges) -> None:
        """Of what a worker has put down these count; others have to be worked on again."""
        again = every.copy()
        for first, last in known:
            again.discard(first, last)
        self._crew.settled(number, _every(known))
        self._crew.again(number, _every(again))

    def _stored(self, number: int, stretches: list[tuple[int, int]]) -> None:
        """A worker has stored combined records: they count if nobody had stored one of these events before."""
        known = self._stored_of(stretches)
        self._settle(number, Ranges(stretches), known)
        self._pool.say(number, Known(list(known)))

    def _stored_of(self, stretches: list[tuple[int, int]]) -> Ranges:
        """Those of these numbers that have a record in the results stream now."""
        if self._results is not None:
            self._results.drain()
        return self._reduction.seen_of(stretches)

    def _asked(self, number: int, index: int) -> None:
        # Whoever had it before may be dead without our having noticed: the service is told of that as soon as we are.
        for other in self._pool.numbers:
            if other != number and self._pool.slots[other].call == index and self._pool.is_dead(other, 1.0):
                self._gone(other)
        known = self._pipeline.combine is not None and bool(self._stored_of([(index, index)]))
        fatal = None if known else self._deaths.given_up(index)
        self._pool.say(number, Answer(index, self._record(index, fatal) if fatal is not None else None, known))

    # -- deaths -------------------------------------------------------------------------------------------------------

    def _gone(self, number: int) -> None:
        for other in self._pool.numbers:
            if self._pool.slots[other].has_done:
                self._deaths.works(other)
        call = self._pool.slots[number].call
        had_left, how, unguarded = self._pool.bury(number)
        if self._watch is not None:
            self._watch.forget(number)
        if had_left:
            self._deaths.left(number)
            return
        if unguarded:
            raise ConfigurationError(unguarded_text())
        self._died(number, self._deaths.died(number, call, how))
        self._pool.start(number)

    def _died(self, number: int, death: Death) -> None:
        index = None if death.call is None else index_of(death.call, self._width)
        at = "between events" if index is None else f"at event {index}"
        logger.warning("worker %d of pipeline %r was %s %s", number, self._pipeline.name, death.how, at)
        record = None
        if death.call is not None and death.given_up is not None:
            record = self._record(death.call, death.given_up)
        self._reduction.died(index, verdict=record, hung=death.hung)
        self._check(index, death)
        if self._pipeline.combine is not None and self._results is not None:
            self._results.drain()  # what it has stored is done, though it could not say so
        self._crew.died(number)
        # In a group the next member asks, and is told.
        if record is not None and self._crew.give_up(record.number):
            self._park(record)

    def _check(self, index: int | None, death: Death) -> None:
        name, fatal = self._pipeline.name, death.given_up
        if fatal is not None and self._pipeline.on_error == "stop":
            raise WorkerError(
                f"worker {self._pipeline.worker_name} of pipeline {name!r} was {fatal.how} at event {index}, "
                f"{fatal.n} times",
                event_index=index, error_type=fatal.error_type, traceback_text=fatal.trace,
            )  # fmt: skip
        if self._deaths.too_many_early:
            raise PipelineError(
                f"worker processes of pipeline {name!r} end between events, {self._deaths.n_early} in a row; the last "
                f"was {death.how}. Memory may be short, or a library cannot be loaded: try on=Inline()"
            )

    def _record(self, call: int, fatal: Fatal) -> Record:
        """The record of an event, or share of one, that has ended too many processes."""
        index = index_of(call, self._width)
        share = call - number_of(index, 0, self._width)
        text = f"event {index} ended {fatal.n} worker processes; the last was {fatal.how}"
        words = UserError(fatal.error_type, text, fatal.trace)
        hash_, set_ns, _ = self._stamp()
        return Record(index, "error", None, fatal.n, 0, words, hash_, share, self._width, set_ns)


def _every(numbers: Ranges) -> list[int]:
    return [number for first, last in numbers for number in range(first, last + 1)]
