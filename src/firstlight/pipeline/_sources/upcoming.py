"""Which stream is next: a pure state machine for a pipeline that goes from scan to scan."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal, Protocol, TypeAlias

__all__ = ["First", "Upcoming"]

#: With which streams to begin: those that come into being from now on, also those that are not finished, or all.
First: TypeAlias = Literal["next", "open", "all"]


class _Known(Protocol):
    """What there is to know of a stream; `StreamInfo` knows it."""

    stream: str
    created_ns: int
    finished: bool


class Upcoming:
    """The streams that a pipeline will go to, in the order in which they came into being.

    Parameters
    ----------
    pattern
        Names of streams, as a shell matches names of files.
    first
        Which of those that are there at the first look count.
    """

    def __init__(self, pattern: str, first: First) -> None:
        self._pattern = pattern
        self._first = first
        self._looked = False
        self._seen: dict[str, int] = {}
        self._waiting: deque[str] = deque()
        self._others: set[str] = set()
        self._hinted = ""
        #: Streams that were under way at the first look, and are not gone to.
        self.left_out: list[str] = []

    def look(self, streams: Iterable[_Known]) -> None:
        """These streams are there; others may have been seen before."""
        found = sorted(streams, key=lambda known: known.created_ns)
        for known in found:
            # One of the same name that was deleted and made again is another scan.
            if self._seen.get(known.stream) == known.created_ns:
                continue
            self._seen[known.stream] = known.created_ns
            if known.stream == self._hinted:
                self._waiting.appendleft(known.stream)
                self._hinted = ""
            elif not self._wanted(known):
                if not known.finished and fnmatchcase(known.stream, self._pattern):
                    self.left_out.append(known.stream)
            elif fnmatchcase(known.stream, self._pattern):
                self._waiting.append(known.stream)
            else:
                self._others.add(known.stream)
        self._looked = True

    def _wanted(self, known: _Known) -> bool:
        return self._looked or self._first == "all" or (self._first == "open" and not known.finished)

    @property
    def any_waiting(self) -> bool:
        """There is a stream to go to."""
        return bool(self._waiting)

    def hint(self, stream: str) -> None:
        """The producer says that this stream follows on the one that was worked on: it is next, whatever its name."""
        if stream in self._waiting:
            self._waiting.remove(stream)
            self._waiting.appendleft(stream)
        elif stream in self._others:
            self._others.remove(stream)
            self._waiting.appendleft(stream)
        elif stream not in self._seen:
            self._hinted = stream

    def take(self) -> str | None:
        """The stream to go to now; None if there is none yet."""
        return self._waiting.popleft() if self._waiting else None
