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
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from firstlight.client import Client
from firstlight.errors import (
    ConfigurationError,
    FirstlightError,
    MessageEvictedError,
    MessageNotFoundError,
    PipelineError,
    WorkerError,
)
from firstlight.pipeline._align_values import number_of
from firstlight.pipeline._feeds import Feed, GroupFeed, ShareFeed, Task
from firstlight.pipeline._forward import Forward
from firstlight.pipeline._hanging import answering
from firstlight.pipeline._live import Live
from firstlight.pipeline._outlets import Outlet, PipeOutlet, StreamOutlet
from firstlight.pipeline._records import Record, WireRecord, lost_record, to_wire
from firstlight.pipeline._settling import Settler
from firstlight.pipeline._step import Preparation, Step, told
from firstlight.pipeline._talk import (
    Answer,
    Asked,
    Begin,
    Broke,
    FromWorker,
    GroupJob,
    HandOut,
    Job,
    Left,
    Quit,
    Retune,
    Started,
    Stop,
)

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

    def hear(self, said: HandOut | Answer | Retune | Stop) -> None:
        """The pool said this."""
        if isinstance(said, Retune):
            self.retunes.append(said)  # it counts from the next event on, whoever waits for something else now
            return
        if isinstance(said, Stop):
            self.stopping.set()
        self.told.put(said)


class _Child:
    """What stays from run to run: the line to the pool, and a worker that can be reset."""

    def __init__(self, pipe: Connection, slots: Any, number: int) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._slot = _Slot(slots, number)
        self._orders: queue.SimpleQueue[_Orders | None] = queue.SimpleQueue()
        self._kept: Step[WireRecord] | None = None
        self._preparation = Preparation()

    def serve(self) -> None:
        """Work until the pool needs this process no more."""
        threading.Thread(target=self._listen, name="listen to the pool", daemon=True).start()
        while (orders := self._orders.get()) is not None:
            self._say(orders.run, self._work(orders))
        self._drop()

    def _listen(self) -> None:
        orders = None
        while True:
            try:
                run, said = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(_ORPHANED)  # the run is dead: whoever has its work now must not meet us
            if isinstance(said, Begin):
                orders = _Orders(run, said.job)
                self._orders.put(orders)
            elif isinstance(said, Quit):
                self._orders.put(None)
            elif orders is not None and run == orders.run:
                orders.hear(said)

    def _say(self, run: int, what: FromWorker) -> None:
        with self._sending:
            self._pipe.send((run, what))

    def _work(self, orders: _Orders) -> Left | Broke:
        try:
            job = _unpickled(orders.job)
            with ExitStack() as stack:
                return _Work(job, orders, self._slot, self._say).run(stack, self._step)
        except FirstlightError as error:
            self._drop()  # it may be in any state
            return Broke(error)

    def _drop(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                kept.close()
            except WorkerError as error:
                logger.warning("%s", error)  # its runs are over, there is none that could fail of it

    def _step(self, job: Job, stack: ExitStack) -> Step[WireRecord]:
        """The worker of a run: the one that there is, if it can be reset, else a new one."""
        if self._kept is not None:
            self._kept.reset(job.pipeline, job.stamp)
            return self._kept
        step = Step(
            job.pipeline,
            lambda record: to_wire(record, job.pipeline.results),
            stamp=job.stamp,
            preparation=self._preparation,
        )
        if step.can_be_reset:
            self._kept = step
        else:
            stack.callback(step.close)
        return step


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
        self._say_in_run = say

    def run(self, stack: ExitStack, make_step: Callable[[Job, ExitStack], Step[WireRecord]]) -> Left:
        """Work until the end of the stream or of the run."""
        live = self._job.source if isinstance(self._job.source, Live) else None
        client = stack.enter_context(live.connect()) if live is not None else None
        feed = self._feed(client, stack)
        settler = Settler(self._outlet(client, stack).settle)
        stack.callback(settler.close)
        step = make_step(self._job, stack)
        self._say(Started())
        try:
            self._loop(feed, step, settler)
        finally:
            # Also when the worker raised: what it did before that is done.
            settler.drain()
        return Left(at_end=feed.over, aborted=feed.aborted)

    def _loop(self, feed: Feed, step: Step[WireRecord], settler: Settler) -> None:
        while not (self._stopping.is_set() or feed.over):
            task = feed.next()
            if task is None:
                settler.check()
            else:
                settler.put(*self._settled(task, step, feed))

    def _to_wire(self, record: Record) -> WireRecord:
        return to_wire(record, self._job.pipeline.results)

    def _say(self, what: FromWorker) -> None:
        self._say_in_run(self._run, what)

    def _outlet(self, client: Client | None, stack: ExitStack) -> Outlet:
        if client is None or self._job.results is None:
            return PipeOutlet(self._say)
        outlet = StreamOutlet(self._say, client, self._job.results)
        stack.callback(outlet.close)
        return outlet

    def _feed(self, client: Client | None, stack: ExitStack) -> Feed:
        if isinstance(self._job, GroupJob):
            assert client is not None
            feed = GroupFeed(self._job, client, self._ask)
            stack.callback(feed.close)
            return feed
        share = ShareFeed(stack.enter_context(self._job.source.open(self._job.pipeline.inputs)), self._told)
        stack.callback(share.close)
        return share

    def _ask(self, index: int) -> Record | None:
        """Ask the run whether to begin with an event that others had; returns what to put down instead."""
        self._say(Asked(index))
        while True:
            said = self._told.get()
            if isinstance(said, Answer) and said.index == index:
                return said.instead
            if isinstance(said, Stop):
                return None  # it is noticed before the next event

    def _settled(self, task: Task, step: Step[WireRecord], feed: Feed) -> tuple[Task, WireRecord | None]:
        """What became of an event, and what has to stay until that is safe."""
        if task.instead is not None:
            return task, self._to_wire(task.instead)
        if task.known:
            return task, None
        try:
            messages = task.load()
        except (MessageEvictedError, MessageNotFoundError) as error:
            return task, self._to_wire(lost_record(task.index, error, share=task.share, width=self._width))
        while self._retunes:
            retune = self._retunes.popleft()
            step.retune(retune.changed, retune.stamp)
        self._slot.show(number_of(task.index, task.share, self._width))
        try:
            record, wire = step.work(task.index, messages, feed.resolve, share=task.share)
        finally:
            self._slot.show(NOTHING)
        return (replace(task, held=messages) if isinstance(record.value, Forward) else task), wire
