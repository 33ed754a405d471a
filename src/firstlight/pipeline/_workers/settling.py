"""Records on their way out of a worker process, while the worker goes on with the next event."""

from __future__ import annotations

import threading
from collections.abc import Callable

from firstlight.client import Producer
from firstlight.errors import FirstlightError
from firstlight.pipeline._reduction.outlets import Outlet
from firstlight.pipeline._reduction.records import WireRecord
from firstlight.pipeline._threads import start
from firstlight.pipeline._workers.feeds import Task

__all__ = ["Settler"]

#: What may wait: messages of events that are not settled stay in the service's memory.
_MAX_TASKS = 512
_MAX_BYTES = 64 << 20


class Settler:
    """Makes records safe, and only then lets go of their events.

    A thread takes whatever has come together while it was busy with the last lot: many in one go when they come fast.
    A record behind which the worker rests is sent by the worker's own thread, which hears that it is safe while it waits for
    the next event: no other thread has to wake up for it.

    Parameters
    ----------
    outlet
        Makes records safe.
    let_go
        Called when some tasks are done.
    """

    def __init__(self, outlet: Outlet, let_go: Callable[[], None]) -> None:
        self._outlet = outlet
        self._let_go = let_go
        self._changed = threading.Condition()
        self._waiting: list[tuple[Task, WireRecord | None]] = []
        #: Whose record was sent by the worker's thread.
        self._begun: Task | None = None
        self._n_bytes = 0
        self._busy = False
        self._closing = False
        self._error: FirstlightError | None = None
        self._thread = start("settle records", self._run, self._failed)

    @property
    def begun(self) -> Producer | None:
        """Tells when a record that this thread has sent is safe: then call `check`."""
        return self._outlet.begun if self._begun is not None else None

    def put(self, task: Task, record: WireRecord | None, *, rests: bool = False) -> None:
        """Hand over what became of an event; None if its record is safe already. Waits while too much waits.

        Parameters
        ----------
        rests
            The worker has nothing else to do now.

        Raises
        ------
        FirstlightError
            If earlier records could not be made safe.
        """
        if self._begun is not None:
            self.check()
        with self._changed:
            if rests and record is not None and not self._waiting and not self._busy and self._outlet.begin(record):
                self._begun = task
                return
            while not self._error and (len(self._waiting) >= _MAX_TASKS or self._n_bytes >= _MAX_BYTES):
                self._changed.wait()
            self._check()
            self._hand_over(task, record)

    def _hand_over(self, task: Task, record: WireRecord | None) -> None:
        self._waiting.append((task, record))
        self._n_bytes += task.n_bytes
        self._changed.notify_all()

    def drain(self) -> None:
        """Wait until everything is settled; raises as `put` does."""
        self.check()
        with self._changed:
            while (self._waiting or self._busy) and not self._error:
                self._changed.wait()
            self._check()

    def check(self) -> None:
        """Settle what was begun: here if it is safe by now, otherwise the thread waits for it; raises as `put` does."""
        if self.begun is not None and self.begun.settled:
            self._settle_all(self._take_begun())
        with self._changed:
            for begun, _ in self._take_begun():
                self._hand_over(begun, None)
            self._check()

    def _take_begun(self) -> list[tuple[Task, WireRecord | None]]:
        begun, self._begun = self._begun, None
        return [] if begun is None else [(begun, None)]

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
        self._outlet.settle([record for _, record in lot if record is not None])
        for task, _ in lot:
            task.done()
            del task
        lot.clear()  # with what is told that they are done goes the memory of their messages
        self._let_go()
