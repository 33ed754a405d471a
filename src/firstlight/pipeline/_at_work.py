"""What runs and chains of them have in common for who waits for them."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

__all__ = ["AtWork"]

_PROGRESS_EVERY_S = 0.5

Numbers = TypeVar("Numbers", covariant=True)


class AtWork(abc.ABC, Generic[Numbers]):
    """Something that tells its numbers while it goes on, and ends with a with block."""

    @property
    @abc.abstractmethod
    def stats(self) -> Numbers:
        """The numbers, now."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Ask it to end; returns at once."""

    @abc.abstractmethod
    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end, however that is; False if it did not come in time. Ctrl-C stops it."""

    def __iter__(self) -> Iterator[Numbers]:
        """The numbers about every half second, and once at the end; errors are raised by ``result()``, not here."""
        while not self.join(_PROGRESS_EVERY_S):
            yield self.stats
        yield self.stats

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.join()
