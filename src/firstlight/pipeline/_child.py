"""The inside of a worker process: take an event, call the worker, settle the record; leave when told, or when nobody
listens."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from firstlight.client import Client
from firstlight.errors import (
    ConfigurationError,
    PipelineError,
)
from firstlight.model import MessageRow, Ranges
from firstlight.pipeline._align_values import number_of
from firstlight.pipeline._feeds import Feed, GroupFeed, ShareFeed, Task
from firstlight.pipeline._forward import Forward
from firstlight.pipeline._gathering import Gathering
from firstlight.pipeline._hanging import answering
from firstlight.pipeline._live import Live, patiently
from firstlight.pipeline._outlets import CombinedOutlet, Outlet, PipeOutlet, StreamOutlet
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._records import Record, WireRecord, lost_record, to_wire
from firstlight.pipeline._settling import Settler
from firstlight.pipeline._sizes import bytes_of
from firstlight.pipeline._sources import LOST
from firstlight.pipeline._step import Step, told
from firstlight.pipeline._steps import Steps
from firstlight.pipeline._talk import (
    Answer,
    Asked,
    Begin,
    Broke,
    FromWorker,
    GroupJob,
    HandOut,
    Job,
    Known,
    Left,
    Quit,
    Retune,
    Settled,
    ShareJob,
    Started,
    Stop,
    Stored,
    Worked,
)
from firstlight.pipeline._threads import as_ours
from firstlight.pipeline._worker_views import Showing, WorkersShown

__all__ = ["NOTHING", "UNGUARDED", "check_guarded", "unguarded_text", "worker_main"]

logger = logging.getLogger(__name__)

#: In a worker's slot: it works on no event.
NOTHING = 0
_ORPHANED = 70
#: Exit code of a process that would have started a run of its own while it read the script of its run.
UNGUARDED = 71

_is_worker = False


def check_guarded() -> None:
    """Make sure that a run is not begun by the processes of a run.

    A process that is spawned executes the script that began the run, to know its classes; a script that begins runs
    wherever it is imported would have each of its processes begin another one.

    Raises
    ------
    ConfigurationError
        In a worker process. One that has not come so far yet ends, and the run tells.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # so `multiprocessing` itself finds out
        raise SystemExit(UNGUARDED)
    if _is_worker:
        raise ConfigurationError(unguarded_text())


def unguarded_text() -> str:
    """What is wrong, and what to do."""
    return (
        "a worker process has come upon the line that begins the run, because it reads the same file: put that line "
        'below `if __name__ == "__main__":`'
    )


_SLICE_S = 0.1


def worker_main(pipe: Connection, slots: Any, number: int, trace: Path | None = None) -> None:
    """Run one worker process, for one run after the other.

    Parameters
    ----------
    pipe
        To the pool.
    slots : (n,) int64 in shared memory
        Entry `number` is the event that this process works on, so that the run knows it even if the process is killed.
    trace
        File for the answer to the question where it is.
    """
    global _is_worker
    _is_worker = True
    # Ctrl-C reaches every process of the terminal; the run decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        with answering(trace) if trace is not None else nullcontext():
            _Child(pipe, slots, number).serve()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(_ORPHANED)  # nobody is left to tell


class _Slot:
    """The place where this process shows what it works on."""

    def __init__(self, slots: Any, number: int) -> None:
        self._slots = slots
        self._number = number

    def show(self, index: int) -> None:
        """Event `index`, or `NOTHING`."""
        self._slots[self._number] = index


class _Orders:
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


class _Child:
    """What stays from run to run: the line to the pool, and what the workers leave behind."""

    def __init__(self, pipe: Connection, slots: Any, number: int) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._slot = _Slot(slots, number)
        self._orders: queue.SimpleQueue[_Orders | None] = queue.SimpleQueue()
        #: Those of the run that was begun last, for the thread that listens.
        self._current: _Orders | None = None
        self._steps = Steps(_finished)

    def serve(self) -> None:
        """Work until the pool needs this process no more."""
        threading.Thread(target=self._listen, name="listen to the pool", daemon=True).start()
        while (orders := self._orders.get()) is not None:
            self._say(orders.run, self._work(orders))
        self._steps.close()

    def _listen(self) -> None:
        try:
            while True:
                self._hear(self._pipe.recv_bytes())
        except (EOFError, OSError):
            os._exit(_ORPHANED)  # the run is dead: whoever has its work now must not meet us

    def _hear(self, word: bytes) -> None:
        try:
            run, said = pickle.loads(word)
        except Exception as error:  # noqa: BLE001 - values of the user's classes may be in it
            assert self._current is not None  # the first word is bytes and no more
            self._say(self._current.run, Broke(_unreadable(error)))
            self._current.hear(Stop())
            return
        if isinstance(said, Begin):
            if self._current is not None:
                self._current.hear(Stop())
            self._current = _Orders(run, said.job)
            self._orders.put(self._current)
        elif isinstance(said, Quit):
            self._orders.put(None)
        elif self._current is not None and run == self._current.run:
            self._current.hear(said)

    def _say(self, run: int, what: FromWorker) -> None:
        word = pickle.dumps((run, what))
        with self._sending:
            self._pipe.send_bytes(word)

    def _work(self, orders: _Orders) -> Left | Broke:
        try:
            job = _unpickled(orders.job)
            with ExitStack() as stack:
                return _Work(job, orders, self._slot, self._say).run(stack, self._steps)
        except (BrokenPipeError, ConnectionResetError, MemoryError):
            raise  # nobody is left to tell, or this process is best replaced
        except Exception as error:  # noqa: BLE001 - a mistake of ours, or a value of the user's that cannot travel
            return Broke(as_ours(error, "a worker process"))


