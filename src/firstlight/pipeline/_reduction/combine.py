"""Adding up in the worker processes: results go into a reducer of the process, and travel as what that has added up.

Exactly once all the same: what was added up is one record that says of which events. It is taken as a whole or not at
all, in the order in which the records were stored, so everybody who reads them decides alike; a process lets go of its
events only when it knows what became of its record, and events of a record that was not taken are worked on again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from firstlight.errors import ConfigurationError
from firstlight.model import Ranges
from firstlight.pipeline._parameters import Retunes
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.records import Record, WireRecord, combined_to_wire
from firstlight.pipeline._reduction.reducers import in_order, parts_of
from firstlight.pipeline._reduction.state import packed_state
from firstlight.pipeline._step import reducer_error

__all__ = ["Combiner", "Gathered", "check_combined"]


def check_combined(pipeline: Pipeline) -> None:
    """Refuse a pipeline whose reducer cannot add up in parts.

    Raises
    ------
    ConfigurationError
        If it cannot.
    """
    reducer = pipeline.make_reducer()
    who = f"pipeline {pipeline.name!r} cannot combine results at the workers"
    if in_order(reducer):
        raise ConfigurationError(f"{who}: its reducer wants them in order; leave combine= out")
    if any(isinstance(part, Retunes) for part in parts_of(reducer).values()):
        raise ConfigurationError(f"{who}: its reducer is told parameters, which it is not there; leave combine= out")
    try:
        packed_state(reducer, pipeline.results)
    except Exception as error:
        raise ConfigurationError(f"{who}: {error}") from error


class Gathered(NamedTuple):
    """An event whose result was added up."""

    number: int
    done: Callable[[], None]
    again: Callable[[], None]


@dataclass(slots=True)
class _Part:
    """What is being added up."""

    reducer: Any
    begun_s: float
    parameters: str
    set_ns: int
    events: list[Gathered]
    numbers: set[int] = field(default_factory=set)
    retried: int = 0
    oldest_ns: int = 0


class Combiner:
    """What one worker process adds up.

    Parameters
    ----------
    send
        Gets the events and their record, when so many results or seconds have come together.
    clock
        Seconds.
    timed
        Surrounds calls of the reducer at a result.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        send: Callable[[list[Gathered], WireRecord], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        timed: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        assert pipeline.combine is not None
        self._pipeline = pipeline
        self._combine = pipeline.combine
        self._send = send
        self._clock = clock
        self._timed = timed
        self._part: _Part | None = None

    def add(self, record: Record, event: Gathered) -> None:
        """Add a result.

        Raises
        ------
        WorkerError
            If the reducer raised.
        """
        part = self._part
        if part is not None and (part.parameters, part.set_ns) != (record.parameters, record.set_ns):
            self.flush()
            part = None
        if part is None:
            part = _Part(self._pipeline.make_reducer(), self._clock(), record.parameters, record.set_ns, [])
        try:
            with self._timed():
                part.reducer.add(record.index, record.value)
        except Exception as error:  # user code
            where = f"at the result of event {record.index}"
            raise reducer_error(self._pipeline, where, error, index=record.index) from error
        self._part = part
        part.events.append(event)
        part.numbers.add(event.number)
        part.retried += record.attempts - 1
        if record.event_ns:
            part.oldest_ns = min(part.oldest_ns or record.event_ns, record.event_ns)

    def has(self, number: int) -> bool:
        """Its result is in what was added up and not sent yet."""
        return self._part is not None and number in self._part.numbers

    def look(self) -> None:
        """Send what was added up if that is enough, or began long enough ago.

        Between events, so that no single one is blamed for a state that cannot be sent.
        """
        part = self._part
        if part is not None and (
            len(part.events) >= self._combine.events or self._clock() - part.begun_s >= self._combine.seconds
        ):
            self.flush()

    def flush(self) -> None:
        """Send what was added up, and begin anew.

        Raises
        ------
        DataError
            If the reducer holds something that cannot travel.
        """
        part, self._part = self._part, None
        if part is None:
            return
        numbers = Ranges((event.number, event.number) for event in part.events)
        wire = combined_to_wire(
            packed_state(part.reducer, self._pipeline.results), numbers, encoding=self._pipeline.results,
            attempts=1 + part.retried, event_ns=part.oldest_ns, parameters=part.parameters, set_ns=part.set_ns,
        )  # fmt: skip
        self._send(part.events, wire)
