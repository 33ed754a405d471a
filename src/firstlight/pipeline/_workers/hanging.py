"""Workers that are too long at one event: who they are, and where they hang."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["SIGNAL", "Overdue", "answering", "traceback_of"]

#: Asks a worker process for its traceback.
SIGNAL = signal.SIGUSR2

_WITHIN_S = 1.0
_LOOK_EVERY_S = 0.01
#: The call of the worker is made here, so frames from here on are ours.
_OURS = f"{os.sep}firstlight{os.sep}pipeline{os.sep}_step.py"


class Overdue:
    """Tells which workers are at the same call for longer than they may be.

    Parameters
    ----------
    after_s
        So long is allowed.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._since: dict[int, tuple[int, float]] = {}

    def look(self, now_s: float, working_on: Mapping[int, int | None]) -> list[int]:
        """Who works on what, now; returns the workers that are overdue, each once."""
        overdue = []
        for worker, call in working_on.items():
            known = self._since.get(worker)
            if call is None:
                self._since.pop(worker, None)
            elif known is None or known[0] != call:
                self._since[worker] = (call, now_s)
            elif now_s - known[1] > self._after_s:
                overdue.append(worker)
                self._since[worker] = (call, float("inf"))
        return overdue

    def forget(self, worker: int) -> None:
        """Another process is this worker now."""
        self._since.pop(worker, None)


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """Let this process write its traceback into a file when it gets `SIGNAL`, also while compiled code hangs."""
    with path.open("w") as file:
        faulthandler.register(SIGNAL, file=file, all_threads=True)
        try:
            yield
        finally:
            faulthandler.unregister(SIGNAL)


def traceback_of(pid: int, path: Path) -> str:
    """Ask a process where it is; the frames of the user's code, the innermost first. Empty if it does not answer."""
    earlier = _written(path, 0)
    try:
        os.kill(pid, SIGNAL)
    except ProcessLookupError:
        return ""
    deadline = time.monotonic() + _WITHIN_S
    text = b""
    while time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
        before, text = text, _written(path, len(earlier))
        if text and text == before:
            break
    return _of_user(text.decode(errors="replace"))


def _written(path: Path, start: int) -> bytes:
    return path.read_bytes()[start:] if path.exists() else b""


def _of_user(text: str) -> str:
    """Of all threads the one that calls the worker, without what is below that call."""
    for thread in text.split("\n\n"):
        lines = thread.splitlines()
        ours = next((at for at, line in enumerate(lines) if _OURS in line), None)
        if ours is not None:
            return "\n".join(["Where it was (most recent call first):", *lines[1:ours]])
    return text
