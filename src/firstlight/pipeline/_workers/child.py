"""The inside of a worker process: listen to the pool, work for one run after the other, leave when told, or when nobody
is there."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from contextlib import ExitStack, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from firstlight.errors import ConfigurationError, PipelineError
from firstlight.pipeline._pipeline import Pipeline
from firstlight.pipeline._reduction.records import Record, WireRecord, to_wire
from firstlight.pipeline._step import told
from firstlight.pipeline._steps import Steps
from firstlight.pipeline._threads import as_ours
from firstlight.pipeline._workers.child_run import Orders, RunOfWorker
from firstlight.pipeline._workers.hanging import answering
from firstlight.pipeline._workers.slots import Slot
from firstlight.pipeline._workers.talk import Begin, Broke, FromWorker, Job, Left, Ping, Quit, Stop

__all__ = ["UNGUARDED", "check_guarded", "unguarded_text", "worker_main"]

logger = logging.getLogger(__name__)

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


def worker_main(pipe: Connection, slot: Slot, trace: Path | None = None) -> None:
    """Run one worker process, for one run after the other.

    Parameters
    ----------
    pipe
        To the pool.
    slot
        Where this process shows what it does.
    trace
        File for the answer to the question where it is.
    """
    global _is_worker
    _is_worker = True
    # Ctrl-C reaches every process of the terminal; the run decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # A process that the worker forks must not keep the pipe open when this one dies.
    os.register_at_fork(after_in_child=pipe.close)
    try:
        with answering(trace) if trace is not None else nullcontext():
            _Child(pipe, slot).serve()
    except (BrokenPipeError, ConnectionResetError):
        os._exit(_ORPHANED)  # nobody is left to tell


class _Child:
    """What stays from run to run: the line to the pool, and what the workers leave behind."""

    def __init__(self, pipe: Connection, slot: Slot) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()
        self._slot = slot
        self._orders: queue.SimpleQueue[Orders | None] = queue.SimpleQueue()
        #: Those of the run that was begun last, for the thread that listens.
        self._current: Orders | None = None
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
            pass  # the run is dead: whoever has its work now must not meet us
        except Exception:  # a mistake of ours: who cannot listen is best replaced
            logger.exception("a worker process cannot listen any more")
        os._exit(_ORPHANED)

    def _hear(self, word: bytes) -> None:
        self._slot.heard()
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
            self._current = Orders(run, said.job)
            self._orders.put(self._current)
        elif isinstance(said, Quit):
            self._orders.put(None)
        elif isinstance(said, Ping):
            pass  # that it was read is the answer
        elif self._current is not None and run == self._current.run:
            self._current.hear(said)

    def _say(self, run: int, what: FromWorker) -> None:
        word = pickle.dumps((run, what))
        with self._sending:
            self._pipe.send_bytes(word)

    def _work(self, orders: Orders) -> Left | Broke:
        try:
            job = _unpickled(orders.job)
            with ExitStack() as stack:
                say = partial(self._say, orders.run)
                return RunOfWorker(job, orders, self._slot, say).run(stack, self._steps)
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
