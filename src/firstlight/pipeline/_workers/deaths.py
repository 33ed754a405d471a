"""Worker processes that end in the middle of a run: what was to blame, and what follows. A pure state machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Death", "Deaths", "Fatal"]

#: Workers that die at no event before they have done anything: after more of them it is not by chance.
_MAX_EARLY = 3


@dataclass(frozen=True, slots=True)
class Fatal:
    """An event, or share of one, at which worker processes ended: how many did, and about the last one.

    Attributes
    ----------
    how
        In words, to stand behind "was".
    hung
        We have killed it.
    trace
        Where it was, if it could say so.
    """

    n: int
    how: str
    hung: bool
    trace: str

    @property
    def error_type(self) -> str:
        """What stands for an exception where events are listed."""
        return "WorkerHung" if self.hung else "WorkerDied"


class Death(NamedTuple):
    """What follows from the end of a process.

    Attributes
    ----------
    how
        In words.
    call
        What is to blame; None if it is not known, or was not its fault.
    hung
        We have killed it.
    given_up
        If nobody shall try this call again.
    """

    how: str
    call: int | None
    hung: bool
    given_up: Fatal | None


class _Killed(NamedTuple):
    call: int | None
    why: str
    trace: str


class Deaths:
    """Blames events for the ends of processes, and knows when to stop trying.

    An event that a process had in its hands when it ended is tried again by another, as often as the pipeline tries an
    event. Where a process had none in its hands, it counts how often that happened in a row to workers that have
    not done anything meanwhile: somebody who kills workers now and then must not end the run, a library that
    cannot be loaded must.

    Parameters
    ----------
    max_attempts
        At one event.
    """

    def __init__(self, *, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._fatal: dict[int, Fatal] = {}
        self._killed: dict[int, _Killed] = {}
        self._early: dict[int, int] = {}

    def kill(self, worker: int, call: int | None, *, why: str, trace: str = "") -> None:
        """The process of a worker is killed by us now, because of what it has in its hands, or of nothing."""
        self._killed[worker] = _Killed(call, why, trace)

    def left(self, worker: int) -> None:
        """The process of a worker has left the run before it ended."""
        self._killed.pop(worker, None)

    def works(self, worker: int) -> None:
        """The process that is this worker now has done something."""
        self._early.pop(worker, None)

    def died(self, worker: int, call: int | None, how: str) -> Death:
        """The process of a worker has ended, and had this in its hands."""
        killed = self._killed.pop(worker, None)
        if killed is not None and killed.call != call:
            # It went on in the same moment: neither this event nor that one has killed it.
            return Death(f"{killed.why}, which was over in that moment", None, False, None)
        hung = killed is not None
        if killed is not None:
            how = killed.why
        if call is None:
            self._early[worker] = self._early.get(worker, 0) + 1
            return Death(how, None, hung, None)
        known = self._fatal.get(call)
        self._fatal[call] = Fatal(known.n + 1 if known else 1, how, hung, killed.trace if killed else "")
        return Death(how, call, hung, self.given_up(call))

    def given_up(self, call: int) -> Fatal | None:
        """What this has done to worker processes, if that is reason enough not to try it again."""
        fatal = self._fatal.get(call)
        return fatal if fatal is not None and fatal.n >= self._max_attempts else None

    @property
    def n_early(self) -> int:
        """Processes that ended at no event, since their workers have last done anything."""
        return sum(self._early.values())

    @property
    def too_many_early(self) -> bool:
        """It is not by chance."""
        return self.n_early > _MAX_EARLY
