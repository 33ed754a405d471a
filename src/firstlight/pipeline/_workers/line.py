"""The run's end of the pipe to a worker process, which may read what it is told, or not."""

from __future__ import annotations

import queue
import select
import threading
from multiprocessing.connection import Connection

__all__ = ["Line"]

#: A pipe with room has room for this: Linux calls a socket writable while three quarters of its buffer are free, which
#: are 156 kiB as it is set up. Connections write so much in one go.
_SMALL = 16 << 10
#: The pipe of a worker that is over breaks at once.
_CLOSE_WITHIN_S = 1.0


class Line:
    """Says words to a worker, in order, and waits for nobody.

    A word that finds room in the pipe is written at once. One that does not, because it is large or because the worker
    does not read, is left to a thread, and so is what comes behind it.

    Attributes
    ----------
    n_said
        Words so far, whether they are in the pipe or not.

    Parameters
    ----------
    pipe
        To the worker; others may read from it.
    name
        Of the thread.
    """

    def __init__(self, pipe: Connection, *, name: str) -> None:
        self._pipe = pipe
        self._room = select.poll()
        self._room.register(pipe.fileno(), select.POLLOUT)
        self._lock = threading.Lock()
        self._unsent: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._n_unsent = 0
        self.n_said = 0
        self._thread = threading.Thread(target=self._send, name=name, daemon=True)
        self._thread.start()

    def say(self, word: bytes) -> None:
        """Say this; a worker that is dying does not hear it."""
        with self._lock:
            self.n_said += 1
            if not self._n_unsent and len(word) <= _SMALL and self._room.poll(0):
                self._write(word)
                return
            self._n_unsent += 1
            self._unsent.put(word)

    def _send(self) -> None:
        while (word := self._unsent.get()) is not None:
            self._write(word)
            with self._lock:
                self._n_unsent -= 1

    def _write(self, word: bytes) -> None:
        try:
            self._pipe.send_bytes(word)
        except OSError:
            pass  # its end is noticed by who listens

    def close(self) -> None:
        """The worker is over; the pipe may be closed now."""
        self._unsent.put(None)
        self._thread.join(_CLOSE_WITHIN_S)
