"""Worker processes: started, listened to, replaced, ended. Decides nothing."""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from firstlight.errors import PipelineError
from firstlight.pipeline._step import told
from firstlight.pipeline._threads import start
from firstlight.pipeline._workers.child import UNGUARDED, worker_main
from firstlight.pipeline._workers.hanging import traceback_of
from firstlight.pipeline._workers.line import Line
from firstlight.pipeline._workers.slots import Slots
from firstlight.pipeline._workers.talk import Begin, Broke, FromWorker, Left, Quit, Retune, Stop, ToWorker

__all__ = ["Death", "Gone", "Pool", "Said"]

_EXIT_WITHIN_S = 5.0
_LOOK_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class Said:
    """Worker `number` said something."""

    number: int
    what: FromWorker


@dataclass(frozen=True, slots=True)
class Gone:
    """Process `pid` of worker `number` has closed its pipe: it is over, or very soon will be."""

    number: int
    pid: int


class Death(NamedTuple):
    """How a worker ended: whether it had left the run before, in words, and because its script begins runs."""

    had_left: bool
    how: str
    unguarded: bool


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    line: Line
    listener: threading.Thread | None = None
    left: int = 0
    gone: bool = False


class Pool:
    """Processes that work for one run after the other.

    A process is started when a run needs it, and stays until `close`, or until it dies.

    Parameters
    ----------
    n_workers
        As many work at a time; they are called 0 .. n - 1.
    traces
        They can be asked where they are.
    """

    def __init__(self, n_workers: int, *, traces: bool = False) -> None:
        # Spawned, not forked: a fork would copy the locks of the client's threads in whatever state they are.
        self._context = multiprocessing.get_context("spawn")
        #: What each worker shows; what a dead one showed until it is started again.
        self.slots = Slots(self._context, n_workers)
        self._workers: dict[int, _Worker] = {}
        self._traces = tempfile.TemporaryDirectory(prefix="firstlight-") if traces else None
        self._changed = threading.Condition()
        self._run = 0
        self._begin = Begin(b"")
        self._inbox: queue.SimpleQueue[Any] | None = None

    # -- runs -------------------------------------------------------------------------------------------------------

    def begin(self, job: bytes, inbox: queue.SimpleQueue[Any]) -> None:
        """Let every worker begin with a run; the last one has ended.

        Parameters
        ----------
        job
            A pickled `Job`.
        inbox
            Gets `Said` and `Gone` until the run ends.
        """
        with self._changed:
            self._run += 1
            self._begin = Begin(job)
            self._inbox = inbox
        for number in range(len(self.slots)):
            if number in self._workers and self._workers[number].gone:
                self.bury(number)  # it ended while nobody needed it
            if number in self._workers:
                self.say(number, self._begin)
            else:
                self.start(number)

    def retune(self, job: bytes, retune: Retune) -> None:
        """Give every worker other parameters, and let those that start from now on begin with `job`."""
        self._begin = Begin(job)
        for number in list(self._workers):
            self.say(number, retune)

    def end_run(self, within_s: float) -> list[int]:
        """Have every worker leave the run: by asking, and by force when that takes too long.

        Returns who had to be killed. What the others said before they left is in the inbox.
        """
        for number in list(self._workers):
            self.say(number, Stop())
        deadline = time.monotonic() + within_s
        killed = []
        for number, worker in list(self._workers.items()):
            with self._changed:
                has_left = self._changed.wait_for(
                    lambda worker=worker: worker.gone or worker.left == self._run,  # type: ignore[misc]
                    max(deadline - time.monotonic(), 0.0),
                )
            if not has_left:
                killed.append(number)
                worker.process.kill()
            if worker.left != self._run:
                self.bury(number)
        with self._changed:
            self._inbox = None
        return killed

    def close(self) -> None:
        """End the processes, which have left their run."""
        for number in list(self._workers):
            self.say(number, Quit())
        for number in list(self._workers):
            self.bury(number)
        if self._traces is not None:
            self._traces.cleanup()

    # -- one worker -------------------------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        """Start worker `number`, which is not running, and let it begin with the run."""
        ours, theirs = self._context.Pipe()
        self.slots[number].clear()
        process = self._context.Process(
            target=worker_main,
            args=(theirs, self.slots[number], self._trace(number)),
            name=f"firstlight worker {number}",
        )
        # Inherited: a worker must not die of a Ctrl-C that comes before it can say so itself.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # The other end must be open in the worker alone, or its death would not close the pipe.
        theirs.close()
        line = Line(ours, name=f"talk to worker {number}")
        worker = self._workers[number] = _Worker(process, ours, line)
        worker.listener = start(
            f"listen to worker {number}",
            lambda: self._listen(number, worker),
            lambda error: self._pass_on(Said(number, Broke(error))),
        )
        self.say(number, self._begin)

    def _listen(self, number: int, worker: _Worker) -> None:
        pid = worker.process.pid or 0
        while True:
            try:
                word = worker.pipe.recv_bytes()
            except (EOFError, OSError):
                with self._changed:
                    worker.gone = True
                    self._pass_on(Gone(number, pid))
                    self._changed.notify_all()
                return
            try:
                run, what = pickle.loads(word)
            except Exception as error:  # noqa: BLE001 - values of the user's classes may be in it
                with self._changed:
                    self._pass_on(Said(number, Broke(_unreadable(number, error))))
                continue
            with self._changed:
                if run != self._run:
                    continue
                self._pass_on(Said(number, what))
                if isinstance(what, Left | Broke):
                    worker.left = run
                    self._changed.notify_all()

    def _pass_on(self, happened: Said | Gone) -> None:
        if self._inbox is not None:
            self._inbox.put(happened)

    def say(self, number: int, what: ToWorker) -> None:
        """Tell a worker something; one that is dying does not hear it."""
        worker = self._workers.get(number)
        if worker is not None:
            worker.line.say(pickle.dumps((self._run, what)))

    @property
    def numbers(self) -> list[int]:
        """Workers that are, or seem to be, there."""
        return list(self._workers)

    def pid(self, number: int) -> int | None:
        """The process of a worker; None if there is none."""
        worker = self._workers.get(number)
        return None if worker is None else worker.process.pid

    def has_read(self, number: int) -> bool:
        """Whether a worker has read everything that it was told."""
        worker = self._workers.get(number)
        return worker is None or self.slots[number].n_heard >= worker.line.n_said

    def _trace(self, number: int) -> Path | None:
        return Path(self._traces.name) / str(number) if self._traces is not None else None

    def where(self, number: int) -> str:
        """The traceback of the user's code in a worker, if it can be asked and answers within moments."""
        pid, path = self.pid(number), self._trace(number)
        return traceback_of(pid, path) if pid is not None and path is not None else ""

    def kill(self, number: int) -> None:
        """End a worker's process by force."""
        if number in self._workers:
            self._workers[number].process.kill()

    def is_dead(self, number: int, within_s: float) -> bool:
        """Whether this process is over, or will be within so many seconds."""
        worker = self._workers.get(number)
        if worker is None:
            return True
        return _is_over(worker.process, within_s)

    def bury(self, number: int) -> Death:
        """Clear away a worker that is gone; returns how it ended."""
        worker = self._workers.pop(number)
        if not _is_over(worker.process, _EXIT_WITHIN_S):
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode or 0
        worker.process.close()
        # Nobody uses the pipe any more when it is closed: its number is soon that of another one.
        worker.line.close()
        if worker.listener is not None:
            worker.listener.join(_EXIT_WITHIN_S)
        worker.pipe.close()
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return Death(worker.left == self._run, how, code == UNGUARDED)


def _is_over(process: BaseProcess, within_s: float) -> bool:
    """Whether a process is over, or will be within so many seconds."""
    # Not by `join`, which asks a pipe that processes keep open that it has forked.
    deadline = time.monotonic() + within_s
    while process.exitcode is None and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    return process.exitcode is not None


def _unreadable(number: int, error: Exception) -> PipelineError:
    words = told(error)
    return PipelineError(
        f"what worker {number} said cannot be read here: {words.type}: {words.text}; what it returns or shows must be of "
        "classes that this program can import",
        traceback_text=words.traceback,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
