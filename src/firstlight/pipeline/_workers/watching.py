"""Watching over the workers of a run: who hangs is killed, and what follows is that of a death."""

from __future__ import annotations

import time

from firstlight.pipeline._workers.deaths import Deaths
from firstlight.pipeline._workers.hanging import Overdue
from firstlight.pipeline._workers.pool import Pool
from firstlight.pipeline._workers.talk import Ping

__all__ = ["Watch"]

_LOOK_EVERY_S = 0.2
#: A longer time between two looks counts as so much: nobody is blamed for what passes while all of us are stopped.
_LOOK_COUNTS_S = 1.0


class Watch:
    """Finds workers whose user code takes too long for one event, and workers that do not read what they are told.

    The second is seen by asking: a process that is stopped between events, or that compiled code holds up altogether,
    works on nothing and keeps what it was given.

    Parameters
    ----------
    after_s
        What is too long.
    deaths
        Is told who is killed, and why.
    """

    def __init__(self, pool: Pool, deaths: Deaths, after_s: float) -> None:
        self._pool = pool
        self._deaths = deaths
        self._after_s = after_s
        self._working = Overdue(after_s)
        self._deaf = Overdue(after_s)
        self._looked_s = time.monotonic()
        self._watched_s = self._ask_s = 0.0

    def look(self) -> None:
        """Look at all workers, if it is time."""
        since_s = time.monotonic() - self._looked_s
        if since_s < _LOOK_EVERY_S:
            return
        self._looked_s += since_s
        self._watched_s += min(since_s, _LOOK_COUNTS_S)
        self._look_at_work()
        self._look_who_reads()
        if self._watched_s >= self._ask_s:
            self._ask_s = self._watched_s + self._after_s / 2
            for number in self._pool.numbers:
                if self._pool.has_read(number):
                    self._pool.say(number, Ping())

    def forget(self, number: int) -> None:
        """A worker is gone; another process will be it."""
        self._working.forget(number)
        self._deaf.forget(number)

    def _look_at_work(self) -> None:
        slots = self._pool.slots
        calls = {number: slots[number].timed_call for number in self._pool.numbers}
        for number in self._working.look(self._watched_s, calls):
            trace = self._pool.where(number)
            # That took a while, too.
            if slots[number].timed_call == calls[number]:
                why = f"killed because it took longer than {self._after_s:g} s"
                self._deaths.kill(number, calls[number], why=why, trace=trace)
                self._pool.kill(number)

    def _look_who_reads(self) -> None:
        slots = self._pool.slots
        heard = {number: slots[number].n_heard if self._should_read(number) else None for number in self._pool.numbers}
        for number in self._deaf.look(self._watched_s, heard):
            trace = self._pool.where(number)
            if slots[number].n_heard == heard[number]:
                why = f"killed because it read nothing for longer than {self._after_s:g} s"
                self._deaths.kill(number, slots[number].call, why=why, trace=trace)
                self._pool.kill(number)

    def _should_read(self, number: int) -> bool:
        """Whether it has something to read, and no user code that could keep it from that and is watched itself."""
        slot = self._pool.slots[number]
        return slot.is_ready and slot.timed_call is None and not self._pool.has_read(number)
