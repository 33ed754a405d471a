"""The inside of a worker process: take an event, call the worker, settle the record; leave when told, or when nobody
listens."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import threading
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from firstlight.client import Client
from firstlight.errors import FirstlightError, MessageEvictedError, MessageNotFoundError, PipelineError
from firstlight.model import Event
from firstlight.pipeline._feeds import Feed, GroupFeed, ShareFeed, Task
from firstlight.pipeline._inline import lost_record
from firstlight.pipeline._live import Live
from firstlight.pipeline._outlets import Outlet, PipeOutlet, StreamOutlet
from firstlight.pipeline._records import Record, WireRecord, to_wire
from firstlight.pipeline._settling import Settler
from firstlight.pipeline._step import Step, told
from firstlight.pipeline._talk import (
    Answer,
    Asked,
    Broke,
    FromWorker,
    GroupJob,
    HandOut,
    Job,
    Left,
    Started,
    Stop,
)

__all__ = ["NOTHING", "worker_main"]

#: In a worker's slot: it works on no event.
NOTHING = 0
_ORPHANED = 70


def worker_main(pipe: Connection, slots: Any, number: int, job: bytes) -> None:
    """Run one worker process.

    Parameters
    ----------
    pipe
        To the run.
    slots : (n,) int64 in shared memory
        Entry `number` is the event that this process works on, so that the run knows it even if the process is killed.
    job
        A pickled `Job`.
    """
    # Ctrl-C reaches every process of the terminal; the run decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        try:
            _work(pipe, slots, number, job)
        except FirstlightError as error:
            pipe.send(Broke(error))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(_ORPHANED)  # nobody is left to tell


def _work(pipe: Connection, slots: Any, number: int, job: bytes) -> None:
    child = _Child(pipe, slots, number, _unpickled(job))
    with ExitStack() as stack:
        left = child.run(stack)
    pipe.send(left)


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


class _Child:
    def __init__(self, pipe: Connection, slots: Any, number: int, job: Job) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._slots = slots
        self._number = number
        self._job = job
        self._stopping = threading.Event()
        self._told: queue.SimpleQueue[HandOut | Answer | Stop] = queue.SimpleQueue()

    def run(self, stack: ExitStack) -> Left:
        """Work until the end of the stream or of the run."""
        threading.Thread(target=self._listen, name="listen to the run", daemon=True).start()
        live = self._job.source if isinstance(self._job.source, Live) else None
        client = stack.enter_context(live.connect()) if live is not None else None
        feed = self._feed(client, stack)
        settler = Settler(self._outlet(client, stack).settle)
        stack.callback(settler.close)
        step = Step(self._job.pipeline, self._to_wire, parameters=self._job.parameters)
        stack.callback(step.close)
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
                settler.put(task, self._wire(task, step))

    def _to_wire(self, record: Record) -> WireRecord:
        return to_wire(record, self._job.pipeline.results)

    def _listen(self) -> None:
        while True:
            try:
                said = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(_ORPHANED)  # the run is dead: whoever has its work now must not meet us
            if isinstance(said, Stop):
                self._stopping.set()
            self._told.put(said)

    def _say(self, what: FromWorker) -> None:
        with self._sending:
            self._pipe.send(what)

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
        return ShareFeed(stack.enter_context(self._job.source.open(self._job.pipeline.inputs)), self._told)

    def _ask(self, index: int) -> Record | None:
        """Ask the run whether to begin with an event that others had; returns what to put down instead."""
        self._say(Asked(index))
        while True:
            said = self._told.get()
            if isinstance(said, Answer) and said.index == index:
                return said.instead
            if isinstance(said, Stop):
                return None  # it is noticed before the next event

    def _wire(self, task: Task, step: Step[WireRecord]) -> WireRecord | None:
        if task.instead is not None:
            return self._to_wire(task.instead)
        if task.known:
            return None
        try:
            event = Event(task.index, task.load())
        except (MessageEvictedError, MessageNotFoundError) as error:
            return self._to_wire(lost_record(task.index, error))
        self._slots[self._number] = task.index
        try:
            _, wire = step.run(event)
        finally:
            self._slots[self._number] = NOTHING
        return wire
