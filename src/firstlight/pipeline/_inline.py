"""The executor for the debugger: everything in the thread that asks for the result."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from firstlight.errors import ConfigurationError
from firstlight.pipeline._align.assign import Sharing
from firstlight.pipeline._align.by_index import Action, Aligner, Ready
from firstlight.pipeline._parameters import ParameterSet
from firstlight.pipeline._pipeline import Pipeline, Resets
from firstlight.pipeline._reduction.records import Record, lost_record
from firstlight.pipeline._run import Executor, OnView, Run
from firstlight.pipeline._sources.live import Live
from firstlight.pipeline._sources.source import LOST, Arrival, AtHand, Ended, OpenSource, Source, Tidings, looked_at
from firstlight.pipeline._sources.wanted import Wanted
from firstlight.pipeline._step import Step, divided
from firstlight.pipeline._steps import Steps
from firstlight.pipeline._worker_views import Showing, WorkersShown

__all__ = ["Inline", "Listening"]

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
        return _begin(pipeline, source, None, on_view=on_view, view_every_s=view_every_s)

    @contextmanager
    def lasting(self) -> Iterator[Executor]:
        """For several runs, one after the other: a worker that can be reset stays."""
        with closing(Steps(_unchanged)) as steps:
            yield _LastingInline(steps)


class _LastingInline:
    def __init__(self, steps: Steps[Record]) -> None:
        self._steps = steps

    def start(self, pipeline: Pipeline, source: Source, *, on_view: OnView | None, view_every_s: float) -> Run:
        if not isinstance(pipeline.worker, type | Resets):
            # As in other processes: what a worker remembers of one scan is not there in the next.
            pipeline = replace(pipeline, worker=_copied(pipeline))
        return _begin(pipeline, source, self._steps, on_view=on_view, view_every_s=view_every_s)


def _copied(pipeline: Pipeline) -> Any:
    try:
        return copy.deepcopy(pipeline.worker)
    except Exception as error:  # user code: anything may be in a worker
        raise ConfigurationError(
            f"worker {pipeline.worker_name} cannot be copied for another scan: {error}; give its class, or a reset()"
        ) from error


def _begin(
    pipeline: Pipeline, source: Source, steps: Steps[Record] | None, *, on_view: OnView | None, view_every_s: float
) -> Run:
    if isinstance(source, Live) and source.group is not None:
        raise ConfigurationError(
            f"a run in this process cannot continue run {source.group!r}: its reducer keeps nothing. Leave group= out, "
            "or run on=Processes(1)"
        )
    return InlineRun(pipeline, source, on_view=on_view, view_every_s=view_every_s, steps=steps)


def _unchanged(pipeline: Pipeline, record: Record) -> Record:
    return record


class Listening:
    """A clock that runs only while a run listens to its inputs.

    Deadlines of incomplete events go by it: what lies unread because the workers are busy is not late.
    """

    def __init__(self) -> None:
        self._total_s = 0.0
        self._since_s = time.monotonic()

    def now_s(self) -> float:
        """Seconds of listening so far; the run has listened until now."""
        now = time.monotonic()
        self._total_s += now - self._since_s
        self._since_s = now
        return self._total_s

    def again(self) -> None:
        """The run was busy until now, and listens again."""
        self._since_s = time.monotonic()


class InlineRun(Run):
    """A run that goes on while somebody waits for it."""

    def __init__(
        self, pipeline: Pipeline, source: Source, *, on_view: OnView | None, view_every_s: float,
        steps: Steps[Record] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(pipeline, source, on_view=on_view, view_every_s=view_every_s)
        self._source = source
        self._steps = steps
        self._driving = threading.Lock()
        self._retunes: deque[tuple[ParameterSet, Mapping[str, Any]]] = deque()
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

    def _retune(self, pipeline: Pipeline, new: ParameterSet, changed: Mapping[str, Any]) -> None:
        self._retunes.append((new, changed))

    def _turn(self) -> None:
        try:
            for _ in self._turns:
                return
            self._end()
        except KeyboardInterrupt:
            self.stop()
            self._end()
            raise
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):  # the program ends
                raise

    def _work(self) -> Iterator[None]:
        with ExitStack() as stack:
            steps = self._steps or stack.enter_context(closing(Steps(_unchanged)))
            step = stack.enter_context(steps.of_run(self.pipeline, self.parameters.stamp))
            opened = stack.enter_context(self._source.open(self.pipeline.inputs))
            yield from self._follow(opened, step)

    def _follow(self, opened: OpenSource, step: Step[Record]) -> Iterator[None]:
        aligner = self.pipeline.align.aligner(self.pipeline.inputs)
        at_hand = AtHand(opened, _MAX_HELD)
        sharing = Sharing(self.pipeline.shares)
        clock = Listening() if self._source.live else None
        showing = Showing(step)
        wanted = Wanted(opened, aligner)
        heard_s = 0.0
        for told in opened.tidings():
            if self._stopping.is_set():
                return
            if isinstance(told, Arrival):
                wanted.arrived(told.name, told.id)
            actions = self._noted(told, aligner, opened, at_hand)
            if clock is not None:
                now_s = clock.now_s()
                heard_s = heard_s if told is None else now_s
                self.silent_s = now_s - heard_s
                actions += aligner.tick(now_s)
            for action in actions:
                self._act(action, sharing, at_hand, step)
                if isinstance(action, Ready):
                    wanted.done(action)
            wanted.tell((), idle=True)
            self._look(showing.look())
            self._show()
            yield
            if clock is not None:
                clock.again()
        self._look(showing.look(last=True))
        self._reduction.missed(aligner.missing())

    def _take(self, record: Record) -> None:
        """It is known what became of an event."""
        self._reduction.take(record)

    def _look(self, shown: WorkersShown | None) -> None:
        if shown is not None:
            self._worker_shows(0, shown)

    def _noted(self, told: Tidings, aligner: Aligner, opened: OpenSource, at_hand: AtHand) -> list[Action]:
        if told is None:
            return []
        if isinstance(told, Ended):
            self._reduction.evicted(told.name, told.n_lost)
            if told.aborted is not None:
                self._aborted = told
            return aligner.ended(told.name)
        name = told.name
        descriptor, message = looked_at(self.pipeline.align, told, opened)
        if message is not None:
            at_hand.keep(name, told.id, message)
        actions = aligner.arrived(name, descriptor)
        self._reduction.offered(aligner.n_begun)
        return actions

    def _act(self, action: Action, sharing: Sharing, at_hand: AtHand, step: Step[Record]) -> None:
        if not isinstance(action, Ready):
            self._reduction.formed(action)
            return
        calls = divided(self.pipeline, sharing, action)
        if isinstance(calls, Record):
            self._reduction.formed(action, [action])
            self._take(calls)
            return
        parts = [part for part, _ in calls]
        self._reduction.formed(action, parts)
        try:
            messages = at_hand.take(action)
        except LOST as error:
            for part in parts:
                self._take(lost_record(part.index, error, share=part.share, width=self.pipeline.width))
            return
        while self._retunes:
            new, changed = self._retunes.popleft()
            step.retune(changed, new.stamp)
            self._reduction.retune(new.values)
        for part in parts:
            found = {name: messages[name] for name in part.ids}
            record, _ = step.work(part.index, found, at_hand.resolve, share=part.share)
            self._take(record)
