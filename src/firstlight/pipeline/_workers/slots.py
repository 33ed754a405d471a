"""What worker processes show of themselves, in memory that stays when they are killed."""

from __future__ import annotations

from contextlib import AbstractContextManager
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Any

__all__ = ["Slot", "Slots"]

_CALL, _READY, _TIMED, _HEARD, _DONE, _SIZE = range(6)


class Slots:
    """One `Slot` for each worker; goes to a process when that is started."""

    def __init__(self, context: BaseContext, n_workers: int) -> None:
        self._shared: Any = context.RawArray("q", n_workers * _SIZE)
        self._n = n_workers

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, worker: int) -> Slot:
        return Slot(self._shared, worker)


class Slot:
    """What one worker process shows: written by the process, and read by the run.

    Parameters
    ----------
    shared : (n * 5,) int64 in shared memory
    worker
        Which of the n.
    """

    def __init__(self, shared: Any, worker: int) -> None:
        self._shared = shared
        self._at = worker * _SIZE

    def clear(self) -> None:
        """Another process begins here."""
        for field in range(_SIZE):
            self._shared[self._at + field] = 0

    # -- by the process -----------------------------------------------------------------------------------------------

    def at(self, call: int) -> AbstractContextManager[None]:
        """The process has this event (or share of one) in its hands: if it dies now, that may be why."""
        return _Shown(self._shared, self._at + _CALL, call)

    def timed(self) -> AbstractContextManager[None]:
        """User code works on the event, which must not take for ever."""
        return _Shown(self._shared, self._at + _TIMED, True)

    def ready(self, is_ready: bool = True) -> AbstractContextManager[None]:
        """The process is set up, and reads what it is told within moments; or it is not for a while, within that."""
        return _Shown(self._shared, self._at + _READY, is_ready)

    def heard(self) -> None:
        """It has read a word."""
        self._shared[self._at + _HEARD] += 1

    def did(self) -> None:
        """What became of one event, or of several, is safe."""
        self._shared[self._at + _DONE] += 1

    # -- by the run ---------------------------------------------------------------------------------------------------

    @property
    def call(self) -> int | None:
        """What it has in its hands."""
        call: int = self._shared[self._at + _CALL]
        return call or None

    @property
    def timed_call(self) -> int | None:
        """The same, while user code works on it."""
        call = self.call
        return call if self._shared[self._at + _TIMED] else None

    @property
    def is_ready(self) -> bool:
        """Whether it should read what it is told."""
        return bool(self._shared[self._at + _READY])

    @property
    def n_heard(self) -> int:
        """Words that it has read."""
        return int(self._shared[self._at + _HEARD])

    @property
    def has_done(self) -> bool:
        """Whether it was good for anything yet."""
        return bool(self._shared[self._at + _DONE])


class _Shown:
    """Shows a value, and what was shown before when that is over. A class of its own, because it is there for each event."""

    __slots__ = ("_at", "_before", "_shared", "_value")

    def __init__(self, shared: Any, at: int, value: int) -> None:
        self._shared = shared
        self._at = at
        self._value = value

    def __enter__(self) -> None:
        self._before = self._shared[self._at]
        self._shared[self._at] = self._value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(
            kind, Exception
        ):  # a SystemExit ends the process, so it stands for what it died of
            self._shared[self._at] = self._before
