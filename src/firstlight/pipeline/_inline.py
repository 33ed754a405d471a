"""The executor for the debugger: everything in the thread that asks for the result."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from firstlight.errors import (
    ConfigurationError,
    FirstlightError,
    MessageEvictedError,
    MessageNotFoundError,
    StreamAbortedError,
    WorkerError,
)
from firstlight.model import Event
from firstlight.pipeline._align import Action, Aligner, Ready
from firstlight.pipeline._live import Live
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._records import Record, UserError
from firstlight.pipeline._run import OnView, Run
from firstlight.pipeline._sources import Arrival, Ended, Found, OpenSource, Source
from firstlight.pipeline._step import Step

__all__ = ["Inline", "Offered", "aborted_error", "lost_record"]

#: Messages that are kept at hand while their event waits for other inputs; what is beyond is fetched again.
_MAX_HELD = 64


@dataclass(frozen=True)
class Inline:
    """Run in the thread that calls `Run.result`, `Run.join` or iterates: breakpoints and profilers work, one event at a
    time.

    Nothing happens before one of those is called.
    """

    def start(self, pipeline: Pipeline, source: Source, *, on_view: OnView | None, view_every_s: float) -> Run:
        """Begin a run."""
        if isinstance(source, Live) and source.group is not None:
            raise ConfigurationError(
                f"a run in this process cannot continue run {source.group!r}: its reducer keeps nothing. "
                "Leave group= out, or "
                "run on=Processes(1)"
            )
        return InlineRun(pipeline, source, on_view=on_view, view_every_s=view_every_s)


class Offered:
    """Counts what the inputs offer: as many events as the input with most messages has."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def count(self, name: str) -> int:
        """One more message of the input `name`; returns how many events there may be."""
        self._counts[name] = self._counts.get(name, 0) + 1
        return max(self._counts.values())


class InlineRun(Run):
    """A run that goes on while somebody waits for it."""

    def __init__(self, pipeline: Pipeline, source: Source, *, on_view: OnView | None, view_every_s: float) -> None:
        super().__init__(pipeline, source, on_view=on_view, view_every_s=view_every_s)
        self._source = source
        self._driving = threading.Lock()
        self._held: OrderedDict[tuple[str, int], Found] = OrderedDict()
        self._offered = Offered()
        self._aborted: Ended | None = None
        self._turns = self._work()

    def join(self, timeout: float | None = None) -> bool:
        """Work until the end, or for so long."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._driving:
            while not self._over.is_set():
                self._turn()
                if deadline is not None and time.monotonic() >= deadline:
                    break
        return self._over.is_set()

    def _turn(self) -> None:
        try:
            next(self._turns)
        except StopIteration:
            self._conclude()
        except FirstlightError as error:
            if isinstance(error, WorkerError):
                self._reduction.worker_failed(error)
            self._end("failed", error)
        except BaseException:
            # Ctrl-C, or a mistake of ours: the generator is gone, the run cannot go on.
            self._end("stopped")
            raise

    def _conclude(self) -> None:
        if self._aborted is not None:
            self._end("aborted", aborted_error(self.pipeline, self._aborted))
        else:
            self._end("stopped" if self._stopping.is_set() else "finished")

    def _work(self) -> Iterator[None]:
        step = Step(self.pipeline, lambda record: None)
        try:
            with self._source.open(self.pipeline.inputs) as opened:
                yield from self._follow(opened, step)
        finally:
            self._held.clear()
            step.close()

    def _follow(self, opened: OpenSource, step: Step[None]) -> Iterator[None]:
        aligner = self.pipeline.align.aligner(self.pipeline.inputs)
        for told in opened.tidings():
            if self._stopping.is_set():
                return
            for action in self._noted(told, aligner):
                self._act(action, opened, step)
            self._show()
            yield
        self._reduction.missed(aligner.missing())

    def _noted(self, told: Arrival | Ended | None, aligner: Aligner) -> list[Action]:
        if told is None:
            return []
        if isinstance(told, Ended):
            if told.aborted is not None:
                self._aborted = told
            return aligner.ended(told.name)
        self._reduction.offered(self._offered.count(told.name))
        if told.message is not None:
            self._held[told.name, told.id] = told.message
            if len(self._held) > _MAX_HELD:
                self._held.popitem(last=False)
        return aligner.arrived(told.name, told.id)

    def _act(self, action: Action, opened: OpenSource, step: Step[None]) -> None:
        if not isinstance(action, Ready):
            self._reduction.incomplete(action.first, action.last)
            return
        found = {name: self._held.pop((name, number), None) for name, number in action.ids.items()}
        try:
            fetched = opened.fetch({name: action.ids[name] for name, held in found.items() if held is None})
        except (MessageEvictedError, MessageNotFoundError) as error:
            self._reduction.take(lost_record(action.index, error))
            return
        messages = {name: fetched[name] if held is None else held for name, held in found.items()}
        record, _ = step.run(Event(action.index, messages))
        self._reduction.take(record)


def lost_record(index: int, error: FirstlightError) -> Record:
    """The record of an event whose messages are gone."""
    return Record(index, "lost", attempts=1, error=UserError(type(error).__name__, error.text))


def aborted_error(pipeline: Pipeline, ended: Ended) -> StreamAbortedError:
    """The error for an input that its producer gave up."""
    return StreamAbortedError(
        f"input {ended.name!r} of pipeline {pipeline.name!r} was given up by its producer: {ended.aborted}; "
        "what came before was worked on, see .reducer",
        reason=ended.aborted, stream=ended.name,
    )  # fmt: skip
