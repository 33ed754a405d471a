"""Worker processes of one run: started, listened to, replaced, ended. Decides nothing."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from firstlight.pipeline._child import NOTHING, worker_main
from firstlight.pipeline._talk import Broke, FromWorker, Left, Stop, ToWorker

__all__ = ["Gone", "Pool", "Said"]

_EXIT_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Said:
    """Worker `number` said something."""

    number: int
    what: FromWorker


@dataclass(frozen=True, slots=True)
class Gone:
    """Worker `number` has closed its pipe: its process is over, or very soon will be."""

    number: int


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    said_good_bye: bool = False
    sending: threading.Lock = field(default_factory=threading.Lock)


class Pool:
    """The worker processes.

    Parameters
    ----------
    n_workers
        As many run at a time; they are called 0 .. n - 1.
    job
        A pickled `Job`.
    inbox
        Gets `Said` and `Gone`.
    """

    def __init__(self, n_workers: int, job: bytes, inbox: queue.SimpleQueue[Any]) -> None:
        # Spawned, not forked: a fork would copy the locks of the client's threads in whatever state they are.
        self._context = multiprocessing.get_context("spawn")
        self._slots = self._context.RawArray("q", n_workers)
        self._job = job
        self._inbox = inbox
        self._workers: dict[int, _Worker] = {}

    def start(self, number: int) -> None:
        """Start worker `number`, which is not running."""
        ours, theirs = self._context.Pipe()
        self._slots[number] = NOTHING
        process = self._context.Process(
            target=worker_main, args=(theirs, self._slots, number, self._job), name=f"firstlight worker {number}"
        )
        # Inherited: a worker must not die of a Ctrl-C that comes before it can say so itself.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        # The other end must be open in the worker alone, or its death would not close the pipe.
        theirs.close()
        worker = self._workers[number] = _Worker(process, ours)
        threading.Thread(
            target=self._listen, args=(number, worker), name=f"listen to worker {number}", daemon=True
        ).start()

    def _listen(self, number: int, worker: _Worker) -> None:
        while True:
            try:
                what = worker.pipe.recv()
            except (EOFError, OSError, TypeError):  # a pipe that is closed while it is read has no number any more
                self._inbox.put(Gone(number))
                return
            if isinstance(what, Left | Broke):
                worker.said_good_bye = True
            self._inbox.put(Said(number, what))

    def say(self, number: int, what: ToWorker) -> None:
        """Tell a worker something; one that is dying does not hear it."""
        worker = self._workers.get(number)
        if worker is None:
            return
        try:
            with worker.sending:
                worker.pipe.send(what)
        except OSError:
            pass  # its end is noticed by who listens

    def stop(self) -> None:
        """Ask all of them to leave."""
        for number in list(self._workers):
            self.say(number, Stop())

    @property
    def numbers(self) -> list[int]:
        """Workers that are, or seem to be, there."""
        return list(self._workers)

    def working_on(self, number: int) -> int | None:
        """The event that a worker has begun and not finished."""
        return self._slots[number] or None

    def is_dead(self, number: int, within_s: float) -> bool:
        """Whether this process is over, or will be within so many seconds."""
        worker = self._workers.get(number)
        if worker is None:
            return True
        worker.process.join(within_s)
        return worker.process.exitcode is not None

    def bury(self, number: int) -> tuple[bool, str]:
        """Clear away a worker that is gone; returns whether it said good bye, and how it ended."""
        worker = self._workers.pop(number)
        worker.process.join(_EXIT_WITHIN_S)
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        code = worker.process.exitcode or 0
        worker.process.close()
        worker.pipe.close()
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return worker.said_good_bye, how

    def end(self, within_s: float) -> list[int]:
        """End whoever is left: by asking, and by force when that takes too long; returns who had to be killed."""
        self.stop()
        deadline = time.monotonic() + within_s
        killed = []
        for number, worker in list(self._workers.items()):
            worker.process.join(max(deadline - time.monotonic(), 0.0))
            if worker.process.exitcode is None:
                killed.append(number)
                worker.process.kill()
            self.bury(number)
        return killed


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
