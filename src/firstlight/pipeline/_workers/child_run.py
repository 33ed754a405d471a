"""One run, seen from a worker process: take an event, call the worker, settle the record; leave when told."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from firstlight.client import Client
from firstlight.model import MessageRow, Ranges
from firstlight.pipeline._align.values import number_of
from firstlight.pipeline._reduction.outlets import CombinedOutlet, Outlet, PipeOutlet, StreamOutlet
from firstlight.pipeline._reduction.records import Record, WireRecord, lost_record, to_wire
from firstlight.pipeline._sources.forward import Forward
from firstlight.pipeline._sources.live import Live, patiently
from firstlight.pipeline._sources.source import LOST
from firstlight.pipeline._step import Step
from firstlight.pipeline._steps import Steps
from firstlight.pipeline._worker_views import Showing, WorkersShown
from firstlight.pipeline._workers.feeds import Feed, GroupFeed, ShareFeed, Task
from firstlight.pipeline._workers.gathering import Gathering
from firstlight.pipeline._workers.settling import Settler
from firstlight.pipeline._workers.sizes import bytes_of
from firstlight.pipeline._workers.slots import Slot
from firstlight.pipeline._workers.talk import (
    Answer,
    Asked,
    Busy,
    FromWorker,
    GroupJob,
    HandOut,
    Job,
    Known,
    Left,
    Reported,
    Retune,
    Settled,
    ShareJob,
    Started,
    Stop,
    Stored,
    Worked,
)

__all__ = ["Orders", "RunOfWorker"]

_SLICE_S = 0.1


class Orders:
    """What the pool says about one run."""

    def __init__(self, run: int, job: bytes) -> None:
        self.run = run
        self.job = job
        self.stopping = threading.Event()
        self.told: queue.SimpleQueue[HandOut | Answer | Stop] = queue.SimpleQueue()
        self.retunes: deque[Retune] = deque()
        self.known: queue.SimpleQueue[Known] = queue.SimpleQueue()

    def hear(self, said: HandOut | Answer | Known | Retune | Stop) -> None:
        """The pool said this."""
        if isinstance(said, Known):
            self.known.put(said)  # asked for by the thread that settles
            return
        if isinstance(said, Retune):
            self.retunes.append(said)  # it counts from the next event on, whoever waits for something else now
            return
        if isinstance(said, Stop):
            self.stopping.set()
        self.told.put(said)


class RunOfWorker:
    """One run, seen from a worker process."""

    def __init__(self, job: Job, orders: Orders, slot: Slot, say: Callable[[FromWorker], None]) -> None:
        self._job = job
        self._orders = orders
        self._slot = slot
        self._say = say
        self._width = job.pipeline.width
        self._gathering: Gathering | None = None
        self._busy = Busy()

    def run(self, stack: ExitStack, steps: Steps[WireRecord | None]) -> Left:
        """Work until the end of the stream or of the run."""
        live = self._job.source if isinstance(self._job.source, Live) else None
        client = None
        if live is not None:
            client = stack.enter_context(patiently(live, live.connect, self._orders.stopping))
        feed = self._feed(client, stack)
        outlet = self._outlet(client, stack)
        settler = Settler(outlet, lambda: self._let_go(feed))
        stack.callback(settler.close)
        if self._job.pipeline.combine is not None:
            self._gathering = self._gather(outlet, settler)
        step = stack.enter_context(steps.of_run(self._job.pipeline, self._job.stamp))
        showing = Showing(step)
        self._say(Started())
        with self._slot.ready():
            try:
                self._loop(feed, step, settler, showing)
                self._show(showing.look(last=True))
            finally:
                # Also when the worker raised: what it did before that is done.
                if self._gathering is not None:
                    self._gathering.flush()
                settler.drain()
        return Left(at_end=feed.over, aborted=feed.aborted)

    def _loop(self, feed: Feed, step: Step[WireRecord | None], settler: Settler, showing: Showing) -> None:
        while not (self._orders.stopping.is_set() or feed.over):
            if self._gathering is not None:
                self._gathering.look(has_none=feed.has_none)
            task = feed.next(settler.begun)
            if task is None:
                settler.check()
                if self._gathering is not None:
                    self._gathering.flush()
            else:
                self._retune(step)
                self._take(task, step, feed, settler)
            del task  # whose messages nobody should keep while the next ones are waited for
            self._show(showing.look())

    def _retune(self, step: Step[WireRecord | None]) -> None:
        while self._orders.retunes:
            retune = self._orders.retunes.popleft()
            with self._slot.ready(False):  # a worker that is made anew takes as long as it takes
                step.retune(retune.changed, retune.stamp)

    def _take(self, task: Task, step: Step[WireRecord | None], feed: Feed, settler: Settler) -> None:
        """Work on an event, and hand on what became of it."""
        number = number_of(task.index, task.share, self._width)
        if self._gathering is not None:
            if self._gathering.has(number):
                return
            with self._slot.at(number):
                self._gathered(task, step, feed, self._gathering)
            return
        with self._slot.at(number):
            task, wire = self._settled(task, step, feed)
        settler.put(task, wire, rests=feed.has_none)

    def _let_go(self, feed: Feed) -> None:
        """Some events are done."""
        self._slot.did()
        feed.let_go()

    def _show(self, shown: WorkersShown | None) -> None:
        if shown is not None:
            self._say(shown)

    def _gather(self, outlet: Outlet, settler: Settler) -> Gathering:
        known = (lambda: outlet.known) if isinstance(outlet, CombinedOutlet) else None
        worked = (lambda numbers: self._say(Worked(numbers, self._was_busy()))) if self._is_told else None
        return Gathering(self._job.pipeline, settler.put, known=known, worked=worked, timed=self._slot.timed)

    @property
    def _is_told(self) -> bool:
        """The run counts what is done; in a group the service does, and the run learns of an event from its record."""
        return isinstance(self._job, ShareJob)

    def _was_busy(self) -> Busy:
        busy, self._busy = self._busy, Busy()
        return busy

    def _to_wire(self, record: Record) -> WireRecord:
        return to_wire(record, self._job.pipeline.results)

    def _outlet(self, client: Client | None, stack: ExitStack) -> Outlet:
        if client is None or self._job.results is None:
            return PipeOutlet(lambda records: self._say(Reported(records, self._was_busy())))
        outlet: StreamOutlet | CombinedOutlet
        if self._job.pipeline.combine is not None:
            outlet = CombinedOutlet(client, self._job.results, self._ask_known)
        else:
            stored = (lambda numbers: self._say(Settled(numbers, self._was_busy()))) if self._is_told else None
            outlet = StreamOutlet(client, self._job.results, stored)
        stack.callback(outlet.close)
        return outlet

    def _feed(self, client: Client | None, stack: ExitStack) -> Feed:
        if isinstance(self._job, GroupJob):
            assert client is not None
            feed = GroupFeed(self._job, client, self._ask)
            stack.callback(feed.close)
            return feed
        source, inputs = self._job.source, self._job.pipeline.inputs
        opened = patiently(source, lambda: source.open(inputs), self._orders.stopping)
        share = ShareFeed(stack.enter_context(opened), inputs, self._orders.told)
        stack.callback(share.close)
        return share

    def _ask_known(self, numbers: list[tuple[int, int]]) -> Ranges | None:
        """Ask the run what counts of these, which are stored; None if it does not answer because it ends."""
        self._say(Stored(numbers))
        while not self._orders.stopping.is_set():
            try:
                return Ranges(self._orders.known.get(timeout=_SLICE_S).numbers)
            except queue.Empty:
                continue
        return None

    def _ask(self, index: int) -> Answer:
        """Ask the run whether to begin with an event that others had."""
        self._say(Asked(index))
        while True:
            said = self._orders.told.get()
            if isinstance(said, Answer) and said.index == index:
                return said
            if isinstance(said, Stop):
                return Answer(index, None)  # it is noticed before the next event

    def _gathered(self, task: Task, step: Step[WireRecord | None], feed: Feed, gathering: Gathering) -> None:
        """Work on an event whose result is added to others."""
        if task.known:
            gathering.known(task)
        elif task.instead is not None:
            gathering.take(task, task.instead)
        else:
            gathering.take(task, self._worked(task, step, feed)[0])

    def _settled(self, task: Task, step: Step[WireRecord | None], feed: Feed) -> tuple[Task, WireRecord | None]:
        """What became of an event, and what has to stay until that is safe."""
        if task.instead is not None:
            return task, self._to_wire(task.instead)
        if task.known:
            return task, None
        record, wire, messages = self._worked(task, step, feed)
        return (_holding(task, messages) if isinstance(record.value, Forward) else task), wire

    def _worked(
        self, task: Task, step: Step[WireRecord | None], feed: Feed
    ) -> tuple[Record, WireRecord | None, Mapping[str, Any]]:
        try:
            messages = task.load()
        except LOST as error:
            record = lost_record(task.index, error, share=task.share, width=self._width)
            return record, self._to_wire(record), {}
        began_s = time.perf_counter()
        with self._slot.timed():
            record, wire = step.work(task.index, messages, feed.resolve, share=task.share)
        self._busy = Busy(self._busy.seconds + time.perf_counter() - began_s, self._busy.n_events + 1)
        return record, wire, messages


def _holding(task: Task, messages: Mapping[str, Any]) -> Task:
    """A task that is not done before its messages may go; what they take counts for how many may wait."""
    n_bytes = sum(bytes_of(found.message if isinstance(found, MessageRow) else found) for found in messages.values())
    return replace(task, held=messages, n_bytes=n_bytes)