def _finished(pipeline: Pipeline, record: Record) -> WireRecord | None:
    """A record in the form in which it travels, unless its result is to be added to others."""
    return to_wire(record, pipeline.results) if pipeline.combine is None else None


def _unreadable(error: Exception) -> PipelineError:
    words = told(error)
    return PipelineError(
        f"a worker process cannot read what the run said: {words.type}: {words.text}; parameters must be of classes that "
        "other processes can import",
        traceback_text=words.traceback,
    )


def _unpickled(job: bytes) -> Job:
    try:
        found: Job = pickle.loads(job)
    except Exception as error:  # imports the user's modules
        words = told(error)
        raise PipelineError(
            f"a worker process cannot load the pipeline: {words.type}: {words.text}; define the worker in a module "
            "that can be "
            'imported, or in the script itself outside of `if __name__ == "__main__"`',
            traceback_text=words.traceback,
        ) from error
    return found


class _Work:
    """One run, seen from a worker process."""

    def __init__(self, job: Job, orders: _Orders, slot: _Slot, say: Callable[[int, FromWorker], None]) -> None:
        self._job = job
        self._width = job.pipeline.width
        self._slot = slot
        self._run = orders.run
        self._stopping = orders.stopping
        self._told = orders.told
        self._retunes = orders.retunes
        self._known = orders.known
        self._gathering: Gathering | None = None
        self._say_in_run = say

    def run(self, stack: ExitStack, steps: Steps[WireRecord | None]) -> Left:
        """Work until the end of the stream or of the run."""
        live = self._job.source if isinstance(self._job.source, Live) else None
        client = None
        if live is not None:
            client = stack.enter_context(patiently(live, live.connect, self._stopping))
        feed = self._feed(client, stack)
        outlet = self._outlet(client, stack)
        settler = Settler(outlet, feed.let_go)
        stack.callback(settler.close)
        if self._job.pipeline.combine is not None:
            self._gathering = self._gather(outlet, settler)
        step = stack.enter_context(steps.of_run(self._job.pipeline, self._job.stamp))
        showing = Showing(step)
        self._say(Started())
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
        while not (self._stopping.is_set() or feed.over):
            if self._gathering is not None:
                self._gathering.look(has_none=feed.has_none)
            task = feed.next(settler.begun)
            if task is None:
                settler.check()
                if self._gathering is not None:
                    self._gathering.flush()
            elif self._gathering is not None:
                self._gathered(task, step, feed, self._gathering)
            else:
                settler.put(*self._settled(task, step, feed), rests=feed.has_none)
            del task  # whose messages nobody should keep while the next ones are waited for
            self._show(showing.look())

    def _show(self, shown: WorkersShown | None) -> None:
        if shown is not None:
            self._say(shown)

    def _gather(self, outlet: Outlet, settler: Settler) -> Gathering:
        known = (lambda: outlet.known) if isinstance(outlet, CombinedOutlet) else None
        worked = (lambda numbers: self._say(Worked(numbers))) if isinstance(self._job, ShareJob) else None
        return Gathering(self._job.pipeline, settler.put, known=known, worked=worked)

    def _to_wire(self, record: Record) -> WireRecord:
        return to_wire(record, self._job.pipeline.results)

    def _say(self, what: FromWorker) -> None:
        self._say_in_run(self._run, what)

    def _outlet(self, client: Client | None, stack: ExitStack) -> Outlet:
        if client is None or self._job.results is None:
            return PipeOutlet(self._say)
        outlet: StreamOutlet | CombinedOutlet
        if self._job.pipeline.combine is not None:
            outlet = CombinedOutlet(client, self._job.results, self._ask_known)
        else:
            # In a group the service counts, and the run learns of an event from its record.
            counts = isinstance(self._job, ShareJob)
            stored = (lambda numbers: self._say(Settled(numbers))) if counts else None
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
        opened = patiently(source, lambda: source.open(inputs), self._stopping)
        share = ShareFeed(stack.enter_context(opened), inputs, self._told)
        stack.callback(share.close)
        return share

    def _ask_known(self, numbers: list[tuple[int, int]]) -> Ranges | None:
        """Ask the run what counts of these, which are stored; None if it does not answer because it ends."""
        self._say(Stored(numbers))
        while not self._stopping.is_set():
            try:
                return Ranges(self._known.get(timeout=_SLICE_S).numbers)
            except queue.Empty:
                continue
        return None

    def _ask(self, index: int) -> Answer:
        """Ask the run whether to begin with an event that others had."""
        self._say(Asked(index))
        while True:
            said = self._told.get()
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
        while self._retunes:
            retune = self._retunes.popleft()
            step.retune(retune.changed, retune.stamp)
        self._slot.show(number_of(task.index, task.share, self._width))
        try:
            record, wire = step.work(task.index, messages, feed.resolve, share=task.share)
        finally:
            self._slot.show(NOTHING)
        return record, wire, messages


def _holding(task: Task, messages: Mapping[str, Any]) -> Task:
    """A task that is not done before its messages may go; what they take counts for how many may wait."""
    n_bytes = sum(bytes_of(found.message if isinstance(found, MessageRow) else found) for found in messages.values())
    return replace(task, held=messages, n_bytes=n_bytes)
