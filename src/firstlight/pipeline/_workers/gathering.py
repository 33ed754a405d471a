"""What becomes of the events of a worker process that adds results up: which records it puts down, and when it lets go of
the events."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from firstlight.errors import WorkerError
from firstlight.model import Ranges
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.combine import Combiner, Gathered
from firstlight.pipeline._reduction.records import Record, UserError, WireRecord, to_wire
from firstlight.pipeline._workers.feeds import Task

__all__ = ["Gathering"]

#: The run is told of so many events together that it may hand out others.
_SAY_EVERY = 16


class Gathering:
    """Between the worker and the `Settler`.

    Parameters
    ----------
    put
        Hands a task and its record to the settler.
    known
        What counts of the records that were settled last; None if that is not known any more. Without such a function
        everything counts.
    worked
        Told of events that were added up, where the run hands them out.
    timed
        Surrounds calls of the reducer at an event.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        put: Callable[[Task, WireRecord | None], None],
        *,
        known: Callable[[], Ranges | None] | None,
        worked: Callable[[list[int]], None] | None,
        timed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._pipeline = pipeline
        self._put = put
        self._known = known
        self._worked = worked
        self._unsaid: list[int] = []
        self._combiner = Combiner(pipeline, self._send, timed=timed)

    def take(self, task: Task, record: Record) -> None:
        """It is known what became of an event.

        Raises
        ------
        WorkerError
            If the reducer raised, and the pipeline stops at errors.
        """
        if record.kind == "result" and not task.alone:
            try:
                self._combiner.add(record, Gathered(record.number, task.done, task.again))
            except WorkerError as error:
                if self._pipeline.on_error == "stop":
                    raise
                words = UserError(error.values["error_type"], error.text, error.values["traceback_text"])
                record = replace(record, kind="error", value=None, error=words)
            else:
                self._unsaid.append(record.number)
                return
        event = Gathered(record.number, task.done, task.again)
        self._put(replace(task, done=lambda: self._decide([event])), to_wire(record, self._pipeline.results))

    def has(self, number: int) -> bool:
        """An event that is delivered again is at hand already, and settled with what it was added to: it must not be added
        twice."""
        return self._combiner.has(number)

    def known(self, task: Task) -> None:
        """The result of an event was added up by others."""
        self._put(task, None)

    def look(self, *, has_none: bool) -> None:
        """Between two events; `has_none` if it may take a while until the next."""
        self._combiner.look()
        if self._worked is not None and self._unsaid and (has_none or len(self._unsaid) >= _SAY_EVERY):
            self._worked(self._unsaid)
            self._unsaid = []
        elif self._worked is None:
            self._unsaid.clear()

    def flush(self) -> None:
        """There is nothing to do, or never again: send what was added up."""
        self._combiner.flush()

    def _send(self, events: list[Gathered], wire: WireRecord) -> None:
        self._put(Task(wire[0], dict, lambda: self._decide(events)), wire)

    def _decide(self, events: list[Gathered]) -> None:
        """Their record is stored: let go of them, or begin again."""
        known = self._known() if self._known is not None else None
        for event in events:
            if self._known is None or (known is not None and event.number in known):
                event.done()
            elif known is not None:
                event.again()
