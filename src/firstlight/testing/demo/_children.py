"""The processes of a demonstration: started, listened to, ended, and gone when whoever started them is gone."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from firstlight.errors import FirstlightError

__all__ = ["Child", "Talk", "how_it_ended", "without_interrupts"]

_ORPHANED = 70
_EXIT_WITHIN_S = 5.0

Task = TypeVar("Task")


class Talk:
    """A child's side of the conversation.

    Parameters
    ----------
    pipe
        To the parent.
    wards
        Processes that the parent cannot end when it is killed: asked to end (SIGTERM) as soon as it is gone.

    Attributes
    ----------
    stopping
        Set when the parent wants this process to end.
    """

    def __init__(self, pipe: Connection, wards: tuple[int, ...]) -> None:
        self._pipe = pipe
        self._wards = wards
        self._lock = threading.Lock()
        self._told: dict[str, Any] = {}
        self._news = threading.Condition()
        self.stopping = threading.Event()
        threading.Thread(target=self._listen, name="listen to the demonstration", daemon=True).start()

    def say(self, **facts: Any) -> None:
        """Tell the parent; what was said under the same name before is replaced."""
        with self._lock:
            self._pipe.send(facts)

    def told(self, word: str, *, within_s: float = 0.0) -> Any:
        """What the parent said under this word; None if it has not, or this process shall end instead."""
        with self._news:
            self._news.wait_for(lambda: word in self._told or self.stopping.is_set(), within_s)
            return self._told.get(word)

    def _listen(self) -> None:
        while True:
            try:
                word, value = self._pipe.recv()
            except (EOFError, OSError):
                for pid in self._wards:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
                os._exit(_ORPHANED)
            with self._news:
                self._told[word] = value
                if word == "stop":
                    self.stopping.set()
                self._news.notify_all()


class _Notes(logging.Handler):
    """Warnings become notes of the demonstration, which has the terminal."""

    def __init__(self, talk: Talk) -> None:
        super().__init__(logging.WARNING)
        self._talk = talk

    def emit(self, record: logging.LogRecord) -> None:
        self._talk.say(note=record.getMessage())


def _main(pipe: Connection, act: Callable[[Any, Talk], None], task: Any, wards: tuple[int, ...], log: Path) -> None:
    _write_errors_to(log)
    # Ctrl-C reaches every process of the terminal; the parent decides what it means for us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    talk = Talk(pipe, wards)
    logging.getLogger().addHandler(_Notes(talk))
    try:
        act(task, talk)
        talk.say(done=True)
    except FirstlightError as error:
        talk.say(error=error)
    except OSError as error:
        talk.say(error=FirstlightError(f"{error.filename}: {error.strerror}" if error.filename else str(error)))


def _write_errors_to(log: Path) -> None:
    """Tracebacks and what libraries print would spoil the picture on the terminal, and be gone when it is needed."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, sys.stderr.fileno())
    os.close(file)
    logging.getLogger().addHandler(logging.StreamHandler())


def how_it_ended(exit_code: int | None, log: Path) -> str:
    """An end before its time in a few words, and where its log is."""
    how = f"exit code {exit_code}"
    if exit_code is not None and exit_code < 0:
        with contextlib.suppress(ValueError):
            how = f"killed by {signal.Signals(-exit_code).name}, {how}"
    logged = log.exists() and log.stat().st_size > 0
    return f"ended before its time ({how}); {f'its log is {log}' if logged else 'it logged nothing'}"


class Child:
    """One process, from its start to its end.

    Parameters
    ----------
    name
        For messages to people.
    act
        Runs in the process with `task` and a `Talk`.
    log
        What it prints as errors goes there.
    wards
        See `Talk`.

    Attributes
    ----------
    facts
        What it said so far; ``done`` when it came to its end.
    notes
        Warnings that it logged, each once.
    """

    def __init__(
        self, name: str, act: Callable[[Task, Talk], None], task: Task, *, log: Path, wards: tuple[int, ...] = ()
    ) -> None:
        # Spawned, not forked: a fork would copy the locks of the threads that are there in whatever state they are.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.name = name
        self._log = log
        self.facts: dict[str, Any] = {}
        self.notes: list[str] = []
        self._process = context.Process(target=_main, args=(theirs, act, task, wards, log), name=name, daemon=True)
        with without_interrupts():
            self._process.start()
        # The other end must be open in the child alone, or its death would not close the pipe.
        theirs.close()

    @property
    def done(self) -> bool:
        """It came to its end."""
        return bool(self.facts.get("done"))

    def look(self) -> dict[str, Any]:
        """Take in what it said; returns all facts.

        Raises
        ------
        FirstlightError
            If it failed, or ended before its time.
        """
        try:
            while self._pipe.poll():
                self._take(self._pipe.recv())
        except (EOFError, OSError):
            if not self.done:
                self._process.join(_EXIT_WITHIN_S)
                text = f"the {self.name} process {how_it_ended(self._process.exitcode, self._log)}"
                raise FirstlightError(text) from None
        return self.facts

    def _take(self, facts: dict[str, Any]) -> None:
        note = facts.pop("note", None)
        if note is not None and note not in self.notes:
            self.notes.append(note)
        error = facts.pop("error", None)
        if error is not None:
            # So that nobody waits for it, and the error is told once.
            self.facts["done"] = True
            raise error
        self.facts.update(facts)

    def say(self, word: str, value: Any = True) -> None:
        """Tell it something; if it is gone, that is noticed by `look`."""
        with contextlib.suppress(OSError):
            self._pipe.send((word, value))

    def end(self, within_s: float = 3.0) -> None:
        """End it: by asking, and by force when that takes too long."""
        self.say("stop")
        deadline = time.monotonic() + within_s
        while self._process.is_alive() and time.monotonic() < deadline:
            # It may hang on telling us something while the pipe is full.
            with contextlib.suppress(FirstlightError):
                self.look()
            self._process.join(0.02)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


@contextlib.contextmanager
def without_interrupts() -> Iterator[None]:
    """Processes that are started here do not get the Ctrl-C of the terminal; this one gets it afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
