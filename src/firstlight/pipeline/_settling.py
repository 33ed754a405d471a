"""Records on their way out of a worker process, while the worker goes on with the next event."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from firstlight.errors import FirstlightError
from firstlight.pipeline._feeds import Task
from firstlight.pipeline._records import WireRecord
from firstlight.pipeline._threads import start

__all__ = ["Settler"]

#: What may wait: messages of events that are not settled stay in the service's memory.
_MAX_TASKS = 512
_MAX_BYTES = 64 << 20


class Settler:
    """Makes records safe, and only then lets go of their events.

    A thread takes whatever has come together while it was busy with the last lot: one record at once when there is
    time, many in one go when they come fast.

    Parameters
    ----------
    settle
        Makes records safe, and returns when they are.
    """

    def __init__(self, settle: Callable[[Sequence[WireRecord]], None]) -> None:
        self._settle = settle
        self._changed = threading.Condition()
        self._waiting: list[tuple[Task, WireRecord | None]] = []
        self._n_bytes = 0
        self._busy = False
        self._closing = False
        self._error: FirstlightError | None = None
        self._thread = start("settle records", self._run, self._failed)

    def put(self, task: Task, record: WireRecord | None) -> None:
        """Hand over what became of an event; None if its record is safe already. Waits while too much waits.

        Raises
        ------
        FirstlightError
            If earlier records could not be made safe.
        """
        with self._changed:
            while not self._error and (len(self._waiting) >= _MAX_TASKS or self._n_bytes >= _MAX_BYTES):
                self._changed.wait()
            self._check()
            self._waiting.append((task, record))
            self._n_bytes += task.n_bytes
            self._changed.notify_all()

    def drain(self) -> None:
        """Wait until everything is settled; raises as `put` does."""
        with self._changed:
            while (self._waiting or self._busy) and not self._error:
                self._changed.wait()
            self._check()

    def check(self) -> None:
        """Raise as `put` does."""
        with self._changed:
            self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the thread; what was not drained is given up."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                lot, self._waiting, self._n_bytes = self._waiting, [], 0
                self._busy = True
                self._changed.notify_all()
            self._settle_all(lot)
            # The messages of these events are let go of before the next ones are waited for.
            del lot
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _failed(self, error: FirstlightError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _settle_all(self, lot: list[tuple[Task, WireRecord | None]]) -> None:
        # A function of its own: a variable that is left over would keep the message of the last event.
        self._settle([record for _, record in lot if record is not None])
        for task, _ in lot:
            task.done()
