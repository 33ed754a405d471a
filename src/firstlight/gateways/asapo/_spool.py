"""Data too large for memory go to a file in pieces, through a few buffers that all producers share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import TypeVar

from firstlight.gateways.asapo._files import FileWriter
from firstlight.gateways.asapo._link import Link

__all__ = ["Chunks", "Spool"]

T = TypeVar("T")


class Chunks:
    """A few buffers, one for whoever is being listened to; the others wait.

    Parameters
    ----------
    n, size
        How many, of how many bytes; taken when they are needed for the first time.
    """

    def __init__(self, n: int = 8, size: int = 4 << 20) -> None:
        self._left = n
        self._size = size
        self._free: list[memoryview] = []
        self._waiting: deque[tuple[Spool, Callable[[memoryview], None]]] = deque()

    @property
    def is_wanted(self) -> bool:
        """Somebody waits."""
        return bool(self._waiting)

    def take(self, who: Spool, act: Callable[[memoryview], None]) -> None:
        """Call `act` with a buffer, now or when there is one; `give` it back."""
        if self._free:
            act(self._free.pop())
        elif self._left:
            self._left -= 1
            act(memoryview(bytearray(self._size)))
        else:
            self._waiting.append((who, act))

    def give(self, chunk: memoryview) -> None:
        """The buffer is not used any more."""
        if self._waiting:
            self._waiting.popleft()[1](chunk)
        else:
            self._free.append(chunk)

    def forget(self, who: Spool) -> None:
        """They do not wait any more."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] is not who)


class Spool:
    """Receives the data of one message into a file.

    Parameters
    ----------
    size
        Bytes.
    then
        Called when the file is complete; with True if it replaced another one.
    """

    def __init__(
        self, link: Link, chunks: Chunks, root: Path, parts: tuple[str, ...], *, size: int, then: Callable[[bool], None]
    ) -> None:
        self._link = link
        self._chunks = chunks
        self._left = size
        self._then = then
        self._file: FileWriter | None = None
        self._chunk: memoryview | None = None
        #: Whoever of thread and loop is later takes the file away: when the service stops, no thread is heard any more.
        self._lock = Lock()
        self._at_work = False
        self._closed = False

        def open_file() -> None:
            self._file = FileWriter.open(root, parts)

        self._run(open_file, self._opened)

    def _opened(self, future: Future[None]) -> None:
        if self._returned():
            future.result()
            self._next()

    def _next(self) -> None:
        if self._left:
            self._chunks.take(self, self._receive)
        else:
            assert self._file is not None
            self._run(self._file.commit, self._committed)

    def _receive(self, chunk: memoryview) -> None:
        self._chunk = chunk
        self._link.holding[self._chunks] = self._link.now
        piece = chunk[: min(self._left, len(chunk))]
        self._left -= len(piece)
        self._link.receive(piece, lambda: self._append(piece))

    def _append(self, piece: memoryview) -> None:
        assert self._file is not None
        append = self._file.append
        self._run(lambda: append(piece), self._appended)

    def _appended(self, future: Future[None]) -> None:
        if self._returned():
            self._give_chunk()
            future.result()
            self._next()

    def _committed(self, future: Future[bool]) -> None:
        self._file = None  # whatever became of it, there is nothing left to take away
        if self._returned():
            self._then(future.result())

    def _run(self, act: Callable[[], T], then: Callable[[Future[T]], None]) -> None:
        def run() -> T:
            try:
                return act()
            finally:
                with self._lock:
                    self._at_work = False
                    abandoned = self._closed
                if abandoned and self._file is not None:
                    self._file.abort()

        self._at_work = True
        self._link.in_thread(run, then)

    def _returned(self) -> bool:
        """A thread is done; False if there is nothing more to be done for this message."""
        if self._closed:
            self._clean_up()
        return not self._closed

    def _give_chunk(self) -> None:
        chunk, self._chunk = self._chunk, None
        self._link.holding.pop(self._chunks, None)
        if chunk is not None:
            self._chunks.give(chunk)

    def close(self) -> None:
        """Take away what is not complete."""
        if self._closed:
            return
        with self._lock:
            self._closed = True
            at_work = self._at_work
        self._chunks.forget(self)
        if not at_work:
            self._clean_up()

    def _clean_up(self) -> None:
        self._give_chunk()
        file, self._file = self._file, None
        if file is not None:
            self._link.in_thread(file.abort, lambda future: future.result())
